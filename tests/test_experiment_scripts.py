"""The per-model scripts of similarity, occlusion and flow, as users start them, on a checkpoint of every family."""

import contextlib
import io
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_similarity import write_rows
from tiny_checkpoints import FAMILIES

SCRIPTS = Path(__file__).parents[1] / "scripts"
FOLDERS = {
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "gemma3n": "Gemma3n",
    "internvl": "InternVL3",
    "llava_next": "LLaVA-v1.6",
    "llava": "LLaVA-v1.5",
}


def started(script: str, *options: str) -> str:
    """The script's output; started in its own folder, as the published commands are."""
    path = SCRIPTS / script
    command = [sys.executable, path.name, *options]
    done = subprocess.run(command, cwd=path.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def run_here(script: str, *options: str) -> str:
    """The same within this process, which has transformers loaded already."""
    path = SCRIPTS / script
    said = io.StringIO()
    with (
        contextlib.chdir(path.parent),
        contextlib.redirect_stdout(said),
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", [path.name, *options])
        runpy.run_path(path.name, run_name="__main__")
    assert ended.value.code == 0
    return said.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_scripts_of_every_family(family: str, tiny_checkpoint: Any, tmp_path: Path) -> None:
    file, images = write_rows(tmp_path, items=1)
    data = ["--model_path", str(tiny_checkpoint(family)), "--eval_file", str(file), "--img_path", str(images)]
    folder = FOLDERS[family]
    start = started if family == "llava" else run_here  # one of them as a process
    start(f"{folder}/similarity.py", *data, "--answer_file", str(tmp_path / "S.jsonl"))
    assert len((tmp_path / "S.jsonl").read_text().splitlines()) == len(file.read_text().splitlines())
    names = ["laion_bias_prob.py", *(["qwen_laion_bias_prob.py"] if family == "qwen2_5_vl" else [])]
    for name in names:
        output = tmp_path / name
        start(f"{folder}/{name}", *data, "--output_dir", str(output), "--mask_size", "30", "--max_new_tokens", "2")
        assert len(list(output.rglob("*_attention_map.json"))) == 9
    said = start(f"{folder}/information_flow.py", *data, "--output_dir", str(tmp_path / "F"), "--max_new_tokens", "2")
    assert "flow on the target" in said and len(list((tmp_path / "F").glob("*.png"))) == 6
    if family != "llava":
        return  # what draws knows no family
    said = started(
        "metrics_similarity.py",
        "--results_file",
        str(tmp_path / "S.jsonl"),
        "--output_heatmap",
        str(tmp_path / "s.png"),
    )
    assert "mean similarity" in said and (tmp_path / "s.png").exists()
    started("prob_results_position.py", "--prob_results_dir", str(output), "--output_path", str(output / "maps"))
    assert len(list((output / "maps").glob("*.png"))) == 10


def test_every_family_has_the_three_scripts() -> None:
    wanted = {"similarity.py", "laion_bias_prob.py", "information_flow.py"}
    for folder in FOLDERS.values():
        assert wanted <= {file.name for file in (SCRIPTS / folder).glob("*.py")}
        for name in wanted:
            assert f'"--family", "{folder}"' in (SCRIPTS / folder / name).read_text()
