"""Checkpoints in the layout of the original LLaVA repository, written back from tiny transformers models.

model = reference_model("llava")
folder = write_original("llava", model, tmp_path / "llava-v1.5-tiny")           # as downloaded
tower = write_tower(model, tmp_path / "clip-vit-large-patch14-56")              # where it is not inside
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_checkpoints as tiny
import torch
import transformers
from safetensors.torch import save_file

from transformers_agci.conversion.convert import convert

# Names of the live model -> of the original checkpoint. transformers 4 has the tower's "vision_model" in between.
WRITTEN_BACK = (
    ("model.language_model.", "model."),
    ("model.vision_tower.vision_model.", "model.vision_tower.vision_tower.vision_model."),
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.image_newline", "model.image_newline"),
    ("lm_head.", "lm_head."),
)
WORDS = (
    "▁Yes",
    "▁No",
    "▁USER",
    "▁ASSISTANT",
    "▁Is",
    "▁there",
    "▁a",
    "▁picture",
    "▁dog",
    "Yes",
    "No",
    "USER",
    "INST",
    "▁▁",
    "aa",
    "aaa",
)
TOWER_NAME = "openai/clip-vit-large-patch14-56"


# --- tokenizer.model -----------------------------------------------------------------------------------------------


def pieces() -> list[tuple[str, float, int]]:
    """(text, score, kind): specials, bytes, words grown letter by letter with falling scores, then the letters."""
    found: dict[str, tuple[float, int]] = {"<unk>": (0.0, 2), "<s>": (0.0, 3), "</s>": (0.0, 3)}
    found |= {f"<0x{byte:02X}>": (0.0, 6) for byte in range(256)}
    joined = [word[:end] for word in WORDS for end in range(2, len(word) + 1)]
    letters = sorted(set("".join(WORDS)) | set("▁abcdefghijklmnopqrstuvwxyz:?.[]/"))
    for number, text in enumerate([*dict.fromkeys(joined), *letters]):
        found.setdefault(text, (-float(number), 1))
    return [(text, score, kind) for text, (score, kind) in found.items()]


def _varint(value: int) -> bytes:
    head = b""
    while value > 0x7F:
        head += bytes([value & 0x7F | 0x80])
        value >>= 7
    return head + bytes([value])


def _field(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return _varint(number << 3 | 2) + _varint(len(value)) + value
    if isinstance(value, float):
        return _varint(number << 3 | 5) + struct.pack("<f", value)
    return _varint(number << 3) + _varint(value)


def tokenizer_model(
    trainer: dict[int, int] | None = None,
    normalizer: dict[int, Any] | None = None,
    more: tuple[tuple[str, float, int], ...] = (),
) -> bytes:
    """sentencepiece's file: pieces (1), trainer (2: type 3, byte fallback 35, size 4), normalizer (3)."""
    listed = (*pieces(), *more)
    message = b"".join(
        _field(1, _field(1, text.encode()) + _field(2, score) + (_field(3, kind) if kind != 1 else b""))
        for text, score, kind in listed
    )
    settings = {4: len(listed), 3: 2, 35: 1} | (trainer or {})
    message += _field(2, b"".join(_field(number, value) for number, value in settings.items()))
    normal = {1: b"identity", 3: 1, 4: 0, 5: 1} | (normalizer or {})
    return message + _field(3, b"".join(_field(number, value) for number, value in normal.items()))


# --- models --------------------------------------------------------------------------------------------------------


def reference_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **text: Any) -> Any:
    """A tiny LLaVA of transformers whose tower has heads of 64 as OpenAI's, and the vocabulary of `pieces`."""
    config = tiny.build_config(
        family, vocab_size=len(pieces()), pad_token_id=0, bos_token_id=1, eos_token_id=2, rms_norm_eps=1e-5, **text
    )
    vision = config.vision_config
    vision.hidden_size, vision.num_attention_heads, vision.intermediate_size = 128, 2, 96
    config.image_token_index = config.image_token_id = 0  # <unk> stands for an image
    torch.manual_seed(seed)
    model_class = getattr(transformers, tiny.MODEL_CLASSES[family])
    model = model_class._from_config(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:  # biases and norms that differ, so that no two tensors are alike
            torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.1)
        elif "projector" in name:  # an image that the decoder takes notice of
            parameter.data *= 20
    return model.to(dtype)


def original_tensors(model: Any) -> dict[str, torch.Tensor]:
    """The model's weights under their original names."""
    found = {}
    for name, tensor in model.state_dict().items():
        before, after = next(pair for pair in WRITTEN_BACK if name.startswith(pair[0]))
        if "position_ids" not in name:
            found[after + name.removeprefix(before)] = tensor.clone()
    return found


