"""The engine on a tiny checkpoint: what a run does and writes, counts, replays, the plan without weights."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_run
import torch
from tiny_checkpoints import checkpoint, prompt_inputs, random_image
from tiny_run import CELLS, ITEMS, LAMBDAS, ask, contents, probe, rows, spoil

from transformers_agci.inference.answer import verdict_is_fixed
from transformers_agci.inference.dry_run import describe
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.questions import (
    BlankImage,
    ImageBytes,
    ImageFile,
    Question,
    up_to,
)
from transformers_agci.inference.runner import output_paths
from transformers_agci.method.attach import agci, attach
from transformers_agci.method.handle import current_handle
from transformers_agci.storage import manifest

loaded = tiny_run.loaded  # fixture
pictures = tiny_run.pictures  # fixture


def test_result_rows_are_the_input_rows_with_the_answer(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    questions = probe(pictures)
    ask(loaded, questions, tmp_path / "A.jsonl")
    for lam in ("0", "0.5"):
        found = rows(tmp_path / f"A.lam{lam}.jsonl")
        assert [{key: row[key] for key in ("id", "cell", "caption")} for row in found] == [q.row for q in questions]
        assert [row["qs"] for row in found] == [question.text for question in questions]
        for row in found:
            assert list(row)[3:] == ["prediction", "qs", "yes_logit", "no_logit", "margin"]
            assert row["prediction"] in ("Yes", "No")
            assert row["margin"] == pytest.approx(row["yes_logit"] - row["no_logit"], abs=2e-6)
    assert rows(tmp_path / "A.lam0.jsonl") != rows(tmp_path / "A.lam0.5.jsonl")


def test_vision_runs_once_per_image_and_each_row_takes_one_forward(
    loaded: LoadedModel, pictures: Path, tmp_path: Path
) -> None:
    counts = ask(loaded, probe(pictures), tmp_path / "A.jsonl").counts
    assert counts.vision_images == ITEMS * CELLS  # for two questions and two lambdas on each
    assert counts.vision_calls == ITEMS
    assert counts.forwards == counts.batches == ITEMS * 2 * len(LAMBDAS)
    assert counts.rows == ITEMS * CELLS * 2 * len(LAMBDAS)


def test_images_with_unequal_question_counts_are_encoded_and_prefilled_once(
    loaded: LoadedModel, pictures: Path, tmp_path: Path
) -> None:
    texts = ("Is there a dog?", "Is there a cat?", "Is there a red square?", "Is there an image?")
    asked = [
        Question({}, f"x:{image_number}.{number}", text, (ImageFile(pictures, f"{image_number}.jpg", "x"),))
        for image_number in range(8)
        for number, text in enumerate(texts[: 1 + image_number % 4])
    ]
    counts = ask(loaded, asked, tmp_path / "A.jsonl", batch_size=3, block_rows=len(asked)).counts
    assert counts.vision_images == 8
    alone = ask(loaded, asked, tmp_path / "B.jsonl", batch_size=1, block_rows=1).counts
    assert alone.replayed_tokens == 0
    assert counts.prefill_tokens + counts.replayed_tokens == alone.prefill_tokens
    image_tokens = (
        (random_image(0).width // 28 + 1) * (random_image(0).height // 28 + 1) // 2
    )  # at least, of each image
    assert counts.replayed_tokens > len(LAMBDAS) * (len(asked) - 8) * image_tokens
    manifest = json.loads((tmp_path / "A.lam0.manifest.json").read_text())
    assert manifest["runs"][0]["prefill_tokens"] == counts.prefill_tokens


@pytest.mark.parametrize(("scope", "spared"), [("image", True), ("batch", False)])
def test_a_batch_that_lost_a_row_shares_nothing_that_depends_on_its_mates(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, scope: str, spared: bool
) -> None:
    questions = probe(pictures, items=1)
    # A text of the second batch, since it is the shorter one.
    questions[-1] = replace(questions[-1], text=loaded.processor.image_token)
    counts = ask(loaded, questions, tmp_path / "A.jsonl", scope=scope).counts
    assert len(counts.failed) == 1
    assert (counts.replayed_tokens > 0) is spared
    whole = ask(loaded, probe(pictures, items=1), tmp_path / "B.jsonl", scope=scope).counts
    assert whole.replayed_tokens > 0


def test_answers_are_those_of_generate_on_each_row_alone(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    questions = probe(pictures)
    ask(loaded, questions, tmp_path / "A.jsonl")
    tokenizer, model = loaded.processor.tokenizer, loaded.model
    yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
    for lam in LAMBDAS:
        found = rows(output_paths(tmp_path / "A.jsonl", LAMBDAS)[LAMBDAS.index(lam)])
        with agci(model, lam), torch.no_grad():
            for question, row in list(zip(questions, found, strict=True))[::3]:
                content = [{"type": "image"}, {"type": "text", "text": question.text}]
                text = loaded.processor.apply_chat_template(
                    [{"role": "user", "content": content}], add_generation_prompt=True
                )
                inputs = loaded.processor(text=[text], images=[question.images[0].open()], return_tensors="pt")
                made = model.generate(**inputs, do_sample=False, max_new_tokens=8)
                reply = tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
                assert ("Yes" if reply.startswith("Yes") else "No") == row["prediction"]
                logits = model(**inputs).logits[0, -1]
                assert row["yes_logit"] == pytest.approx(float(logits[yes]), abs=1e-4)
                assert row["no_logit"] == pytest.approx(float(logits[no]), abs=1e-4)


def test_the_model_is_as_it_was(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in loaded.model.modules()]
    ask(loaded, probe(pictures, 1), tmp_path / "A.jsonl")
    assert [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in loaded.model.modules()] == hooks
    assert "get_image_features" not in vars(loaded.model.model)
    assert current_handle(loaded.model) is None
    handle = attach(loaded.model, 0.3)
    ask(loaded, probe(pictures, 1), tmp_path / "B.jsonl")
    assert (handle.lam, handle.attached) == (0.3, True)
    handle.detach()
    assert contents(tmp_path)["A.lam0.5.jsonl"] == contents(tmp_path)["B.lam0.5.jsonl"]


def test_free_text_text_only_bytes_and_several_images(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    data = (pictures / "0.jpg").read_bytes()
    two = (ImageBytes(data, "x"), ImageFile(pictures, "1.jpg", "x"))
    questions = [
        Question({"n": 0}, "x:1", "Is there a dog?"),
        Question({"n": 1}, "x:2", "First <image> then <image>: which?", two, stop=up_to(5), shown="short"),
        Question({"n": 2}, "x:3", "What is in both?", two, stop=up_to(5)),
        Question({"n": 3}, "x:4", "Is there a cat?", (BlankImage(120, 90),)),
        Question({"n": 4}, "x:5", "Is there anything?"),
    ]
    counts = ask(loaded, questions, tmp_path / "A.jsonl", [0.5], batch_size=2).counts
    found = rows(tmp_path / "A.jsonl")
    assert [row["n"] for row in found] == [0, 1, 2, 3, 4]
    assert found[1]["qs"] == "short"
    assert ["margin" in row for row in found] == [True, False, False, True, True]
    assert counts.vision_calls == 2
    assert loaded.processor.tokenizer(found[1]["prediction"])["input_ids"].__len__() <= 8


def test_dry_run_tells_the_plan_without_weights(
    loaded: LoadedModel, pictures: Path, tiny_checkpoint: Callable[[str], Path]
) -> None:
    shape = load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl"))), weights=False)
    assert all(parameter.is_meta for parameter in shape.model.parameters())
    questions = probe(pictures)
    told = "\n".join(describe(shape, questions, LAMBDAS, [Path("A")], batch_size=CELLS, block_rows=8))
    assert questions[0].text in told
    assert "of which 12 are image tokens of 1 image" in told
    assert "24 rows in 3 blocks, 6 batches for each of 2 lambdas (0, 0.5)" in told
    assert "would write: A" in told
    assert "weights" in told


def test_one_of_a_thing_is_singular(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    spoil(tmp_path, pictures)
    summary = ask(loaded, probe(tmp_path)[1:2], tmp_path / "A.jsonl", [0.5])
    assert "1 row was skipped:" in summary.lines()
    summary = ask(loaded, probe(tmp_path)[:1], tmp_path / "B.jsonl", [0.5])
    assert (
        summary.lines()[0].startswith("1 answer in") and "vision ran on 1 image, 1 forward call" in summary.lines()[0]
    )


def test_the_manifest_says_how_it_was_made(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    ask(loaded, probe(pictures), tmp_path / "A.jsonl", [0.5], settings={"data_sha256": "1"}, notes={"from": "x"})
    found = manifest.read(tmp_path / "A.jsonl")
    assert found is not None
    settings, run = found["settings"], found["runs"][0]
    assert settings["lambda"] == 0.5
    assert settings["data_sha256"] == "1"
    assert settings["generation"]["repetition_penalty"] == 1.05
    assert settings["model"]["family"] == "qwen2_5_vl"
    assert len(settings["model"]["weights_sha256"]) == 64
    assert settings["model"]["dtype"] == "float32"
    assert found["notes"]["from"] == "x"
    grid = {"pictures": 1, "image_tokens": 12, "patches_t_h_w": [1, 6, 8]}
    assert run["token_grid"] == {"row": "rows.json:5", **grid}  # the first that was asked: longer texts come first
    assert {"packages", "git_commit", "machine", "rows_per_s", "peak_memory", "halved_blocks"} <= set(run)


def test_an_answer_goes_on_until_its_verdict_is_fixed(pictures: Path, tmp_path: Path) -> None:
    """A model that says anything: the prediction is the beginning of what generate says, up to the fixed verdict."""
    loaded = load(LoadOptions(str(checkpoint("llava", tmp_path / "model", yes_no=False))))
    questions = probe(pictures)
    ask(loaded, questions, tmp_path / "A.jsonl", [0.0])
    for question, row in list(zip(questions, rows(tmp_path / "A.jsonl"), strict=True))[::5]:
        inputs = prompt_inputs(loaded.processor, question.text, question.images[0].open())
        made = loaded.model.generate(**inputs, do_sample=False, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        texts = [loaded.processor.tokenizer.decode(made[:end], skip_special_tokens=True) for end in range(1, 9)]
        assert row["prediction"] == next(filter(verdict_is_fixed, texts), texts[-1]).strip()


def test_every_run_records_its_own_kernels(
    tiny_checkpoint: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    """A file that is continued under other kernels is made by both."""
    for kernels in ("stock", "norms"):
        ask(
            load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl")), kernels=kernels)),
            probe(pictures),
            tmp_path / "A.jsonl",
        )
    found = manifest.read(tmp_path / "A.lam0.jsonl")
    assert found is not None
    assert [run["kernels"] for run in found["runs"]] == [[], ["norms"]]
    assert "kernels" not in found["notes"]
