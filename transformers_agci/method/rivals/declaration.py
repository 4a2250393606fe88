"""What a rival declares: one frozen `Rival` in a file of its own (bapa.py, pai.py, ...).

A declaration needs no torch; its functions load it when they are called. A rival changes one or several of four things,
and its file says how:

    positions   which position ids the tokens of an image get, and where the text behind it goes on
    mask        which image tokens see each other
    scores      attention scores between the last token and the image, before the softmax
    bias        what is added to the scores of the text on the image, per layer
    contrast    a second pass over another prompt, whose logits are held against the first one's
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from transformers_agci.errors import InputError, short
from transformers_agci.method.lam import is_finite, lambda_text

if TYPE_CHECKING:
    import torch


class Grid(NamedTuple):
    """How the tokens of one image lie: rows x cols, row by row."""

    rows: int
    cols: int


@dataclass(frozen=True)
class PositionRule:
    """Position ids of an image's tokens, counted from s, the position that its first token has.

    Attributes:
        offsets: number of tokens N, grid (None unless `needs_grid`) -> offset of each token, N numbers >= 0.
        needs_grid: whether the offsets depend on how the tokens lie on the image.
        text_follows: whether the text behind the image goes on at the largest offset + 1; else it stays where it was.
    """

    offsets: Callable[[int, Grid | None], Sequence[int]]
    needs_grid: bool = False
    text_follows: bool = True


@dataclass(frozen=True)
class MaskRule:
    """Which tokens of one image see each other: a query of rank q sees the keys of rank <= q, whatever their order.

    `ranks` takes the grid and gives one number per token.
    """

    ranks: Callable[[Grid], Sequence[int]]


class ScoreCall(NamedTuple):
    """What a rule about scores may look at."""

    strength: float
    options: Mapping[str, Any]
    layer: int
    weights: "torch.Tensor | None"  # [B] float32, what the first pass chose; None where there is none


@dataclass(frozen=True)
class ScoreRule:
    """Attention scores of the last token of a call on the image tokens before it.

    Attributes:
        rescore: scores [B, H, 1, K] after scaling, image keys [B, 1, 1, K] bool, call -> scores of the same shape.
        layers: options, layer -> whether the rule acts in this layer.
        decoding: whether it also acts when a single token is decoded.
        weigh: logits [B, V] of the first pass, strength, options -> a weight per prompt; None: one pass only.
    """

    rescore: "Callable[[torch.Tensor, torch.Tensor, ScoreCall], torch.Tensor]"
    layers: Callable[[Mapping[str, Any], int], bool] = lambda options, layer: True
    decoding: bool = True
    weigh: "Callable[[torch.Tensor, float, Mapping[str, Any]], torch.Tensor] | None" = None


@dataclass(frozen=True)
class BiasRule:
    """What is added to the scores of text on the tokens of an image, from the attention that a blank image gets.

    `bias` takes the blank image's attention [N], which sums to 1, and the strength, and gives [N].
    """

    bias: "Callable[[torch.Tensor, float], torch.Tensor]"


@dataclass(frozen=True)
class ContrastRule:
    """A second pass and what becomes of the logits.

    Attributes:
        second: the generate() inputs, options, image token id -> the inputs of the second pass.
        combine: log probabilities or logits [B, V] of the prompt and of the second pass, strength, options ->
            scores [B, V] and which tokens may be chosen [B, V] bool.
        active: strength, options -> whether there is a second pass at all.
        other_images: whether the second pass shows images of its own.
    """

    second: "Callable[[Mapping[str, torch.Tensor], Mapping[str, Any], int], dict[str, torch.Tensor]]"
    combine: "Callable[[torch.Tensor, torch.Tensor, float, Mapping[str, Any]], tuple[torch.Tensor, torch.Tensor]]"
    active: Callable[[float, Mapping[str, Any]], bool] = lambda strength, options: strength != 0
    other_images: bool = False


@dataclass(frozen=True)
class Option:
    """A number that a rival takes beside its strength; `whole` where it has no fraction."""

    default: float
    about: str
    least: float = -math.inf
    most: float = math.inf
    whole: bool = False


@dataclass(frozen=True)
class Rival:
    """A method by others, as far as it can be had without training.

    Attributes:
        name: what `attach(method=...)` and the commands call it.
        title: what tables call it.
        source: the paper.
        code: where the authors' code was read; empty where it was not.
        changes: what it changes, in words.
        evaluated: what its authors evaluated it on.
        note: what must be said wherever its results stand, for instance that it is a reconstruction.
        on_off: whether its strength is 0 or 1; else any number >= 0.
        published: the strength with which its authors report; 1 for the on/off methods.
        options: what it takes beside `strength`.
    """

    name: str
    title: str
    source: str
    code: str
    changes: str
    evaluated: str
    note: str = ""
    on_off: bool = True
    published: float = 1.0
    options: Mapping[str, Option] = field(default_factory=lambda: MappingProxyType({}))
    positions: PositionRule | None = None
    mask: MaskRule | None = None
    scores: ScoreRule | None = None
    bias: BiasRule | None = None
    contrast: ContrastRule | None = None

    @property
    def neutral(self) -> float:
        """The strength that is stock, bit for bit."""
        return 0.0

    @property
    def default(self) -> float:
        """The strength where none is given: 1 for the on/off methods, neutral for the others."""
        return 1.0 if self.on_off else self.neutral

    @property
    def uses_attention(self) -> bool:
        """Whether it acts inside the attention of the decoder's layers."""
        return self.mask is not None or self.scores is not None or self.bias is not None

    @property
    def combines(self) -> bool:
        """Whether it may stand beside AGCI on one model: AGCI updates the tokens, then they get their positions."""
        return self.positions is not None and not self.uses_attention

    @property
    def is_reconstruction(self) -> bool:
        return not self.code

    def strength_of(self, value: Any, source: str) -> float:
        """`value` as a strength of this method; InputError, which names `source`, where it is none."""
        if not _is_number(value) or value < 0 or (self.on_off and value not in (0, 1)):
            allowed = "0 (stock) or 1" if self.on_off else "a finite number >= 0 (0 is stock)"
            raise InputError(f"The strength of {self.name} is {allowed}, but {source} is {short(value, 60)}.")
        return float(value)

    def settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options of this method, those given checked; InputError for one that it does not have."""
        found: dict[str, Any] = {name: option.default for name, option in self.options.items()}
        for name, value in given.items():
            option = self.options.get(name)
            if option is None:
                known = ", ".join(("strength", *self.options))
                raise InputError(f"{self.name} has no option {short(name, 40)}; it has: {known}.")
            bad = not _is_number(value) or not option.least <= value <= option.most
            if bad or (option.whole and value != int(value)):
                raise InputError(
                    f"The option {name} of {self.name} ({option.about}) is {_range(option)}, "
                    f"but it is {short(value, 60)}."
                )
            found[name] = int(value) if option.whole else float(value)
        return found


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and is_finite(value)


def _range(option: Option) -> str:
    kind = "a whole number" if option.whole else "a number"
    if math.isinf(option.least) and math.isinf(option.most):
        return kind
    if math.isinf(option.most):
        return f"{kind} of at least {lambda_text(option.least)}"
    return f"{kind} from {lambda_text(option.least)} to {lambda_text(option.most)}"
