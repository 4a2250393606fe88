"""The engine that `agci probe` and the benchmarks run on, on the tiny model of every family.

What it writes is held against a plain forward call of every row alone, with hooks put on by hand: the vision replay,
the prefix replay, follow-up questions in one call, padding and both vision towers change nothing.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from benchmark_rows import pope
from decoder_inputs import recorded_decoder_inputs
from PIL import Image
from tiny_checkpoints import random_image
from tiny_families import TINY, TinyFamily
from tiny_processor import MARK, NO, YES, TinyProcessor

from transformers_agci import SUPPORTED_FAMILIES, InputError, agci
from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.experiments.benchmarks import benchmark as declared_benchmark
from transformers_agci.experiments.benchmarks.asking.run import AskOptions, ask_benchmark
from transformers_agci.experiments.benchmarks.asking.source import Source
from transformers_agci.experiments.flow.flow import measure_flow
from transformers_agci.experiments.occlusion.occlude import MaskOptions, OcclusionRun
from transformers_agci.experiments.position.questions import PROMPT
from transformers_agci.experiments.similarity.run import SimilarityRun
from transformers_agci.families import decoder_of, find_vlm, supports
from transformers_agci.inference.answer import Answerer
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.batches import Column
from transformers_agci.inference.columns import positions_by
from transformers_agci.inference.first_token import FirstToken
from transformers_agci.inference.kernels import use_kernels
from transformers_agci.inference.last_positions import is_narrowed
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import prepare
from transformers_agci.inference.prompt import chat_text, tokenize
from transformers_agci.inference.questions import YES_NO, ImageFile, Question, QuestionSet, up_to
from transformers_agci.inference.quick import ALL
from transformers_agci.inference.runner import RunOptions, output_paths
from transformers_agci.inference.vision_tower import as_matrix_product, use_segments
from transformers_agci.storage.result_names import sibling_path

pytestmark = [pytest.mark.filterwarnings("ignore")]

LAMBDAS = [0.0, 0.5]
BEFORE_5_18 = {
    "emu3": "its images do not come in",
    "fuyu": "its images do not come in",
    "video_llava": "it wants pixel_values_images, where the tiny processor says pixel_values",
    "paligemma": "it wants token_type_ids, which the tiny processor does not give",
}
families = pytest.mark.parametrize("family", TINY.values(), ids=list(TINY))


def loaded_of(family: TinyFamily, quick: frozenset[str]) -> LoadedModel:
    if tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18) and family.model_type in BEFORE_5_18:
        pytest.skip(f"before transformers 5.18 {BEFORE_5_18[family.model_type]}")
    model = family.build()
    model.generation_config.eos_token_id = 2
    with torch.no_grad():  # one of the two is what it answers
        weight = (model.get_output_embeddings() or decoder_of(find_vlm(model)).get_output_embeddings()).weight
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
    options = AnswerOptions(batch_size=3, block_rows=8, run=RunOptions(progress=False))
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


def both_ways() -> TinyFamily:
    """Gemma 4's larger models: image tokens see each other in both directions, which token types say."""

    def config() -> Any:
        made = TINY["gemma4"].config()
        made.text_config.use_bidirectional_attention = "vision"
        return made

    return replace(TINY["gemma4"], config=config)


@pytest.mark.slow
@pytest.mark.skipif("gemma4" not in TINY, reason="this transformers has no gemma4")
def test_token_types_that_shape_the_mask(questions: list[Question], tmp_path: Path) -> None:
    test_answers_are_those_of_plain_forward_calls(both_ways(), ALL, questions, tmp_path)


@pytest.mark.slow
@families
def test_flow_where_the_layout_is_declared(family: TinyFamily, tmp_path: Path) -> None:
    """The shares of attention on the image lie on its grid; elsewhere one sentence says what is missing."""
    loaded = loaded_of(family, ALL)
    random_image(0, 16, 16).save(tmp_path / "a.png")
    question = Question({}, "rows.json:1", "a dog", (ImageFile(tmp_path, "a.png", "rows.json:1"),))
    if not supports(loaded.family, "flow"):
        with pytest.raises(InputError, match="does not support"):
            measure_flow(loaded, question, LAMBDAS, max_new_tokens=2)
        return
    if family.model_type == "llava":  # the tiny one has Pixtral's vision tower, whose images are cut into rows
        with pytest.raises(InputError, match="image tokens do not stand together"):
            measure_flow(loaded, question, LAMBDAS, max_new_tokens=2)
        return
    flows = measure_flow(loaded, question, LAMBDAS, max_new_tokens=2)
    for flow in flows:
        assert flow.layout.tokens == len(flow.text) == len(flow.answer)
        assert 0 < float(flow.text.sum()) < 1
        raster = flow.layout.rasterize(flow.text, 8, 8)
        assert float(raster.sum()) == pytest.approx(flow.layout.placed(flow.text), rel=1e-6)
    assert not torch.equal(flows[0].text, flows[1].text)


