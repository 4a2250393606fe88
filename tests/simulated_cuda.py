"""A GPU that is not there: real values on the CPU under a device label "cuda:0" or "cuda:1".

    with SimulatedCuda() as gpu:
        gpu.move(model)                           # its parameters and buffers are on cuda:0 now
        model(**{name: value.to("cuda:0") ...})   # the CPU's values, the GPU's rules
    gpu.syncs                                     # where the host waited for the device, and how often
    gpu.uploads, gpu.bytes_uploaded               # copies from the host, and which of them it waited for

What it holds a program to:

- No operation may mix devices, but for what CUDA allows: scalars of no dimension, copies, and an index on the CPU.
- `syncs` counts every wait of the host for results of the device: `tolist`, `item`, `bool`, `cpu`, `nonzero`, an index
  by a mask, `repeat_interleave` by a tensor, an event's or a stream's `synchronize`. A copy from the host is counted in
  `uploads` instead, as "waits" where the host waits until it is done: PyTorch does unless it is `non_blocking` and the
  memory is pinned.
- A tensor made on one stream must not be read on another one that has not waited for it (an event, `wait_stream`).
- With `largest`, a tensor of more bytes raises torch.OutOfMemoryError, as an allocation on a full GPU does.
- `kernels` counts the attention calls, by kind and shape.

What it cannot show: how long anything takes, and whether a kernel of CUDA's computes what the CPU's does.
"""

import collections
import contextlib
import itertools
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import torch
from simulated_tensor import ENTERED, DeviceMix, Event, SimulatedTensor, Stream
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_map

CPU = torch.device("cpu")
OURS = ("transformers_agci", "/transformers/", "accelerate", "/perf/", "/tests/")  # frames that a count is booked to
OWN = ("simulated_cuda", "simulated_tensor")
# Operations after which the host knows something that the device computed.
READS_BACK = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_consecutive",
    "aten::unique_dim",
    "aten::equal",
    "aten::is_nonzero",
}
MAY_MIX = {"aten::copy_", "aten::_to_copy", "aten::set_"}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
VARLEN = "torch_attn::_varlen_attn"


