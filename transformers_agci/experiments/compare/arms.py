"""The arms of a comparison: a method at a strength, as a word.

stock                          the model as it is
agci:0.5, uniform:0.5          AGCI or a control at lambda 0.5; random-1:0.5 with seed 1
bapa, pai:0.2                  a rival at its default strength, or at the one given
pai:0.2,gamma=1                with another option
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers_agci.errors import InputError, short
from transformers_agci.method.lam import lambda_text, validate_lambda
from transformers_agci.method.names import CONTROLS
from transformers_agci.method.rivals import RIVALS

STOCK = "stock"
DEFAULT_ARMS = (STOCK, "agci:0.5", "uniform:0.5", "random:0.5", "bapa", "flat", "cca", "cca_positions")


@dataclass(frozen=True)
class Arm:
    """One arm; `value` is lambda or the strength, `options` are a rival's beside it."""

    word: str
    method: str
    value: float
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How tables call it."""
        if self.method == STOCK:
            return STOCK
        note = " (reconstruction)" if self.is_rival and RIVALS[self.method].is_reconstruction else ""
        options = "".join(f", {name} {lambda_text(value)}" for name, value in self.options.items())
        return f"{self.method} {lambda_text(self.value)}{options}{note}"

    @property
    def is_rival(self) -> bool:
        return self.method in RIVALS

    @property
    def engine_method(self) -> str:
        """The method's name for the engine: stock is AGCI at lambda 0."""
        return "agci" if self.method == STOCK else self.method

    @property
    def method_options(self) -> dict[str, Any]:
        """The options for the engine, strength among a rival's."""
        return {**self.options, "strength": self.value} if self.is_rival else {}

    @property
    def sameness(self) -> tuple[Any, ...]:
        """What two words for one arm have in common: random:0.5 is random-0:0.5, pai:0.2 is pai:0.2,gamma=1.1."""
        if self.is_rival:
            return self.method, self.value, *sorted(RIVALS[self.method].settings(self.options).items())
        name, _, seed = self.method.partition("-")
        return name, self.value, int(seed or 0)

    @property
    def file_name(self) -> str:
        """The name of its result file."""
        return "".join(sign if sign.isalnum() or sign in ".-_" else "-" for sign in self.word) + ".jsonl"


def parse_arms(words: Sequence[str]) -> list[Arm]:
    """The arms of these words, stock first; InputError where a word is none, twice there, or stock is missing."""
    arms = [parse_arm(word) for word in words]
    if STOCK not in {arm.method for arm in arms}:
        raise InputError(f"`methods` needs {STOCK}: every other method is held against it.")
    first: dict[tuple[Any, ...], Arm] = {}
    for arm in arms:
        other = first.setdefault(arm.sameness, arm)
        if other is not arm:
            also = "" if other.word == arm.word else f", once as {short(other.word)}"
            raise InputError(f"`methods` names {short(arm.word)} twice{also}.")
    if len(arms) < 2:
        raise InputError("`methods` names stock alone: give at least one method beside it.")
    return sorted(arms, key=lambda arm: arm.method != STOCK)


def parse_arm(word: str) -> Arm:
    """One word; InputError says what it may be."""
    method, mark, rest = word.partition(":")
    if method == STOCK and not mark:
        return Arm(word, STOCK, 0.0)
    value, *options = rest.split(",") if mark else [""]
    if method in RIVALS:
        rival = RIVALS[method]
        strength = rival.published if not value else rival.strength_of(_number(value, word), f"{short(word)}")
        found = _options(options, word)
        rival.settings(found)
        return Arm(word, method, strength, found)
    from transformers_agci.inference.other_image import seed_of_other
    from transformers_agci.method.injection import injection_of

    if injection_of(method) is None and seed_of_other(method) is None:
        known = ", ".join((STOCK, "agci", *CONTROLS, *RIVALS))
        raise InputError(f"`methods` has {short(word)}, but the methods are {known}.")
    if not value or options:
        raise InputError(f"`methods` has {short(word)}: {method} needs a lambda alone, as in {method}:0.5.")
    return Arm(word, method, validate_lambda(_number(value, word), short(word)))


def _options(words: Sequence[str], word: str) -> dict[str, float]:
    """name=number of each; InputError where one is not that, or there twice."""
    found: dict[str, float] = {}
    for option in words:
        name, mark, text = option.partition("=")
        if not mark:
            raise InputError(f"`methods` has {short(word)}, in which {short(option)} is not name=number.")
        if name in found:
            raise InputError(f"`methods` has {short(word)}, in which {short(name)} is given twice.")
        found[name] = _number(text, word)
    return found


def _number(text: str, word: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"`methods` has {short(word)}, in which {short(text)} is no number.") from None
    return int(value) if value.is_integer() else value
