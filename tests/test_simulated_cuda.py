"""The simulated GPU itself: it computes what the CPU does, counts the waits, refuses what CUDA refuses."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from simulated_cuda import DeviceMix, SimulatedCuda
from torch import nn


def test_the_cpus_values_under_another_label() -> None:
    torch.manual_seed(0)
    model, given = nn.Sequential(nn.Linear(4, 3), nn.GELU(), nn.Linear(3, 2)), torch.randn(5, 4)
    with torch.no_grad():
        wanted = model(given)
    with SimulatedCuda() as gpu:
        gpu.move(model)
        with torch.no_grad():
            made = model(given.to("cuda"))
        assert str(made.device) == "cuda:0"
        assert made.shape == (5, 2)
        assert not gpu.syncs
        assert torch.equal(made.cpu(), wanted)
        assert sum(gpu.syncs.values()) == 1


@pytest.mark.parametrize(
    ("reads", "waits"),
    [
        (lambda x: x + 1, 0),
        (lambda x: x[:, 0], 0),
        (lambda x: x.tolist(), 1),
        (lambda x: float(x.sum()), 1),
        (lambda x: bool((x > 0).all()), 1),
        (lambda x: x[x > 0], 1),
        (lambda x: x.nonzero(), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: x.to("cuda"), 0),
        (lambda x: torch.tensor([x.sum(), x.sum()]), 2),
    ],
)
def test_waits_are_counted(reads: Callable[..., Any], waits: int) -> None:
    with SimulatedCuda() as gpu:
        there = torch.arange(4.0).reshape(2, 2).to("cuda")
        gpu.clear()
        reads(there)
        assert sum(gpu.syncs.values()) == waits, gpu.report()
        with gpu.uncounted():
            there.tolist()
        assert sum(gpu.syncs.values()) == waits


def test_copies_from_the_host_wait_unless_they_are_pinned_and_told_not_to() -> None:
    with SimulatedCuda() as gpu:
        values = torch.ones(3)
        values.to("cuda")
        values.to("cuda", non_blocking=True)  # pageable: waits all the same
        values.pin_memory().to("cuda", non_blocking=True)
        values.pin_memory()[:2].to("cuda", non_blocking=True)
        torch.tensor([1.0], device="cuda")
        assert sorted(place.split(" at ")[0] for place in gpu.uploads.elements()) == ["goes on"] * 2 + ["waits"] * 3
        assert gpu.bytes_uploaded == 4 * (3 + 3 + 3 + 2 + 1)
        assert not gpu.syncs


def test_devices_may_not_be_mixed() -> None:
    with SimulatedCuda(devices=2):
        one, other = torch.ones(2).to("cuda:0"), torch.ones(2).to("cuda:1")
        for wrong in (lambda: one + other, lambda: one + torch.ones(2), lambda: torch.ones(2)[one.long()]):
            with pytest.raises(DeviceMix):
                wrong()
        assert str((one + torch.tensor(1.0)).device) == "cuda:0"  # a scalar may come from the host
        assert (one + other.to("cuda:0")).tolist() == [2.0, 2.0]
        with pytest.raises(RuntimeError, match="invalid device ordinal 2"):
            torch.ones(1).to("cuda:2")


def test_a_stream_must_be_waited_for() -> None:
    with SimulatedCuda() as gpu:
        side, event = torch.cuda.Stream(), torch.cuda.Event()
        with torch.cuda.stream(side):
            made = torch.ones(2).pin_memory().to("cuda", non_blocking=True)
            event.record()
        with pytest.raises(DeviceMix, match="another stream"):
            made + 1
        torch.cuda.current_stream().wait_event(event)
        assert (made + 1).tolist() == [2.0, 2.0]
        assert sum(gpu.syncs.values()) == 1


def test_threads_see_the_device_too() -> None:
    with SimulatedCuda() as gpu, ThreadPoolExecutor(1) as thread:
        made = thread.submit(lambda: torch.ones(2).to("cuda") + 1).result()
        assert str(made.device) == "cuda:0"
        assert made.tolist() == [2.0, 2.0]
        assert sum(gpu.uploads.values()) == 1


def test_memory_can_run_out() -> None:
    with SimulatedCuda(largest=100):
        small = torch.ones(20).to("cuda")
        with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
            small.expand(20, 20) + 1
        assert (small + 1).shape == (20,)


def test_it_leaves_nothing_behind() -> None:
    before = (torch.tensor, torch.inference_mode, torch.cuda.Stream, torch.Tensor.pin_memory)
    with SimulatedCuda():
        assert torch.tensor is not before[0]
    assert (torch.tensor, torch.inference_mode, torch.cuda.Stream, torch.Tensor.pin_memory) == before
    with pytest.raises((RuntimeError, AssertionError)):
        torch.ones(1).to("cuda:0") if not torch.cuda.is_available() else torch.ones(1).to("cuda:99")