@pytest.mark.slow
@families
def test_similarity(family: TinyFamily, tmp_path: Path) -> None:
    """cos of the pooled caption and the pooled image tokens, from a recording of what the decoder receives."""
    loaded = loaded_of(family, ALL)
    rows: list[Any] = []
    for number, size in enumerate([(20, 20), (60, 20), (20, 30)]):
        random_image(number, *size).save(tmp_path / f"{number}.png")
        rows.append(SimpleNamespace(fields={"id": number}, caption="a dog", where="rows.json"))
    job = SimilarityRun(loaded, rows, tmp_path, batch_size=2)
    batches = [job._measure([n], tokenize_row(loaded, tmp_path, n)) for n in range(3)]
    if loaded.family.alone:
        assert job.settings["batch_size"] == 1
    else:
        both = tokenize(loaded.processor, [f"{MARK}describe?"] * 2, [[opened(tmp_path, n)] for n in (1, 2)])
        together = job._measure([1, 2], both)
        for alone, batched in zip(batches[1:], together, strict=True):
            assert alone[0] == pytest.approx(batched, abs=1e-5)
    for number in range(3):
        inputs = tokenize_row(loaded, tmp_path, number)
        with recorded_decoder_inputs(loaded.model) as seen, torch.no_grad():
            loaded.model(**inputs)
        image = seen[0][0][inputs["input_ids"][0] == family.image_token]
        said = loaded.model.get_input_embeddings()(torch.tensor(loaded.processor.tokenizer("a dog")["input_ids"]))
        wanted = torch.cosine_similarity(said.amax(0), image.amax(0), dim=0)
        assert batches[number][0] == pytest.approx(float(wanted), abs=1e-4)


@pytest.mark.slow
@families
@torch.no_grad()
def test_occlusion(family: TinyFamily, tmp_path: Path) -> None:
    """Every place's value is that of a plain forward call on the image with a white square there."""
    loaded = loaded_of(family, ALL)
    noise = torch.randint(0, 256, (16, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    image = Image.fromarray(noise.numpy())
    image.save(tmp_path / "a.png")
    fields = {"id": 1, "image": "a.png", "caption": "a dog", "position": "center", "answer": "Yes"}
    masked = OcclusionRun(
        loaded, [ProbeRow.parse(fields, "rows.json:1")], tmp_path, MaskOptions(8, 8), 0.5, 3, max_new_tokens=2
    )
    with agci(loaded.model, 0.5):
        found = masked.occlude(masked.rows[0])
        question = Question({}, "rows.json:1", PROMPT.format(caption="a dog"), (ImageFile(tmp_path, "a.png", ""),))
        word = found.tokens[0]

        def logit(shown: Image.Image) -> float:
            inputs = tokenize(loaded.processor, [chat_text(loaded.processor, question)], [[shown]])
            return float(loaded.model(**inputs).logits[0, -1, word])

        wanted = []
        for row, col in ((row, col) for row in range(2) for col in range(3)):
            copy = image.copy()
            copy.paste("white", (8 * col, 8 * row, 8 * col + 8, 8 * row + 8))
            wanted.append(logit(copy))
        assert found.original[0] == pytest.approx(logit(image), abs=1e-3, rel=1e-4)
    got = [places[0] for places in found.masked if places is not None]
    torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted), atol=1e-3, rtol=1e-4)
    assert found.differences.shape == (2, 3)
    moved = torch.tensor(wanted) - found.original[0]
    assert found.differences.max() > 0 or moved.abs().max() < 1e-4


@pytest.mark.slow
@families
def test_a_benchmark(family: TinyFamily, tmp_path: Path) -> None:
    """POPE is asked at both lambdas and scored; every answer is the plain forward call's."""
    loaded = loaded_of(family, ALL)
    source = Source(declared_benchmark("pope"), pope(tmp_path), limit=4)
    options = AskOptions(LAMBDAS, AnswerOptions(batch_size=2, run=RunOptions(progress=False)))
    said: list[str] = []
    asked = ask_benchmark(source, tmp_path / "answers.jsonl", options, lambda: loaded, said.append)
    assert (asked.exit_code, asked.complete) == (0, True), said
    for path in asked.outputs:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(rows) == 4
        assert all(row["answer"] for row in rows), rows
        assert sibling_path(path, ".score.json").exists()


def opened(folder: Path, number: int) -> Any:
    return ImageFile(folder, f"{number}.png", "rows.json").open()


def tokenize_row(loaded: LoadedModel, folder: Path, number: int) -> dict[str, torch.Tensor]:
    return tokenize(loaded.processor, [f"{MARK}describe?"], [[opened(folder, number)]])


@pytest.mark.slow
@families
def test_fewer_positions_and_no_mask(family: TinyFamily, tmp_path: Path) -> None:
    """What only some families can do: the last MLP where logits are asked for, and padding behind the prompt."""
    loaded, plain = loaded_of(family, ALL), loaded_of(family, ALL)
    if loaded.family.alone:
        pytest.skip("its prompts are never padded")
    made = use_kernels(loaded.model, ["last_positions"])
    texts = ["Is there a dog?", "Is there a very very long dog?", "Is there a small dog?"]
    asked = []
    for number, text in enumerate(texts):
        random_image(number, 20, 20).save(tmp_path / f"{number}.png")
        asked.append(Question({}, f"x:{number}", text, (ImageFile(tmp_path, f"{number}.png", f"x:{number}"),)))
    batch, *_ = prepare(Column(((0, 1, 2),)), asked, loaded.processor, positions=positions_by(loaded)).batches
    assert batch.padding
    assert batch.positions is not None
    ours = FirstToken(Answerer(loaded.model, loaded.processor), padding_behind=True)
    stock = FirstToken(Answerer(plain.model, plain.processor))
    if not ours.serves(batch.text):
        pytest.skip("generate answers for it")
    given = (batch.inputs, batch.positions, batch.padding, False)
    with agci(loaded.model, 0.5), agci(plain.model, 0.5):
        found, wanted = ours.whole(*given), stock.whole(*given)
    assert found is not None
    assert wanted is not None
    for one, other in zip(found, wanted, strict=True):
        assert one.text == other.text
        assert one.yes_logit == pytest.approx(other.yes_logit, abs=1e-5 * max(1, abs(other.yes_logit or 0)))
    assert is_narrowed(loaded.model) == bool(made.on)
