"""The options of the engine vllm. They need no vllm."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class VllmOptions:
    """What vLLM is started with; None leaves the choice to it. `engine_args` are further arguments of its `LLM`."""

    tensor_parallel_size: int | None = None
    data_parallel_size: int | None = None
    gpu_memory_utilization: float | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
