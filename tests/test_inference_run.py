"""The engine on a tiny checkpoint: counts, resuming, bad rows, memory, workers, interruptions."""

import contextlib
import json
import os
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Never

import pytest
import torch
from PIL import Image
from tiny_checkpoints import checkpoint, prompt_inputs, random_image

from transformers_agci.errors import InputError
from transformers_agci.inference.answer import verdict_is_fixed
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.dry_run import describe
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.prefetch import AHEAD, prefetched
from transformers_agci.inference.progress import RunSummary
from transformers_agci.inference.questions import (
    YES_NO,
    BlankImage,
    ImageBytes,
    ImageFile,
    Question,
    QuestionSet,
    up_to,
)
from transformers_agci.inference.runner import RunOptions, output_paths
from transformers_agci.method.attach import agci, attach
from transformers_agci.method.handle import current_handle
from transformers_agci.storage import manifest
from transformers_agci.storage.result_file import merge_shards
from transformers_agci.storage.result_lines import FailedRow
from transformers_agci.storage.result_names import Shard

LAMBDAS = [0.0, 0.5]
ITEMS, CELLS = 3, 4


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Callable[[str], Path]) -> LoadedModel:
    return load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl"))))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(ITEMS * CELLS):
        random_image(number).save(folder / f"{number}.jpg")
    return folder


def probe(folder: Path, items: int = ITEMS) -> list[Question]:
    """Each item has CELLS images and two captions for each, as the position probe has."""
    asked: list[Question] = []
    for item in range(items):
        for caption in (f"a dog {item}", "nothing"):
            for cell in range(CELLS):
                where, name = f"rows.json:{len(asked) + 1}", f"{item * CELLS + cell}.jpg"
                asked.append(
                    Question(
                        {"id": item, "cell": cell, "caption": caption},
                        where,
                        f"Is there {caption}?",
                        (ImageFile(folder, name, where),),
                        item,
                    )
                )
    return asked


def ask(
    loaded: LoadedModel, questions: list[Question], path: Path, lambdas: list[float] = LAMBDAS, **options: Any
) -> RunSummary:
    """`options` are those of AnswerOptions, RunOptions and QuestionSet by name."""
    given = {"batch_size": CELLS, "block_rows": 8, "progress": False, **options}
    of_run = {name: given.pop(name) for name in ("shard", "overwrite", "strict", "progress") if name in given}
    of_set = {name: given.pop(name) for name in ("bad_rows", "settings", "notes") if name in given}
    asked = QuestionSet(questions, **of_set)
    return answer_questions(
        loaded, asked, lambdas, output_paths(path, lambdas), AnswerOptions(run=RunOptions(**of_run), **given)
    )


@contextlib.contextmanager
def before_forward(loaded: LoadedModel, work: Callable[[int], None]) -> Iterator[None]:
    """Before every forward call of the model `work(rows of the batch)`, which may raise."""
    hook = loaded.model.register_forward_pre_hook(
        lambda _, args, given: work(len(given["input_ids"])), with_kwargs=True
    )
    try:
        yield
    finally:
        hook.remove()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.endswith("manifest.json")}


# --- what a run does and writes ---


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


# --- going on ---


@pytest.mark.slow
def test_truncated_at_every_byte_of_the_last_block_it_resumes_to_the_same_bytes(
    loaded: LoadedModel, pictures: Path, tmp_path: Path
) -> None:
    path = tmp_path / "A.jsonl"
    ask(loaded, probe(pictures), path, [0.5])
    whole = path.read_bytes()
    last_block = len(whole) - sum(map(len, whole.splitlines(keepends=True)[-8:]))
    for size in range(last_block, len(whole), 37):  # every byte: test_inference_results
        path.write_bytes(whole[:size])
        counts = ask(loaded, probe(pictures), path, [0.5]).counts
        assert (counts.rows, counts.already_done) == (8, 16)
        assert path.read_bytes() == whole


