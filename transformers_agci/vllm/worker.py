"""What runs in vLLM's own processes beside the model: a report on AGCI, and the end with whoever started them."""

import contextlib
import ctypes
import os
import signal
import sys
from typing import Any

STARTED_BY = "TRANSFORMERS_AGCI_ENGINE_OF"  # environment variable: the process that started vLLM for the engine vllm
STORES = ("kv_transfer_config", "ec_transfer_config")  # of vLLM: what was encoded or computed, outside of an engine
PR_SET_PDEATHSIG = 1  # of Linux's prctl


class AgciWorker:
    """A worker extension (`worker_extension_cls`): `LLM.collective_rpc("agci_report")` asks every worker."""

    def agci_report(self: Any) -> dict[str, Any]:
        """Lambda, method and class of the model in this worker, None without AGCI, and the images injected so far."""
        model = self.model_runner.get_model()
        served = getattr(model, "agci", None)
        return {
            "class": type(model).__name__,
            "lambda": None if served is None else served.lam,
            "method": None if served is None else served.method,
            "images": getattr(model, "agci_images", 0),
        }


def end_with_parent() -> None:
    """In a process that `STARTED_BY` started: end when that one is killed.

    vLLM's engine process otherwise stays, and keeps the GPU's memory from the run that goes on after the kill. Its
    workers end with it by themselves. Linux only; a `vllm serve` of the user's is left alone.
    """
    parent = os.getppid()
    if os.environ.get(STARTED_BY) != str(parent) or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # killed in between
        os._exit(1)
