"""How many tokens each image of a call has: the rules that several kin share."""

from collections.abc import Sequence
from typing import Any

from transformers_agci.families.declaration import ForwardCall


def by_runs(config: Any, call: ForwardCall, total: int) -> None:
    """The prompt puts marks around an image, so that a contiguous run of image tokens is one image."""


def by_grid(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """image_grid_thw says the patches of each image, a square of which is merged into a token."""
    if call.image_grid_thw is None:
        return encoded_lengths(call)
    merged = config.vision_config.spatial_merge_size**2  # patches per image token
    lengths: list[int] = (call.image_grid_thw.prod(dim=-1) // merged).tolist()
    return lengths


def equal_shares(config: Any, call: ForwardCall, total: int) -> Sequence[int]:
    """All images have the same number of tokens."""
    images = len(call.pixel_values if call.encoded is None else call.encoded.pooler_output)
    return [total // images] * images


def encoded_lengths(call: ForwardCall) -> Sequence[int] | None:
    """What `get_image_features` returned, one entry per image, as far as the call carries it."""
    return None if call.encoded is None else [len(features) for features in call.encoded.pooler_output]
