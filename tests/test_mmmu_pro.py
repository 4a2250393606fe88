"""`agci mmmu-pro` and the per-model infer scripts: the published file and the official one."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import benchmark_rows
import pytest
from benchmark_rows import EVERY, ROOT, mmmu

from transformers_agci.cli import main
from transformers_agci.experiments.benchmarks.asking.mmmu_pro_files import official_name

model = benchmark_rows.model  # fixture
recorded = benchmark_rows.recorded  # fixture


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
