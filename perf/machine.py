"""What a figure was measured on, and the clock that means something there."""

import os
import platform
import resource
import shlex
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import torch
import transformers

Made = TypeVar("Made")


def announce() -> None:
    """One thread from here on; date, machine, versions and command, as RESULTS.md wants them beside every figure."""
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that this one starts
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    hardware = ", ".join(gpus) or f"{platform.machine()}, {os.cpu_count()} cores, no GPU"
    command = shlex.join(["python", f"perf/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    say(
        f"{datetime.now(UTC):%Y-%m-%d}, {hardware}, {torch.get_num_threads()} thread; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}\n`{command}`"
    )


def say(text: str) -> None:
    """Print at once: a run that is cut off has shown what it had."""
    print(text, flush=True)


def seconds(device: torch.device) -> float:
    """The clock on a GPU, once it has finished; the core's own time on a CPU, which other work does not disturb."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()


def timed(device: torch.device, work: Callable[[], Made]) -> tuple[Made, float]:
    """What `work` makes and the seconds it takes: between two events of the GPU, or of the core on a CPU."""
    if device.type != "cuda":
        begin = time.process_time()
        return work(), time.process_time() - begin
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    made = work()
    events[1].record()
    events[1].synchronize()
    return made, events[0].elapsed_time(events[1]) / 1000


def clock_name(device: torch.device) -> str:
    return "second of the clock" if device.type == "cuda" else "second of the core"


def peak_memory(device: torch.device) -> str:
    """Of the GPU, or of the process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB of the GPU"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB of the process"
