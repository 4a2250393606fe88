"""What it would take to serve a model of no supported family: it is looked at, and nothing is changed or written.

Where image tokens stand is found from the features themselves: a row of the decoder's input that equals a row of what
`get_image_features` returned is an image token, whatever the config calls it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from torch import nn

from transformers_agci.errors import error_line
from transformers_agci.families import SUPPORTED_FAMILIES, Family, decoder_of, is_vlm, todays_model_type
from transformers_agci.method.forward_call import embeds_of, forward_call
from transformers_agci.method.image_positions import image_positions


@dataclass(frozen=True)
class Exploration:
    """What was found, as sentences; `served` says whether a rule of a supported family counts the images right."""

    lines: tuple[str, ...]
    served: bool

    def __str__(self) -> str:
        return "\n".join(self.lines)


@dataclass
class _Seen:
    call: Any = None
    features: Any = None
    embeds: torch.Tensor | None = None  # [B, S, D]
    error: Exception | None = None  # that ended the call


def explore(model: nn.Module, inputs: Mapping[str, Any], images: int) -> Exploration:
    """Look at one call of `model` with `images` images; the model is left as it was found."""
    vlms = [module for module in model.modules() if is_vlm(module)]
    if not vlms:
        reason = "no module of it has get_image_features and a decoder of its own: AGCI's place is not there"
        return Exploration((f"{type(model).__name__} cannot be served: {reason}.",), False)
    vlm: Any = vlms[-1]
    seen = _call(model, vlm, inputs)
    lines = [f"{type(vlm).__name__} merges image features and calls {type(decoder_of(vlm)).__name__}."]
    if seen.error is not None:
        lines.append(f"Its forward call with what the processor made of the images failed: {error_line(seen.error)}")
        return Exploration(tuple(lines), False)
    if seen.call is None or seen.embeds is None or seen.features is None:
        lines.append("It cannot be served: the features or the decoder's inputs_embeds did not pass by.")
        return Exploration(tuple(lines), False)
    entries = _entries(seen.features, seen.embeds.shape[-1])
    places = _places(seen.embeds, entries)
    lines.append(f"get_image_features returned {len(entries)} entries of {_counted(map(len, entries))} features.")
    if places is None:
        known = SUPPORTED_FAMILIES.get(todays_model_type(getattr(vlm.config, "model_type", None)))
        lines.append("The features do not stand among the decoder's input embeddings as they are. " + _whether(known))
        return Exploration(tuple(lines), known is not None)
    lines += _about_places(seen, places)
    fitting = [family.name for family in _distinct_rules() if _fits(family, vlm, seen, places, images)]
    lines.append(
        f"Rules of families that find these tokens and {images} image(s): {', '.join(fitting) or 'none'}. "
        + ("A declaration like theirs in families/ may serve it; " if fitting else "It needs a rule of its own; ")
        + "nothing was attached, and nothing was written."
    )
    return Exploration(tuple(lines), bool(fitting))


def _call(model: Any, vlm: Any, inputs: Mapping[str, Any]) -> _Seen:
    seen, stock, found = _Seen(), vlm.get_image_features, vars(vlm).get("get_image_features")

    def get_image_features(*args: Any, **kwargs: Any) -> Any:
        seen.features = stock(*args, **kwargs)
        return seen.features

    def before_vlm(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.call = forward_call(module, args, kwargs)

    def before_decoder(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.embeds = embeds_of(module, args, kwargs)

    hooks = [
        vlm.register_forward_pre_hook(before_vlm, with_kwargs=True),
        decoder_of(vlm).register_forward_pre_hook(before_decoder, with_kwargs=True),
    ]
    vars(vlm)["get_image_features"] = get_image_features
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception as error:  # of a model that nobody has tried
        seen.error = error
    finally:
        for hook in hooks:
            hook.remove()
        del vars(vlm)["get_image_features"]
        if found is not None:
            vars(vlm)["get_image_features"] = found
    return seen


def _entries(features: Any, width: int) -> list[torch.Tensor]:
    """[N, D] of every entry of what get_image_features returned, D being the decoder's width."""
    pooled = getattr(features, "pooler_output", None)
    found = getattr(features, "last_hidden_state", features) if pooled is None else pooled
    parts = found if isinstance(found, list | tuple) or getattr(found, "ndim", 0) > 2 else [found]
    return [part.reshape(-1, width) for part in parts if torch.is_tensor(part) and part.shape[-1] == width]


def _places(embeds: torch.Tensor, entries: list[torch.Tensor]) -> list[tuple[int, int]] | None:
    """(row, position) of every feature, in the order in which stock scatters them; None where one is not there."""
    rows = [row for entry in entries for row in entry.to(embeds.dtype).float().cpu().unbind(0)]
    tokens = embeds.detach().float().cpu()
    found, wanted = [], 0
    for row in range(tokens.shape[0]):
        for position in range(tokens.shape[1]):
            if wanted < len(rows) and torch.equal(tokens[row, position], rows[wanted]):
                found.append((row, position))
                wanted += 1
    return found if rows and wanted == len(rows) else None


def _whether(known: Family | None) -> str:
    if known is None:
        return "It cannot be served."
    return f"{known.name} is supported all the same: `agci self-check CHECKPOINT` checks it."


def _about_places(seen: _Seen, places: list[tuple[int, int]]) -> Iterator[str]:
    runs = [len(list(group)) for _, group in groupby(enumerate(places), key=lambda p: (p[1][0], p[1][1] - p[0]))]
    yield f"They stand at {len(places)} positions, in runs of {_counted(runs)}."
    ids = seen.call.input_ids
    if ids is not None and seen.embeds is not None and ids.shape == seen.embeds.shape[:2]:
        tokens = sorted({int(ids[row, position]) for row, position in places})
        elsewhere = int(sum((ids == token).sum() for token in tokens)) - len(places)
        yield f"The token ids there are {tokens}, which stand at {elsewhere} other positions."


def _distinct_rules() -> list[Family]:
    """One family per rule."""
    return list({family.images: family for family in reversed(list(SUPPORTED_FAMILIES.values()))}.values())


def _fits(family: Family, vlm: Any, seen: _Seen, places: list[tuple[int, int]], images: int) -> bool:
    mask = torch.zeros(seen.embeds.shape[:2], dtype=torch.bool)  # type: ignore[union-attr]
    for place in places:
        mask[place] = True
    call = replace(seen.call, attention_mask=None)
    try:
        return len(image_positions(vlm, family, call, mask)) == images
    except Exception:  # the rule asks for what this model does not have
        return False


def _counted(numbers: Any) -> str:
    return ", ".join(f"{len(list(group))} x {number}" for number, group in groupby(numbers)) or "nothing"