def original_config(family: str, model: Any, **changes: Any) -> dict[str, Any]:
    """config.json as the original code wrote it."""
    text = model.config.text_config
    rope = getattr(text, "rope_theta", None) or text.rope_parameters["rope_theta"]
    config = {
        "_name_or_path": "llava-tiny",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_hidden_layers,
        "num_attention_heads": text.num_attention_heads,
        "num_key_value_heads": text.num_key_value_heads,
        "max_position_embeddings": text.max_position_embeddings,
        "rms_norm_eps": text.rms_norm_eps,
        "rope_theta": rope,
        "rope_scaling": None,
        "vocab_size": text.vocab_size,
        "tie_word_embeddings": False,
        "torch_dtype": str(model.dtype).removeprefix("torch."),
        "use_cache": True,
        "mm_hidden_size": 128,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": TOWER_NAME,
        "transformers_version": "4.31.0",
    }
    if family == "llava":
        config |= {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"], "image_aspect_ratio": "pad"}
    else:
        config |= {
            "model_type": "llava_mistral",
            "architectures": ["LlavaMistralForCausalLM"],
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            # width, height: the other way round than transformers has them
            "image_grid_pinpoints": [[112, 56], [56, 112], [112, 112]],
            "sliding_window": getattr(text, "sliding_window", None),
            "tokenizer_model_max_length": 2048,
        }
    return config | changes


def write_original(
    family: str,
    model: Any,
    folder: Path,
    *,
    kind: str = "safetensors",
    shards: int = 2,
    tower: bool = True,
    **changes: Any,
) -> Path:
    """Write the checkpoint as it would be downloaded; `kind` is safetensors or bin, `changes` go into config.json."""
    folder.mkdir(parents=True)
    tensors = original_tensors(model)
    if not tower:
        tensors = {name: tensor for name, tensor in tensors.items() if "vision_tower" not in name}
    write_weights(folder, tensors, kind, shards)
    write_json(folder / "config.json", original_config(family, model, **changes))
    write_json(
        folder / "generation_config.json",
        {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "temperature": 0.9,
            "top_p": 0.6,
            "max_length": 4096,
            "transformers_version": "4.31.0",
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "model_max_length": 2048, "padding_side": "right"},
    )
    (folder / "tokenizer.model").write_bytes(tokenizer_model())
    return folder


def write_weights(folder: Path, tensors: dict[str, torch.Tensor], kind: str, shards: int) -> None:
    """Weights in `shards` files with an index, or in a single one."""
    stem, suffix, save = {
        "safetensors": ("model", "safetensors", lambda part, path: save_file(part, path, metadata={"format": "pt"})),
        "bin": ("pytorch_model", "bin", torch.save),
    }[kind]
    if shards == 1:
        save(tensors, folder / f"{stem}.{suffix}")
        return
    names, places = sorted(tensors), {}
    for number in range(shards):
        part = names[number::shards]
        file = f"{stem}-{number + 1:05}-of-{shards:05}.{suffix}"
        save({name: tensors[name] for name in part}, folder / file)
        places |= dict.fromkeys(part, file)
    index = "model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json"
    write_json(folder / index, {"metadata": {}, "weight_map": places})


def write_tower(
    model: Any, folder: Path, *, kind: str = "bin", whole: bool = True, prefix: str = "vision_model."
) -> Path:
    """The tower alone: `whole` is the layout of CLIPModel with its text side, else of CLIPVisionModel."""
    folder.mkdir(parents=True)
    inside = "model.vision_tower.vision_tower.vision_model."
    tensors = {
        prefix + name.removeprefix(inside): tensor.float()
        for name, tensor in original_tensors(model).items()
        if name.startswith(inside)
    }
    config = {
        "hidden_size": 128,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "image_size": 56,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
        "num_channels": 3,
    }
    if whole:
        tensors |= {
            "text_model.final_layer_norm.weight": torch.ones(4),
            "visual_projection.weight": torch.ones(4, 4),
            "text_projection.weight": torch.ones(4, 4),
            "logit_scale": torch.ones(()),
            "vision_model.embeddings.position_ids": torch.arange(17)[None],
        }
        config = {"model_type": "clip", "vision_config": config, "text_config": {"hidden_size": 4}}
    else:
        config |= {"model_type": "clip_vision_model"}
    write_weights(folder, tensors, kind, 1)
    write_json(folder / "config.json", config)
    write_json(
        folder / "preprocessor_config.json",
        {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "resample": 3, "size": 56},
    )
    return folder


def write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2))


ROWS = len(pieces())


def loaded_model(folder: Path) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> folder of a converted checkpoint; tests must not write there."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            source = write_original(family, reference_model(family), root / "original")
            made[family] = convert(source, root / "hf").folder
        return made[family]

    return folder
