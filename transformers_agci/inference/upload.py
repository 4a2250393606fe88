"""Batches on their way to the model's device, ahead of their use.

On a GPU a helping thread takes the next column from the processes that prepare images, copies it into pinned memory
and starts its transfer on a stream of its own, while the model is at work on the column before. 18 images of 840x840
pixels are 76 MB of bytes: 2 ms per row that the GPU would otherwise stand still. The model's stream waits for the
transfer by an event, not the host. Pixels are normalised on the device (`prepare.RawPixels`).
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch

from transformers_agci.inference.host_values import GRID
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import Batch, Prepared, RawPixels
from transformers_agci.inference.runner import out_of_memory
from transformers_agci.method.forward_call import keep_on_host


class OnDevice(NamedTuple):
    """A batch where the model is: what the model is called with, and the places of its tokens."""

    inputs: dict[str, torch.Tensor]
    positions: torch.Tensor | None


class _Sent(NamedTuple):
    """Transfers under way: of each batch its text, of each set of pixels its tensors, and the event after them."""

    batches: list[OnDevice]
    pixels: list[dict[str, torch.Tensor]]  # of each batch; one object where batches share it
    event: Any

    def let_go(self) -> None:
        """Give up the tensors, whoever still holds this."""
        self.batches.clear()
        self.pixels.clear()


# By model and device. PyTorch keeps the memory that a stream's tensors took for that stream: all runs share one.
_STREAMS: "WeakKeyDictionary[Any, dict[torch.device, Any]]" = WeakKeyDictionary()


class Upload:
    """Moves batches to the model's device; `grids_stay`: image grids are not asked for there.

    most  rows of a batch, as far as memory is known to hold them: a column with more is cut before it is sent
    """

    def __init__(self, loaded: LoadedModel, raw: RawPixels | None, grids_stay: bool) -> None:
        self.loaded, self.raw, self.grids_stay = loaded, raw, grids_stay
        self.pinned = loaded.device.type == "cuda" and "pinned" in loaded.quick
        self.most: int | None = None
        self._stream: Any = None
        if self.pinned:
            of_model = _STREAMS.setdefault(loaded.model, {})
            self._stream = of_model.setdefault(loaded.device, torch.cuda.Stream(loaded.device))

    def ahead(self, columns: Iterator[Prepared]) -> Generator[tuple[Prepared, "_Sent | None"], None, None]:
        """Each column with its transfer, started while the one before is in use; None: not started."""
        if not self.pinned:
            for prepared in columns:
                yield prepared, None
            return
        with ThreadPoolExecutor(1) as thread:
            coming = thread.submit(self._next, columns)
            while (found := coming.result()) is not None:
                coming = thread.submit(self._next, columns)
                yield found

    def _next(self, columns: Iterator[Prepared]) -> tuple[Prepared, "_Sent | None"] | None:
        prepared = next(columns, None)
        if prepared is None:
            return None
        if self.most is not None and any(len(batch.numbers) > self.most for batch in prepared.batches):
            return prepared, None
        try:
            return prepared, self.send(prepared.batches)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return prepared, None  # the column is cut where it is answered

    def send(self, batches: Sequence[Batch]) -> _Sent:
        """Start the transfer of these batches."""
        if self._stream is None:
            return self._sent(batches, None)
        event = torch.cuda.Event()
        with torch.cuda.stream(self._stream):
            sent = self._sent(batches, event)
            event.record(self._stream)
        return sent

    def receive(self, sent: _Sent) -> list[OnDevice]:
        """The batches as the model takes them, once its stream has waited for them."""
        if sent.event is not None:
            stream = torch.cuda.current_stream(self.loaded.device)
            stream.wait_event(sent.event)
            for batch, pixels in zip(sent.batches, sent.pixels, strict=True):
                for tensor in (*batch.inputs.values(), *pixels.values(), batch.positions):
                    if isinstance(tensor, torch.Tensor) and tensor.device.type == "cuda":
                        tensor.record_stream(stream)  # its memory is not given to the next transfer before its use
        ready: dict[int, dict[str, torch.Tensor]] = {}
        for pixels in sent.pixels:
            if id(pixels) not in ready:
                ready[id(pixels)] = {name: self._as_model(value) for name, value in pixels.items()}
        received = [
            OnDevice({**batch.inputs, **ready[id(pixels)]}, batch.positions)
            for batch, pixels in zip(sent.batches, sent.pixels, strict=True)
        ]
        sent.let_go()
        return received

    def _sent(self, batches: Sequence[Batch], event: Any) -> _Sent:
        crossed: dict[int, dict[str, torch.Tensor]] = {}
        for batch in batches:
            if id(batch.pixels) not in crossed:
                crossed[id(batch.pixels)] = {
                    name: value if name == GRID and self.grids_stay else self._cross(value)
                    for name, value in batch.pixels.items()
                }
        text = [
            OnDevice(
                {name: self._cross(value) for name, value in batch.text.items()},
                None if batch.positions is None else self._cross(batch.positions),
            )
            for batch in batches
        ]
        return _Sent(text, [crossed[id(batch.pixels)] for batch in batches], event)

    def _cross(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):  # a list of numbers, as some processors give
            return value
        if not self.pinned:
            there = value.to(self.loaded.device)
        else:
            there = value.pin_memory().to(self.loaded.device, non_blocking=True)
        if there is not value and not value.is_floating_point() and value.dtype != torch.uint8:
            keep_on_host(there, value)
        return there

    def _as_model(self, value: Any) -> Any:
        """Pixels normalised and in the model's dtype; numbers as they are."""
        if not isinstance(value, torch.Tensor):
            return value
        if self.raw is not None and value.dtype == torch.uint8:
            value = self.raw.normalise(value)
        return value.to(self.loaded.model.dtype) if value.is_floating_point() else value
