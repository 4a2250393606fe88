"""The plugin in vLLM's real classes, family by family: an image has the values that the decoder of transformers gets.

A tiny random checkpoint of transformers' classes is saved, vLLM builds the encoder of its own class from it (no
decoder runs), and what `embed_multimodal` gives of each image is held against transformers with our hooks. Run by
`make vllm-test`.
"""

import json
import re
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from decoder_inputs import recorded_decoder_inputs
from PIL import Image
from test_vllm_stand_ins import CASES
from tiny_families import IMG, ROWS, TILE, WIDTH, Piece, make_batch, onevision_piece
from vllm_inputs import (
    Inputs,
    by_transformers,
    emu3,
    flat,
    gemma4,
    lfm,
    llama,
    marked,
    minicpm,
    one_by_one,
    paddle,
    row_by_row,
    whole,
    with_counts,
    with_masks,
)

from transformers_agci import agci, inject_global_context
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.families.declaration import BY_TRANSFORMERS, VllmClass
from transformers_agci.method.lam import LAMBDA_KEY
from transformers_agci.vllm.injection import IMAGE_MARK

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here: make vllm-test"),
]


LAM = 0.5
EXACT = 1e-4  # of values of about 1, in float32
PIXELS: dict[str, Callable[[list[Piece]], Inputs]] = {
    **dict.fromkeys(("llava", "llava_next_video", "llava_onevision", "mistral3", "lighton_ocr"), one_by_one),
    **dict.fromkeys(("gemma3", "cohere2_vision"), with_counts),
    **dict.fromkeys(("idefics3", "smolvlm"), with_masks),
    "llama4": llama,
    "emu3": emu3,
    "lfm2_vl": lfm,
    **dict.fromkeys(("gemma4", "gemma4_unified"), gemma4),
    **dict.fromkeys(("minicpmv4_6", "minicpmv4_7"), minicpm),
    "qianfan_ocr": flat,
    "cosmos3_edge": row_by_row,
    "kimi_k25": marked,
    "paddleocr_vl": paddle,
}
# vLLM takes one tile per image of Aria; PaddleOCR's other grids have their positions interpolated in another way by
# transformers before 5.23, with AGCI and without. Of Emu3, transformers pads images to the largest of a batch, and the
# tower sees the padding; vLLM encodes each alone.
PLAIN_ONLY = ("aria", "paddleocr_vl", "emu3")
ARCHITECTURES = {
    "cosmos3_omni": "Cosmos3ForConditionalGeneration",
    "hyperclovax_vision_v2": "HCXVisionV2ForCausalLM",
    "kimi_k25": "KimiK25ForConditionalGeneration",
    "llava_next_video": "LlavaNextForConditionalGeneration",
    "lighton_ocr": "LightOnOCRForConditionalGeneration",
    "qwen2_5_omni_thinker": "Qwen2_5OmniModel",
    "qwen3_omni_moe_thinker": "Qwen3OmniMoeForConditionalGeneration",
}
# What vLLM reads from config.json, and transformers' classes leave out or call otherwise.
SECTIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 0]}
KEYS: dict[str, dict[str, Any]] = {
    "cohere_compass": {"tie_word_embeddings": True, "text_config": {"tie_word_embeddings": True}},
    "cosmos3_edge": {
        "projector_config": {
            "input_hidden_size": WIDTH,
            "out_hidden_size": WIDTH,
            "merger_intermediate_size": WIDTH,
            "spatial_merge_size": 2,
        }
    },
    "ernie4_5_vl_moe": {
        "vision_config": {"mlp_ratio": 2},
        "pixel_hidden_size": WIDTH,
        "spatial_conv_size": 2,
        "temporal_conv_size": 2,
        "use_temporal_conv": True,
        "im_patch_id": IMG,
        "moe_num_experts": [4, 4],
        "moe_layer_start_index": [1, 1],
        "moe_layer_end_index": [1, 1],
    },
    "glm4v": {"text_config": {"rope_parameters": {**SECTIONS, "partial_rotary_factor": 0.5}}},
    "glm4v_moe": {"text_config": {"use_qk_norm": False}},
    "llava_next_video": {"model_type": "llava_next"},
    "lfm2_vl": {"text_config": {"conv_dim": 32, "block_dim": 32}},
    "lighton_ocr": {"vision_feature_layer": -1, "projector_hidden_act": "gelu", "multimodal_projector_bias": False},
    "qwen3_omni_moe_thinker": {
        "text_config": {"norm_topk_prob": True},
        "vision_config": {"image_size": 16, "apply_vit_abs_pos_embed": True},
    },
    "qianfan_ocr": {"vision_config": {"image_size": TILE, "patch_size": 4}, "force_image_size": TILE},
    "qwen3_vl_moe": {"text_config": {"norm_topk_prob": True}},
    "qwen4_exp": {
        "text_config": {"output_gate_type": "silu", "layer_types": ["linear_attention", "linear_attention"]},
        "vision_config": {"deepstack_visual_indexes": []},
    },
}
TEXT_ON_TOP = ("ernie4_5_vl_moe",)  # the decoder's keys stand at the top of config.json
# A pattern in the names of weights, and what stands there instead.
NAMES: dict[str, dict[str, str]] = {
    "cosmos3_edge": {
        r"visual\.layers": "visual.encoder.layers",
        r"(visual.*\.self_attn)\.to_([qkv])\.": r"\1.\2_proj.",
        r"(visual.*)\.mlp\.up_proj": r"\1.mlp.fc1",
        r"(visual.*)\.mlp\.down_proj": r"\1.mlp.fc2",
    },
    "cosmos3_omni": {r"^model\.(visual|language_model)\.": ""},
    "ernie4_5_vl_moe": {r"^model\.vision_model\.": "vision_model."},
    "kimi_k25": {
        r"^model\.mm_projector": "mm_projector",
        r"^vision_tower\.encoder\.patch_embed": "vision_tower.patch_embed",
    },
    "llava_next_video": {r"vision_tower\.": "vision_tower.vision_model."},
    "hyperclovax_vision_v2": {r"vision_projector\.": "mm_projector."},
}
FOLDERS = {"cosmos3_edge": "transformer", "cosmos3_omni": "transformer"}  # that the weights are in


