"""The vision side once per image: its recorded output serves every further question and lambda."""

import copy
import functools
from collections.abc import Hashable
from typing import Any

from torch import nn

from transformers_agci.families import find_vlm


class VisionReplay:
    """While entered, `get_image_features` of a model answers from a record where it can.

        with VisionReplay(model) as vision:
            vision.about(("a.jpg", "b.jpg"))    # the images of the coming forward calls, in order
            model(**inputs)                      # runs the vision side
            model(**other_question)              # replays it: the same tensors, bit for bit

    The record holds one output; `about` other images forgets it. Lambda plays no part: AGCI works behind this seam.
    From transformers 5.18 on `generate()` asks for the features before the forward call, through the same method.
    """

    def __init__(self, model: nn.Module) -> None:
        self.owner = find_vlm(model)
        self.calls = 0  # times the vision side ran
        self.images = 0  # images it saw
        self.replays = 0
        self._about: tuple[Hashable, ...] | None = None
        self._record: Any = None

    def about(self, images: tuple[Hashable, ...] | None) -> None:
        """Name the images of the coming calls by their keys, in order; None: do not record."""
        if images is None or images != self._about:
            self._record = None
        self._about = images

    def __enter__(self) -> "VisionReplay":
        # The instance, never the class; wraps, because transformers reads the method's signature.
        original: Any = self.owner.get_image_features

        @functools.wraps(original)
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            if self._about and self._record is not None:
                self.replays += 1
                return _fresh(self._record)
            self.calls += 1
            self.images += len(self._about or ())
            output = original(*args, **kwargs)
            if self._about:
                self._record = _fresh(output)
            return output

        self.owner.__dict__["get_image_features"] = get_image_features
        return self

    def __exit__(self, *_: object) -> None:
        self.owner.__dict__.pop("get_image_features", None)
        self._record = None


def _fresh(output: Any) -> Any:
    """A copy of the containers around the tensors: callers put other things into them."""
    if isinstance(output, list | tuple) and not hasattr(output, "_fields"):
        return type(output)(_fresh(item) for item in output)
    if isinstance(output, dict):  # transformers' model outputs are dictionaries too
        fresh = copy.copy(output)
        for key, value in output.items():
            fresh[key] = _fresh(value)
        return fresh
    return output
