"""`agci probe` and the per-model commands: rows in, rows out, on tiny checkpoints of all six families."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.experiments.position.questions import PROMPT
from transformers_agci.experiments.position.results import read_results
from transformers_agci.families import paper_families
from transformers_agci.method.lam import LAMBDA_KEY

SCRIPTS = Path(__file__).parent.parent / "scripts"
ITEMS = 2


def probe_rows(answer: str = "Yes", items: int = ITEMS) -> list[dict[str, Any]]:
    return [
        {
            "id": 9 * item + k,
            "image": f"{item:03d}_{k}.jpg",
            "caption": f"{answer} image {item}",
            "position": position,
            "answer": answer,
            "extra": {"kept": item},
        }
        for item in range(items)
        for k, position in enumerate(POSITIONS)
    ]


def write_rows(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read(path: Path | str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two items of tiny composites: folder with x.json, x_negatives.json and images/."""
    images = tmp_path / "images"
    images.mkdir()
    for item in range(ITEMS):
        for k in range(9):
            picture = Image.new("RGB", (56, 56), "white")
            left, top = 18 * (k % 3), 18 * (k // 3)
            picture.paste((40 * item + 20, 25 * k, 90), (left, top, left + 18, top + 18))
            picture.save(images / f"{item:03d}_{k}.jpg")
    write_rows(tmp_path / "x.json", probe_rows())
    write_rows(tmp_path / "x_negatives.json", probe_rows("No"))
    return tmp_path


@pytest.fixture
def probe(data: Path, tiny_checkpoint: Callable[[str], Path]) -> Callable[..., Any]:
    """Run `agci probe` on the data; words may replace the defaults."""

    def run(*words: Any, family: str = "qwen2_5_vl", **changes: Any) -> int:
        options = {
            "model_path": tiny_checkpoint(family),
            "eval_file": data / "x.json",
            "img_path": data / "images",
            "answer_file": data / "A.jsonl",
        } | changes
        flat = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
        return main(["probe", *flat, "--device", "cpu", "--quiet", *map(str, words)])

    return run


# --- what is written -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", paper_families())
def test_rows_out_are_rows_in_with_the_answer(probe: Callable[..., Any], data: Path, family: str) -> None:
    assert probe("--global_context_lambda", "0", "0.5", family=family) == 0
    baseline, agci = read(data / "A.lam0.jsonl"), read(data / "A.lam0.5.jsonl")
    for given, row in zip(probe_rows(), baseline, strict=True):
        assert {name: row[name] for name in given} == given
        assert list(row)[len(given) :] == ["prediction", "qs", "yes_logit", "no_logit", "margin"]
        assert row["qs"] == PROMPT.format(caption=given["caption"])
        assert row["margin"] == pytest.approx(row["yes_logit"] - row["no_logit"], abs=2e-6)
    assert [row["yes_logit"] for row in baseline] != [row["yes_logit"] for row in agci], "lambda must do something"
    for lam, name in ((0.0, "A.lam0"), (0.5, "A.lam0.5")):
        settings = json.loads((data / f"{name}.manifest.json").read_text())["settings"]
        assert settings["lambda"] == lam and settings["prompt"] == PROMPT and len(settings["data_sha256"]) == 64


def test_lambda_zero_is_the_stock_model(probe: Callable[..., Any], data: Path) -> None:
    probe("--global_context_lambda", "0")
    at_zero = read(data / "A.jsonl")
    probe("--global_context_lambda", "0", "--method", "uniform", answer_file=data / "B.jsonl")
    assert read(data / "B.uniform.jsonl") == at_zero


def test_one_lambda_writes_the_file_that_was_named(probe: Callable[..., Any], data: Path) -> None:
    assert probe("--global_context_lambda", "0.5") == 0
    assert len(read(data / "A.jsonl")) == 9 * ITEMS and not list(data.glob("A.lam*"))


def test_negatives_stand_with_their_item(probe: Callable[..., Any], data: Path) -> None:
    assert probe(negatives_file=data / "x_negatives.json") == 0
    assert [(row["image"][:3], row["answer"]) for row in read(data / "A.jsonl")] == [
        (f"{item:03d}", answer) for item in range(ITEMS) for answer in ("Yes", "No") for _ in range(9)
    ]
    result = read_results(data / "A.jsonl")
    assert result.label == "baseline (lambda 0)" and result.yes.rows == result.no.rows == 9 * ITEMS


def test_items_and_limit(probe: Callable[..., Any], data: Path) -> None:
    probe("--items", "1")
    assert len(read(data / "A.jsonl")) == 9
    probe("--limit", "12", answer_file=data / "B.jsonl")
    assert read(data / "B.jsonl")[-1]["image"] == "001_2.jpg" and len(read(data / "B.jsonl")) == 12


@pytest.mark.parametrize("model, answers", [("--model", "--answers_file"), ("--model_path", "--answer_file")])
def test_both_spellings(data: Path, tiny_checkpoint: Callable[[str], Path], model: str, answers: str) -> None:
    words = ["--eval_file", data / "x.json", "--img_path", data / "images", "--limit", 2, "--quiet"]
    assert main(list(map(str, ["probe", model, tiny_checkpoint("llava"), answers, data / "S.jsonl", *words]))) == 0
    assert len(read(data / "S.jsonl")) == 2


def test_dry_run_writes_nothing(probe: Callable[..., Any], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(data.rglob("*"))
    assert probe("--dry_run", "--global_context_lambda", "0", "0.5", "--text_only") == 0
    out = capsys.readouterr().out
    for words in ("Determine if there is a sub-image", "image tokens", "18 rows", "A.lam0.5.jsonl", "A.text_only"):
        assert words in out, words
    assert sorted(data.rglob("*")) == before
    assert probe("--dry_run", eval_file=None, img_path=None, items=1) == 0, "the atlas's composites are drawn elsewhere"
    assert "18 rows, 1 item from the embedded atlas" in capsys.readouterr().out
    assert sorted(data.rglob("*")) == before


# --- which lambda --------------------------------------------------------------------------------------------------


def with_key(checkpoint: Path, folder: Path, value: object) -> Path:
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {LAMBDA_KEY: value}))
    return folder


