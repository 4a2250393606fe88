"""The self-check under vLLM, on a vLLM that answers from a script: what may pass, and what proves nothing."""

from typing import Any

import pytest
import stub_vllm
import torch
from PIL import Image
from stub_vllm import AsyncLLM

from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.experiments import vllm_check
from transformers_agci.experiments.engines import VllmOptions
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.inference.load import LoadOptions
from transformers_agci.method.lam import LAMBDA_KEY
from transformers_agci.method.self_check import Check
from transformers_agci.vllm import engine

COMPARED = ["one image", "two images", "an image cut by chunked prefill", "a repeated image", "concurrent requests"]
WORDS = 8  # of the vocabulary


def expected(effect: float, exact: bool) -> Any:
    """What transformers says: lambda 0.5 moves the likeliest words by `effect`."""
    family = SUPPORTED_FAMILIES["qwen2_5_vl"]
    images = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (1, 2, 3)]
    counts = dict(zip(COMPARED[:4], (1, 2, 3, 1)))
    prompts = {
        name: vllm_check._Prompt(name, name, tuple(images[:count]), 10 * count, family)
        for name, count in counts.items()
    }
    stock = -torch.arange(1.0, WORDS + 1)
    values = {(lam, name): stock - effect * (lam > 0) for lam in (0.0, 0.5) for name in prompts}
    return vllm_check._Expected(prompts, values, exact)


def check(
    monkeypatch: pytest.MonkeyPatch,
    effect: float = 1.0,
    exact: bool = False,
    answers_as: float = 0.5,
    injects: bool = True,
    remembers: bool = True,
    **options: Any,
) -> dict[str, Check]:
    """The rows at lambda, of a vLLM that answers as at another lambda, injects nothing, or forgets its images."""
    stub_vllm.install(monkeypatch)
    monkeypatch.setattr(engine, "vllm_version", lambda: "0.0-stub")
    truth = expected(effect, exact)
    monkeypatch.setattr(vllm_check, "_by_transformers", lambda *args: truth)
    met: set[bytes] = set()
    injected = [3]  # what vLLM's own profiling has shown the encoder

    def script(prompt: dict[str, Any]) -> tuple[list[int], dict[int, float]]:
        lam = AsyncLLM.started[-1].hf_overrides[LAMBDA_KEY]
        if lam:
            new = {image.tobytes() for image in prompt["multi_modal_data"]["image"]} - met
            injected[0] += len(new) * injects
            met.update(new if remembers else ())
        values = truth.values[answers_as if lam else 0.0, prompt["prompt"]]
        return [0], dict(enumerate(values.tolist()))

    def reports(arguments: Any) -> list[dict[str, Any]]:
        return [{**stub_vllm.as_plugin_says(arguments)[0], "images": injected[0]}]

    monkeypatch.setattr(AsyncLLM, "script", staticmethod(script), raising=False)
    monkeypatch.setattr(AsyncLLM, "reports", staticmethod(reports))
    found = vllm_check.check_under_vllm(LoadOptions(str(embedded_model_path())), VllmOptions(**options))
    rows = {row.name: row for row in found.rows}
    assert rows["lambda 0, one image"].passed and rows["lambda 0, two images"].passed
    return {name: rows[f"lambda 0.5, {name}"] for name in COMPARED}


def passed(rows: dict[str, Check]) -> list[bool | None]:
    return [rows[name].passed for name in COMPARED]


@pytest.mark.parametrize(("effect", "exact"), [(1.0, False), (0.31, False), (0.001, True)])
def test_right_answers_whose_effect_can_be_seen_pass(
    monkeypatch: pytest.MonkeyPatch, effect: float, exact: bool
) -> None:
    rows = check(monkeypatch, effect, exact)
    assert passed(rows) == [True] * 5
    assert rows["two images"].explanation.startswith("1 injected, 1 image new; ")
    assert rows["a repeated image"].explanation.startswith("0 injected, 0 images new; ")


@pytest.mark.parametrize(("effect", "exact"), [(0.1, False), (0.29, False), (0.00015, True)])
def test_an_effect_within_rounding_proves_nothing(monkeypatch: pytest.MonkeyPatch, effect: float, exact: bool) -> None:
    rows = check(monkeypatch, effect, exact)
    assert passed(rows) == [None] * 5
    assert all(row.explanation.endswith("too small to see at this dtype.") for row in rows.values())


def test_a_vllm_that_injects_nothing_fails_though_no_figure_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = check(monkeypatch, effect=0.1, answers_as=0.0, injects=False)
    assert all(row.figure is not None and row.figure <= 0.15 for row in rows.values())
    assert passed(rows) == [False, False, False, None, None]


def test_a_vllm_whose_answers_are_those_of_lambda_0_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passed(check(monkeypatch, effect=0.31, answers_as=0.0)) == [False] * 5


def test_a_repeated_image_that_is_injected_again_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passed(check(monkeypatch, remembers=False)) == [True, True, True, False, True]


def test_images_are_not_counted_where_copies_of_the_model_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = check(monkeypatch, injects=False, data_parallel_size=2)
    assert passed(rows) == [True] * 5
    assert rows["one image"].explanation.startswith("Images not counted under data parallel; ")
