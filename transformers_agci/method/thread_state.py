"""What the hooks of one model hand to each other, per thread: one model may run in several threads at once.

Two things are kept:

- the calls of vlms that are running in this thread, each with the images that its decoder shall receive;
- the mark: image features were made outside such a call, and no prefill with images has come for them yet.

A hook that torch runs after the call takes its entry out. It does not run after a Ctrl-C, and a stale entry would be
handed to the next call of the decoder: hence an entry holds the frame of the call, and counts only while that frame is
on this thread's stack.
"""

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from transformers_agci.families import ForwardCall

if TYPE_CHECKING:
    from transformers_agci.method.handle import Handle

_MODULE_FILE = torch.nn.modules.module.__file__  # where torch calls hooks and forward


class Images(NamedTuple):
    """What the vlm's pre-hook leaves for the decoder's."""

    call: ForwardCall
    mask: torch.Tensor  # [B, S] bool
    lam: float


@dataclass
class RunningCall:
    """A call of a vlm that has not ended; `images` is None where it has none."""

    handle: "Handle"
    images: Images | None
    frame: FrameType
    taken: bool = False  # by the decoder: a second decoder of the same call gets nothing


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.calls: list[RunningCall] = []  # a stack: a vlm may call another one
        self.features_of: Handle | None = None


_state = _ThreadState()


def enter(handle: "Handle", images: Images | None) -> None:
    """A call of the handle's vlm begins; to be called below the hook that torch runs for it."""
    _drop_ended()
    frame = next(frame for frame in stack() if frame.f_code.co_filename == _MODULE_FILE)
    _state.calls.append(RunningCall(handle, images, frame))


def running(handle: "Handle") -> RunningCall | None:
    """The innermost running call of the handle's vlm in this thread."""
    if _state.calls:
        _drop_ended()
    return next((call for call in reversed(_state.calls) if call.handle is handle), None)


def call_frame(module: torch.nn.Module) -> FrameType | None:
    """The frame in which torch calls this module with its hooks now, in this thread; None where it does not.

    So a call is known that no hook of ours has entered: it began while lambda was 0, or before AGCI came.
    """
    frames = (frame for frame in stack() if frame.f_code.co_filename == _MODULE_FILE)
    return next((frame for frame in frames if frame.f_locals.get("self") is module), None)


def arguments_now(module: torch.nn.Module) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """What a module that is being called was given behind all of its pre-hooks; None where that cannot be seen."""
    frame = call_frame(module)
    found = {} if frame is None else frame.f_locals
    return (found["args"], found["kwargs"]) if found.keys() >= {"args", "kwargs"} else None


def leave(handle: "Handle") -> RunningCall | None:
    """The innermost call of the handle's vlm ends."""
    call = running(handle)
    if call is not None:
        _state.calls.remove(call)
    return call


def mark_features(handle: "Handle") -> None:
    """Image features of the handle's vlm were made outside a call of it."""
    if _state.features_of is not None:
        clear_mark(_state.features_of)
    _state.features_of = handle
    handle.threads_with_features.add(threading.get_ident())


def features_wait(handle: "Handle") -> bool:
    """Whether features made outside a call of the handle's vlm, on this thread, have not gone into one yet."""
    return _state.features_of is handle


def clear_mark(handle: "Handle") -> None:
    """Forget that the handle's features wait."""
    if _state.features_of is handle:
        _state.features_of = None
        handle.threads_with_features.discard(threading.get_ident())


def is_idle() -> bool:
    """Whether this thread holds nothing; for tests."""
    return not _state.calls and _state.features_of is None


def _drop_ended() -> None:
    if _state.calls:
        on_stack = {id(frame) for frame in stack()}  # the entries keep their frames: no id is used twice
        _state.calls[:] = [call for call in _state.calls if id(call.frame) in on_stack]


def stack() -> Iterator[FrameType]:
    """The frames that this thread is in, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
