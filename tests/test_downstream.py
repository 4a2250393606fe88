"""`agci downstream`: every benchmark whose files are there, and the shell script around it."""

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import benchmark_rows
import pytest
from benchmark_rows import EVERY, ROOT, figures, pope, scienceqa, textvqa
from tiny_checkpoints import FAMILIES

from transformers_agci.cli import main
from transformers_agci.families import paper_families

model = benchmark_rows.model  # fixture
recorded = benchmark_rows.recorded  # fixture


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
