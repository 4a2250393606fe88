"""What a simulated GPU holds: tensors that are said to lie on it, its streams and its events."""

from typing import Any

import torch

ENTERED: list[Any] = []  # each SimulatedCuda that is entered: the innermost one runs what tensors ask for


class DeviceMix(RuntimeError):
    """An operation got tensors of several devices, or one that its stream has not waited for."""


class SimulatedTensor(torch.Tensor):
    """`values` on the CPU, `device` as the program sees it, `made` = (stream, number of its operation)."""

    values: torch.Tensor
    made: tuple["Stream", int]

    @staticmethod
    def __new__(
        cls: type["SimulatedTensor"], values: torch.Tensor, device: torch.device, made: tuple["Stream", int]
    ) -> "SimulatedTensor":
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            layout=values.layout,
            device=device,
            requires_grad=False,
        )
        tensor.values, tensor.made = values, made
        return tensor

    def __repr__(self, *_: Any, **__: Any) -> str:
        return f"SimulatedTensor({self.device}, {tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        _current().sync("tolist")
        return self.values.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a cuda tensor to numpy: use Tensor.cpu() first")

    def pin_memory(self, *_: Any) -> Any:
        raise RuntimeError("cannot pin a cuda tensor: only CPU memory can be pinned")

    def record_stream(self, stream: "Stream") -> None:
        assert isinstance(stream, Stream)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.nn.functional.scaled_dot_product_attention:
                return _current().attention(func, args, kwargs)
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _current().run(func, args, kwargs or {})


class Stream:
    """One queue of the device; `seen` says up to which operation of other streams its own ones wait."""

    def __init__(self, device: Any = None, **_: Any) -> None:
        self.number = 0
        self.seen: dict[Stream, int] = {}

    def wait_stream(self, other: "Stream") -> None:
        self.seen[other] = other.number

    def wait_event(self, event: "Event") -> None:
        self.seen |= {event.stream: max(event.number, self.seen.get(event.stream, 0))} if event.stream else {}

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        _current().sync("stream.synchronize")


class Event:
    """A mark in a stream."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.stream: Stream | None = None
        self.number = 0

    def record(self, stream: Stream | None = None) -> None:
        self.stream = stream or _current().stream
        self.number = self.stream.number

    def wait(self, stream: Stream | None = None) -> None:
        (stream or _current().stream).wait_event(self)

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _current().sync("event.synchronize")

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


def _current() -> Any:
    if not ENTERED:
        raise RuntimeError("a simulated tensor outlived its device: leave SimulatedCuda after its tensors")
    return ENTERED[-1]
