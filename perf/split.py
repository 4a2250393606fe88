"""Where the time goes: decode, preprocess, vision, decoder, write. For a pass of its own, since it stops the GPU."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from machine import seconds

from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.inference import columns, prepare, questions
from transformers_agci.inference.load import LoadedModel
from transformers_agci.storage import result_file as results

FUNCTIONS = (
    (questions.ImageFile, "open", "decode"),
    (prepare, "prepare", "preprocess"),
    (columns, "prepare", "preprocess"),
    (results.ResultFile, "write", "write"),
)
PARTS = ("decode", "preprocess", "vision", "decoder", "write", "other")


class Split:
    """Seconds per part while entered. A part within another counts for itself only; the rest is "other".

    with Split(loaded) as split:
        answer_questions(...)
    split.seconds["vision"]
    """

    def __init__(self, loaded: LoadedModel, also: Sequence[tuple[Any, str, str]] = ()) -> None:
        """`also`: further functions, as (module or class, name, part)."""
        self.loaded, self._also = loaded, also
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self._stack = ["other"]
        self._since = 0.0
        self._undo = ExitStack()

    def __enter__(self) -> "Split":
        owner: Any = find_vlm(self.loaded.model)
        head = self.loaded.model.get_output_embeddings()
        for module, part in ((owner.visual, "vision"), (decoder_of(owner), "decoder"), (head, "decoder")):
            before = module.register_forward_pre_hook(lambda *_, part=part: self._begin(part))
            after = module.register_forward_hook(lambda *_: self._end(), always_call=True)
            self._undo.callback(before.remove)
            self._undo.callback(after.remove)
        for holder, name, part in (*FUNCTIONS, *self._also):
            self._wrap(holder, name, part)
        self._since = seconds(self.loaded.device)
        return self

    def __exit__(self, *_: object) -> None:
        self._account()
        self._undo.close()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens in this block is `name`."""
        self._begin(name)
        try:
            yield
        finally:
            self._end()

    def row(self, answers: int, name: str) -> str:
        """A row of milliseconds per row; `heading` stands above."""
        total = sum(self.seconds.values())
        shares = [self.seconds[part] for part in PARTS]
        cells = [f"{1000 * share / answers:.2f} ({100 * share / total:.0f} %)" for share in shares]
        return f"| {name} | {' | '.join(cells)} | {1000 * total / answers:.2f} |"

    def _begin(self, part: str) -> None:
        self._account()
        self._stack.append(part)

    def _end(self) -> None:
        self._account()
        self._stack.pop()

    def _account(self) -> None:
        now = seconds(self.loaded.device)
        self.seconds[self._stack[-1]] += now - self._since
        self._since = now

    def _wrap(self, holder: Any, name: str, part: str) -> None:
        stock = getattr(holder, name)

        @functools.wraps(stock)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(part):
                return stock(*args, **kwargs)

        setattr(holder, name, timed)
        self._undo.callback(setattr, holder, name, stock)


def heading(device: torch.device) -> str:
    kind = "clock" if device.type == "cuda" else "core"
    return (
        f"\nms of the {kind} per row, in a pass of its own:\n\n| | {' | '.join(PARTS)} | all |\n"
        f"|---|{'---|' * (len(PARTS) + 1)}"
    )
