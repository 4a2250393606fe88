"""Similarity maps: numbers against the definition written out, the decoder at rest, resuming, bad input."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_checkpoints import FAMILIES, random_image

from transformers_agci import image_embeddings
from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.errors import InputError
from transformers_agci.experiments.positives import read_positives
from transformers_agci.experiments.similarity import report as similarity_report
from transformers_agci.experiments.similarity.run import SimilarityRun, caption_embeddings
from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.runner import RunOptions


def write_rows(folder: Path, items: int = 2, **changes: Any) -> tuple[Path, Path]:
    """A probe file of `items` x 9 rows and its images: one coloured block on white, small."""
    images = folder / "images"
    images.mkdir(parents=True)
    rows = []
    for item in range(items):
        for k, position in enumerate(POSITIONS):
            canvas = Image.new("RGB", (90, 90), "white")
            canvas.paste(random_image(item, 30, 30), (30 * (k % 3), 30 * (k // 3)))
            canvas.save(images / f"{item}_{k}.png")
            rows.append(
                {
                    "id": 9 * item + k,
                    "image": f"{item}_{k}.png",
                    "caption": ("a red dog", "a cat")[item % 2],
                    "position": position,
                    "answer": "Yes",
                }
                | changes
            )
    file = folder / "rows.json"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file, images


def similarity(model: Any, processor: Any, image: Image.Image, caption: str, pool: str) -> float:
    """The definition, written out in float64 with one image at a time."""
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    inputs = dict(processor(text=[prompt], images=[image], return_tensors="pt"))
    tokens = image_embeddings(model, inputs)[0].double()
    words = model.get_input_embeddings()(processor(text=[caption], return_tensors="pt")["input_ids"])[0].double()
    reduce = {"max": lambda x: x.max(0).values, "mean": lambda x: x.mean(0)}[pool]
    v, t = reduce(tokens), reduce(words)
    return float(v @ t / (v.norm() * t.norm()))


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_definition_and_the_decoder_stays_at_rest(family: str, tiny_checkpoint: Any, tmp_path: Path) -> None:
    file, images = write_rows(tmp_path)
    loaded = load(LoadOptions(str(tiny_checkpoint(family))))
    passes: list[int] = []
    decoder: Any = decoder_of(find_vlm(loaded.model))
    decoder.layers[0].register_forward_pre_hook(lambda *_: passes.append(1))
    assert_written(loaded, file, images, tmp_path / "A.jsonl")
    assert not passes


def assert_written(loaded: Any, file: Path, images: Path, answers: Path) -> None:
    from transformers_agci.experiments.positives import read_positives
    from transformers_agci.inference.runner import RunOptions

    data = read_positives(file, images)
    run = SimilarityRun(loaded, data.rows[:10], images, batch_size=4)
    summary = run.write(answers, data, {}, RunOptions(progress=False))
    assert (summary.counts.rows, summary.counts.pictures, summary.exit_code) == (10, 10, 0)
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert [{**row, "similarity": 0} for row in rows] == [{**row.fields, "similarity": 0} for row in data.rows[:10]]
    with torch.no_grad():
        for row in rows[::4]:
            expected = similarity(
                loaded.model, loaded.processor, Image.open(images / row["image"]).convert("RGB"), row["caption"], "max"
            )
            assert row["similarity"] == pytest.approx(expected, abs=1e-4)


def similarity_command(tiny_checkpoint: Any, file: Path, images: Path, *more: str) -> list[str]:
    data = ["--eval_file", str(file), "--img_path", str(images)]
    return ["similarity", "--model_path", str(tiny_checkpoint("llava")), *data, *more]


def test_command_resumes_and_offers_mean_pooling_and_lambda(tiny_checkpoint: Any, tmp_path: Path) -> None:
    file, images = write_rows(tmp_path)
    answers = tmp_path / "A.jsonl"
    command = similarity_command(
        tiny_checkpoint, file, images, "--answers_file", str(answers), "--batch_size", "2", "--quiet"
    )
    assert main(command) == 0
    whole = answers.read_bytes()
    answers.write_bytes(b"".join(whole.splitlines(keepends=True)[:11])[:-3])  # a torn row in the second block
    assert main(command) == 0
    assert answers.read_bytes() == whole
    assert main([*command, "--pooling", "mean"]) == 2  # another setting on the same file
    values = [np.array([json.loads(line)["similarity"] for line in answers.read_text().splitlines()])]
    for option in (["--pooling", "mean"], ["--global_context_lambda", "0.5"]):
        assert main([*command, *option, "--overwrite"]) == 0
        values.append(np.array([json.loads(line)["similarity"] for line in answers.read_text().splitlines()]))
        assert not np.allclose(values[0], values[-1], atol=1e-4)


def test_caption_is_tokenized_as_the_processor_does(tiny_checkpoint: Any) -> None:
    for family in FAMILIES:
        loaded = load(LoadOptions(str(tiny_checkpoint(family))))
        ids = loaded.processor(text=["a red dog"], return_tensors="pt")["input_ids"][0]
        expected = loaded.model.get_input_embeddings()(ids)
        assert torch.equal(caption_embeddings(loaded, "a red dog"), expected), family


def result_file(path: Path, table: Any) -> Path:
    rows = [
        {
            "id": 9 * i + k,
            "image": f"x{i}_{k}.jpg",
            "caption": "c",
            "position": POSITIONS[k],
            "answer": "Yes",
            "similarity": float(value),
        }
        for i, row in enumerate(table)
        for k, value in enumerate(row)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_metrics_of_a_known_table(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(0.3, 0.1, (40, 1)) + np.random.default_rng(1).normal(0, 0.01, (40, 9))
    table[:, 4] += 0.05  # the centre is understood better
    file = result_file(tmp_path / "A.jsonl", table)
    report = similarity_report.measure(similarity_report.read_similarities(file), draws=200)
    assert [cell.estimate for cell in report.cells] == pytest.approx(table.mean(0).tolist())
    centred = (table - table.mean(1, keepdims=True)).mean(0)
    assert [cell.estimate for cell in report.effects] == pytest.approx(centred.tolist())
    assert report.effects[4].excludes(0) and report.spread.sd.p < 0.01
    wide, narrow = report.cells[4], report.effects[4]
    assert narrow.high - narrow.low < (wide.high - wide.low) / 3
    command = [
        "metrics-similarity",
        "--result_file",
        str(file),
        "--output_file",
        str(tmp_path / "map.png"),
        "--json",
        str(tmp_path / "m.json"),
        "--draws",
        "50",
    ]
    assert main(command) == 0
    assert Image.open(tmp_path / "map.png").size[0] > 1000
    assert json.loads((tmp_path / "m.json").read_text())["positions"]["center"]["similarity"]["n"] == 40


def test_a_row_twice_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    file = result_file(tmp_path / "A.jsonl", [[0.5] * 9])
    file.write_text(file.read_text() + file.read_text().splitlines()[3] + "\n")
    with pytest.raises(InputError, match=r"A\.jsonl:10: the item x0 has two rows for left"):
        similarity_report.read_similarities(file)
    file = result_file(tmp_path / "B.jsonl", [[0.5, 2.0, *[0.5] * 7]])
    with pytest.raises(InputError, match=r'B\.jsonl:2: "similarity" must be a cosine'):
        similarity_report.read_similarities(file)
    file = result_file(tmp_path / "C.jsonl", [[0.5] * 9])
    of_16 = [{**json.loads(line), "grid": "4x4", "row": 3, "col": 3} for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in of_16))
    with pytest.raises(InputError, match=r"C\.jsonl:1: this experiment takes composites of 3x3 sub-images only"):
        similarity_report.read_similarities(file)


def test_bad_rows_are_named_and_the_others_go_on(
    tiny_checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, images = write_rows(tmp_path, items=1)
    (images / "0_3.png").write_bytes(b"no image")
    command = similarity_command(tiny_checkpoint, file, images, "--answer_file", str(tmp_path / "A.jsonl"))
    assert main(command) == 1
    assert "rows.json:4: the image" in capsys.readouterr().out
    assert len((tmp_path / "A.jsonl").read_text().splitlines()) == 8
    assert main([*command, "--family", "gemma3n"]) == 2
    assert "is a LLaVA-v1.5 checkpoint" in capsys.readouterr().err


def test_a_similarity_that_is_no_number_is_a_bad_row(tiny_checkpoint: Any, tmp_path: Path) -> None:
    """As float16 gives it where the vision side overflows."""
    loaded = load(LoadOptions(str(tiny_checkpoint("llava"))))
    file, images = write_rows(tmp_path, items=1)
    projector = loaded.model.model.multi_modal_projector

    def spoil(_: Any, args: Any, output: Any) -> None:
        output[3] = float("nan")

    hook = projector.register_forward_hook(spoil)
    positives = read_positives(file, images)
    run = SimilarityRun(loaded, positives.rows, images)
    summary = run.write(tmp_path / "A.jsonl", positives, {}, RunOptions(progress=False))
    hook.remove()
    assert [row.where for row in summary.counts.failed] == ["rows.json:4"]
    assert "its similarity is not a number" in summary.counts.failed[0].error
    text = (tmp_path / "A.jsonl").read_text()
    assert len(text.splitlines()) == 8
    assert "NaN" not in text


def test_shards_make_the_same_file(tiny_checkpoint: Any, tmp_path: Path) -> None:
    file, images = write_rows(tmp_path, items=2)
    command = similarity_command(tiny_checkpoint, file, images, "--batch_size", "1", "--quiet")
    assert main([*command, "--answer_file", str(tmp_path / "whole.jsonl")]) == 0
    for shard in ("1/2", "0/2"):
        assert main([*command, "--answer_file", str(tmp_path / "A.jsonl"), "--shard", shard]) == 0
    assert main(["merge-shards", str(tmp_path / "A.jsonl")]) == 0
    assert (tmp_path / "A.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_an_id_used_twice_is_refused(tiny_checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, images = write_rows(tmp_path, items=1, id=7)
    for command in ("similarity", "flow", "occlusion"):
        assert (
            main(
                [
                    command,
                    "--model_path",
                    str(tiny_checkpoint("llava")),
                    "--eval_file",
                    str(file),
                    "--img_path",
                    str(images),
                ]
            )
            == 2
        )
        assert "rows.json:2: the id 7 is used twice, first at rows.json:1" in capsys.readouterr().err