class SimulatedCuda(TorchDispatchMode):
    """While entered, "cuda" devices exist; see the module's docstring.

    devices  how many
    largest  bytes of the largest tensor that fits, None: any fits
    """

    def __init__(self, devices: int = 1, largest: int | None = None) -> None:
        super().__init__()
        self.devices, self.largest = devices, largest
        self.syncs: collections.Counter[str] = collections.Counter()
        self.uploads: collections.Counter[str] = collections.Counter()
        self.kernels: collections.Counter[tuple[Any, ...]] = collections.Counter()
        self.bytes_uploaded = 0
        self.counting = True
        self.default_stream = Stream()
        self._threads = threading.local()
        self.device = torch.device("cuda:0")

    # --- what a test asks for ---

    def move(self, model: torch.nn.Module, place: Callable[[str], str] = lambda name: "cuda:0") -> None:
        """Put every parameter and buffer on the device that `place` gives its full name."""
        moved: dict[int, Any] = {}
        for prefix, module in model.named_modules():
            for holder in (module._parameters, module._buffers):
                for name, value in holder.items():
                    if value is None or isinstance(value, SimulatedTensor):
                        continue
                    device = torch.device(place(f"{prefix}.{name}" if prefix else name))
                    if id(value) not in moved or moved[id(value)].device != device:
                        there = self.wrap(value.data, device)
                        moved[id(value)] = (
                            torch.nn.Parameter(there, requires_grad=False) if holder is module._parameters else there
                        )
                    holder[name] = moved[id(value)]

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Nothing in this block is counted."""
        before, self.counting = self.counting, False
        try:
            yield
        finally:
            self.counting = before

    def clear(self) -> None:
        """Count from zero."""
        self.bytes_uploaded = 0
        for counts in (self.syncs, self.uploads, self.kernels):
            counts.clear()

    def report(self) -> str:
        """The counts by place, most first."""
        lines = [
            f"{number:6d}  {place}" for counts in (self.syncs, self.uploads) for place, number in counts.most_common()
        ]
        return "\n".join(lines)

    # --- what PyTorch asks for ---

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def __enter__(self) -> "SimulatedCuda":
        ENTERED.append(self)
        torch._C._ensureCUDADeviceGuardSet()
        self._lifted = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        self._stand_ins = contextlib.ExitStack()
        submit = ThreadPoolExecutor.submit
        # Modes belong to a thread: whoever works in another one enters this one there.
        self._submit = lambda pool, work, *args, **kwargs: submit(pool, self._in_thread, work, *args, **kwargs)
        for target, stand_in in self._names().items():
            self._stand_ins.enter_context(mock.patch(target, stand_in))
        self._stand_ins.enter_context(mock.patch.object(torch.Tensor, "pin_memory", _pin_memory))
        self._stand_ins.enter_context(mock.patch.object(torch.Tensor, "is_pinned", _is_pinned))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stand_ins.close()
        torch._C._set_only_lift_cpu_tensors(self._lifted)
        ENTERED.remove(self)

    def _names(self) -> Mapping[str, Any]:
        """What of torch a program sees otherwise; inference mode forbids what tensor subclasses need."""
        return {
            "torch.inference_mode": torch.no_grad,
            "torch.tensor": self._tensor,
            "torch.cuda._lazy_init": lambda: None,
            "torch.cuda.Stream": Stream,
            "torch.cuda.Event": Event,
            "torch.cuda.stream": self._on_stream,
            "torch.cuda.current_stream": lambda device=None: self.stream,
            "torch.cuda.default_stream": lambda device=None: self.default_stream,
            "torch.cuda.synchronize": lambda device=None: self.sync("cuda.synchronize"),
            "torch.cuda.device_count": lambda: self.devices,
            "torch.cuda.empty_cache": lambda: None,
            "torch.cuda.get_device_name": lambda device=None: "simulated",
            "torch.cuda.max_memory_allocated": lambda device=None: 0,
            "torch.cuda.reset_peak_memory_stats": lambda device=None: None,
            "concurrent.futures.ThreadPoolExecutor.submit": self._submit,
        }

    def _in_thread(self, work: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        torch._C._set_only_lift_cpu_tensors(True)
        TorchDispatchMode.__enter__(self)
        try:
            return work(*args, **kwargs)
        finally:
            TorchDispatchMode.__exit__(self, None, None, None)

    @property
    def stream(self) -> Stream:
        """The stream of this thread."""
        return getattr(self._threads, "stream", self.default_stream)

    @contextlib.contextmanager
    def _on_stream(self, stream: Stream) -> Iterator[None]:
        before, self._threads.stream = self.stream, stream
        try:
            yield
        finally:
            self._threads.stream = before

    def _tensor(self, data: Any, *, dtype: Any = None, device: Any = None, **more: Any) -> torch.Tensor:
        """torch.tensor: made on the host; values of the device are read back for it."""

        def on_host(part: Any) -> Any:
            if isinstance(part, SimulatedTensor):
                return part.tolist()
            return [on_host(item) for item in part] if isinstance(part, list | tuple) else part

        made = _TENSOR(on_host(data), dtype=dtype, **more)
        return made if device is None or torch.device(device).type == "cpu" else made.to(device)

    # --- counting ---

    def sync(self, what: str) -> None:
        """The host waits for the device; a helping thread that waits holds nobody up."""
        if self.counting and threading.current_thread() is threading.main_thread():
            self.syncs[f"{what} at {_where()}"] += 1

    def _upload(self, values: torch.Tensor, waits: bool) -> None:
        if self.counting:
            self.uploads[f"{'waits' if waits else 'goes on'} at {_where()}"] += 1
            self.bytes_uploaded += values.numel() * values.element_size()

    def wrap(self, values: torch.Tensor, device: torch.device) -> SimulatedTensor:
        """These values on a device, made by an operation of the current stream."""
        if self.largest is not None and values.numel() * values.element_size() > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than the simulated device has.")
        self.stream.number += 1
        index = device.index if device.index is not None else self.device.index
        if index >= self.devices:
            raise RuntimeError(f"CUDA error: invalid device ordinal {index} of {self.devices}")
        return SimulatedTensor(values, torch.device("cuda", index), (self.stream, self.stream.number))

    # --- running ---

    def run(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """One operation of PyTorch's: checked, counted, computed on the CPU, labelled."""
        flat = tree_flatten((args, kwargs))[0]
        theirs = [part for part in flat if isinstance(part, SimulatedTensor)]
        name = func._schema.name
        wanted = torch.device(kwargs["device"]) if kwargs.get("device") is not None else None
        self._check_devices(name, args, flat, theirs)
        self._check_streams(name, theirs)
        self._count(name, args, kwargs, theirs, wanted)
        target = self._target(name, args, theirs, wanted)
        if name == VARLEN:
            return self._varlen(args, target)
        with _disable_current_modes():
            made = func(*tree_map(_on_cpu, args), **_cpu_arguments(kwargs))
        if target.type != "cuda":
            return made
        return tree_map(lambda part: self._labelled(part, theirs, target), made)

    def _labelled(self, made: Any, theirs: Sequence[SimulatedTensor], device: torch.device) -> Any:
        if isinstance(made, SimulatedTensor) or not isinstance(made, torch.Tensor):
            return made
        for tensor in theirs:
            if tensor.values is made:  # in place
                tensor.made = (self.stream, self.stream.number)
                return tensor
        return self.wrap(made, device)

    def _check_devices(self, name: str, args: Any, flat: Sequence[Any], theirs: Sequence[SimulatedTensor]) -> None:
        if name in MAY_MIX:
            return
        tensors = [part for part in flat if isinstance(part, torch.Tensor) and part.dim() > 0]
        if name in INDEXING:  # an index may lie on the CPU, whatever is indexed
            holder, *_ = args
            indices = [part for part in args[1] if isinstance(part, torch.Tensor)]
            if holder.device.type == "cpu" and any(isinstance(part, SimulatedTensor) for part in indices):
                raise DeviceMix(f"{name}: a tensor on the CPU with an index on the device at {_where()}")
            for index in indices:
                if theirs and not isinstance(index, SimulatedTensor):
                    self._upload(index, waits=True)
            tensors = [part for part in tensors if not any(part is index for index in indices)]
        devices = {part.device for part in tensors}
        if theirs and len(devices) > 1:
            shapes = [tuple(part.shape) for part in tensors]
            raise DeviceMix(f"{name} on {sorted(map(str, devices))} with {shapes} at {_where()}")

    def _check_streams(self, name: str, theirs: Sequence[SimulatedTensor]) -> None:
        for tensor in theirs:
            stream, number = tensor.made
            if stream is not self.stream and self.stream.seen.get(stream, 0) < number:
                raise DeviceMix(f"{name} reads what another stream makes, without having waited, at {_where()}")

    def _count(
        self, name: str, args: Any, kwargs: Mapping[str, Any], theirs: Sequence[SimulatedTensor], wanted: Any
    ) -> None:
        if name in READS_BACK and theirs:
            self.sync(name)
        if name == "aten::repeat_interleave" and theirs and kwargs.get("output_size") is None:
            self.sync(name)
        if name in INDEXING and theirs:
            for part in args[1]:
                if isinstance(part, SimulatedTensor) and part.dtype in (torch.bool, torch.uint8):
                    self.sync(f"{name} by a mask")
        if name == "aten::_to_copy" and wanted is not None:
            self._count_copy(args[0], wanted.type, bool(kwargs.get("non_blocking")))
        if name == "aten::copy_" and args[0].device.type != args[1].device.type:
            waits = bool(args[2] if len(args) > 2 else kwargs.get("non_blocking"))
            self._count_copy(args[1], args[0].device.type, waits, args[0])

    def _count_copy(self, source: torch.Tensor, target: str, non_blocking: bool, into: Any = None) -> None:
        if source.device.type == target:
            return
        if target == "cuda":
            self._upload(source, waits=not (non_blocking and source.is_pinned()))
        elif not (non_blocking and into is not None and into.is_pinned()):
            self.sync("copy to the host")

    def _target(
        self, name: str, args: Any, theirs: Sequence[SimulatedTensor], wanted: torch.device | None
    ) -> torch.device:
        if name == "aten::copy_":
            return args[0].device
        if wanted is not None:
            return wanted
        if name == "aten::_to_copy":
            return args[0].device
        large = [tensor.device for tensor in theirs if tensor.dim() > 0]
        return (large or [tensor.device for tensor in theirs] or [CPU])[0]

    def attention(self, func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """SDPA as one kernel, whatever the CPU makes of it."""
        tensors = [part for part in (*args, *kwargs.values()) if isinstance(part, torch.Tensor)]
        devices = {part.device for part in tensors}
        if len(devices) > 1:
            raise DeviceMix(f"attention on {sorted(map(str, devices))} at {_where()}")
        self._check_streams("attention", [part for part in tensors if isinstance(part, SimulatedTensor)])
        mask, query, key = kwargs.get("attn_mask"), args[0], args[1]
        kind = "mask" if mask is not None else "causal" if kwargs.get("is_causal") else "full"
        if self.counting:
            self.kernels["sdpa", kind, tuple(query.shape), tuple(key.shape)] += 1
        with _disable_current_modes():
            made = func(*tree_map(_on_cpu, args), **tree_map(_on_cpu, dict(kwargs)))
        return self.wrap(made, devices.pop())

    def _varlen(self, args: Any, device: torch.device) -> Any:
        """torch.nn.attention.varlen: its rules, then one SDPA call per segment."""
        query, key, value, bounds, _, longest, _ = tree_map(_on_cpu, args[:7])
        ends = bounds.tolist()
        assert bounds.dtype == torch.int32
        assert query.dtype in (torch.bfloat16, torch.float16)
        assert query.shape[-1] % 8 == 0
        assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
        assert max(end - start for start, end in itertools.pairwise(ends)) == longest
        if self.counting:
            self.kernels["varlen", tuple(query.shape), len(ends) - 1, longest] += 1
        made = []
        with _disable_current_modes():
            for start, end in itertools.pairwise(ends):
                q, k, v = (part[start:end].transpose(0, 1)[None] for part in (query, key, value))
                made.append(torch.nn.functional.scaled_dot_product_attention(q, k, v)[0].transpose(0, 1))
            whole = torch.cat(made)
        nothing = torch.zeros(1)
        return self.wrap(whole, device), self.wrap(nothing, device), self.wrap(nothing.to(torch.uint64), device)


_TENSOR = torch.tensor
_IS_PINNED = torch.Tensor.is_pinned


def _on_cpu(part: Any) -> Any:
    if isinstance(part, SimulatedTensor):
        return part.values
    return CPU if isinstance(part, torch.device) and part.type == "cuda" else part


def _cpu_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    arguments = tree_map(_on_cpu, dict(kwargs))
    if arguments.get("device") is not None:
        arguments["device"] = CPU
    if arguments.get("pin_memory"):
        arguments["pin_memory"] = False
    return arguments


def _pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """A copy that counts as pinned."""
    with _disable_current_modes():
        copy = tensor.clone()
    copy.__dict__["simulated_pin"] = True
    return copy


def _is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    while tensor is not None:
        if tensor.__dict__.get("simulated_pin"):
            return True
        tensor = tensor._base  # type: ignore[assignment]
    return False


def _where() -> str:
    """The two innermost frames of the programs that are looked at."""
    found = []
    for frame in reversed(traceback.extract_stack()[:-2]):
        if not any(own in frame.filename for own in OWN) and any(part in frame.filename for part in OURS):
            found.append(f"{'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno} {frame.name}")
            if len(found) == 2:
                break
    return " < ".join(found)
