"""Six families through the engine: a row's answer does not depend on its batch."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_checkpoints import FAMILIES, build_processor, prompt_inputs, random_image

from transformers_agci.errors import InputError
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.prompt import answer_token_ids, chat_text, images_once, tokenize
from transformers_agci.inference.questions import BlankImage, ImageFile, Question, QuestionSet
from transformers_agci.inference.runner import RunOptions, output_paths
from transformers_agci.inference.vision_replay import VisionReplay

LAMBDAS = [0.0, 0.5]
TEXTS = ("a dog", "a red square in the middle of the image", "x")
SIZES = ((120, 90), (90, 90), (64, 120), (200, 60))  # pixels: width, height


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> list[Question]:
    folder = tmp_path_factory.mktemp("pictures")
    asked = []
    for number, (width, height) in enumerate(SIZES * 2):
        random_image(number, width, height).save(folder / f"{number}.png")
        for text in TEXTS:
            where = f"x:{len(asked) + 1}"
            asked.append(
                Question({"n": len(asked)}, where, f"Is there {text}?", (ImageFile(folder, f"{number}.png", where),))
            )
    return asked


def answers(
    checkpoint: Path, questions: list[Question], folder: Path, batch_size: int, dtype: str = "float32"
) -> dict[float, list[dict]]:
    loaded = load(LoadOptions(str(checkpoint), dtype=dtype))
    paths = output_paths(folder / f"{batch_size}.jsonl", LAMBDAS)
    options = AnswerOptions(batch_size, 24, run=RunOptions(progress=False))
    answer_questions(loaded, QuestionSet(questions), LAMBDAS, paths, options)
    return {
        lam: [json.loads(line) for line in path.read_text().splitlines()]
        for lam, path in zip(LAMBDAS, paths, strict=True)
    }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_batch_1_and_batch_5_agree_in_float32(
    tiny_checkpoint: Callable[[str], Path], questions: list[Question], tmp_path: Path, family: str
) -> None:
    alone = answers(tiny_checkpoint(family), questions, tmp_path, 1)
    together = answers(tiny_checkpoint(family), questions, tmp_path, 5)
    for lam in LAMBDAS:
        for one, many in zip(alone[lam], together[lam], strict=True):
            assert one["yes_logit"] == pytest.approx(many["yes_logit"], abs=1e-4)
            assert one["no_logit"] == pytest.approx(many["no_logit"], abs=1e-4)
            assert one["prediction"] == many["prediction"]
    assert [row["margin"] for row in alone[0.0]] != [row["margin"] for row in alone[0.5]]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_in_bfloat16_only_close_calls_may_flip(
    tiny_checkpoint: Callable[[str], Path], questions: list[Question], tmp_path: Path, family: str
) -> None:
    alone = answers(tiny_checkpoint(family), questions, tmp_path, 1, "bfloat16")
    together = answers(tiny_checkpoint(family), questions, tmp_path, 5, "bfloat16")
    moved = {}
    for lam in LAMBDAS:
        pairs = list(zip(alone[lam], together[lam], strict=True))
        moved[lam] = sum(abs(one["margin"] - many["margin"]) for one, many in pairs) / len(pairs)
        flips = [one for one, many in pairs if one["prediction"] != many["prediction"]]
        assert all(abs(one["margin"]) < 0.1 for one in flips)
        print(
            f"{family} lambda {lam}: {len(flips)} of {len(pairs)} answers flip, "
            f"margins move by {moved[lam]:.3f} on average"
        )
    # AGCI adds nothing to what stock's rounding does; one step of bfloat16 between 8 and 16 is 0.0625.
    assert moved[0.5] <= moved[0.0] + 0.0625


@pytest.mark.parametrize("family", FAMILIES)
def test_the_vision_record_is_exact_and_not_changed_by_its_use(
    tiny_checkpoint: Callable[[str], Path], family: str
) -> None:
    loaded = load(LoadOptions(str(tiny_checkpoint(family))))
    model, processor = loaded.model, loaded.processor
    first = prompt_inputs(processor, "Is there a dog?", random_image(1), random_image(2))
    second = prompt_inputs(processor, "Is there a red square in the image?", random_image(1), random_image(2))
    with torch.no_grad():
        stock = [model(**inputs).logits for inputs in (first, second, first)]
        with VisionReplay(model) as vision:
            vision.set_images(("1", "2"))
            replayed = [model(**inputs).logits for inputs in (first, second, first)]
            assert (vision.calls, vision.images, vision.replays) == (1, 2, 2)
            vision.set_images(("3", "2"))
            model(**first)
            assert vision.calls == 2
            vision.set_images(None)
            model(**first)
            model(**first)
            assert vision.calls == 4
    assert all(torch.equal(one, other) for one, other in zip(stock, replayed, strict=True))
    assert "get_image_features" not in vars(vision.vlm)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_caption_cannot_bring_an_image_of_its_own(tiny_checkpoint: Callable[[str], Path], family: str) -> None:
    processor = load(LoadOptions(str(tiny_checkpoint(family)))).processor
    token = processor.image_token
    with pytest.raises(InputError, match="x:1: the text holds"):
        chat_text(processor, Question({}, "x:1", f"Is there {token}?", (), marks=False))
    yes, no = answer_token_ids(processor)
    assert (processor.tokenizer.decode([yes]), processor.tokenizer.decode([no])) == ("Yes", "No")


@pytest.mark.parametrize("family", FAMILIES)
def test_images_taken_once_are_the_processors_own(family: str) -> None:
    processor = build_processor(family)
    shown = [[random_image(number, *size)] for number, size in enumerate(SIZES)]
    if family in ("qwen2_5_vl", "qwen3_vl"):
        shown[1].append(random_image(9, 30, 200))  # two images in one prompt
    asked = [Question({}, "x", "Is there a dog?", tuple(BlankImage(8, 8) for _ in images)) for images in shown]
    prompts = [chat_text(processor, question) for question in asked]
    stock = tokenize(processor, prompts, shown)
    real, once = processor.image_processor, images_once(processor)
    for made in (tokenize(once, prompts, shown), tokenize(once, prompts, shown)):
        assert made.keys() == stock.keys()
        for name, value in stock.items():
            assert all(map(torch.equal, made[name], value)), name
            assert len(made[name]) == len(value)
    assert processor.image_processor is real  # another thread may be using it
