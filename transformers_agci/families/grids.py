"""Families beside Qwen's whose image keeps its aspect ratio: a grid of patches, merged into rows of tokens.

Most say the grid of each image in `image_grid_thw`, Mistral 3 and LightOnOCR its pixels in `image_sizes`, Molmo 2 the
rows and columns of its two views in `image_grids`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers_agci.families.declaration import BY_TRANSFORMERS, Family, ForwardCall, ImageTokens, Lacks, VllmClass
from transformers_agci.families.image_tokens import GRID, encoded_lengths, equal_shares, in_rows, pairs
from transformers_agci.families.reasons import LINEAR_ATTENTION, NO_CHAT, NO_LAYOUT, NO_ROTARY, UNKNOWN_TO_VLLM
from transformers_agci.families.token_layout import ImageInfo, TokenGrid, grid_of_patches, patch_grid

if TYPE_CHECKING:
    import torch


def _by_patches(merged: Callable[[Any, ForwardCall], Any]) -> ImageTokens:
    """image_grid_thw counts patches; so many of them make a token: a number, a tensor [images], None where not said."""

    def lengths(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
        count = merged(config, call)
        if call.image_grid_thw is None or count is None:
            return encoded_lengths(call)
        found: list[int] = (call.image_grid_thw.prod(dim=-1) // count).tolist()
        return found

    return ImageTokens(lengths)


def _merged_of_images(config: Any, call: ForwardCall) -> Any:
    """VideoLLaMA 3: image_merge_sizes [images] says of each image how many patches are merged, squared."""
    sizes = call.arguments.get("image_merge_sizes")
    return None if sizes is None else sizes**2


_MERGE_KERNEL = _by_patches(lambda config, call: math.prod(config.vision_config.merge_kernel_size))  # rows, columns
_MERGE_SIZE = _by_patches(lambda config, call: config.vision_config.merge_size**2)
_TOKENS = _by_patches(lambda config, call: 1)  # what is counted are tokens
_OWN_MERGE_SIZE = _by_patches(_merged_of_images)


def _kimi_grid(image: ImageInfo) -> list[TokenGrid]:
    return grid_of_patches(image, image.config.vision_config.merge_kernel_size[0])


def _with_newlines(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """HunYuan: a newline token ends each row, one token opens the image and one closes it: h * (w + 1) + 2."""
    if call.image_grid_thw is None:
        return encoded_lengths(call)
    merge = config.vision_config.spatial_merge_size
    return [(h // merge) * (w // merge + 1) + 2 for _, h, w in call.image_grid_thw.tolist()]


def _with_row_ends(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """HY-V4-VL: a newline token ends each row of merged patches: h * (w + 1)."""
    if call.image_grid_thw is None:
        return encoded_lengths(call)
    merge = config.vision_config.spatial_merge_size
    return [(h // merge) * (w // merge + 1) for _, h, w in call.image_grid_thw.tolist()]


def _by_pixels(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Mistral 3, LightOnOCR: squares of patches are merged; sizes are multiples of them."""
    if call.encoded is not None or call.image_sizes is None:
        return encoded_lengths(call)
    merged = config.vision_config.patch_size * config.spatial_merge_size  # pixels
    return [(height // merged) * (width // merged) for height, width in pairs(call.image_sizes)]


def _by_two_views(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Molmo 2: image_grids [images, 4] says rows and columns of the whole image and of its crops put together."""
    grids = call.arguments.get("image_grids")
    if call.encoded is not None or grids is None:
        return encoded_lengths(call)
    return [low_h * low_w + h * w for low_h, low_w, h, w in grids.tolist()]


def _patches_among_words(config: Any, inputs: Mapping[str, Any]) -> "Sequence[torch.Tensor]":
    """Molmo 2 under vLLM: an item also holds the embeddings of the words around the rows of its two views."""
    patches = inputs["image_tokens"] == config.image_patch_id
    found: Sequence[torch.Tensor] = patches.split(inputs["num_image_tokens"].flatten().tolist())
    return found


def _by_grid_hw(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Nemotron-H Omni: image_grid_hw [images, 2] counts patches, 2 x 2 of which make a token."""
    grids = call.arguments.get("image_grid_hw")
    if call.encoded is not None or grids is None:
        return encoded_lengths(call)
    lengths: list[int] = (grids.prod(dim=-1) // 2**2).tolist()
    return lengths


def _behind_marks(config: Any, call: ForwardCall, total: int) -> None:
    """Inkling: a run is an image, if the mark stands before it with which the chat template opens every image."""
    ids = call.input_ids
    if ids is None:
        return
    image = ids == config.image_token_id
    first = image & ~image.roll(1, dims=1)
    if bool((first & (ids.roll(1, dims=1) != config.image_bos_token_id)).any()):
        raise ValueError(
            f"AGCI cannot tell where these images end: put the mark that opens an image (token "
            f"{config.image_bos_token_id}) before each, as Inkling's chat template does."
        )


def _grid(model_type: str, name: str, hub_id: str, tokens: str, **more: Any) -> Family:
    return Family(model_type, name, hub_id, tokens, GRID, patch_grid, **more)


FAMILIES = (
    _grid("glm4v", "GLM-4.1V", "zai-org/GLM-4.1V-9B-Thinking", "900", vllm=VllmClass("Glm4vForConditionalGeneration")),
    _grid("glm4v_moe", "GLM-4.5V", "zai-org/GLM-4.5V", "900", vllm=VllmClass("Glm4vMoeForConditionalGeneration")),
    _grid(
        "glm46v",
        "GLM-4.6V",
        "zai-org/GLM-4.6V-Flash",
        "900",
        vllm=BY_TRANSFORMERS,
    ),
    Family(
        "mistral3",
        "Mistral 3",
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        "900",
        ImageTokens(_by_pixels, rows=in_rows),
        NO_LAYOUT,
        vllm=VllmClass("Mistral3ForConditionalGeneration"),
    ),
    Family(
        "lighton_ocr",
        "LightOnOCR",
        "lightonai/LightOnOCR-1B-1025",
        "900",
        ImageTokens(_by_pixels, rows=in_rows),
        NO_LAYOUT,
        vllm=VllmClass("LightOnOCRForConditionalGeneration"),
    ),
    Family(
        "kimi_k25",
        "Kimi K2.5",
        "moonshotai/Kimi-K2.6",
        "900",
        _MERGE_KERNEL,
        _kimi_grid,
        vllm=VllmClass("KimiK25ForConditionalGeneration", modality="vision_chunk"),
    ),
    _grid(
        "ernie4_5_vl_moe",
        "ERNIE-4.5-VL",
        "baidu/ERNIE-4.5-VL-28B-A3B-PT",
        "900",
        remote_code=("ernie4_5_moe_vl",),
        vllm=VllmClass("Ernie4_5_VLMoeForConditionalGeneration"),
    ),
    _grid(
        "paddleocr_vl",
        "PaddleOCR-VL",
        "PaddlePaddle/PaddleOCR-VL",
        "900",
        vllm=VllmClass("PaddleOCRVLForConditionalGeneration"),
    ),
    _grid(
        "exaone4_5",
        "EXAONE-4.5",
        "LGAI-EXAONE/EXAONE-4.5-33B",
        "900",
        vllm=VllmClass("Exaone4_5_ForConditionalGeneration"),
    ),
    Family(
        "hunyuan_vl",
        "HunYuan-VL",
        "tencent/HunyuanOCR",
        "702 and newlines",
        ImageTokens(_with_newlines),
        NO_LAYOUT,
        alone=True,  # it numbers the images of a whole batch in its positions
        vllm=Lacks(
            "vLLM has no class of its own for it, and cuts what transformers' modules give by the number of patches, "
            "where an image has tokens for its beginning, its lines and its end, too"
        ),
    ),
    Family(
        "hy_v4_vl",
        "HY-V4-VL",
        "tencent/Hy4",
        "702, newlines included",
        ImageTokens(_with_row_ends),
        NO_LAYOUT,
        vllm=UNKNOWN_TO_VLLM,
    ),
    Family(
        "molmo2",
        "Molmo2",
        "allenai/Molmo2-8B",
        "196 per crop",
        ImageTokens(_by_two_views, rows=in_rows),
        NO_LAYOUT,
        vllm=VllmClass("Molmo2ForConditionalGeneration", image_rows=_patches_among_words),
    ),
    _grid("glm_ocr", "GLM-OCR", "zai-org/GLM-OCR", "900", vllm=VllmClass("GlmOcrForConditionalGeneration")),
    _grid(
        "glmga",
        "GLM-GA",
        "its maker's repository",
        "900",
        vllm=BY_TRANSFORMERS,
    ),
    _grid(
        "cohere_compass",
        "Cohere Compass",
        "CohereLabs/North-Micro-Vision-Instruct",
        "676",
        positions=Lacks("generate() numbers the text behind an image otherwise than a forward call does"),
        vllm=VllmClass("CohereCompassForConditionalGeneration", extra_columns=True),
    ),
    _grid(
        "cosmos3_omni",
        "Cosmos 3 Omni",
        "nvidia/Cosmos3-Nano",
        "676",
        vllm=VllmClass("Cosmos3ForConditionalGeneration", extra_columns=True),
    ),
    _grid(
        "cosmos3_edge",
        "Cosmos 3 Edge",
        "nvidia/Cosmos3-Edge",
        "676",
        vllm=VllmClass("Cosmos3EdgeForConditionalGeneration"),
    ),
    _grid(
        "hyperclovax_vision_v2",
        "HyperCLOVA X Vision",
        "naver-hyperclovax/HyperCLOVAX-SEED-Think-32B",
        "900",
        vllm=VllmClass("HCXVisionV2ForCausalLM"),
    ),
    _grid(
        "lfm3_vl",
        "LFM3-VL",
        "LiquidAI/LFM3-VL-2B",
        "676",
        flow=LINEAR_ATTENTION,
        vllm=UNKNOWN_TO_VLLM,
    ),
    _grid(
        "minimax_m3_vl",
        "MiniMax-M3-VL",
        "MiniMaxAI/MiniMax-M3",
        "576",
        vllm=VllmClass("MiniMaxM3SparseForConditionalGeneration"),
    ),
    Family(
        "muse_glimmer",
        "Muse Glimmer",
        "meta-models/Muse-Glimmer-30B",
        "900",
        _MERGE_SIZE,
        NO_LAYOUT,
        vllm=VllmClass("MuseGlimmerForCausalLM"),
    ),
    Family(
        "video_llama_3",
        "VideoLLaMA 3",
        "lkhl/VideoLLaMA3-2B-Image-HF",
        "3600",
        _OWN_MERGE_SIZE,
        NO_LAYOUT,
        vllm=BY_TRANSFORMERS,
    ),
    Family(
        "mistral_large4",
        "Mistral Large 4",
        "mistralai/Mistral-Large-4-1T-A52B",
        "900",
        ImageTokens(_by_pixels, rows=in_rows),
        NO_LAYOUT,
        vllm=UNKNOWN_TO_VLLM,
    ),
    Family(
        "dots3_note",
        "dots3.note",
        "dots-studio/dots3-note-prev",
        "900",
        GRID,
        NO_LAYOUT,
        vllm=VllmClass("Dots3NoteForCausalLM"),
    ),
    Family(
        "muse_spark",
        "Muse Spark",
        "meta-models/Muse-Spark-Open-816B-A42B",
        "900",
        _MERGE_SIZE,
        NO_LAYOUT,
        vllm=UNKNOWN_TO_VLLM,
    ),
    Family(
        "inkling2",
        "Inkling 2",
        "thinkingmachines/Inkling-2-Small-MXFP8",
        "441",
        _TOKENS,
        NO_LAYOUT,
        positions=NO_ROTARY,
        vllm=UNKNOWN_TO_VLLM,
    ),
    Family(
        "inkling2_loop",
        "Inkling 2 with loops",
        "thinkingmachines/Inkling-2-Mini",
        "441",
        _TOKENS,
        NO_LAYOUT,
        positions=NO_ROTARY,
        vllm=UNKNOWN_TO_VLLM,
    ),
    _grid(
        "glm5_next",
        "GLM-5 Next",
        "zai-org/GLM-5.3-Flash",
        "900",
        flow=LINEAR_ATTENTION,
        positions=NO_ROTARY,
        vllm=VllmClass("Glm5NextForConditionalGeneration"),
    ),
    Family(
        "inkling_mm_model",
        "Inkling",
        "thinkingmachines/Inkling",
        "441",
        ImageTokens(_behind_marks),
        NO_LAYOUT,
        positions=NO_ROTARY,
        vllm=VllmClass("InklingForConditionalGeneration"),
    ),
    Family(
        "nemotron_h_omni",
        "Nemotron-H Omni",
        "nvidia/Nemotron-3-Nano-Omni-30B-A3B-Reasoning-BF16",
        "676",
        ImageTokens(_by_grid_hw),
        NO_LAYOUT,
        flow=LINEAR_ATTENTION,
        positions=NO_ROTARY,
        vllm=VllmClass("NemotronH_Nano_VL_V2"),
    ),
    Family(
        "fuyu",
        "Fuyu",
        "adept/fuyu-8b",
        "784 and newlines",
        ImageTokens(equal_shares, rows=in_rows),
        NO_LAYOUT,
        NO_CHAT,
        vllm=Lacks(
            "vLLM has no class of its own for it, and fails on transformers' modules, which give the features of its "
            "images under another name than vLLM reads"
        ),
    ),
)