def first_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[0]


def test_first_line_says_which_lambda_and_whence(
    probe: Callable[..., Any], data: Path, tiny_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    keyed = with_key(tiny_checkpoint("qwen2_5_vl"), data / "keyed", 0.7)
    capsys.readouterr()
    probe("--global_context_lambda", "0.25", "0", model_path=keyed, answer_file=data / "a.jsonl")
    assert first_line(capsys).startswith("lambda 0.25, 0 (from the command line); Qwen2.5-VL")
    probe(model_path=keyed, answer_file=data / "b.jsonl")
    assert first_line(capsys).startswith(f"lambda 0.7 (from {LAMBDA_KEY} in the model's config.json)")
    probe(answer_file=data / "c.jsonl")
    assert first_line(capsys).startswith("lambda 0 (from the default")
    probe("--global_context_lambda", "0.7", answer_file=data / "d.jsonl")
    assert read(data / "b.jsonl") == read(data / "d.jsonl"), "the key and the flag are the same lambda"


# --- without the image -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_yes_rates_without_the_image(probe: Callable[..., Any], data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        probe(
            "--text_only",
            "--blank_image",
            "--global_context_lambda",
            "0",
            "0.5",
            negatives_file=data / "x_negatives.json",
        )
        == 0
    )
    out = capsys.readouterr().out
    assert "says Yes without the image" in out
    for name in ("text only", "blank image, baseline (lambda 0)", "blank image, AGCI (lambda 0.5)"):
        assert name in out
    for name in ("text_only", "blank_image.lam0", "blank_image.lam0.5"):
        rows = read(data / f"A.{name}.jsonl")
        assert [(row["image"], row["answer"]) for row in rows] == [
            (f"{item:03d}_0.jpg", answer) for item in range(ITEMS) for answer in ("Yes", "No")
        ]
    assert json.loads((data / "A.text_only.manifest.json").read_text())["settings"]["picture"] == "text_only"
    # The same answer whatever the image: only the caption differs between these rows.
    assert len({row["margin"] for row in read(data / "A.text_only.jsonl")}) == 2 * ITEMS
    hint = out.strip().splitlines()[-1]
    words = hint.removeprefix("numbers and map: agci ").replace("map.png", str(data / "map.png")).split()
    assert main([*words, "--draws", "20"]) == 0
    assert (data / "map.png").exists() and "text only" in capsys.readouterr().out


