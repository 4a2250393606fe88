"""What the config.json of an original LLaVA checkpoint says, as transformers' configs.

Known forms: LLaVA-1.5 (one square image) and LLaVA-1.6 (anyres tiles with newlines), on LLaMA (Vicuna) or Mistral,
with a CLIP tower and a two-layer projector. Everything else is refused by name.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_agci.conversion.layout import TowerSizes
from transformers_agci.errors import InputError, short
from transformers_agci.families.llava import is_original_llava
from transformers_agci.inference.checkpoint_files import CONFIG
from transformers_agci.method.lam import LAMBDA_KEY, validate_lambda
from transformers_agci.storage.json_file import read_json_object

# Keys of the original config that the decoder's config takes over under the same name, where they are there.
TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "rope_theta",
    "rope_scaling",
    "sliding_window",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
)
COUNTS = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
NEEDED = (*COUNTS, "mm_vision_tower", "mm_projector_type", "mm_vision_select_layer")
TOWER_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_channels",
    "image_size",
    "patch_size",
    "hidden_act",
    "layer_norm_eps",
)
STRATEGIES = {"patch": "default", "cls_patch": "full"}  # mm_vision_select_feature -> transformers' word
OPENAI_TOWER = re.compile(r"clip-vit-(base|large)-patch\d+(-\d+)?$")
OPENAI_HEAD = 64  # the size of one attention head in every CLIP of OpenAI


@dataclass(frozen=True)
class Original:
    """An original config.json.

    path       the file
    config     its content
    anyres     LLaVA-1.6 (tiles and newlines) instead of LLaVA-1.5
    mistral    a Mistral decoder instead of LLaMA's
    """

    path: Path
    config: Mapping[str, Any]
    anyres: bool
    mistral: bool

    @property
    def model_type(self) -> str:
        return "llava_next" if self.anyres else "llava"

    @property
    def tied(self) -> bool:
        return bool(self.config.get("tie_word_embeddings", False))

    @property
    def pads_to_square(self) -> bool:
        """Whether images are padded to a square instead of cropped (LLaVA-1.5)."""
        return self.config.get("image_aspect_ratio") == "pad"


def read_original(folder: Path) -> Original:
    """The config of an original LLaVA checkpoint; InputError names the field that is not of a known form."""
    path = folder / CONFIG
    if not path.exists():
        raise InputError(f"{folder} holds no {CONFIG}, so it is not a downloaded LLaVA checkpoint.")
    config = read_json_object(path)
    if not isinstance(config, dict) or not is_original_llava(config):
        found = config.get("model_type") if isinstance(config, dict) else None
        raise InputError(
            f"{path} says model_type {found!r} and is not in the layout of the original LLaVA repository "
            "(llava_llama, llava_mistral); a checkpoint in transformers' layout is used as it is."
        )
    for key in NEEDED:
        if config.get(key) is None:
            raise InputError(f"{path} has no {key!r}, which every original LLaVA checkpoint of version 1.5 or 1.6 has.")
    for key in COUNTS:
        if not isinstance(config[key], int) or config[key] < 1:
            raise InputError(f"{path}: {key} must be a whole number of at least 1, but is {config[key]!r}.")
    _check_convertible(path, config)
    original = Original(
        path, config, config.get("image_aspect_ratio") == "anyres", config["model_type"] == "llava_mistral"
    )
    merge = config.get("mm_patch_merge_type") or "flat"
    if merge != ("spatial_unpad" if original.anyres else "flat"):
        raise InputError(
            f"{path}: mm_patch_merge_type {merge!r} with image_aspect_ratio "
            f"{config.get('image_aspect_ratio')!r} has no counterpart in transformers; known are 'flat' "
            "without and 'spatial_unpad' with 'anyres'."
        )
    return original


def _check_convertible(path: Path, config: Mapping[str, Any]) -> None:
    """Raise for what transformers' two LLaVA classes cannot express."""
    allowed: dict[str, tuple[Any, ...]] = {
        "mm_projector_type": ("mlp2x_gelu",),
        "mm_vision_select_feature": (None, *STRATEGIES),
        "mm_use_im_start_end": (None, False),
        "mm_use_im_patch_token": (None, False),
        "image_aspect_ratio": (None, "square", "pad", "anyres"),
        "s2": (None, False),
    }
    for key, values in allowed.items():
        if config.get(key) not in values:
            known = ", ".join(repr(value) for value in values if value is not None)
            raise InputError(f"{path}: {key} {config[key]!r} has no counterpart in transformers; it must be {known}.")


