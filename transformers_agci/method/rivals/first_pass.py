"""Passes of the model before the one that was asked for: some methods decide by what stock makes of a prompt.

AdaptVis weighs the confidence of stock's first token, UAC the attention that a blank image gets.
"""

import copy
import inspect
from typing import TYPE_CHECKING, Any

import torch

from transformers_agci.families import ForwardCall
from transformers_agci.families.declaration import ALL_PIXELS
from transformers_agci.method.encoded_images import StandIn
from transformers_agci.method.forward_call import forward_call, with_cache
from transformers_agci.method.image_positions import ImagePositions
from transformers_agci.method.rivals.call_state import state
from transformers_agci.method.rivals.plan import kept_columns, last_columns
from transformers_agci.method.rivals.positions import past_length

if TYPE_CHECKING:
    from transformers_agci.method.rivals.handle import RivalHandle


def weigh(handle: "RivalHandle", model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Run the first pass, and keep the weights that the rule chooses from its last logits."""
    scores = handle.rival.scores
    assert scores is not None and scores.weigh is not None
    state.weights = None
    if state.weighing:
        return
    call = forward_call(model, args, kwargs)
    cache = call.cache
    if not call.has_images and kept_columns(cache, past_length(cache), 1) is None:
        return
    given = with_cache(model, call.arguments, copy.deepcopy(cache) if past_length(cache) else None)
    given |= {"use_cache": bool(past_length(cache)), "labels": None, "logits_to_keep": 0}
    known = inspect.signature(model.forward).parameters
    state.weighing = True
    try:
        with torch.no_grad():
            logits = model.forward(**{name: value for name, value in given.items() if name in known}).logits
    finally:
        state.weighing = False
    mask, length = given.get("attention_mask"), logits.shape[1]
    last = last_columns(mask, past_length(cache), len(logits), length, logits.device)
    own = logits[torch.arange(len(logits), device=logits.device), last]
    state.weights = scores.weigh(own, handle.strength, handle.options)


def calibrate(handle: "RivalHandle", vlm: Any, call: ForwardCall, images: list[ImagePositions]) -> None:
    """Show blank images in place of the call's own, and keep what the rule makes of the attention that they get."""
    rule = handle.rival.bias
    assert rule is not None
    given = dict(call.arguments)
    for name in ALL_PIXELS:
        if given.get(name) is not None:
            given[name] = blank_like(given[name])
    if call.encoded is not None:
        blank = getattr(call.encoded, _BLANK, None)
        if blank is None:
            raise ValueError(f"These images were encoded before {handle.method} was attached: encode them again.")
        given["mm_encoder_outputs"] = {**given["mm_encoder_outputs"], "image": blank}
    past = past_length(call.cache)
    given = with_cache(vlm, given, copy.deepcopy(call.cache) if past else None) | {"use_cache": bool(past)}
    prompt, state.seen, state.bias = state.prompt, {}, None
    try:
        with torch.no_grad():
            vlm.forward(**given)
        seen = state.seen
    finally:
        state.prompt, state.seen, state.plan = prompt, None, None
    length = next(iter(seen.values())).shape[1] - past if seen else 0
    state.bias = {}
    for layer, weights in seen.items():
        added = torch.zeros(len(weights), length, dtype=torch.float32, device=weights.device)
        for image in images:
            place = image.index(weights.device)
            own = weights[image.row, past + place].float()
            added[image.row, place] = rule.bias(own / own.sum(), handle.strength)
        state.bias[layer] = added


def blank_like(pixels: torch.Tensor) -> torch.Tensor:
    """An image of the mean colour. Of tiles [..., tiles, channels, height, width], those of zeros alone stay so.

    They fill a batch up, and Idefics3 and SmolVLM drop them: a blank tile has to differ from them, by next to nothing.
    """
    if pixels.dim() < 5:
        return torch.zeros_like(pixels)
    held = (pixels != 0).flatten(-3).any(-1)[..., None, None, None]
    return held.to(pixels.dtype).expand_as(pixels) * 1e-4


class WithBlanks(StandIn):
    """Notes on what it returns the features of blank images, too.

    generate() encodes the images before it calls the model, and from then on the pixels are gone.
    """

    def __call__(self, pixel_values: Any, *args: Any, **kwargs: Any) -> Any:
        output = super().__call__(pixel_values, *args, **kwargs)
        if hasattr(output, "__dict__"):
            blank = {name: blank_like(kwargs[name]) for name in ALL_PIXELS if kwargs.get(name) is not None}
            setattr(output, _BLANK, self.stock(blank_like(pixel_values), *args, **{**kwargs, **blank}))
        return output


_BLANK = "_agci_blank"