def as_on_the_hub(model_type: str, folder: Path) -> None:
    """Write config.json and the weights anew, as vLLM's class reads them."""
    from safetensors.torch import load_file, save_file

    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if config["vision_config"].get("model_type", "").startswith("siglip"):
        weights = {name.replace("vision_tower.", "vision_tower.vision_model."): weights[name] for name in weights}
    for pattern, name in NAMES.get(model_type, {}).items():
        weights = {re.sub(pattern, name, old): value for old, value in weights.items()}
    if model_type in TEXT_ON_TOP:
        config = {**config["text_config"], **config}
    for name, value in KEYS.get(model_type, {}).items():
        config[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
    if config.get("tie_word_embeddings"):
        weights.pop("lm_head.weight", None)
    if model_type.endswith("_thinker"):
        config = {"model_type": model_type.removesuffix("_thinker"), "thinker_config": config}
        weights = {f"thinker.{name}": value for name, value in weights.items()}
    if model_type in ARCHITECTURES:
        config["architectures"] = [ARCHITECTURES[model_type]]
    (folder / "config.json").write_text(json.dumps(config))
    place = folder / FOLDERS.get(model_type, ".")
    place.mkdir(exist_ok=True)
    save_file(weights, place / "model.safetensors", {"format": "pt"})


# The others (the embedded model, Qwen3-VL, InternVL, LLaVA-1.6) answer questions in test_vllm.py.
SERVED = [
    name
    for name, family in SUPPORTED_FAMILIES.items()
    if isinstance(family.vllm, VllmClass) and name in ROWS and name not in CASES
]


def pieces_of(model_type: str, generator: torch.Generator) -> list[Piece]:
    """The two images of `prompt`."""
    piece: Callable[..., Piece] = ROWS[model_type].piece
    more = {"alone": False} if piece is onevision_piece else {}
    return [piece(form, generator, **more) for form in forms(model_type)]


def forms(model_type: str) -> tuple[str, str]:
    return ("plain" if model_type in PLAIN_ONLY else "tiled"), "plain"


def decoder_images(model: Any, model_type: str, lam: float) -> list[torch.Tensor]:
    """What the decoder of transformers gets of each image under our hooks: [N, D]."""
    batch = make_batch(ROWS[model_type], [forms(model_type)])
    with agci(model, lam), torch.inference_mode(), recorded_decoder_inputs(model) as seen:
        model(**batch.inputs)
    return [seen[0][row][positions] for row, positions in batch.images]


@pytest.fixture(scope="module")
def build() -> Iterator[Callable[[Path], tuple[Any, Any]]]:
    """Folder -> config and model of vLLM, as a worker builds it, in this process."""
    from vllm import EngineArgs, _custom_ops, distributed
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model
    from vllm.model_executor.models.transformers import MultiModalMixin, MultiModalProcessingInfo

    from transformers_agci.vllm.plugin import register

    register()
    patch = pytest.MonkeyPatch()
    # The folders hold no processor, which it would ask.
    patch.setattr(MultiModalProcessingInfo, "_get_supported_modalities", lambda _: ["image"])
    # It would change transformers' own classes, of which the next family may have one, too.
    patch.setattr(MultiModalMixin, "_decorate_for_torch_compile", lambda _: None)
    patch.setattr(_custom_ops, "onednn_mm", in_order(_custom_ops.onednn_mm))
    if not torch.accelerator.is_available():  # as vLLM's worker for the CPU does
        patch.setattr(torch.accelerator, "get_memory_info", lambda *_: (2**30, 2**30))
        for name in ("empty_cache", "synchronize"):
            patch.setattr(torch.accelerator, name, lambda *_, **__: None)

    def built(folder: Path) -> tuple[Any, Any]:
        arguments = EngineArgs(
            model=str(folder),
            dtype="float32",
            skip_tokenizer_init=True,
            mm_encoder_only=True,
            max_model_len=256,
            gpu_memory_utilization=0.1,
            hf_overrides={LAMBDA_KEY: LAM},
        )
        config = arguments.create_engine_config()
        with set_current_vllm_config(config):
            if not torch.distributed.is_initialized():
                store = (folder / "store").as_uri()
                distributed.init_distributed_environment(1, 0, store, 0, "gloo")
            distributed.destroy_model_parallel()  # a decoder of experts has a group more
            distributed.ensure_model_parallel_initialized(1, 1)
            return config, get_model(vllm_config=config)

    yield built
    patch.undo()
    distributed.destroy_model_parallel()
    distributed.destroy_distributed_environment()


def in_order(stock: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """vLLM's product for a CPU, which refuses what Emu3's tower transposes."""
    return lambda handler, x, bias: stock(handler, x.contiguous(), bias)


@pytest.mark.parametrize("model_type", [*SERVED, "llava_next_video"])  # the last with LLaVA-NeXT's config.json
def test_each_image_is_that_of_transformers(
    model_type: str, build: Callable[[Path], tuple[Any, Any]], tmp_path: Path
) -> None:
    stock = ROWS[model_type].build()
    expected = {lam: decoder_images(stock, model_type, lam) for lam in (0.0, LAM)}
    stock.save_pretrained(tmp_path)
    modules_of_transformers = SUPPORTED_FAMILIES[model_type].vllm == BY_TRANSFORMERS
    if not modules_of_transformers:
        as_on_the_hub(model_type, tmp_path)
    pieces = pieces_of(model_type, torch.Generator().manual_seed(0))
    pixels = PIXELS.get(model_type, by_transformers if modules_of_transformers else whole)
    check_items(build(tmp_path), pixels(pieces), expected)


def test_gemma3n(build: Callable[[Path], tuple[Any, Any]], tmp_path: Path) -> None:
    """Its tower is timm's; the checkpoint is that of tests/tiny_checkpoints.py."""
    from tiny_checkpoints import checkpoint, make_inputs
    from transformers import AutoModelForImageTextToText

    folder = tmp_path / "gemma3n"
    checkpoint("gemma3n", folder, num_attention_heads=1, num_key_value_heads=1, head_dim=32)
    stock = AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs = make_inputs("gemma3n", stock, batch=2)
    image = inputs["input_ids"] == stock.config.image_token_id
    expected = {}
    for lam in (0.0, LAM):
        with agci(stock, lam), torch.inference_mode(), recorded_decoder_inputs(stock) as seen:
            stock(**inputs)
        expected[lam] = [seen[0][row][image[row]] for row in range(2)]
    check_items(build(folder), {"pixel_values": inputs["pixel_values"]}, expected)


def test_pieces_of_videos_beside_images_are_untouched(build: Callable[[Path], tuple[Any, Any]], tmp_path: Path) -> None:
    """Kimi K2.5, from a request through vLLM's processor to the tensors: a piece of one frame looks like an image."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from vllm.config import set_current_vllm_config
    from vllm.multimodal import MULTIMODAL_REGISTRY
    from vllm.multimodal.processing import ProcessorInputs, TimingContext
    from vllm.multimodal.utils import group_and_batch_mm_kwargs

    stock = ROWS["kimi_k25"].build()
    stock.save_pretrained(tmp_path)
    as_on_the_hub("kimi_k25", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"media_proc_cfg": KIMI_MEDIA}))
    vocabulary = {"<|media_pad|>" if number == IMG else f"t{number}": number for number in range(256)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="t0")))
    config, model = build(tmp_path)
    frames = [Image.effect_noise((16, 16), 50 + number).convert("RGB") for number in range(4)]
    items: list[dict[str, Any]] = [
        {"type": "image", "image": frames[0], "uuid": None},
        *(
            {"type": "video_chunk", "video_chunk": chunk, "uuid": None, "prompt": "", "video_idx": 0}
            for chunk in (frames[1:2], frames[2:])
        ),
    ]
    with set_current_vllm_config(config), torch.inference_mode():
        processor = MULTIMODAL_REGISTRY.create_processor(config.model_config, tokenizer=tokenizer)
        request = ProcessorInputs([1, *[IMG] * 3, 2], processor.info.parse_mm_data({"vision_chunk": items}))
        made = processor.apply(request, TimingContext(enabled=False))["mm_kwargs"]["vision_chunk"]
        ((_, number, inputs),) = group_and_batch_mm_kwargs([("vision_chunk", item) for item in made])
        found = model.embed_multimodal(**inputs)
        marks = inputs.pop(IMAGE_MARK)
        before = type(model).__mro__[1].embed_multimodal(model, **inputs)
    assert (number, marks.tolist(), model.agci_images) == (3, [True, False, False], 1)
    assert before[0].shape == before[1].shape
    assert torch.equal(found[0], inject_global_context(before[0], LAM))
    assert (found[0] - before[0]).abs().max() > 0.01
    assert torch.equal(found[1], before[1]) and torch.equal(found[2], before[2])


KIMI_MEDIA = {
    "patch_size": 4,
    "merge_kernel_size": 2,
    "temporal_merge_kernel_size": 4,
    "in_patch_limit": 1000,
    "in_patch_limit_each_frame": None,
    "in_patch_limit_video": None,
    "patch_limit_on_one_side": 64,
    "fixed_output_tokens": None,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}


def check_items(built: tuple[Any, Any], inputs: Inputs, expected: dict[float, list[torch.Tensor]]) -> None:
    """`embed_multimodal` gives one tensor for each image: what the decoder of transformers gets of it."""
    from vllm.config import set_current_vllm_config

    config, model = built
    with set_current_vllm_config(config), torch.inference_mode():
        items = model.embed_multimodal(**inputs)
    assert model.agci_images == len(items) == 2
    for item, injected, before in zip(items, expected[LAM], expected[0.0], strict=True):
        assert len(item) == len(injected)
        assert (item[:, : injected.shape[1]] - injected).abs().max() <= EXACT
        assert (
            len(item) == 1 or (injected - before).abs().max() > 0.05 * before.abs().max()
        )  # one token is its own mean
