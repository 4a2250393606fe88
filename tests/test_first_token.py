"""Yes/No answers from one forward call and follow-up questions by their tails: equal to `generate`, in fewer calls."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import FAMILIES, random_image

from transformers_agci import agci
from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.inference.answer import Answerer
from transformers_agci.inference.answering import AnswerCounts, AnswerOptions, answer_questions
from transformers_agci.inference.batches import Column
from transformers_agci.inference.columns import positions_by
from transformers_agci.inference.first_token import FirstToken
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.prepare import prepare
from transformers_agci.inference.questions import ImageFile, Question, QuestionSet
from transformers_agci.inference.quick import ALL
from transformers_agci.inference.runner import RunOptions, output_paths

LAMBDAS = [0.0, 0.5]
TEXTS = ("a dog", "a red square in the middle of the image", "x", "a cat", "something else", "an image")
SIZES = ((120, 90), (90, 90), (64, 120))  # pixels: width, height


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    """Six questions about each of three images."""
    folder = tmp_path_factory.mktemp("pictures")
    asked: list[Question] = []
    for number, size in enumerate(SIZES):
        random_image(number, *size).save(folder / f"{number}.png")
        for text in TEXTS:
            where = f"x:{len(asked) + 1}"
            image = ImageFile(folder, f"{number}.png", where)
            asked.append(Question({"n": len(asked)}, where, f"Is there {text}?", (image,)))
    return asked


def answers(
    loaded: LoadedModel, asked: Sequence[Question], folder: Path, **options: Any
) -> tuple[list[dict[str, Any]], AnswerCounts]:
    """All result rows, at two lambdas, and what they took."""
    paths = output_paths(folder / "A.jsonl", LAMBDAS)
    run = RunOptions(progress=False, overwrite=True)
    given = AnswerOptions(**{"batch_size": 3, "block_rows": 18, "workers": 0, "run": run} | options)
    counts = answer_questions(loaded, QuestionSet(asked), LAMBDAS, paths, given).counts
    assert isinstance(counts, AnswerCounts)
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()], counts


def with_ways(loaded: LoadedModel, *names: str) -> LoadedModel:
    return replace(loaded, quick=frozenset(names))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bits_of_generate(
    tiny_checkpoint: Callable[[str], Path], questions: list[Question], tmp_path: Path, family: str
) -> None:
    """Padded batches, with and without AGCI; nothing else may shape the answer of a whole prompt."""
    loaded = load(LoadOptions(str(tiny_checkpoint(family)), kernels="stock", vision="stock"))
    stock, before = answers(loaded, questions, tmp_path)
    ours, after = answers(with_ways(loaded, "first_token"), questions, tmp_path)
    assert ours == stock
    assert after.forwards == before.forwards


def test_a_repetition_penalty_is_followed(
    tiny_checkpoint: Callable[[str], Path], questions: list[Question], tmp_path: Path
) -> None:
    loaded = load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl")), kernels="stock"))
    loaded.model.generation_config.repetition_penalty = 1.7
    stock, _ = answers(loaded, questions, tmp_path)
    ours, _ = answers(with_ways(loaded, "first_token"), questions, tmp_path)
    assert ours == stock
    loaded.model.generation_config.no_repeat_ngram_size = 3
    assert "no_repeat_ngram_size" in str(FirstToken(Answerer(loaded.model, loaded.processor)).reason)
    answerer = Answerer(loaded.model, loaded.processor)
    answerer.settings.no_repeat_ngram_size, answerer.settings.encoder_repetition_penalty = 0, 1.0
    assert FirstToken(answerer).reason is None  # transformers 4.57 fills these in


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava", "internvl"])
def test_follow_up_questions_share_a_call(
    tiny_checkpoint: Callable[[str], Path], questions: list[Question], tmp_path: Path, family: str
) -> None:
    loaded = load(LoadOptions(str(tiny_checkpoint(family)), kernels="stock"))
    stock, before = answers(loaded, questions, tmp_path)
    ours, after = answers(with_ways(loaded, "first_token", "tails"), questions, tmp_path)
    assert before.forwards == len(TEXTS) * len(LAMBDAS)
    assert after.forwards == 2 * len(LAMBDAS)  # the first question about each image, then all others
    assert after.vision_images == before.vision_images == len(SIZES)
    assert after.prefill_tokens <= before.prefill_tokens  # no token waits for the longest row of its batch
    assert after.prefill_tokens + after.replayed_tokens == before.prefill_tokens + before.replayed_tokens
    for one, other in zip(ours, stock, strict=True):
        assert one["prediction"] == other["prediction"]
        assert one["margin"] == pytest.approx(other["margin"], abs=1e-5)
    assert len({row["margin"] for row in ours}) > len(questions)


def test_a_call_holds_as_many_questions_as_fit(
    tiny_checkpoint: Callable[[str], Path], questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_agci.inference import columns

    loaded = load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl"))))
    whole, _ = answers(loaded, questions, tmp_path)
    monkeypatch.setitem(columns.FOLLOW_UP_TOKENS, "cpu", 1)  # not even one batch: one each
    ours, counts = answers(loaded, questions, tmp_path)
    assert counts.forwards == len(TEXTS) * len(LAMBDAS)
    for one, other in zip(ours, whole, strict=True):
        assert one["margin"] == pytest.approx(other["margin"], abs=1e-5)


def test_generate_answers_where_the_first_token_is_no_verdict(
    tiny_checkpoint: Callable[[str], Path], questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers_agci.inference.first_token.verdict_is_fixed", lambda text: False)
    loaded = load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl"))))
    ours, counts = answers(loaded, questions, tmp_path)
    monkeypatch.undo()
    stock, before = answers(with_ways(loaded), questions, tmp_path)
    assert ours == stock
    assert counts.forwards == before.forwards + len(LAMBDAS)  # tried once for the column, at each lambda


def test_a_model_that_answers_in_other_words_is_not_called_twice_for_long(
    tiny_checkpoint: Callable[[str], Path], questions: list[Question], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers_agci.inference.first_token.verdict_is_fixed", lambda text: False)
    loaded = load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl"))))
    asked = questions[:: len(TEXTS)] * 3  # one question about an image: nine columns of one
    ours, counts = answers(loaded, asked, tmp_path, batch_size=1)
    stock, before = answers(with_ways(loaded), asked, tmp_path, batch_size=1)
    assert ours == stock
    assert counts.forwards == before.forwards + 2


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_prompts_of_one_length_need_no_mask(
    tiny_checkpoint: Callable[[str], Path], questions: list[Question], tmp_path: Path, family: str
) -> None:
    """One question about each image, as in the probe: no keys and values are kept. transformers 4.57 looks for several
    texts in a prompt without a mask, and finds one in every image token of Qwen3-VL.
    """
    loaded = load(LoadOptions(str(tiny_checkpoint(family)), kernels="stock", vision="stock"))
    asked = questions[:: len(TEXTS)]
    stock, _ = answers(loaded, asked, tmp_path, batch_size=1)
    ours, _ = answers(with_ways(loaded, "first_token"), asked, tmp_path, batch_size=1)
    for one, other in zip(ours, stock, strict=True):
        assert one["margin"] == pytest.approx(other["margin"], abs=1e-5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "llava"])
def test_padding_behind_needs_no_mask(
    tiny_checkpoint: Callable[[str], Path], questions: list[Question], tmp_path: Path, family: str, lam: float
) -> None:
    """One question about each image, of different lengths: the same margins, and the decoder is given no mask."""
    loaded = load(LoadOptions(str(tiny_checkpoint(family)), kernels="stock", vision="stock"))
    answerer = Answerer(loaded.model, loaded.processor)
    column = Column(((0, 7, 14),))  # "a dog" about the first image, "a red square in ..." about the second, "x"
    (batch,) = prepare(column, questions, loaded.processor, positions=positions_by(with_ways(loaded, *ALL))).batches
    assert batch.padding > 3
    assert batch.positions is not None
    seen: list[Any] = []
    hook = decoder_of(find_vlm(loaded.model)).register_forward_pre_hook(
        lambda _, args, given: seen.append(given.get("attention_mask")), with_kwargs=True
    )
    with agci(loaded.model, lam):
        stock, ours, kept = (
            FirstToken(answerer, behind).whole(batch.inputs, batch.positions, batch.padding, cache)
            for behind, cache in ((False, False), (True, False), (True, True))
        )
    hook.remove()
    # One place for each token: left as it is, since some such families see what follows.
    behind = family != "llava" and not FirstToken(answerer)._masked
    assert [mask is None for mask in seen] == [False, behind, False]
    assert stock is not None
    assert ours is not None
    assert kept == stock
    for one, other in zip(ours, stock, strict=True):
        assert one.text == other.text
        assert (one.yes_logit, one.no_logit) == pytest.approx((other.yes_logit, other.no_logit), abs=1e-5)
    assert len({answer.yes_logit for answer in ours}) == len(ours)
