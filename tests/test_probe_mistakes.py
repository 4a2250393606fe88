"""`agci probe` on bad rows, odd images and mistakes: each is named, and the rest is answered."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import probe_run
import pytest
from PIL import Image
from probe_run import probe_rows, read, with_key, write_rows
from tiny_checkpoints import Checkpoints

from transformers_agci.cli import main
from transformers_agci.method.lam import LAMBDA_KEY

data = probe_run.data  # fixture
probe = probe_run.probe  # fixture


def remove_image(data: Path) -> None:
    (data / "images" / "000_4.jpg").unlink()


def break_image(data: Path) -> None:
    (data / "images" / "000_4.jpg").write_bytes((data / "images" / "000_4.jpg").read_bytes()[:100])


def change_row(**fields: Any) -> Any:
    def change(data: Path) -> None:
        rows = probe_rows()
        rows[4] = {name: value for name, value in (rows[4] | fields).items() if value is not None}
        write_rows(data / "x.json", rows)

    return change


def malformed_line(data: Path) -> None:
    rows = probe_rows()
    write_rows(data / "x.json", [*rows[:4], '{"id": 4, "image"', *rows[5:]])


BAD_ROWS = {
    "missing image": (remove_image, "x.json:5: the image {images}/000_4.jpg does not exist."),
    "broken image": (break_image, "x.json:5: the image {images}/000_4.jpg is "),
    "malformed line": (malformed_line, "x.json:5: this line is not valid JSON"),
    "unknown position": (change_row(position="middle"), "x.json:5: \"position\" is 'middle', but must be one of: "),
    "missing field": (change_row(caption=None), 'x.json:5: the field "caption" is missing; the row has: answer,'),
    "path outside": (change_row(image="../x.json"), "x.json:5: the path '../x.json' must be relative and without '..'"),
    "wrong type": (change_row(id="four"), "x.json:5: \"id\" must be a whole number, but is 'four'."),
    "unknown answer": (change_row(answer="maybe"), "x.json:5: \"answer\" is 'maybe', but must be one of: Yes, No."),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_and_the_rest_is_answered(
    probe: Callable[..., Any], data: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil, sentence = BAD_ROWS[kind]
    spoil(data)
    assert probe() == 1
    said = capsys.readouterr()
    assert sentence.format(images=data / "images") in said.out + said.err
    assert "1 row was skipped" in said.out
    assert [row["id"] for row in read(data / "A.jsonl")] == [n for n in range(18) if n != 4]


def put(name: str, make: Any) -> Any:
    def change(data: Path) -> None:
        path = data / "images" / name
        path.unlink()
        make(path)

    return change


def image_of(mode: str, size: tuple[int, int] = (40, 40), value: object = 0, kind: str = "PNG") -> Any:
    return lambda path: Image.new(mode, size, value).save(path, kind)


ODD_IMAGES = {
    "FIFO": (put("000_4.jpg", os.mkfifo), "cannot be read (this is a FIFO, not a file)"),
    "circle": (put("000_4.jpg", lambda path: path.symlink_to(path.name)), "cannot be "),
    "floats": (put("000_4.jpg", image_of("F", kind="TIFF")), "has floating-point numbers for pixels"),
    "thin": (put("000_4.jpg", image_of("RGB", (20_000, 1))), "x.json:5: the processor refuses this image or text"),
    "point": (put("000_4.jpg", image_of("RGB", (1, 1))), None),
    "16 bits": (put("000_4.jpg", image_of("I;16")), "Not shown as stored: 1 image: 16 bits per pixel scaled to 8."),
    "transparent": (
        put("000_4.jpg", image_of("RGBA", value=(0, 0, 0, 9))),
        "Not shown as stored: 1 image: transparent parts laid on white.",
    ),
}


@pytest.mark.parametrize("kind", ODD_IMAGES)
def test_an_odd_image_is_shown_counted_or_named(
    probe: Callable[..., Any], data: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil, sentence = ODD_IMAGES[kind]
    spoil(data)
    code = probe()
    said = capsys.readouterr()
    assert len(read(data / "A.jsonl")) == (18 if code == 0 else 17)
    assert code == (0 if sentence is None or "stored" in sentence else 1)
    if sentence:
        assert sentence in said.out + said.err
    if sentence and "stored" in sentence:
        manifest = json.loads((data / "A.manifest.json").read_text())
        assert manifest["runs"][0]["image_changes"] == {sentence.removesuffix(".").split(": ")[2]: 1}


@pytest.mark.parametrize("kind", ["missing image", "malformed line"])
def test_strict_stops_at_a_bad_row(
    probe: Callable[..., Any], data: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    spoil, sentence = BAD_ROWS[kind]
    spoil(data)
    assert probe("--strict") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("agci: ") and sentence.format(images=data / "images") in error


def no_weights(data: Path, checkpoint: Path) -> dict[str, Path]:
    shutil.copytree(checkpoint, data / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return {"model_path": data / "model"}


def unsupported(data: Path, checkpoint: Path) -> dict[str, Path]:
    shutil.copytree(checkpoint, data / "model")
    config = json.loads((data / "model" / "config.json").read_text())
    (data / "model" / "config.json").write_text(json.dumps(config | {"model_type": "unheard_of"}))
    return {"model_path": data / "model"}


def empty_file(data: Path, checkpoint: Path) -> dict[str, Any]:
    (data / "x.json").write_text("\n")
    return {}


def under_a_file(data: Path, checkpoint: Path) -> dict[str, Path]:
    (data / "file").write_text("")
    return {"answer_file": data / "file" / "A.jsonl"}


def bad_key(data: Path, checkpoint: Path) -> dict[str, Path]:
    return {"model_path": with_key(checkpoint, data / "model", "half")}


MISTAKES = {
    "no weights": (no_weights, "holds no weights: model.safetensors or model.safetensors.index.json is expected."),
    "unsupported": (unsupported, "model_type 'unheard_of', which AGCI does not support. Supported: Qwen2.5-VL (qwen2"),
    "no model": (lambda *_: {"model_path": "/nowhere/model"}, "There is no model folder /nowhere/model; give a folder"),
    "lambda -1": (
        lambda *_: {"global_context_lambda": "-1"},
        "finite number >= 0 (0 is the unmodified model), but --global_context_lambda is -1.0.",
    ),
    "lambda nan": (lambda *_: {"global_context_lambda": "nan"}, "but --global_context_lambda is nan."),
    "lambda abc": (lambda *_: {"global_context_lambda": "abc"}, "but --global_context_lambda is 'abc'."),
    "lambda in config": (bad_key, f"{LAMBDA_KEY} of"),
    "empty file": (empty_file, "x.json: the file holds no rows."),
    "no file": (lambda *_: {"eval_file": "nowhere.json"}, "nowhere.json: there is no such file."),
    "no folder": (lambda *_: {"img_path": "nowhere"}, "--img_path: there is no folder nowhere;"),
    "img_path left out": (lambda *_: {"img_path": None}, "--img_path is needed with --eval_file"),
    "eval_file left out": (lambda *_: {"eval_file": None}, "--img_path and --negatives_file belong to --eval_file"),
    "unwritable": (under_a_file, "A.jsonl"),
    "output is a folder": (lambda data, _: {"answer_file": data}, "is a folder; name a file for the answers."),
    "other family": (
        lambda *_: {"family": "gemma3n"},
        "is a Qwen2.5-VL checkpoint (model_type 'qwen2_5_vl'), but this command is for Gemma3n",
    ),
    "other family's name": (
        lambda *_: {"family": "LLaVA-v1.6"},
        "is a Qwen2.5-VL checkpoint (model_type 'qwen2_5_vl'), but this command is for LLaVA-v1.6 ('llava_next')",
    ),
    "no items": (lambda *_: {"items": "0"}, "--items must be at least 1, but is 0."),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_sentence(
    probe: Callable[..., Any], data: Path, tiny_checkpoint: Checkpoints, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    make, sentence = MISTAKES[kind]
    changes = make(data, tiny_checkpoint("qwen2_5_vl"))
    code = probe("--family", changes["family"]) if "family" in changes else probe(**changes)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("agci: ")]
    assert code == 2 and len(errors) == 1 and sentence in errors[0]
    assert errors[0].endswith(".")
    assert not (data / "A.jsonl").exists()


def test_another_folder_of_images_is_named_and_how_to_go_on_with_the_right_one(
    probe: Callable[..., Any], data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "others").mkdir()
    assert probe(img_path=data / "others") == 2
    said = capsys.readouterr()
    assert "The same command does not ask them again; once they are mended, give --overwrite." in said.out
    last = said.err.splitlines()[-1]
    assert last.startswith("agci: No row was answered, and all 18 stay skipped until --overwrite is given, for inst")
    assert "000_0.jpg does not exist." in last
    assert probe() == 2, "as said"
    assert probe("--overwrite") == 0
    assert len(read(data / "A.jsonl")) == 18


@pytest.mark.parametrize("command", ["probe", "similarity", "occlusion", "flow"])
def test_half_a_surrogate_pair_in_a_caption_is_named(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON can write it, and no tokenizer takes it."""
    from tiny_checkpoints import random_image

    monkeypatch.chdir(tmp_path)
    random_image(0, 56, 56).save("a_4.png")
    row = {"id": 4, "image": "a_4.png", "caption": "a \ud800 dog", "position": "center", "answer": "Yes"}
    Path("rows.json").write_text(json.dumps(row) + "\n")
    output = {"probe": "--answers_file", "similarity": "--answers_file"}.get(command, "--output_dir")
    assert main([command, "--eval_file", "rows.json", "--img_path", ".", output, "out"]) in (1, 2)
    said = capsys.readouterr()
    assert "rows.json:1: the text holds half a surrogate pair" in said.out + said.err


@pytest.mark.parametrize("method", ["a/b", "../x", "/", "a\0b"])
def test_a_method_that_no_file_can_be_named_after(
    method: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["probe", "--items", "1", "--limit", "1", "--answers_file", str(tmp_path / "o"), "--method", method]) == 2
    )
    assert "method" in capsys.readouterr().err


def test_a_repetition_penalty_that_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers_agci.embedded import embedded_model_path

    folder = tmp_path / "model"
    shutil.copytree(embedded_model_path(), folder)
    (folder / "generation_config.json").write_text('{"repetition_penalty": "x"}')
    given = ["--items", "1", "--limit", "1", "--answers_file", str(tmp_path / "o"), "--model", str(folder)]
    assert main(["probe", *given]) == 2
    assert "repetition_penalty must be a number above 0" in capsys.readouterr().err
