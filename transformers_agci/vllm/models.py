"""The model classes of vLLM that AGCI serves, by their names, and the families that it does not serve there.

What vLLM calls an item of the modality image is what we call an image in every class listed here: all of its tiles, its
thumbnail and LLaVA-NeXT's newline tokens come in one tensor. `images_of_item` says otherwise where that is not so.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

# config, tokens of the item -> tokens of each image in it
ImagesOfItem = Callable[[Any, int], list[int]]


def one_image(config: Any, tokens: int) -> list[int]:
    """The item is the image."""
    return [tokens]


def crops(config: Any, tokens: int) -> list[int]:
    """Gemma 3 with pan and scan: the whole and each crop are images of their own, words stand between them."""
    each = int(config.mm_tokens_per_image)
    return [each] * (tokens // each)


@dataclass(frozen=True)
class ServedModel:
    """A model class of vLLM.

    Attributes:
        name: its `__name__`.
        model_types: `model_type` of the config.json that it is served with, of an Omni checkpoint its thinker's. A
            class that vLLM also uses for other models is served for these only.
        images_of_item: how the tokens of an item divide into images.
        extra_columns: whether features that are no input of the decoder may follow the visible ones in each row
            (Qwen3-VL's DeepStack, positions that video pruning appends); they stay as they are.
    """

    name: str
    model_types: tuple[str, ...]
    images_of_item: ImagesOfItem = one_image
    extra_columns: bool = False


def _by_name(rows: Iterable[ServedModel]) -> Mapping[str, ServedModel]:
    return MappingProxyType({row.name: row for row in rows})


SERVED_MODELS = _by_name(
    (
        ServedModel("Qwen2VLForConditionalGeneration", ("qwen2_vl",)),
        ServedModel("Qwen2_5_VLForConditionalGeneration", ("qwen2_5_vl",), extra_columns=True),
        ServedModel("Qwen3VLForConditionalGeneration", ("qwen3_vl",), extra_columns=True),
        ServedModel("Qwen3VLMoeForConditionalGeneration", ("qwen3_vl_moe",), extra_columns=True),
        ServedModel("Qwen3_5ForConditionalGeneration", ("qwen3_5",), extra_columns=True),
        ServedModel("Qwen3_5MoeForConditionalGeneration", ("qwen3_5_moe",), extra_columns=True),
        ServedModel("Qwen2_5OmniThinkerForConditionalGeneration", ("qwen2_5_omni_thinker",)),
        ServedModel(
            "Qwen3OmniMoeThinkerForConditionalGeneration",
            ("qwen3_omni_moe_thinker",),
            extra_columns=True,
        ),
        ServedModel("Gemma3ForConditionalGeneration", ("gemma3",), crops),
        ServedModel("Gemma3nForConditionalGeneration", ("gemma3n",)),
        ServedModel("Gemma4ForConditionalGeneration", ("gemma4",)),
        ServedModel("PaliGemmaForConditionalGeneration", ("paligemma",)),
        ServedModel("InternS1ForConditionalGeneration", ("internvl",)),  # vLLM's class for transformers' InternVL, too
        ServedModel("LlavaForConditionalGeneration", ("llava",)),
        ServedModel("LlavaNextForConditionalGeneration", ("llava_next",)),
        ServedModel("LlavaOnevisionForConditionalGeneration", ("llava_onevision",)),
        ServedModel("Idefics3ForConditionalGeneration", ("idefics3",)),
        ServedModel("SmolVLMForConditionalGeneration", ("smolvlm",)),
        ServedModel("Cohere2VisionForConditionalGeneration", ("cohere2_vision",)),
        ServedModel("Llama4ForConditionalGeneration", ("llama4",)),
        ServedModel("Lfm2VLForConditionalGeneration", ("lfm2_vl",)),
        ServedModel("AriaForConditionalGeneration", ("aria",)),
        ServedModel("Mistral3ForConditionalGeneration", ("mistral3",)),
        ServedModel("LightOnOCRForConditionalGeneration", ("lighton_ocr",)),
        ServedModel("Glm4vForConditionalGeneration", ("glm4v",)),
        ServedModel("Glm4vMoeForConditionalGeneration", ("glm4v_moe",)),
        ServedModel("Ernie4_5_VLMoeForConditionalGeneration", ("ernie4_5_vl_moe",)),
        ServedModel("PaddleOCRVLForConditionalGeneration", ("paddleocr_vl",)),
        ServedModel("Exaone4_5_ForConditionalGeneration", ("exaone4_5",)),
    )
)

_BACKEND = "vLLM has no class of its own for it and runs transformers' modules, where AGCI has not been tried"

# model_type -> why; the reason follows a colon.
NOT_SERVED: Mapping[str, str] = MappingProxyType(
    {
        "llava_next_video": "vLLM's class takes its videos only",
        "molmo2": "an image's tensor there also holds the embeddings of the words between its tiles",
        "kimi_k25": "vLLM's class does not tell images from pieces of a video",
        **dict.fromkeys(
            (
                "vipllava",
                "video_llava",
                "fast_vlm",
                "deepseek_vl",
                "deepseek_vl_hybrid",
                "janus",
                "granite_docling",
                "aya_vision",
                "ovis2",
                "perception_lm",
                "got_ocr2",
            ),
            _BACKEND,
        ),
    }
)


def why_not_served(model_type: str) -> str | None:
    """Why a checkpoint of this `model_type` is not served under vLLM, as words behind a colon; None where it is."""
    if any(model_type in row.model_types for row in SERVED_MODELS.values()):
        return None
    return NOT_SERVED.get(model_type, "its class in vLLM is not in the table of transformers_agci/vllm/models.py")
