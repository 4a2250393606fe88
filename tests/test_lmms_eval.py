"""lmms-eval 0.7.3, unchanged, honours lambda in config.json: `make lmms-eval` makes its environment and runs this.

The embedded model answers a POPE-form set under lmms-eval and under `agci benchmark pope`, with the same rows, dtype
(lmms-eval loads in bfloat16), pixel limits and system prompt (the chat template's), and with stock's vision tower and
kernels: the same answers to the letter, lambda 0 and lambda 0.5.
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from test_benchmark_embedded import pope_rows

from transformers_agci import cli, integrations
from transformers_agci.embedded.location import embedded_model_path

PYTHON = os.environ.get("AGCI_LMMS_PYTHON")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="AGCI_LMMS_PYTHON names no Python with lmms-eval: make lmms-eval"),
]

ITEMS = int(os.environ.get("AGCI_LMMS_ITEMS", "40"))  # nine Yes and nine No rows each
PIXELS = 252 * 252  # of every composite, so that no one resizes
LAMBDAS = ("0", "0.5")


@dataclass(frozen=True)
class Answers:
    """The answers of one program to every row, and what it printed."""

    texts: list[str]
    log: str = ""


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows with their images inside. lmms-eval strips a question's white space, so it has none."""
    from datasets import Dataset, Image

    folder = tmp_path_factory.mktemp("rows")
    questions, images = pope_rows(folder, ITEMS)
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows = [
        row
        | {
            "question": row["question"].strip(),
            "image": {"bytes": (images / row["image"]).read_bytes(), "path": row["image"]},
        }
        for row in rows
    ]
    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(folder / "pope.parquet")
    return folder / "pope.parquet"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The embedded model with each lambda in its config.json."""
    made = {}
    for lam in LAMBDAS:
        made[lam] = Path(shutil.copytree(embedded_model_path(), tmp_path_factory.mktemp("model") / f"lambda{lam}"))
        assert cli.main(["set-lambda", str(made[lam]), lam]) == 0
    return made


def lmms_eval(arguments: str, task: str, tasks: Path, output: Path, variables: dict[str, str]) -> str:
    """Run lmms-eval's own command line on the CPU; what it printed."""
    words = ["--model", "qwen2_5_vl", "--model_args", arguments, "--tasks", task, "--include_path", str(tasks)]
    words += ["--batch_size", "1", "--log_samples", "--output_path", str(output)]
    done = subprocess.run(
        [str(PYTHON), "-m", "lmms_eval", *words],
        env=os.environ | variables | {"CUDA_VISIBLE_DEVICES": ""},
        check=False,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=output,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def theirs(parquet: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Answers]:
    """lambda -> what lmms-eval's own command line answers."""
    task = Path(shutil.copytree(Path(__file__).parent / "lmms_eval_task", tmp_path_factory.mktemp("task") / "task"))
    file = task / "agci_pope_local.yaml"
    file.write_text(file.read_text().replace("DATA", str(parquet)))
    cache = tmp_path_factory.mktemp("cache")
    found = {}
    for lam, model in models.items():
        output = tmp_path_factory.mktemp("output")
        arguments = f"pretrained={model},device=cpu,device_map=cpu,min_pixels={PIXELS},max_pixels={PIXELS}"
        said = lmms_eval(arguments, "agci_pope_local", task, output, {"HF_HOME": str(cache)})
        [samples] = output.rglob("*_samples_agci_pope_local.jsonl")
        rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
        found[lam] = Answers([row["filtered_resps"] for row in rows], said)
    return found


def ours(model: Path, parquet: Path, out: Path, *more: str) -> list[str]:
    """What `agci benchmark pope` answers, lambda from config.json."""
    assert (
        cli.main(
            [
                "benchmark",
                "pope",
                "--model",
                str(model),
                "--data",
                str(parquet),
                "--prompt",
                "{question}",
                "--max_new_tokens",
                "16",
                "--dtype",
                "bfloat16",
                "--batch_size",
                "1",
                "--min_pixels",
                str(PIXELS),
                "--max_pixels",
                str(PIXELS),
                "--answer_file",
                str(out),
                "--quiet",
                *more,
            ]
        )
        == 0
    )
    return [json.loads(line)["prediction"] for line in out.read_text().splitlines()]


@pytest.mark.parametrize("lam", LAMBDAS)
def test_the_same_answers(
    lam: str, models: dict[str, Path], parquet: Path, theirs: dict[str, Answers], tmp_path: Path
) -> None:
    found = ours(models[lam], parquet, tmp_path / "answers.jsonl", "--vision", "stock", "--kernels", "stock")
    rows = len(theirs[lam].texts)
    agreed = sum(mine == other for mine, other in zip(found, theirs[lam].texts, strict=True))
    print(f"lambda {lam}: {agreed} of {rows} rows answered alike")
    assert (agreed, rows) == (18 * ITEMS, 18 * ITEMS)


def test_agci_was_on_under_lmms_eval(theirs: dict[str, Answers]) -> None:
    assert "AGCI is on: lambda 0.5 from config.json" in theirs["0.5"].log
    assert "AGCI is on" not in theirs["0"].log
    changed = sum(off != on for off, on in zip(theirs["0"].texts, theirs["0.5"].texts, strict=True))
    print(f"lambda 0.5 changes {changed} of {len(theirs['0'].texts)} answers under lmms-eval")
    assert changed > 0


@pytest.mark.parametrize("lam", LAMBDAS)
def test_our_quicker_vision_tower_differs_only_where_bfloat16_does(
    lam: str, models: dict[str, Path], parquet: Path, theirs: dict[str, Answers], tmp_path: Path
) -> None:
    """`--vision auto` rounds otherwise, because it attends over all windows in one call: a near tie may fall anew."""
    found = ours(models[lam], parquet, tmp_path / "answers.jsonl")
    differ = sum(mine != other for mine, other in zip(found, theirs[lam].texts, strict=True))
    print(f"lambda {lam}, --vision auto: {len(found) - differ} of {len(found)} rows answered alike")
    assert differ <= max(1, len(found) // 100)


# --- the position probe as a plugin's task ---

PROBE_ITEMS = max(3, ITEMS // 4)


def lmms_eval_tasks() -> Path:
    """What `--include_path` is given: lmms-eval 0.7.3 lists its tasks before it looks at LMMS_EVAL_PLUGINS."""
    return Path(integrations.__file__).with_name("lmms_eval") / "tasks"


@pytest.fixture(scope="module")
def probed(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], dict]:
    """The rows that lmms-eval answered at lambda 0.5, and the figures that it wrote."""
    output, cache = (tmp_path_factory.mktemp(name) for name in ("probe_output", "probe_cache"))
    arguments = f"pretrained={models['0.5']},device=cpu,device_map=cpu,min_pixels={PIXELS},max_pixels={PIXELS}"
    variables = {"AGCI_PROBE_ITEMS": str(PROBE_ITEMS), "HF_HOME": str(cache)}
    lmms_eval(arguments, "agci_position_probe", lmms_eval_tasks(), output, variables)
    [samples] = output.rglob("*_samples_agci_position_probe.jsonl")
    [figures] = output.rglob("*_results.json")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    return rows, json.loads(figures.read_text())["results"]["agci_position_probe"]


def test_the_probe_s_rows_are_those_of_agci_probe(
    probed: tuple[list[dict], dict], models: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "probe.jsonl"
    words = ["probe", "--model_path", str(models["0.5"]), "--items", str(PROBE_ITEMS), "--answer_file", str(out)]
    words += ["--dtype", "bfloat16", "--batch_size", "1", "--vision", "stock", "--kernels", "stock", "--quiet"]
    words += ["--min_pixels", str(PIXELS), "--max_pixels", str(PIXELS)]
    assert cli.main(words) == 0
    ours = {(row["image"], row["answer"]): row["prediction"] for row in map(json.loads, out.read_text().splitlines())}
    entries = [row["accuracy_yes"]["row"] for row in probed[0]]
    theirs = {(row["image"], row["answer"]): row["prediction"] for row in entries}
    assert len(theirs) == 18 * PROBE_ITEMS
    assert theirs == ours


def test_the_probe_s_figures_are_ours_and_its_errors_are_over_items(
    probed: tuple[list[dict], dict], tmp_path: Path
) -> None:
    from transformers_agci.integrations.probe_task import figures

    rows, written = probed
    for name, value in figures(row["accuracy_yes"]["row"] for row in rows).items():
        assert written[f"{name},none"] == pytest.approx(value), name
    assert written["accuracy_yes_stderr_clustered,none"] != "N/A"