def test_three_lambdas_are_told_their_next_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers_agci.api import probe

    results = tuple(tmp_path / f"A.lam{lam}.jsonl" for lam in ("0", "0.25", "0.5"))
    monkeypatch.setattr(probe, "run_probe", lambda *_: probe.ProbeRun(0, (), results))
    assert main(["probe", "--global_context_lambda", "0", "0.25", "0.5"]) == 0
    names = " ".join(map(str, results))
    assert capsys.readouterr().out.splitlines() == [
        "",
        f"numbers and map: agci metrics --results_file {names} --output_heatmap map.png",
        f"curve over lambda: agci evidence {names} --output_curve curve.png",
    ]


# --- the embedded data and model -----------------------------------------------------------------------------------


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("qwen2_5_vl")
    monkeypatch.setattr("transformers_agci.embedded.location.embedded_model_path", lambda: folder)


def test_without_model_and_file_the_embedded_ones_serve(
    embedded: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["probe", "--items", "1", "--device", "cpu", "--quiet"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "lambda 0, 0.5 (from the default of the embedded model)" in said and "the embedded atlas" in said
    for lam in ("0", "0.5"):
        rows = read(f"position_probe.lam{lam}.jsonl")
        assert [row["answer"] for row in rows] == ["Yes"] * 9 + ["No"] * 9
    pictures = {path: path.stat().st_mtime_ns for path in Path("position_probe.probe_set").rglob("*.jpg")}
    assert len(pictures) == 9
    assert main(words) == 0, "the same command goes on"
    assert "36 already done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures
    assert main(["probe", "--items", "1", "--seed", "1", "--device", "cpu", "--quiet"]) == 2
    assert "data_sha256" in capsys.readouterr().err


def test_embedded_model_is_of_one_family(embedded: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--family", "gemma3n"]) == 2
    assert "--model_path is needed: without it the embedded model answers" in capsys.readouterr().err


# --- bad input -----------------------------------------------------------------------------------------------------


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
    probe: Callable[..., Any],
    data: Path,
    tiny_checkpoint: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    make, sentence = MISTAKES[kind]
    changes = make(data, tiny_checkpoint("qwen2_5_vl"))
    code = probe("--family", changes["family"]) if "family" in changes else probe(**changes)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("agci: ")]
    assert code == 2 and len(errors) == 1 and sentence in errors[0]
    assert errors[0].endswith(".")
    assert not (data / "A.jsonl").exists()


def test_interrupted_rows_are_kept_and_the_same_command_goes_on(
    probe: Callable[..., Any], data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers_agci.storage.result_file import ResultFile

    probe("--batch_size", "1", answer_file=data / "whole.jsonl")
    original, written = ResultFile.write, []

    def write_once(self: Any, *arguments: Any, **others: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(original(self, *arguments, **others))

    monkeypatch.setattr(ResultFile, "write", write_once)
    capsys.readouterr()
    assert probe("--batch_size", "1") == 130
    assert "interrupted; what was finished is kept" in capsys.readouterr().err
    kept = read(data / "A.jsonl")
    assert 0 < len(kept) < 18
    monkeypatch.undo()
    assert probe("--batch_size", "1") == 0
    assert (data / "A.jsonl").read_bytes() == (data / "whole.jsonl").read_bytes()


# --- the per-model commands ----------------------------------------------------------------------------------------

TEMPLATE = '''"""The position probe on a {name} checkpoint: `python eval_laion_bias_data.py --help`."""

import sys

from transformers_agci.cli import program

if __name__ == "__main__":
    program(["probe", "--family", "{name}", *sys.argv[1:]])
'''


def test_every_family_has_its_script_and_they_are_alike() -> None:
    scripts = {path.parent.name: path.read_text() for path in SCRIPTS.glob("*/eval_laion_bias_data.py")}
    assert scripts == {family.name: TEMPLATE.format(name=family.name) for family in paper_families().values()}


@pytest.mark.slow
@pytest.mark.parametrize("family", paper_families())
def test_scripts_run_from_any_folder(data: Path, tiny_checkpoint: Callable[[str], Path], family: str) -> None:
    script = SCRIPTS / paper_families()[family].name / "eval_laion_bias_data.py"
    other = "llava" if family != "llava" else "llava_next"
    elsewhere = data / "elsewhere"
    elsewhere.mkdir()
    for checkpoint, code in ((family, 0), (other, 2)):
        words = [
            "--model_path",
            tiny_checkpoint(checkpoint),
            "--eval_file",
            "../x.json",
            "--img_path",
            "../images",
            "--answers_file",
            f"{checkpoint}.json",
            "--global_context_lambda",
            "0.5",
            "--device",
            "cpu",
        ]
        done = subprocess.run(
            [sys.executable, script, *words], cwd=elsewhere, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == code, done.stderr
    assert len(read(elsewhere / f"{family}.json")) == 18
    assert f"but this command is for {paper_families()[family].name}" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_in_a_process_of_its_own(data: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    """A real signal after the first finished block; then the same command, and the bytes of an undisturbed run.

    The process is stopped in between, so that it surely has work left when the signal is sent.
    """
    import os
    import signal
    import time

    command = [
        sys.executable,
        "-m",
        "transformers_agci.cli",
        "probe",
        "--model_path",
        tiny_checkpoint("llava_next"),
        "--eval_file",
        data / "x.json",
        "--img_path",
        data / "images",
        "--batch_size",
        "1",
        "--device",
        "cpu",
    ]

    def start(name: str) -> Any:
        return subprocess.Popen(
            [*map(str, command), "--answer_file", str(data / name)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def interrupted() -> tuple[int, str]:
        process = start("cut.jsonl")
        deadline = time.monotonic() + 120
        while not ((data / "cut.jsonl").exists() and (data / "cut.jsonl").stat().st_size):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGSTOP)
        assert 0 < len(read(data / "cut.jsonl")) < 18
        os.kill(process.pid, signal.SIGINT)
        os.kill(process.pid, signal.SIGCONT)
        error = process.communicate(timeout=120)[1]
        return process.returncode, error

    returned, error = interrupted()
    if (
        returned == 0 and "Exception ignored" in error
    ):  # Python drops an interrupt that lands in a finalizer, and says so
        for path in data.glob("cut*"):
            path.unlink()
        returned, error = interrupted()
    assert returned == 130, error
    assert "what was finished is kept" in error
    assert len(read(data / "cut.jsonl")) == 9
    for name in ("cut.jsonl", "whole.jsonl"):
        assert start(name).wait(timeout=300) == 0
    assert (data / "cut.jsonl").read_bytes() == (data / "whole.jsonl").read_bytes()


@pytest.mark.slow
def test_processes_of_torchrun_write_the_same_bytes(data: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    """The probe and a control, one process after the other's work on the same file."""
    script = SCRIPTS / "LLaVA-v1.5" / "eval_laion_bias_data.py"
    words = [
        "--model_path",
        tiny_checkpoint("llava"),
        "--eval_file",
        data / "x.json",
        "--img_path",
        data / "images",
        "--device",
        "cpu",
        "--global_context_lambda",
        "0",
        "0.5",
        "--text_only",
        "--batch_size",
        "1",
    ]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    for launcher, name in (([sys.executable], "one.jsonl"), (torchrun, "two.jsonl")):
        command = [*launcher, script, *words, "--answer_file", data / name]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("numbers and map: agci metrics") == 1
    for ending in ("lam0", "lam0.5", "text_only"):
        assert (data / f"one.{ending}.jsonl").read_bytes() == (data / f"two.{ending}.jsonl").read_bytes()


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
