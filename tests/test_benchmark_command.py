"""From rows to a score through `agci benchmark`, `agci downstream` and `agci mmmu-pro`.

A model with recorded answers stands in where the score must be known by hand: everything but the forward pass is real.
"""

import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from benchmark_samples import write_json, write_rows
from tiny_checkpoints import FAMILIES, random_image

from transformers_agci.cli import main
from transformers_agci.experiments.benchmarks.asking.mmmu_pro_files import official_name
from transformers_agci.families import paper_families
from transformers_agci.inference.answer import Answer, Answerer

ROOT = Path(__file__).parents[1]


@pytest.fixture
def model(tiny_checkpoint: Callable[[str], Path]) -> str:
    return str(tiny_checkpoint("llava"))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Give the model its answers: the one whose key stands in the prompt, "?" where none does."""

    def record(answers: dict[str, str]) -> None:
        def answer(self: Answerer, inputs: dict[str, Any], stop: Any) -> list[Answer]:
            prompts = self.processor.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
            return [Answer(next((text for key, text in answers.items() if key in prompt), "?")) for prompt in prompts]

        monkeypatch.setattr(Answerer, "answer", answer)

    return record


def save_images(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        random_image(number).save(path)


def encoded() -> dict[str, Any]:
    buffer = io.BytesIO()
    random_image(1).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def scienceqa(root: Path) -> Path:
    write_json(root / "ScienceQA" / "llava_test_CQM-A.json", samples.scienceqa_questions())
    save_images(root / "ScienceQA" / "images", ["11/image.png", "13/image.png"])
    return root / "ScienceQA"


def pope(root: Path) -> Path:
    """A parquet file in lmms-lab's columns: six images, one question each, in every category."""
    rows = [
        {
            "question_id": str(n),
            "question": f"Is there a {thing} in the image?",
            "answer": label,
            "image": encoded(),
            "image_source": f"COCO_{n}",
            "category": category,
        }
        for category, labels in samples.POPE_LABELS.items()
        for n, (thing, label) in enumerate(zip(samples.POPE_OBJECTS, labels, strict=True))
    ]
    (root / "POPE").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), root / "POPE" / "test-00000-of-00001.parquet")
    return root / "POPE"


def textvqa(root: Path) -> Path:
    write_rows(root / "TextVQA" / "llava_textvqa_val_v051_ocr.jsonl", samples.textvqa_questions())
    write_json(root / "TextVQA" / "TextVQA_0.5.1_val.json", samples.textvqa_annotations())
    save_images(root / "TextVQA" / "train_images", [row["image"] for row in samples.textvqa_questions()])
    return root / "TextVQA"


def hallusionbench(root: Path) -> Path:
    rows = samples.hallusionbench_questions()
    write_json(root / "HallusionBench" / "HallusionBench.json", rows)
    save_images(root / "HallusionBench" / "data", [row["filename"] for row in rows if row["filename"]])
    return root / "HallusionBench"


def crpe(root: Path) -> Path:
    rows = samples.crpe_questions()
    write_rows(root / "CRPE" / "crpe_relation.jsonl", rows)
    save_images(root / "CRPE", sorted({row["image"] for row in rows}))
    return root / "CRPE"


def mmmu(root: Path) -> Path:
    rows = [
        {**{k: v for k, v in row.items() if k != "response"}, "image_1": encoded(), "image_2": None}
        for row in samples.mmmu_rows([""] * 5)
    ]
    folder = root / "MMMU_Pro" / "standard (10 options)"
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test-00000-of-00001.parquet")
    return root / "MMMU_Pro"


