"""How many units an image has, written on what `get_image_features` returns, where that no longer tells.

generate() encodes the images before it calls the model, and from then on the pixels are gone. Where all tiles of all
images come back in one row and stand in one run of the prompt (Perception LM), nothing else says where an image ends:

    pixel_values [2 images, 5 tiles, 3, H, W]  ->  pooler_output [10, N, D], units_per_image(...) == 5
"""

import functools
from typing import Any

_NOTE = "_agci_units_per_image"  # attribute of what get_image_features returns


class StandIn:
    """Stands in for `get_image_features` on one vlm; a copy of the model has a copy of it, for itself."""

    def __init__(self, vlm: Any) -> None:
        stock = vlm.get_image_features
        functools.update_wrapper(self, stock)  # generate() reads the signature; takes over a stand-in's attributes
        self.stock = stock

    def __call__(self, pixel_values: Any, *args: Any, **kwargs: Any) -> Any:
        return self.stock(pixel_values, *args, **kwargs)


class NotesUnits(StandIn):
    """Notes on what it returns how many units each image has."""

    def __call__(self, pixel_values: Any, *args: Any, **kwargs: Any) -> Any:
        output = super().__call__(pixel_values, *args, **kwargs)
        features = getattr(output, "pooler_output", None)
        if features is not None and len(pixel_values):
            setattr(output, _NOTE, len(features) // len(pixel_values))
        return output


def note_units(vlm: Any) -> None:
    """Let this vlm, the instance, note the units of each image; a second call does nothing."""
    if not isinstance(vars(vlm).get("get_image_features"), NotesUnits):
        vars(vlm)["get_image_features"] = NotesUnits(vlm)


def forget_units(vlm: Any) -> None:
    """Give the vlm its own method back."""
    if isinstance(vars(vlm).get("get_image_features"), NotesUnits):
        del vars(vlm)["get_image_features"]
