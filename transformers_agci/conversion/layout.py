"""Every tensor of a LLaVA checkpoint: its name in the original layout, its name in transformers', and its shape.

The names on transformers' side are those that 4.57 writes and the llava-hf checkpoints have: all later versions load
them, too, while 4.57 would silently start a vision tower that 5.x saved at random.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from transformers_agci.errors import InputError

Shape = tuple[int, ...]

EMBEDDINGS = "language_model.model.embed_tokens.weight"
HEAD = "language_model.lm_head.weight"
NEWLINE = "image_newline"
DECODER = "language_model.model."
TOWER = "vision_tower.vision_model."

# The beginning of a name in the original checkpoint -> in transformers' layout; the first that fits.
RENAMED = (
    ("model.vision_tower.vision_tower.vision_model.", TOWER),
    ("model.vision_tower.vision_tower.", TOWER),
    ("model.mm_projector.0.", "multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "multi_modal_projector.linear_2."),
    ("model.image_newline", NEWLINE),
    ("lm_head.", "language_model.lm_head."),
    ("model.", DECODER),
)
# The same for a folder of the vision tower alone: saved by transformers 4 as CLIPModel or CLIPVisionModel, or by 5.
TOWER_RENAMED = (
    ("vision_model.", TOWER),
    ("embeddings.", f"{TOWER}embeddings."),
    ("encoder.", f"{TOWER}encoder."),
    ("pre_layrnorm.", f"{TOWER}pre_layrnorm."),
    ("post_layernorm.", f"{TOWER}post_layernorm."),
)

# What a checkpoint may hold beside the model's weights, by the end of the name: it follows from the config.
BUFFERS = {
    "rotary_emb.inv_freq": "the rotary frequencies follow from the config",
    "embeddings.position_ids": "the position numbers follow from the config",
}
# The text side of a CLIP checkpoint, by the beginning of the name.
TEXT_SIDE = ("text_model.", "text_projection.", "visual_projection.", "logit_scale", "text_embeds", "image_embeds")

# Shapes in words; `Sizes` gives each word its number.
ONCE = {
    EMBEDDINGS: ("vocabulary", "hidden"),
    HEAD: ("vocabulary", "hidden"),
    f"{DECODER}norm.weight": ("hidden",),
    "multi_modal_projector.linear_1.weight": ("hidden", "width"),
    "multi_modal_projector.linear_1.bias": ("hidden",),
    "multi_modal_projector.linear_2.weight": ("hidden", "hidden"),
    "multi_modal_projector.linear_2.bias": ("hidden",),
    f"{TOWER}embeddings.class_embedding": ("width",),
    f"{TOWER}embeddings.patch_embedding.weight": ("width", "channels", "patch", "patch"),
    f"{TOWER}embeddings.position_embedding.weight": ("places", "width"),
    f"{TOWER}pre_layrnorm.weight": ("width",),
    f"{TOWER}pre_layrnorm.bias": ("width",),
    f"{TOWER}post_layernorm.weight": ("width",),
    f"{TOWER}post_layernorm.bias": ("width",),
}
DECODER_LAYER = {
    "self_attn.q_proj.weight": ("queries", "hidden"),
    "self_attn.k_proj.weight": ("keys", "hidden"),
    "self_attn.v_proj.weight": ("keys", "hidden"),
    "self_attn.o_proj.weight": ("hidden", "queries"),
    "mlp.gate_proj.weight": ("inner", "hidden"),
    "mlp.up_proj.weight": ("inner", "hidden"),
    "mlp.down_proj.weight": ("hidden", "inner"),
    "input_layernorm.weight": ("hidden",),
    "post_attention_layernorm.weight": ("hidden",),
}
_LINEAR = {f"self_attn.{side}_proj": ("width", "width") for side in ("q", "k", "v", "out")}
_LINEAR |= {"mlp.fc1": ("tower inner", "width"), "mlp.fc2": ("width", "tower inner")}
TOWER_LAYER = {
    **{f"{name}.weight": shape for name, shape in _LINEAR.items()},
    **{f"{name}.bias": shape[:1] for name, shape in _LINEAR.items()},
    **{f"layer_norm{number}.{part}": ("width",) for number in (1, 2) for part in ("weight", "bias")},
}


def expected_shapes(
    text: Mapping[str, Any], vision: Mapping[str, Any], *, newline: bool, tied: bool
) -> dict[str, Shape]:
    """Name in transformers' layout -> shape of every tensor that the configs ask for, before the vocabulary grows."""
    heads = text["num_attention_heads"]
    head_dim = text.get("head_dim") or text["hidden_size"] // heads
    sizes = {
        "vocabulary": text["vocab_size"],
        "hidden": text["hidden_size"],
        "inner": text["intermediate_size"],
        "queries": heads * head_dim,
        "keys": text["num_key_value_heads"] * head_dim,
        "width": vision["hidden_size"],
        "tower inner": vision["intermediate_size"],
        "patch": vision["patch_size"],
        "channels": vision["num_channels"],
        "places": (vision["image_size"] // vision["patch_size"]) ** 2 + 1,
    }
    words = dict(ONCE)
    if tied:
        del words[HEAD]
    if newline:
        words[NEWLINE] = ("hidden",)
    for prefix, count, layer in (
        (f"{DECODER}layers.", text["num_hidden_layers"], DECODER_LAYER),
        (f"{TOWER}encoder.layers.", vision["num_hidden_layers"], TOWER_LAYER),
    ):
        words |= {f"{prefix}{number}.{name}": shape for number in range(count) for name, shape in layer.items()}
    return {name: tuple(sizes[word] for word in shape) for name, shape in words.items()}


def renamed(name: str, table: Iterable[tuple[str, str]]) -> str | None:
    """A tensor's name in transformers' layout, or None where the table has no place for it."""
    for before, after in table:
        if name.startswith(before):
            return after + name.removeprefix(before)
    return None


class TowerSizes(NamedTuple):
    """What the shapes of a CLIP tower tell; its heads and its activation they do not."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_channels: int
    patch_size: int  # pixels
    image_size: int  # pixels


def tower_sizes(shapes: Mapping[str, Shape], where: object) -> TowerSizes:
    """The sizes of the tower whose tensors (by name in transformers' layout) have these shapes."""
    try:
        width, channels, patch, _ = shapes[f"{TOWER}embeddings.patch_embedding.weight"]
        places, _ = shapes[f"{TOWER}embeddings.position_embedding.weight"]
        inner, _ = shapes[f"{TOWER}encoder.layers.0.mlp.fc1.weight"]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"The vision tower in {where} is not a complete CLIP tower ({error} is missing or of another "
            "form); give the tower's own folder with `vision_tower`."
        ) from error
    layers = {
        name.removeprefix(f"{TOWER}encoder.layers.").partition(".")[0]
        for name in shapes
        if name.startswith(f"{TOWER}encoder.layers.")
    }
    return TowerSizes(width, inner, len(layers), channels, patch, math.isqrt(places - 1) * patch)