def test_ctrl_c_keeps_finished_blocks(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    ask(loaded, probe(pictures), tmp_path / "whole" / "A.jsonl")
    calls = iter([*[None] * 6, KeyboardInterrupt])

    def interrupt(*_: object) -> None:
        if next(calls, None):
            raise KeyboardInterrupt

    with before_forward(loaded, interrupt), pytest.raises(KeyboardInterrupt):
        ask(loaded, probe(pictures), tmp_path / "cut" / "A.jsonl")
    assert len(rows(tmp_path / "cut" / "A.lam0.jsonl")) == 8
    assert current_handle(loaded.model) is None
    counts = ask(loaded, probe(pictures), tmp_path / "cut" / "A.jsonl").counts
    assert counts.already_done == 16
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_only_the_lambda_that_lacks_a_block_is_run(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    ask(loaded, probe(pictures), tmp_path / "A.jsonl")
    whole = contents(tmp_path)
    (tmp_path / "A.lam0.5.jsonl").write_bytes(b"")
    counts = ask(loaded, probe(pictures), tmp_path / "A.jsonl").counts
    assert (counts.rows, counts.forwards) == (24, 6)
    assert contents(tmp_path) == whole


def test_shards_and_one_process_write_the_same_bytes(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    ask(loaded, probe(pictures), tmp_path / "one" / "A.jsonl")
    for index in (1, 0):
        summary = ask(loaded, probe(pictures), tmp_path / "two" / "A.jsonl", shard=Shard(index, 2))
        assert not summary.complete
        assert "merge-shards" in summary.lines()[-1]
    for path in output_paths(tmp_path / "two" / "A.jsonl", LAMBDAS):
        merge_shards(path)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_shard_counts_its_own_blocks_only(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    """24 rows in 3 blocks for 2 shards: 16 and 8 rows at each lambda."""
    path = tmp_path / "A.jsonl"
    for index, own in ((0, 32), (1, 16), (0, 32)):
        summary = ask(loaded, probe(pictures), path, shard=Shard(index, 2))
        before = index == 0 and summary.counts.rows == 0
        assert (summary.counts.rows, summary.counts.already_done) == ((0, own) if before else (own, 0))
    assert "32 already done" in summary.lines()[0]


def test_a_shard_without_a_block_says_so(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "A.jsonl"
    for index in range(3):
        ask(loaded, probe(pictures), path, [0.5], shard=Shard(index, 5))
    summary = ask(loaded, probe(pictures), path, [0.5], shard=Shard(4, 5))
    assert (summary.counts.rows, summary.counts.already_done) == (0, 0)
    assert summary.lines()[0].startswith("0 answers in")
    assert "This shard has nothing to do: the input has 3 blocks, fewer than the 5 shards." in summary.lines()
    merge_shards(path)
    assert len(rows(path)) == 24


def test_swapped_rows_are_refused_when_a_run_goes_on(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    path = tmp_path / "A.jsonl"
    ask(loaded, probe(pictures), path, [0.5])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[1], lines[0], *lines[2:]]))
    with pytest.raises(InputError, match=r"A\.jsonl:1 is not the result of row 1 of the input: its cell is 1"):
        ask(loaded, probe(pictures), path, [0.5])


def test_rows_that_have_a_prediction_already_are_asked_and_continued(
    loaded: LoadedModel, pictures: Path, tmp_path: Path
) -> None:
    """The input is an earlier result file: its answers give way to the new ones."""
    path = tmp_path / "A.jsonl"
    asked = [replace(each, row={**each.row, "prediction": "Maybe", "qs": ""}) for each in probe(pictures)]
    ask(loaded, asked, path, [0.5])
    assert {row["prediction"] for row in rows(path)} <= {"Yes", "No"}
    assert ask(loaded, asked, path, [0.5]).counts.already_done == 24


def test_one_of_a_thing_is_singular(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    spoil(tmp_path, pictures)
    summary = ask(loaded, probe(tmp_path)[1:2], tmp_path / "A.jsonl", [0.5])
    assert "1 row was skipped:" in summary.lines()
    summary = ask(loaded, probe(tmp_path)[:1], tmp_path / "B.jsonl", [0.5])
    assert (
        summary.lines()[0].startswith("1 answer in") and "vision ran on 1 image, 1 forward call" in summary.lines()[0]
    )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"batch_size": 3}, "batch_size is 4 there and 3 now"),
        ({"method": "uniform"}, "method is 'agci' there and 'uniform' now"),
        ({"settings": {"prompt": "other"}}, "prompt is 'not set' there and 'other' now"),
    ],
)
def test_other_settings_are_refused(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    ask(loaded, probe(pictures, 1), tmp_path / "A.jsonl", [0.5])
    with pytest.raises(InputError, match=named):
        ask(loaded, probe(pictures, 1), tmp_path / "A.jsonl", [0.5], **change)
    with pytest.raises(InputError, match=r"lambda is 0\.5 there and 0\.7 now"):
        ask(loaded, probe(pictures, 1), tmp_path / "A.jsonl", [0.7])
    ask(loaded, probe(pictures, 1), tmp_path / "A.jsonl", [0.5], overwrite=True, **change)


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


# --- what goes wrong ---


def spoil(folder: Path, source: Path) -> None:
    """Copy the images, without number 1, with number 5 cut short."""
    for file in source.iterdir():
        (folder / file.name).write_bytes(file.read_bytes()[: 300 if file.name == "5.jpg" else None])
    (folder / "1.jpg").unlink()


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_rows_are_named_and_the_rest_is_answered(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, workers: int, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil(tmp_path, pictures)
    questions = probe(tmp_path)
    unread = FailedRow(0, "rows.json:99", "rows.json:99: caption is missing.")
    path = tmp_path / "A.jsonl"
    summary = ask(loaded, questions, path, [0.5], workers=workers, bad_rows=[unread])
    told = [row.where for row in summary.counts.failed]
    assert told == ["rows.json:99", "rows.json:2", "rows.json:6", "rows.json:10", "rows.json:14"]
    assert summary.exit_code == 1
    assert "5 rows were skipped:" in summary.lines()[1]
    assert "1.jpg does not exist" in capfd.readouterr().err
    assert len(rows(path)) == 20
    assert [row["row"] for row in rows(tmp_path / "A.bad.jsonl")] == [1, 5, 9, 13]
    again = ask(loaded, questions, path, [0.5])
    assert (again.exit_code, again.counts.rows) == (1, 0)


def test_strict_stops_at_the_first_bad_row(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    spoil(tmp_path, pictures)
    with pytest.raises(InputError, match=r"rows\.json:2: .*1\.jpg does not exist"):
        ask(loaded, probe(tmp_path), tmp_path / "A.jsonl", strict=True)


def test_a_text_that_holds_the_image_token_is_a_bad_row(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    questions = probe(pictures)
    questions[2] = Question({}, "rows.json:3", "Is there <|image_pad|>?", questions[2].images, 0)
    summary = ask(loaded, questions, tmp_path / "A.jsonl", [0.5])
    assert [row.where for row in summary.counts.failed] == ["rows.json:3"]
    assert "<|image_pad|>" in summary.counts.failed[0].error


def test_a_path_that_leaves_its_root_is_a_bad_row(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    random_image().save(tmp_path / "secret.jpg")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    names = ("../secret.jpg", str(tmp_path / "secret.jpg"), "link.jpg")
    outside = [ImageFile(tmp_path / "root", name, f"x:{n}") for n, name in enumerate(names)]
    questions = [*probe(pictures, 1), *(Question({}, file.where, "Is it?", (file,)) for file in outside)]
    summary = ask(loaded, questions, tmp_path / "A.jsonl", [0.5])
    assert [row.where for row in summary.counts.failed] == ["x:0", "x:1", "x:2"]
    assert len(rows(tmp_path / "A.jsonl")) == 8


def test_nothing_to_ask(loaded: LoadedModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no row to ask"):
        ask(loaded, [], tmp_path / "A.jsonl")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
    ids=["gpu", "cpu", "cublas"],
)
def test_out_of_memory_halves_the_batch_and_says_so(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    ask(loaded, probe(pictures), tmp_path / "whole.jsonl")
    tried: list[int] = []

    def full(size: int) -> None:
        tried.append(size)
        if size > 2:
            raise error

    def again(*_: object, **__: object) -> Never:
        raise AssertionError("prepared again")

    monkeypatch.setattr("transformers_agci.inference.columns.prepare", again)
    with before_forward(loaded, full):
        summary = ask(loaded, probe(pictures), tmp_path / "A.jsonl", workers=0)
    assert tried.count(CELLS) == 1  # the size that fitted is kept: no other block tries the whole batch
    assert set(tried[1:]) == {2}
    assert summary.counts.vision_images == ITEMS * CELLS
    assert summary.counts.halved_blocks == [0, 1, 2]
    assert any("halved" in line for line in summary.lines())
    found = manifest.read(tmp_path / "A.lam0.jsonl")
    assert found is not None
    assert found["runs"][0]["halved_blocks"] == [0, 1, 2]
    for lam in ("0", "0.5"):
        for row, expected in zip(
            rows(tmp_path / f"A.lam{lam}.jsonl"), rows(tmp_path / f"whole.lam{lam}.jsonl"), strict=True
        ):
            assert row["prediction"] == expected["prediction"]
            assert row["margin"] == pytest.approx(expected["margin"], abs=1e-4)


def test_one_row_that_does_not_fit_is_named(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    def full(size: int) -> Never:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with before_forward(loaded, full), pytest.raises(InputError, match=r"rows\.json:\d+: memory does not suffice"):
        ask(loaded, probe(pictures), tmp_path / "A.jsonl")


@pytest.mark.parametrize("stop", [YES_NO, up_to(3)], ids=["yes or no", "free text"])
def test_logits_that_are_not_numbers_are_no_answer(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, stop: Any
) -> None:
    """A row whose mask hides all its keys gives such logits; their largest one is a token like any other."""
    questions = [replace(question, stop=stop) for question in probe(pictures, 1)]

    def spoil(_: object, args: object, output: Any) -> None:
        output.logits[1] = float("nan")

    hook = loaded.model.register_forward_hook(spoil)
    try:
        summary = ask(loaded, questions, tmp_path / "A.jsonl", workers=0)
    finally:
        hook.remove()
    assert summary.exit_code == 1
    assert len(summary.counts.failed) in (2, 4)  # of every batch of four rows the second
    assert "gives logits that are not numbers" in summary.counts.failed[0].error
    for lam in ("0", "0.5"):
        assert "NaN" not in (tmp_path / f"A.lam{lam}.jsonl").read_text()
        assert len(rows(tmp_path / f"A.lam{lam}.jsonl")) == len(questions) - len(summary.counts.failed)


@dataclass(frozen=True)
class Deadly:
    """An image whose decoder takes its process down."""

    key: str = "deadly"

    def open(self) -> Image.Image:
        os._exit(66)


def test_a_worker_that_dies_is_an_error_with_the_rows_name(loaded: LoadedModel, pictures: Path, tmp_path: Path) -> None:
    questions = probe(pictures)
    questions[9] = Question({}, "rows.json:10", "Is it?", (Deadly(),), 1)
    with pytest.raises(InputError, match=r"^rows\.json:10: .*died at this row"):
        ask(loaded, questions, tmp_path / "A.jsonl", workers=2)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(loaded: LoadedModel, pictures: Path, tmp_path: Path, workers: int) -> None:
    ask(loaded, probe(pictures), tmp_path / "none" / "A.jsonl")
    ask(loaded, probe(pictures), tmp_path / "some" / "A.jsonl", workers=workers)
    assert contents(tmp_path / "some") == contents(tmp_path / "none")


def test_workers_are_only_a_little_ahead(tmp_path: Path) -> None:
    def make(item: int, at: Callable[[int], None]) -> int:
        (tmp_path / str(item)).touch()
        return item

    with prefetched(range(40), make, workers=2, where=str) as ahead:
        assert next(ahead) == 0
        most = 1 + 2 * AHEAD  # the one that was taken, and two for each worker
        end = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < most and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(0.3)  # as good as always for more, if there is more to come
        assert len(list(tmp_path.iterdir())) == most
        assert list(ahead) == list(range(1, 40))


def test_images_are_let_go(
    loaded: LoadedModel, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the run, the tensors of two columns are alive at most: the one at hand and the one before."""
    from transformers_agci.inference import prepare

    alive: set[int] = set()
    most: list[int] = []
    real = prepare.prepare

    def counted(*args: Any) -> Any:
        prepared = real(*args)
        alive.add(id(prepared))
        weakref.finalize(prepared, alive.discard, id(prepared))
        most.append(len(alive))
        return prepared

    monkeypatch.setattr(prepare, "prepare", counted)
    ask(loaded, probe(pictures), tmp_path / "A.jsonl", [0.5], batch_size=1, block_rows=1)
    assert len(most) == ITEMS * CELLS
    assert max(most) <= 2


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


def test_workers_are_not_started_where_shared_memory_is_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Docker's 64 MB: a process that fills them dies of a bus error, which looks like a bad image."""
    import os
    from types import SimpleNamespace

    from transformers_agci.inference import prefetch

    def made_by(free: int) -> set[int]:
        monkeypatch.setattr(prefetch.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
        with prefetch.prefetched([1, 2, 3], lambda item, at: os.getpid(), 2, str) as made:
            return set(made)

    assert made_by(64 * 2**20) == {os.getpid()}
    said = capsys.readouterr().err
    assert "/dev/shm has 64 MB free, and 2 processes that prepare images need 512 MB there" in said
    assert "--shm-size=2g" in said
    assert os.getpid() not in made_by(2**30)
    assert not capsys.readouterr().err


@pytest.mark.parametrize("begun_in_a_pool", [False, True], ids=["main thread", "thread of a pool"])
def test_workers_end_well_whichever_thread_takes_what_they_make(begun_in_a_pool: bool) -> None:
    """A process that a pool's thread has forked waits for that thread at its end, for itself: with exit code 1, which
    ends the run where another run of the process has put up the handler for that.
    """
    import multiprocessing
    from concurrent.futures import ThreadPoolExecutor

    def run() -> list[Any]:
        with prefetched([1, 2, 3], lambda item, at: item, 2, str) as made, ThreadPoolExecutor(1) as thread:
            workers = multiprocessing.active_children()
            assert thread.submit(list, made).result() == [1, 2, 3]
            assert len(workers) == 2
        return workers

    if begun_in_a_pool:
        with ThreadPoolExecutor(1) as pool:
            workers = pool.submit(run).result()
    else:
        workers = run()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_workers_take_nothing_down_that_another_thread_keeps(tmp_path: Path) -> None:
    """A tensor of a GPU there: CUDA ends a child that frees one. The stand-in writes down in which process it goes."""
    import os
    import threading
    from concurrent.futures import ThreadPoolExecutor

    gone = tmp_path / "gone"

    class OnGpu:
        def __del__(self) -> None:
            if not gone.exists():
                gone.write_text(str(os.getpid()))

    kept = threading.local()
    kept.tensor = OnGpu()
    with prefetched([1], lambda item, at: item, 1, str) as made, ThreadPoolExecutor(1) as thread:
        assert thread.submit(next, made).result() == 1
    assert not gone.exists()
    del kept
    assert gone.read_text() == str(os.getpid())


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
