"""Each way to do with less, alone, over the embedded model's rows: equal to stock within rounding, and no answer flips
that is not close. What needs a GPU is forced on the CPU, or runs on the simulated one.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_cuda import SimulatedCuda

from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.experiments.position.data import embedded_data
from transformers_agci.experiments.position.questions import questions
from transformers_agci.inference import kernels
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.questions import Question, QuestionSet
from transformers_agci.inference.quick import WAYS, chosen
from transformers_agci.inference.runner import RunOptions, output_paths
from transformers_agci.inference.vision_tower import as_matrix_product, use_segments

pytestmark = pytest.mark.slow

ON_A_GPU = {"host_values", "pinned", "varying_lengths", "painting", "padding_behind"}
COMPILED = {"rotary", "activation"}
ITEMS, LAMBDAS = 2, [0.0, 0.5]
CLOSE = 0.1  # margins in bfloat16 below this may change their sign
ROUNDING = 1e-5  # of the largest margin, in float32
MOVES = 0.25  # of a margin, in bfloat16


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    data = embedded_data(tmp_path_factory.mktemp("data"), ITEMS, seed=3)
    return questions(data.items, data.img_path)


def all_stock(dtype: str) -> LoadedModel:
    return load(LoadOptions(str(embedded_model_path()), dtype=dtype, kernels="stock", vision="stock"))


def answers(loaded: LoadedModel, asked: list[Question], folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    paths = output_paths(folder / "answers.jsonl", LAMBDAS)
    options = AnswerOptions(batch_size=18, workers=0, run=RunOptions(progress=False))
    answer_questions(loaded, QuestionSet(asked), LAMBDAS, paths, options)
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def stock(asked: list[Question], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("stock")
    return {dtype: answers(all_stock(dtype), asked, folder / dtype) for dtype in ("float32", "bfloat16")}


def put_on(way: str, loaded: LoadedModel) -> LoadedModel:
    """Only this way and what it builds on, on the CPU, whatever it is worth there."""
    if way == "vision":
        assert use_segments(loaded.model).backend != "stock"
        assert as_matrix_product(loaded.model).backend != "stock"
    elif way == "padded_width":
        for block in loaded.model.model.visual.blocks:
            kernels._pad(block.mlp, 24)
    elif way in kernels.OF_THE_MODEL:
        if way == "rotary":
            assert use_segments(loaded.model).backend != "stock"  # stock's loop over segments is not compiled
        made = kernels.use_kernels(loaded.model, [way])
        assert made.on == (way,), made.reasons
    return dataclasses.replace(loaded, quick=chosen("stock" if way == "vision" else way))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", [*WAYS, "vision"])
def test_agrees_with_stock(
    way: str,
    dtype: str,
    asked: list[Question],
    stock: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way in COMPILED:
        monkeypatch.setattr(kernels, "COMPILER", "eager")  # traced; what aot_eager makes of it: test_kernels.py
        monkeypatch.setattr(kernels, "_need_gpu", lambda device: None)
        torch._dynamo.reset()
    loaded, wanted, rows = all_stock(dtype), stock[dtype], asked
    if way in ON_A_GPU:
        half = len(asked) // 2
        rows, wanted = asked[:half], [*wanted[:half], *wanted[len(asked) : len(asked) + half]]
        with SimulatedCuda() as gpu:
            gpu.move(loaded.model)
            there = dataclasses.replace(loaded, device=torch.device("cuda:0"), quick=chosen(way))
            ours = answers(there, rows, tmp_path / "ours")
    else:
        ours = answers(put_on(way, loaded), rows, tmp_path / "ours")
    assert len(ours) == len(wanted) == len(rows) * len(LAMBDAS)
    allowed = MOVES if dtype == "bfloat16" else ROUNDING * max(abs(row["margin"]) for row in wanted)
    assert max(abs(one["margin"] - other["margin"]) for one, other in zip(ours, wanted, strict=True)) <= allowed
    flips = [row["margin"] for row, own in zip(wanted, ours, strict=True) if row["prediction"] != own["prediction"]]
    assert all(abs(margin) < CLOSE for margin in flips) if dtype == "bfloat16" else not flips
