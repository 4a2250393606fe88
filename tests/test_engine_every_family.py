"""The engine that `agci probe` and the benchmarks run on, on the tiny model of every family.

What it writes is held against a plain forward call of every row alone, with hooks put on by hand: the vision replay,
the prefix replay, follow-up questions in one call, padding and both vision towers change nothing.
"""

import json
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import random_image
from tiny_families import TINY, TinyFamily
from tiny_processor import NO, YES, TinyProcessor

from transformers_agci import SUPPORTED_FAMILIES, agci
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prompt import chat_text, tokenize
from transformers_agci.inference.questions import YES_NO, ImageFile, Question, QuestionSet, up_to
from transformers_agci.inference.quick import ALL
from transformers_agci.inference.runner import RunOptions, output_paths
from transformers_agci.inference.vision_tower import as_matrix_product, use_segments

pytestmark = [pytest.mark.filterwarnings("ignore")]

LAMBDAS = [0.0, 0.5]
families = pytest.mark.parametrize("family", TINY.values(), ids=list(TINY))


def loaded_of(family: TinyFamily, quick: frozenset[str]) -> LoadedModel:
    model = family.build()
    model.generation_config.eos_token_id = 2
    with torch.no_grad():  # one of the two is what it answers
        weight = model.get_output_embeddings().weight
        weight[YES] = 20 * weight[YES] / weight[YES].norm()
        weight[NO] = -weight[YES]
    row = SUPPORTED_FAMILIES[family.model_type]
    return LoadedModel(model, TinyProcessor(family), row, torch.device("cpu"), {"family": row.name}, {}, None, quick)


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    """Four images, two of them of several tiles; three questions about each; one about two images."""
    folder = tmp_path_factory.mktemp("images")
    sizes = [(20, 20), (60, 20), (20, 30), (80, 20)]
    for number, size in enumerate(sizes):
        random_image(number, *size).save(folder / f"{number}.png")
    asked = []
    for number, text in ((n, t) for n in range(len(sizes)) for t in ("a dog", "a long caption", "no")):
        where = f"rows.json:{len(asked) + 1}"
        asked.append(Question({"n": len(asked)}, where, text, (ImageFile(folder, f"{number}.png", where),), 0))
    for stop in (YES_NO, up_to(3)):
        where = f"rows.json:{len(asked) + 1}"
        both = tuple(ImageFile(folder, f"{number}.png", where) for number in (0, 1))
        asked.append(Question({"n": len(asked)}, where, "both", both, 0, stop))
    return asked


@torch.no_grad()
def plain(loaded: LoadedModel, question: Question, lam: float) -> tuple[float, float]:
    """Yes and No logits behind one prompt, from one forward call with hooks."""
    images = [image.open() for image in question.images]
    inputs = tokenize(loaded.processor, [chat_text(loaded.processor, question)], [images])
    with agci(loaded.model, lam) as handle:
        logits = loaded.model(**inputs).logits[0, -1]
        assert handle.injections == (len(images) if lam else 0)
    return float(logits[YES]), float(logits[NO])


@pytest.mark.slow
@pytest.mark.parametrize("quick", [ALL, frozenset()], ids=["auto", "stock"])
@families
def test_answers_are_those_of_plain_forward_calls(
    family: TinyFamily, quick: frozenset[str], questions: list[Question], tmp_path: Path
) -> None:
    loaded = loaded_of(family, quick)
    wanted = {lam: [plain(loaded, question, lam) for question in questions] for lam in LAMBDAS}
    if quick:
        use_segments(loaded.model)
        as_matrix_product(loaded.model)
    outputs = output_paths(tmp_path / "A.jsonl", LAMBDAS)
    # HunYuan-VL numbers the images of a whole batch, so that stock's answers depend on the mates.
    batch_size = 1 if family.model_type == "hunyuan_vl" else 3
    options = AnswerOptions(batch_size=batch_size, block_rows=8, run=RunOptions(progress=False))
    summary = answer_questions(loaded, QuestionSet(questions), LAMBDAS, outputs, options)
    assert summary.counts.failed == [], summary.counts
    for lam, path in zip(LAMBDAS, outputs, strict=True):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["n"] for row in rows] == [question.row["n"] for question in questions]
        got = torch.tensor([[row["yes_logit"], row["no_logit"]] for row in rows[:-1]])
        torch.testing.assert_close(got, torch.tensor(wanted[lam][:-1]), atol=1e-3, rtol=1e-4)
        assert len(rows[-1]["prediction"]) > 0
    changed = (torch.tensor(wanted[0.5]) - torch.tensor(wanted[0.0])).abs().max()
    assert changed > 1e-5
