"""Which method a run applies and how strongly: AGCI and its controls at lambdas, a rival at its strength.

    agci at lambdas 0 and 0.5    two outputs, {"method": "agci", "lambda": 0.5}
    bapa                         one output, {"method": "bapa", "lambda": 0, "strength": 1, ...}

A rival runs alone: where config.json has a lambda, it is 0 for the run.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from transformers_agci.errors import InputError
from transformers_agci.method.attach import agci
from transformers_agci.method.handle import Handle
from transformers_agci.method.lam import lambda_text
from transformers_agci.method.rivals import RIVALS, Rival

if TYPE_CHECKING:
    from transformers_agci.method.rivals.handle import RivalHandle


def rival_settings(method: str, options: Mapping[str, Any], given: Sequence[float]) -> tuple[list[float], str] | None:
    """The one strength at which a rival runs, and where it comes from; None for AGCI and its controls.

    InputError where a lambda is given for a rival, or its strength or another option is none.
    """
    rival = RIVALS.get(method)
    if rival is None:
        return None
    if given:
        raise InputError(
            f"`global_context_lambda` belongs to agci and its controls: {method} has a strength "
            f"(`method_options` strength={rival.published:g})."
        )
    rival.settings(without_strength(options))
    if "strength" not in options:
        return [rival.default], f"the default of {method}"
    return [rival.strength_of(options["strength"], "strength")], "`method_options`"


def without_strength(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options beside the strength."""
    return {name: value for name, value in options.items() if name != "strength"}


def strengths_text(method: str, strengths: Sequence[float]) -> str:
    """The settings of a run for a line to read.

    >>> strengths_text("agci", [0.0, 0.5]), strengths_text("bapa", [1.0])
    ('lambda 0, 0.5', 'method bapa at strength 1')
    """
    numbers = ", ".join(map(lambda_text, strengths))
    rival = RIVALS.get(method)
    if rival is None:
        return f"lambda {numbers}"
    note = f" ({rival.note})" if rival.note else ""
    return f"method {method}{note} at strength {numbers}"


def method_settings(method: str, options: Mapping[str, Any], value: float) -> dict[str, Any]:
    """What of the method must be equal for an output to go on, beside its name."""
    rival = RIVALS.get(method)
    if rival is None:
        return {"lambda": value}
    return {
        "lambda": 0.0,
        "strength": value,
        "method_options": rival.settings(without_strength(options)),
        "method_note": rival.note or None,
    }


def method_notes(method: str) -> dict[str, Any]:
    """What the manifest records of a rival: where it is from."""
    rival = RIVALS.get(method)
    if rival is None:
        return {}
    return {"method_source": rival.source, "method_code": rival.code or None}


def replays_off(rival: Rival | None) -> dict[str, str]:
    """Which replays and short cuts must not serve this method, and why; for the manifest."""
    if rival is None:
        return {}
    off: dict[str, str] = {}
    if rival.scores is not None or rival.bias is not None:
        off["prefix_replay"] = f"off: {rival.name} acts on the attention of the prompt's own tokens"
    if rival.contrast is not None:
        off["prefix_replay"] = f"off: {rival.name} runs a second pass over another prompt"
        if rival.contrast.other_images:
            off["vision_replay"] = f"off: {rival.name} runs a second pass over other images"
        off["first_token"] = f"off: {rival.name} decides each token from two passes"
    if rival.bias is not None:
        off["vision_replay"] = f"off: {rival.name} also encodes blank images"
    return off


def _check_no_rival_attached(model: Any, method: str) -> None:
    """InputError where the model carries a rival that acts: its answers would be recorded as those of `method`."""
    from transformers_agci.method.rivals.handle import current_rival

    found = current_rival(model)
    if found is not None and found.is_on():
        raise InputError(
            f"{found!r} is on this model, and the answers would be recorded as those of {method}: run with `method` "
            f"{found.method}, or set its strength to {found.rival.neutral:g} or detach it first."
        )


def _check_no_other_kind_attached(model: Any, method: str, scope: str) -> None:
    """InputError where a control or another scope was attached and acts: it would be recorded as `method`'s own."""
    from transformers_agci.method.handle import current_handle

    found = current_handle(model)
    if found is None or not found.lam:
        return
    other_method = found.method not in (method, "agci")
    if other_method or found.scope not in (scope, "image"):
        name, value = ("method", found.method) if other_method else ("scope", found.scope)
        raise InputError(
            f"{found!r} is on this model, and the answers would be recorded as those of {method} with the scope "
            f"{scope}: run with `{name}` {value}, or set its lam to 0 or detach it first."
        )


@contextlib.contextmanager
def method_on(model: Any, method: str, scope: str, options: Mapping[str, Any]) -> "Iterator[Handle | RivalHandle]":
    """The method on a model, at lambda 0 or its neutral strength until a strength is set on the handle."""
    rival = RIVALS.get(method)
    if rival is None:
        _check_no_rival_attached(model, method)
        _check_no_other_kind_attached(model, method, scope)
        with agci(model, 0.0, scope, method) as handle:
            yield handle
        return
    with agci(model, 0.0), agci(model, method=method, strength=rival.neutral, **without_strength(options)) as other:
        yield other
