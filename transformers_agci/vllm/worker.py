"""What the worker processes of a running vLLM engine tell about AGCI."""

from typing import Any


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
