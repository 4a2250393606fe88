"""The embedded model on disk: what stock AutoProcessor and AutoModelForImageTextToText read."""

import json
from pathlib import Path
from typing import Any

from transformers_agci.embedded import architecture as shape
from transformers_agci.embedded.atlas import CANVAS
from transformers_agci.storage.atomic import write_atomic


def processor_for(tokenizer: Any) -> Any:
    """A Qwen2_5_VLProcessor that brings every image to as many pixels as the training canvas has."""
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    pixels = CANVAS * CANVAS
    sizes = {
        "patch_size": shape.PATCH,
        "merge_size": shape.MERGE,
        "temporal_patch_size": shape.VISION["temporal_patch_size"],
        "min_pixels": pixels,
        "max_pixels": pixels,
        "image_mean": list(shape.IMAGE_MEAN),
        "image_std": list(shape.IMAGE_STD),
    }
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**sizes),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**sizes),
        chat_template=shape.CHAT_TEMPLATE,
    )


def save_checkpoint(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write weights (float16, half the size), configuration and processor; `model` keeps its weights and dtype.

    The configuration says float32: transformers 5 would otherwise compute in float16, five times slower on a CPU.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config.update(
        do_sample=False,
        bos_token_id=None,
        eos_token_id=[tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.convert_tokens_to_ids("<|endoftext|>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    # The output layer is the embedding: written once.
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    halves = {name: tensor.to(torch.float16) for name, tensor in weights.items()}
    model.save_pretrained(folder, state_dict=halves)
    (folder / "model.safetensors").chmod(0o644)
    processor_for(tokenizer).save_pretrained(folder)
    _complete_configuration(folder / "config.json", type(model).__name__)


def _complete_configuration(path: Path, architecture: str) -> None:
    """Say at the top of config.json what transformers 4.57 leaves to the parts, and 5 looks for there."""
    config = _in_float32(json.loads(path.read_text()))
    config |= {"architectures": [architecture], "tie_word_embeddings": True}
    write_atomic(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _in_float32(config: dict[str, Any]) -> dict[str, Any]:
    """`config` with "dtype": "float32" in it and in its parts."""
    parts = {name: _in_float32(part) if name.endswith("_config") else part for name, part in config.items()}
    return {**parts, "dtype": "float32"}
