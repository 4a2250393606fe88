"""The images' encoding is computed once: for every lambda, and for every question about the same images.

Worked example: two images, two questions about each, two lambdas, one batch of 2 prompts at a time.

    batch  lambda  images  the vision side        the decoder sees (prefix_replay.py)
    1      0       a b     runs on a and b        both prompts whole, 20 tokens each; keys and values are kept
    2      0       a b     replayed               what differs from batch 1
    1      0.5     a b     replayed               both prompts whole: another lambda, other keys and values
    2      0.5     a b     replayed               what differs from batch 1 at this lambda

Vision ran on 2 images instead of 8.
"""

import copy
import functools
from collections.abc import Hashable
from typing import Any

from torch import nn

from transformers_agci.families import find_vlm


class VisionReplay:
    """While entered, `get_image_features` of a model answers from a record where it can.

        with VisionReplay(model) as vision:
            vision.set_images(("a.jpg", "b.jpg"))    # the images of the coming forward calls, in order
            model(**inputs)                      # runs the vision side
            model(**other_question)              # replays it: the same tensors, bit for bit

    The record holds one output; `set_images` with other images clears it. Lambda plays no part: AGCI works behind this
    seam.
    From transformers 5.18 on `generate()` asks for the features before the forward call, through the same method.
    """

    def __init__(self, model: nn.Module) -> None:
        self.vlm = find_vlm(model)
        self.calls = 0  # times the vision side ran
        self.images = 0  # images it saw
        self.replays = 0
        self.records = True  # False: images are counted, and encoded each time
        self._images_at_hand: tuple[Hashable, ...] | None = None
        self._record: Any = None

    def set_images(self, images: tuple[Hashable, ...] | None) -> None:
        """Name the images of the coming calls by their keys, in order; None: do not record."""
        if images is None or images != self._images_at_hand:
            self._record = None
        self._images_at_hand = images

    def __enter__(self) -> "VisionReplay":
        # The instance, never the class; wraps, because transformers reads the method's signature.
        self._found = vars(self.vlm).get("get_image_features")  # another stand-in, which stays in between
        original: Any = self.vlm.get_image_features
        self._original = original

        @functools.wraps(original)
        def get_image_features(*args: Any, **kwargs: Any) -> Any:
            if self.records and self._images_at_hand and self._record is not None:
                self.replays += 1
                return _fresh(self._record)
            self.calls += 1
            self.images += len(self._images_at_hand or ())
            output = original(*args, **kwargs)
            if self.records and self._images_at_hand:
                self._record = _fresh(output)
            return output

        self._ours = vars(self.vlm)["get_image_features"] = get_image_features
        return self

    def __exit__(self, *_: object) -> None:
        self.set_images(None)
        outermost = vars(self.vlm).pop("get_image_features", None)
        if outermost is not self._ours and getattr(outermost, "stock", None) is self._ours:
            outermost.stock = self._original  # AGCI was attached within the block
            vars(self.vlm)["get_image_features"] = outermost
        elif self._found is not None:
            vars(self.vlm)["get_image_features"] = self._found


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
