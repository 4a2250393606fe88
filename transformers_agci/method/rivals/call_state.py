"""What the hooks of a rival hand to each other within a call, one state per thread."""

import contextlib
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from transformers_agci.families import ForwardCall
from transformers_agci.method.image_positions import ImagePositions

if TYPE_CHECKING:
    from transformers_agci.method.rivals.plan import Plan


class Prompt(NamedTuple):
    """The images of a running call."""

    call: ForwardCall
    images: list[ImagePositions]


class CallState(threading.local):
    """Overwritten by the next call of any served vlm in this thread.

    Attributes:
        vlm: the module whose call runs.
        prompt: its images, until the decoder takes them.
        moved: how far the text was moved, of a call whose cache the decoder makes itself.
        plan: what its attention layers do, of such a call, too.
        weighing: the first pass of two is running.
        contrasting: a second pass is running, which the rival leaves alone; other threads go on.
        positions: [B, S] or [axes, B, S], of the decoder's last call in a second pass; None where it was given none.
        weights: [B], which it chose.
        seen: per layer the attention that a blank image gets, while it is shown.
        bias: per layer [B, S], of the coming call.
    """

    def __init__(self) -> None:
        self.vlm: Any = None
        self.prompt: Prompt | None = None
        self.moved: torch.Tensor | None = None
        self.plan: Plan | None = None
        self.weighing = False
        self.contrasting = False
        self.positions: torch.Tensor | None = None
        self.weights: torch.Tensor | None = None
        self.seen: dict[int, torch.Tensor] | None = None
        self.bias: dict[int, torch.Tensor] | None = None

    def start(self, vlm: Any) -> None:
        """A call of this vlm begins."""
        self.vlm, self.prompt = vlm, None
        self.moved = self.plan = self.bias = None

    @contextlib.contextmanager
    def second_pass(self) -> Iterator[None]:
        """Stock in this thread."""
        self.contrasting = True
        try:
            yield
        finally:
            self.contrasting, self.positions = False, None

    def end(self) -> "tuple[torch.Tensor | None, Plan | None]":
        """The call has ended; returns what its cache has to keep."""
        kept = self.moved, self.plan
        self.vlm = self.prompt = self.moved = self.plan = self.bias = None
        return kept


state = CallState()
