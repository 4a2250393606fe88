"""What may be asked of `attach` and `agci`: method, lambda, scope, options. Each error says what is allowed."""

from collections.abc import Mapping
from typing import Any

from transformers_agci.errors import InputError, short
from transformers_agci.method.injection import METHODS, SEEDED, injection_of
from transformers_agci.method.lam import validate_lambda
from transformers_agci.method.names import OTHER
from transformers_agci.method.rivals import RIVALS

SCOPES = ("image", "batch")


def is_rival(method: str) -> bool:
    """Whether this names a rival; InputError where it names no method at all."""
    if isinstance(method, str) and method in RIVALS:
        return True
    if isinstance(method, str) and method.partition("-")[0] == OTHER:
        raise InputError(
            f"method {short(method, 40)} needs another image, which a run of the commands encodes: attach agci and set "
            "handle.context to the mean of that image's tokens."
        )
    if not isinstance(method, str) or injection_of(method) is None:
        _one_of("method", method, tuple(dict.fromkeys((*METHODS, *SEEDED, *RIVALS))))
    return False


def needed_lambda(lam: float | None, method: str) -> float:
    """Lambda of AGCI or a control, which cannot do without."""
    if lam is None:
        raise InputError(
            "lambda must be a finite number >= 0 (0 is the unmodified model), but lam is missing, "
            f"which {method} needs."
        )
    return validate_lambda(lam, "lam")


def check_scope(scope: str) -> None:
    """InputError where the mean can be taken over no such thing."""
    _one_of("scope", scope, SCOPES)


def seeded(method: str, options: Mapping[str, Any]) -> str:
    """The method's name with the seed that stands among the options; InputError for any other option."""
    has_seed = method.partition("-")[0] in SEEDED
    for name in options:
        if name != "seed" or not has_seed:
            known = "seed is its only one" if has_seed else "it has none; lam is its strength"
            raise InputError(f"{method} has no option {short(name, 40)}: {known}.")
    if "seed" not in options:
        return method
    named = f"{method}-{options['seed']}"
    if "-" in method or isinstance(options["seed"], bool) or injection_of(named) is None:
        raise InputError(
            f"The seed of {method} is one whole number from 0 to 999999999, but it is {short(options['seed'], 40)}."
        )
    return named


def rival_arguments(
    method: str, lam: float | None, scope: str, options: Mapping[str, Any]
) -> tuple[float | None, dict[str, Any]]:
    """Strength and options of a rival; InputError for what belongs to AGCI."""
    if lam is not None:
        raise InputError(f"lam belongs to agci and its controls: {method} has strength.")
    if scope != "image":
        raise InputError(f"scope belongs to agci and its controls: {method} works on each image by itself.")
    return options.get("strength"), {name: value for name, value in options.items() if name != "strength"}


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(allowed)}, but it is {value!r}.")