# name -> where its files come from, the recorded answers, figures computed by hand
EVERY: dict[str, tuple[Callable[[Path], Path], dict[str, str], dict[str, Any]]] = {
    # Gold A, B, C, A; the second is wrong, the third of five forms that are read.
    "scienceqa": (
        scienceqa,
        {"of 11?": "A", "of 12?": "A", "of 13?": "The answer is C.", "of 14?": "A. one"},
        {"accuracy_pct": 75, "correct": 3, "count": 4, "image_accuracy_pct": 100, "image_count": 2},
    ),
    # Gold yes, no, yes, no in each of three categories; one miss: recall 0.5, precision 1.
    "pope": (
        pope,
        {"a dog": "Yes", "a cat": "No.", "a car": "There is not.", "a cup": "no"},
        {"mean_f1": pytest.approx(2 / 3), "count": 12},
    ),
    # 3 of 10 humans, 9 of 10, none.
    "textvqa": (
        textvqa,
        {"colour": "Red", "many": "two", "brand": "Mars"},
        {"accuracy": pytest.approx((0.9 + 1 + 0) / 3), "count": 3},
    ),
    # The paper's population leaves out the row without an image: right, right, right, unclear.
    "hallusionbench": (
        hallusionbench,
        {"VD 0": "Yes", "VD 1": "No, it is not.", "VS 1": "yes", "VS 2": "Maybe"},
        {"aAcc_pct": 75, "qAcc_pct": 50, "fAcc_pct": 75, "unclear": 1, "count": 4},
    ),
    # One rotation of one question wrong: subject 1/2.
    "crpe": (
        crpe,
        {
            f"Question {row['question_id']}.": row["correct_option"] if row["question_id"] != 5 else "B."
            for row in reversed(samples.crpe_questions())
        },
        {"overall": pytest.approx((0.5 + 1 + 1) / 3), "count": 24},
    ),
    # Right, wrong, undecided (1/4), right, right.
    "mmmu_pro": (
        mmmu,
        {"of 0": "Answer: B", "of 1": "A", "of 2": "purple", "of 3": "(B)", "of 4": "B. green"},
        {"accuracy": pytest.approx((1 + 0 + 0.25 + 1 + 1) / 5), "undecided": 1, "decided_correct": 3},
    ),
}


