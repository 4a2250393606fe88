"""A vLLM of a few lines for tests of our side of it: models that are built by its choice of class, requests answered
from a script. What the real one does is tested by `make vllm-test`.
"""

import enum
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

QWEN = "Qwen2VLForConditionalGeneration"
D = 6  # columns of the decoder's input
PIXELS = {"pixel_values": torch.zeros(1), "image_grid_thw": torch.zeros(1)}


class ModelConfig:
    """As far as the plugin looks."""

    def __init__(self, hf_config: Any, architecture: type, hidden_size: int, runner_type: str = "generate") -> None:
        self.hf_config, self.architecture, self.runner_type = hf_config, architecture, runner_type
        self._hidden_size = hidden_size

    def get_hidden_size(self) -> int:
        return self._hidden_size


def vllm_config(model_config: ModelConfig, rank: int = 0, **more: Any) -> Any:
    return types.SimpleNamespace(
        model_config=model_config,
        parallel_config=types.SimpleNamespace(rank=rank),
        compilation_config=types.SimpleNamespace(cudagraph_mm_encoder=more.pop("cudagraph_mm_encoder", False)),
        **more,
    )


def model_class(name: str, build: Callable[[Any], None] = lambda config: None) -> type:
    """A model class of vLLM: its encoder returns the `items` of the test. `build` stands for its decoder."""

    class Stub:
        def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
            build(vllm_config)
            self.items: Any = ()

        def embed_multimodal(self, **inputs: Any) -> Any:
            self.inputs = inputs
            return self.items

    Stub.__name__ = Stub.__qualname__ = name
    return Stub


class RequestOutputKind(enum.Enum):
    FINAL_ONLY = 2


@dataclass
class SamplingParams:
    temperature: float = 1.0
    max_tokens: int = 16
    output_kind: Any = None
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    repetition_penalty: float = 1.0


@dataclass
class AsyncEngineArgs:
    model: str
    dtype: str = "auto"
    hf_overrides: dict[str, Any] = field(default_factory=dict)
    worker_extension_cls: str = ""
    limit_mm_per_prompt: dict[str, int] = field(default_factory=dict)
    disable_log_stats: bool = False
    enable_log_requests: bool = True
    tensor_parallel_size: int = 1
    data_parallel_size: int = 1
    max_model_len: int | None = None
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None


# prompt -> the tokens of the answer and the log-probabilities of its first token; ValueError where vLLM refuses it
Script = Callable[[dict[str, Any]], tuple[list[int], dict[int, float]]]


class AsyncLLM:
    """Answers by `script`; counts what was started and what ran at once."""

    script: Script
    started: list[AsyncEngineArgs]
    reports: Callable[[AsyncEngineArgs], list[dict[str, Any]]]
    most_at_once: int
    sequences = 4

    def __init__(self, arguments: AsyncEngineArgs) -> None:
        self.arguments, self.running, self.images = arguments, 0, 0
        self.vllm_config = types.SimpleNamespace(
            scheduler_config=types.SimpleNamespace(max_num_seqs=type(self).sequences)
        )
        type(self).started.append(arguments)

    @classmethod
    def from_engine_args(cls, arguments: AsyncEngineArgs) -> "AsyncLLM":
        return cls(arguments)

    async def generate(self, prompt: dict[str, Any], parameters: SamplingParams, request_id: str) -> Any:
        import asyncio

        self.running += 1
        type(self).most_at_once = max(type(self).most_at_once, self.running)
        await asyncio.sleep(0.001 * (int(request_id) % 3))  # so that requests end in another order
        self.running -= 1
        self.images += len(prompt.get("multi_modal_data", {}).get("image", ()))
        tokens, scores = type(self).script(prompt)
        found = {token: types.SimpleNamespace(logprob=value) for token, value in scores.items()}
        made = types.SimpleNamespace(
            token_ids=tokens[: parameters.max_tokens],
            logprobs=[found],
            finish_reason="length" if len(tokens) > parameters.max_tokens else "stop" if tokens else "abort",
        )
        yield types.SimpleNamespace(outputs=[made], prompt_token_ids=[0] * 7)

    async def collective_rpc(self, method: str) -> list[dict[str, Any]]:
        assert method == "agci_report"
        return [{"images": self.images, **report} for report in type(self).reports(self.arguments)]

    def shutdown(self) -> None:
        pass


def as_plugin_says(arguments: AsyncEngineArgs) -> list[dict[str, Any]]:
    """The report of a worker in which the plugin is on."""
    from transformers_agci.method.lam import LAMBDA_KEY
    from transformers_agci.vllm.injection import METHOD_KEY

    lam = arguments.hf_overrides[LAMBDA_KEY]
    method = arguments.hf_overrides.get(METHOD_KEY, "agci")
    return [{"class": "Stub", "lambda": lam or None, "method": method if lam else None}]


def get_model_architecture(config: ModelConfig) -> tuple[type, str]:
    """Which class a model is built as; several modules of vLLM have this function."""
    return config.architecture, config.architecture.__name__


def install(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """Put the stub in the place of vllm, also of an installed one; returns model_executor.model_loader.utils."""
    AsyncLLM.started, AsyncLLM.most_at_once, AsyncLLM.reports = [], 0, staticmethod(as_plugin_says)
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"AsyncEngineArgs": AsyncEngineArgs, "SamplingParams": SamplingParams},
        "vllm.sampling_params": {"RequestOutputKind": RequestOutputKind},
        "vllm.multimodal": {},
        "vllm.multimodal.inputs": {
            "MultiModalFieldConfig": types.SimpleNamespace(
                batched=lambda modality, keep_on_cpu: (modality, keep_on_cpu)
            )
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.async_llm": {"AsyncLLM": AsyncLLM},
        "vllm.model_executor": {},
        "vllm.model_executor.model_loader": {"get_model_architecture": get_model_architecture},
        "vllm.model_executor.model_loader.utils": {"get_model_architecture": get_model_architecture},
        "vllm.model_executor.models": {},
        "vllm.model_executor.models.interfaces": {
            "SupportsMultiModal": types.SimpleNamespace(embed_multimodal=lambda: None)
        },
    }
    for name, entries in contents.items():
        module = types.ModuleType(name)
        module.__path__ = []  # type: ignore[attr-defined]
        vars(module).update(entries)
        monkeypatch.setitem(sys.modules, name, module)
    for name in contents:
        parent, _, child = name.rpartition(".")
        if parent:
            monkeypatch.setattr(sys.modules[parent], child, sys.modules[name], raising=False)
    return sys.modules["vllm.model_executor.model_loader.utils"]


def tokens(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def utils(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """vLLM's module that says which class a model is built as, with the plugin registered."""
    from transformers_agci.vllm import plugin

    utils = install(monkeypatch)
    plugin.register()
    return utils


def config(model_type: str = "qwen2_vl", **keys: Any) -> Any:
    return types.SimpleNamespace(model_type=model_type, **keys)


def build(utils: types.ModuleType, hf_config: Any, name: str = QWEN, **engine: Any) -> Any:
    model_config = ModelConfig(hf_config, model_class(name), D)
    return utils.get_model_architecture(model_config)[0](vllm_config=vllm_config(model_config, **engine), prefix="")