def text_config(original: Original) -> dict[str, Any]:
    """The decoder's config, with the vocabulary as it was."""
    config = original.config
    text = {key: config[key] for key in TEXT_KEYS if key in config}
    if not original.mistral:
        text.pop("sliding_window", None)
    if text.get("num_key_value_heads") is None:
        text["num_key_value_heads"] = 8 if original.mistral else text["num_attention_heads"]
    return {"model_type": "mistral" if original.mistral else "llama", **text, "tie_word_embeddings": original.tied}


def tower_config_of(folder: Path) -> dict[str, Any]:
    """The tower's config from its own folder, that of a CLIPModel or a CLIPVisionModel."""
    from transformers import CLIPVisionConfig

    path = folder / CONFIG
    if not path.exists():
        raise InputError(
            f"`vision_tower` {folder} holds no {CONFIG}; give the folder of a downloaded CLIP model, such "
            "as openai/clip-vit-large-patch14-336."
        )
    config = read_json_object(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in ("clip", "clip_vision_model"):
        raise InputError(
            f"{path} says model_type {kind!r}; a LLaVA vision tower is a CLIP model ('clip' or 'clip_vision_model')."
        )
    found = config.get("vision_config") or {} if kind == "clip" else config
    return _tower_config(CLIPVisionConfig(**{key: found[key] for key in TOWER_KEYS if key in found}).to_dict())


def tower_config_from(sizes: TowerSizes, original: Original) -> dict[str, Any]:
    """The tower's config where the checkpoint holds the tower: its shapes, and what all of OpenAI's CLIPs share."""
    name = str(original.config["mm_vision_tower"])
    if not OPENAI_TOWER.search(name.rstrip("/")):
        raise InputError(
            f"{original.path} names the vision tower {name!r}, whose number of heads and activation are "
            "not known here; give its downloaded folder with `vision_tower`."
        )
    return _tower_config(
        {
            **sizes._asdict(),
            "num_attention_heads": max(1, sizes.hidden_size // OPENAI_HEAD),
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        }
    )


def _tower_config(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_type": "clip_vision_model", **{key: values[key] for key in TOWER_KEYS}}


def pinpoints(original: Original, tile: int) -> list[list[int]]:
    """LLaVA-1.6's resolutions as [height, width] in pixels; the original lists them as width, height."""
    stated = original.config.get("image_grid_pinpoints")
    try:
        pairs: Any = ast.literal_eval(stated) if isinstance(stated, str) else stated
        found = [[int(height), int(width)] for width, height in pairs]
    except (TypeError, ValueError, SyntaxError, OverflowError, RecursionError, MemoryError):
        found = []
    if not found or any(side <= 0 or side % tile for pair in found for side in pair):
        raise InputError(
            f"{original.path}: image_grid_pinpoints must be a list of widths and heights in pixels that "
            f"are multiples of the vision tower's {tile}, but is {short(stated)}."
        )
    return found


def model_config(
    original: Original,
    text: Mapping[str, Any],
    vision: Mapping[str, Any],
    *,
    image_token: int,
    pad_token: int,
    dtype: str,
) -> dict[str, Any]:
    """The whole config.json in transformers' layout; `text` has the grown vocabulary."""
    config = original.config
    feature = STRATEGIES[config.get("mm_vision_select_feature") or "patch"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    name = "LlavaNextForConditionalGeneration" if original.anyres else "LlavaForConditionalGeneration"
    made = {
        "architectures": [name],
        "model_type": original.model_type,
        "text_config": {**text, "pad_token_id": pad_token},
        "vision_config": dict(vision),
        "image_token_index": image_token,
        "image_seq_length": patches + (feature == "full"),
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": config["mm_vision_select_layer"],
        "vision_feature_select_strategy": feature,
        "tie_word_embeddings": original.tied,
        "dtype": dtype,
    }
    if original.anyres:
        made["image_grid_pinpoints"] = pinpoints(original, vision["image_size"])
    if LAMBDA_KEY in config:
        made[LAMBDA_KEY] = validate_lambda(config[LAMBDA_KEY], f"{LAMBDA_KEY} of {original.path}")
    return made