def figures(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", EVERY)
def test_recorded_answers_give_the_score_computed_by_hand(
    name: str,
    tmp_path: Path,
    model: str,
    recorded: Callable[[dict[str, str]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    make, answers, wanted = EVERY[name]
    recorded(answers)
    out = tmp_path / "out" / f"{name}.jsonl"
    arguments = [
        "benchmark",
        name,
        "--model",
        model,
        "--data",
        str(make(tmp_path)),
        "--answer_file",
        str(out),
        "--global_context_lambda",
        "0",
        "0.5",
        "--quiet",
    ]
    assert main(arguments) == 0
    for lam in ("0", "0.5"):
        found = figures(tmp_path / "out" / f"{name}.lam{lam}.score.json")
        assert {key: found[key] for key in wanted} == wanted
        assert found["lambda"] == float(lam)
    assert found["difference"]["interval_95"] is None  # equal answers: no resample differs
    printed = capsys.readouterr().out
    assert "95 % interval" in printed
    assert "second minus first" in printed
    rows = [json.loads(line) for line in (tmp_path / "out" / f"{name}.lam0.jsonl").read_text().splitlines()]
    assert all({"prediction", "qs"} <= set(row) for row in rows)


def test_crpe_keys_do_not_shadow_each_other() -> None:
    """The recorded answers above are found by text: "Question 1" must not be found in "Question 10"."""
    answers = EVERY["crpe"][1]
    prompts = {row["question_id"]: row["text"] for row in samples.crpe_questions()}
    assert all(sum(key in prompt for key in answers) == 1 for prompt in prompts.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_a_benchmark(family: str, tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    out = tmp_path / "a.jsonl"
    assert (
        main(
            [
                "benchmark",
                "hallusionbench",
                "--model",
                str(tiny_checkpoint(family)),
                "--data",
                str(hallusionbench(tmp_path)),
                "--protocol",
                "official",
                "--max_new_tokens",
                "3",
                "--answer_file",
                str(out),
                "--global_context_lambda",
                "0.5",
                "--quiet",
                "--resamples",
                "50",
            ]
        )
        == 0
    )
    assert len(out.read_text().splitlines()) == 5  # one of them without an image
    assert figures(tmp_path / "a.score.json")["count"] == 5


def test_vision_runs_once_for_all_questions_on_an_image_and_all_lambdas(
    tmp_path: Path, tiny_checkpoint: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(
            [
                "benchmark",
                "crpe",
                "--model",
                str(tiny_checkpoint("llava")),
                "--data",
                str(crpe(tmp_path)),
                "--quiet",
                "--max_new_tokens",
                "1",
                "--answer_file",
                str(tmp_path / "a"),
                "--global_context_lambda",
                "0",
                "0.5",
                "1",
            ]
        )
        == 0
    )
    assert "72 answers" in (printed := capsys.readouterr().out)
    assert "vision ran on 6 images" in printed


def test_bad_rows_are_named_and_the_rest_is_scored(
    tmp_path: Path, model: str, recorded: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded({})
    folder = hallusionbench(tmp_path)
    rows = samples.hallusionbench_questions()
    rows[0]["filename"] = "../outside.png"
    rows[1]["filename"] = "./VD/missing.png"
    write_json(folder / "HallusionBench.json", rows)
    assert (
        main(
            [
                "benchmark",
                "hallusionbench",
                "--model",
                model,
                "--data",
                str(folder),
                "--quiet",
                "--answer_file",
                str(tmp_path / "a.jsonl"),
            ]
        )
        == 1
    )
    printed = capsys.readouterr()
    assert "HallusionBench.json:1: the path '../outside.png' must be relative and without '..'" in printed.out
    assert "does not exist" in printed.out
    assert "HallusionBench: 2 questions" in printed.out


def test_a_link_that_leaves_the_root(
    tmp_path: Path, model: str, recorded: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded({})
    folder = hallusionbench(tmp_path)
    save_images(tmp_path / "elsewhere", ["x.png"])
    inside = folder / "data" / "VD" / "illusion" / "0_0.png"
    inside.unlink()
    inside.symlink_to(tmp_path / "elsewhere" / "x.png")
    assert (
        main(
            [
                "benchmark",
                "hallusionbench",
                "--model",
                model,
                "--data",
                str(folder),
                "--quiet",
                "--strict",
                "--answer_file",
                str(tmp_path / "a.jsonl"),
            ]
        )
        == 2
    )
    assert "is a link that leads out of" in capsys.readouterr().err


def test_truncated_parquet(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pope(tmp_path)
    file = next(folder.glob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-100])
    assert main(["benchmark", "pope", "--model", model, "--data", str(folder)]) == 2
    assert "parquet file cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["pope"], "needs --data"),
        (["pope", "--data", "none"], "there is no such file or folder"),
        (["pope", "--data", ".", "--mode", "cot"], "no mode 'cot'"),
        (["textqa", "--data", "."], "Did you mean: textvqa?"),
        (["mmmu_pro", "--data", ".", "--setting", "ten"], "no setting 'ten'; available: 'standard (10 options)'"),
        (["crpe", "--hub_id", "OpenGVLab/CRPE"], "plain files on the hub"),
    ],
)
def test_mistakes(
    tmp_path: Path,
    model: str,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    wanted: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["benchmark", *arguments, "--model", model]) == 2
    assert wanted in capsys.readouterr().err


def test_dry_run_shows_the_prompt(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.jsonl"
    arguments = ["--model", model, "--data", str(crpe(tmp_path)), "--answer_file", str(out), "--dry_run"]
    assert main(["benchmark", "crpe", *arguments]) == 0
    assert "Question 0." in capsys.readouterr().out
    assert not out.exists()


def test_a_limit_asks_the_first_rows(
    tmp_path: Path,
    model: str,
    recorded: Callable[[dict[str, str]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    recorded(EVERY["textvqa"][1])
    out = tmp_path / "a.jsonl"
    arguments = [
        "--model",
        model,
        "--data",
        str(textvqa(tmp_path)),
        "--answer_file",
        str(out),
        "--limit",
        "2",
        "--quiet",
    ]
    assert main(["benchmark", "textvqa", *arguments]) == 0
    assert figures(tmp_path / "a.score.json")["count"] == 2
    assert "not all questions were asked" in capsys.readouterr().out


def test_llavas_pope_questions_are_scored_with_the_label_files(
    tmp_path: Path, model: str, recorded: Callable[[dict[str, str]], None]
) -> None:
    recorded({"a dog": "Yes", "a cat": "No", "a car": "Yes", "a cup": "No"})
    questions = write_rows(tmp_path / "llava_pope_test.jsonl", samples.pope_questions())
    save_images(tmp_path, ["COCO_0.jpg", "COCO_1.jpg"])
    labels = samples.pope_label_files(tmp_path / "coco")
    out = tmp_path / "a.jsonl"
    arguments = [
        "--model",
        model,
        "--data",
        str(questions),
        "--annotations",
        str(labels),
        "--answer_file",
        str(out),
    ]
    assert main(["benchmark", "pope", *arguments, "--quiet"]) == 0
    assert figures(tmp_path / "a.score.json")["mean_f1"] == 1


def test_a_data_set_through_the_datasets_library(tmp_path: Path) -> None:
    """A local folder of parquet files is read as a hub id would be."""
    pytest.importorskip("datasets", exc_type=ImportError)  # some releases do not fit every huggingface_hub
    from transformers_agci.experiments.benchmarks import benchmark
    from transformers_agci.experiments.benchmarks.asking.source import Source, question_set

    made = question_set(Source(benchmark("pope"), None, str(pope(tmp_path))))
    assert len(made) == 12
    assert made.questions[0].images[0].open().size == random_image(1).size
    assert "image" not in made.questions[0].row


# --- downstream ---


def test_downstream_skips_what_is_absent_and_counts_it(
    tmp_path: Path,
    model: str,
    recorded: Callable[[dict[str, str]], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    recorded({**EVERY["scienceqa"][1], **EVERY["textvqa"][1], **EVERY["pope"][1]})
    scienceqa(tmp_path / "root")
    text = textvqa(tmp_path / "apart")
    parquet = next(pope(tmp_path / "apart").glob("*.parquet"))
    assert (
        main(
            [
                "downstream",
                "--model_path",
                model,
                "--data_root",
                "root",
                "--quiet",
                "--global_context_lambda",
                "0.5",
                "--eval_file_path_textqa",
                str(text / "llava_textvqa_val_v051_ocr.jsonl"),
                "--image_path_textvqa",
                str(text / "train_images"),
                "--answers_file_textqa",
                "t.json",
                "--eval_file_path_pope",
                str(parquet),
                "--answers_file_pope",
                "p.json",
            ]
        )
        == 0
    )
    printed = capsys.readouterr().out
    assert "hallusionbench: skipped, its files are absent (root/HallusionBench)." in printed
    assert "3 of 5 benchmarks asked (scienceqa, textvqa, pope), 2 skipped." in printed
    assert (
        figures(tmp_path / "results_downstream" / "scienceqa_answers.score.json")["accuracy_pct"] == 100
    )  # image items
    assert figures(tmp_path / "p.score.json")["mean_f1"] == pytest.approx(2 / 3)
    assert figures(tmp_path / "t.score.json")["accuracy"] == pytest.approx(1.9 / 3)


def test_downstream_without_any_files(tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["downstream", "--model_path", model, "--data_root", str(tmp_path)]) == 2
    assert "There is no benchmark to run" in capsys.readouterr().err


SCRIPT_FOLDERS = {
    "Qwen2.5-VL": "qwen2_5_vl",
    "Qwen3-VL": "qwen3_vl",
    "Gemma3n": "gemma3n",
    "InternVL3": "internvl",
    "LLaVA-v1.6": "llava_next",
    "LLaVA-v1.5": "llava",
}
INFER_FILES = {
    "qwen2.5vl": "qwen2_5_vl",
    "qwen3vl": "qwen3_vl",
    "gemma3n": "gemma3n",
    "internvl3": "internvl",
    "llava1.6": "llava_next",
    "llava1.5": "llava",
}


def test_every_family_has_its_commands() -> None:
    for folder in SCRIPT_FOLDERS:
        assert f'"downstream", "--family", "{folder}"' in (ROOT / "scripts" / folder / "eval_downstream.py").read_text()
    for name, family in INFER_FILES.items():
        program = (ROOT / "eval" / "MMMU" / "mmmu-pro" / "infer" / f"infer_{name}.py").read_text()
        assert f'"mmmu-pro", "--family", "{paper_families()[family].name}"' in program
    assert set(SCRIPT_FOLDERS.values()) == set(INFER_FILES.values()) == set(FAMILIES)


@pytest.mark.parametrize("folder", SCRIPT_FOLDERS)
def test_the_shell_script_is_posix_and_passes_its_options_on(folder: str, tmp_path: Path) -> None:
    script = ROOT / "scripts" / folder / "eval_downstream.sh"
    environment = {"PATH": os.environ["PATH"], "MODEL": "a model", "PYTHON": "echo", "LAMBDA": "1"}
    done = subprocess.run(
        ["sh", str(script), "--limit", "3"], capture_output=True, text=True, env=environment, check=True
    )
    assert "eval_downstream.py --model_path a model" in done.stdout
    assert done.stdout.endswith("--global_context_lambda 1 --limit 3\n")
    del environment["MODEL"]
    by_default = subprocess.run(["sh", str(script)], capture_output=True, text=True, env=environment, check=True)
    assert re.search(r"eval_downstream\.py --model_path [\w.-]+/[\w.-]+ --data_root", by_default.stdout)


# --- MMMU-Pro ---


def infer(tmp_path: Path, model: str, *arguments: str) -> int:
    data = tmp_path / "MMMU_Pro"
    mmmu(tmp_path) if not data.exists() else None
    return main(
        [
            "mmmu-pro",
            "--model",
            model,
            "--dataset_repo_id",
            str(data),
            "--dataset_variant",
            "standard (10 options)",
            "--output_root",
            str(tmp_path / "mmmu-pro"),
            "--quiet",
            *arguments,
        ]
    )


def test_mmmu_pro_writes_the_published_file_and_the_official_one(
    tmp_path: Path, model: str, recorded: Callable[[dict[str, str]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(EVERY["mmmu_pro"][1])
    monkeypatch.setattr("transformers_agci.experiments.benchmarks.mmmu_pro.ROWS", 5)
    assert infer(tmp_path, model, "--mode", "cot", "--global_context_lambda", "0.5") == 0
    own = tmp_path / "mmmu-pro" / "output" / "MMMU_Pro" / "llava_standard (10 options)_cot.jsonl"
    official = tmp_path / "mmmu-pro" / "official" / "llava-10opt_standard_cot.jsonl"
    rows = [json.loads(line) for line in own.read_text().splitlines()]
    assert [row["response"] for row in rows] == list(EVERY["mmmu_pro"][1].values())
    assert set(rows[0]) == {"response", "id", "question", "options", "answer", "subject"}
    assert official.read_bytes() == own.read_bytes()
    assert main(["score", "mmmu_pro", "--answers", str(own)]) == 0


def test_mmmu_pro_partial_run_writes_no_official_file(
    tmp_path: Path, model: str, recorded: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    recorded({})
    assert infer(tmp_path, model, "--debug", "--limit", "2", "--global_context_lambda", "0", "1") == 0
    printed = capsys.readouterr().out
    assert "takes 1730 rows and there are 2 (only the first rows were asked)" in printed
    assert not (tmp_path / "mmmu-pro" / "official").exists()
    written = {path.name for path in (tmp_path / "mmmu-pro" / "output" / "MMMU_Pro").glob("*.jsonl")}
    assert written == {f"llava_standard (10 options)_direct.lam{lam}.jsonl" for lam in (0, 1)}


@pytest.mark.parametrize(
    ("variant", "lam", "name"),
    [
        ("standard (10 options)", None, "m-10opt_standard_direct.jsonl"),
        ("vision", None, "m_vision_direct.jsonl"),
        ("standard (4 options)", 0.5, "m-lam0.5-4opt_standard_direct.jsonl"),
    ],
)
def test_official_names(variant: str, lam: float | None, name: str) -> None:
    assert official_name("m", variant, "direct", lam) == name


def test_an_infer_script_runs_from_anywhere(tmp_path: Path) -> None:
    script = ROOT / "eval" / "MMMU" / "mmmu-pro" / "infer" / "infer_llava1.5.py"
    done = subprocess.run(
        [sys.executable, str(script), "--help"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--dataset_variant" in done.stdout


# --- documentation ---


@pytest.mark.parametrize("name", EVERY)
def test_the_readme_explains_every_figure(name: str, tmp_path: Path) -> None:
    """What the result file holds and what eval/<Benchmark>/README.md lists must agree."""
    from transformers_agci.experiments.benchmarks import benchmark

    declared = benchmark(name)
    text = (ROOT / "eval" / declared.folder / "README.md").read_text()
    given: dict[str, Any] = {
        "scienceqa": lambda: [{**row, "prediction": "A"} for row in samples.scienceqa_questions()],
        "pope": lambda: [
            {"question_id": n, "category": c, "answer": "yes", "prediction": "Yes"}
            for c in samples.POPE_LABELS
            for n in range(2)
        ],
        "textvqa": lambda: [{**row, "prediction": "A"} for row in samples.textvqa_questions()],
        "hallusionbench": lambda: [{**row, "prediction": "A"} for row in samples.hallusionbench_questions()],
        "crpe": lambda: [{**row, "prediction": "A"} for row in samples.crpe_questions()],
        "mmmu_pro": lambda: samples.mmmu_rows(["A"] * 5),
    }[name]()
    from transformers_agci.experiments.benchmarks.declaration import Inputs

    annotations = write_json(tmp_path / "val.json", samples.textvqa_annotations()) if name == "textvqa" else None
    found = declared.score(Inputs((write_rows(tmp_path / "a.jsonl", given),), annotations=annotations)).figures
    keys = set(found)
    if "categories" in found:
        keys = (keys - {"categories"}) | set(next(iter(found["categories"].values())))
    missing = {key for key in keys if f"`{key}`" not in text and f".{key}`" not in text}
    assert not missing
    for command in (f"agci benchmark {name} ", f"agci score {name} "):
        assert command in text
    assert f"| {declared.title} |" in (ROOT / "eval" / "README.md").read_text()


@pytest.mark.parametrize("name", EVERY)
def test_the_sample_of_the_readme_is_scored(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers_agci.experiments.benchmarks import benchmark

    monkeypatch.chdir(ROOT)
    text = (ROOT / "eval" / benchmark(name).folder / "README.md").read_text()
    command = next(line.strip() for line in text.splitlines() if "/sample/" in line)
    assert main(shlex.split(command)[1:]) == 0
    assert "95 % interval" in capsys.readouterr().out
