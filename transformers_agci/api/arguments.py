"""What a caller gives to the functions of this package, checked as the commands check their options."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.experiments.position.questions import Control
from transformers_agci.method.lam import lambda_text, validate_lambda


def lambda_list(given: Sequence[float] | float | None) -> tuple[float, ...]:
    """The lambdas in their order; one number is a list of one, None is ().

    >>> lambda_list([0, 0.5]), lambda_list(0.5), lambda_list(None)
    ((0.0, 0.5), (0.5,), ())
    """
    if given is None:
        return ()
    if isinstance(given, str | bytes):
        raise InputError(f"`lambdas` is a number or a list of numbers, such as [0, 0.5], but is {given!r}.")
    values = [given] if isinstance(given, Real) else _elements("lambdas", given, "numbers, such as [0, 0.5]")
    return tuple(validate_lambda(value, "one of `lambdas`") for value in values)


def some_lambdas(given: Sequence[float] | float) -> tuple[float, ...]:
    """As `lambda_list`, where at least one lambda is needed and none is measured twice."""
    found = lambda_list(given)
    if not found:
        raise InputError("`lambdas` must name at least one lambda; 0 is the unmodified model.")
    if len(set(found)) < len(found):
        raise InputError(f"`lambdas` names a lambda twice: {', '.join(map(lambda_text, found))}.")
    return found


def place_of_lambda(lambdas: Sequence[float], wanted: float | None) -> int:
    """Where a lambda stands among those of a run; 0 (the first) where none is named."""
    if wanted is None:
        return 0
    if wanted not in lambdas:
        raise InputError(f"This run is at lambda {', '.join(map(lambda_text, lambdas))}, but {wanted!r} is asked for.")
    return list(lambdas).index(wanted)


def method_list(given: str | Sequence[str]) -> list[str]:
    """The methods in their order; one name is a list of one. That each exists is for the run to say."""
    methods = [given] if isinstance(given, str) else _elements("method", given, "names of methods")
    if not methods:
        raise InputError("`method` is an empty list; name at least one method.")
    if (wrong := next((name for name in methods if not isinstance(name, str)), None)) is not None:
        raise InputError(f"`method` must be a name or a list of names, but has {wrong!r}.")
    return methods


def control_list(given: str | Sequence[str]) -> list[Control]:
    """The controls by their names; one name is a list of one."""
    known = [control.value for control in Control]
    names = [given] if isinstance(given, str) else _elements("controls", given, "names of controls")
    if (wrong := next((name for name in names if name not in known), None)) is not None:
        raise InputError(f"`controls` must be of {' and '.join(known)}, but has {wrong!r}.")
    return [Control(name) for name in names]


def needed_data(given: Any) -> ProbeData | None:
    """Rows with their images, or None for the embedded atlas."""
    if given is None or isinstance(given, ProbeData):
        return given
    raise InputError(
        "`data` must be what `probe_data`, `published_data` or `composites` give, or None for the embedded atlas, but "
        f"is a {type(given).__name__}: a file is read by probe_data(rows, images)."
    )


def whole_number(name: str, given: Any, least: int = 1) -> int:
    """A number of items, draws or pixels. InputError names it where it is none, or below `least`."""
    if isinstance(given, bool) or not isinstance(given, Integral) or given < least:
        raise InputError(f"`{name}` must be a whole number of at least {least}, but is {given!r}.")
    return int(given)


def maybe_whole(name: str, given: Any, least: int = 1) -> int | None:
    """As `whole_number`, or None for the default."""
    return None if given is None else whole_number(name, given, least)


def share(name: str, given: Any) -> float:
    """A share between 0 and 1, such as an equivalence margin."""
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 < float(given) < 1:
        raise InputError(f"`{name}` must lie between 0 and 1 (0.02: two points), but is {given!r}.")
    return float(given)


def _elements(name: str, given: Any, what: str) -> list[Any]:
    try:
        return list(given)
    except TypeError:
        raise InputError(f"`{name}` must be a list of {what}, but is {given!r}.") from None
