"""Similarity, occlusion and flow under torchrun: the bytes of one process, said once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNS = {
    "similarity": ["--items", "5", "--answer_file", "{out}/A.jsonl", "--batch_size", "2"],
    "occlusion": ["--items", "1", "--mask_size", "84", "--output_dir", "{out}"],
    "flow": ["--items", "1", "--layers", "0", "--output_dir", "{out}"],
}
ALONE, TEAM = [sys.executable], [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

pytestmark = pytest.mark.slow


def run(launcher: list[str], name: str, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    words = [word.format(out=out) for word in RUNS[name]]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    return subprocess.run(
        [*launcher, "-m", "transformers_agci.cli", name, *words, *more],
        text=True,
        check=False,
        capture_output=True,
        timeout=600,
        env=environment,
    )


def results(out: Path) -> dict[str, bytes]:
    """Every result below the folder; manifests tell of seconds, images of the probe set lie beside it."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.suffix in (".jsonl", ".npy", ".npz", ".json") and "manifest" not in path.name
    }


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_write_what_one_writes(name: str, tmp_path: Path) -> None:
    said, found = [], []
    for launcher, folder in ((ALONE, "one"), (TEAM, "two")):
        done = run(launcher, name, tmp_path / folder)
        assert done.returncode == 0, done.stdout + done.stderr
        said.append([line for line in done.stdout.splitlines() if line.startswith("Written")])
        found.append(results(tmp_path / folder))
    assert found[0] == found[1]
    assert any(file.endswith(".jsonl") and content for file, content in found[0].items())
    assert len(said[0]) == len(said[1]) == 1
    assert not list((tmp_path / "two").rglob("*.parts"))


def test_a_share_of_a_share_is_refused(tmp_path: Path) -> None:
    refused = run(TEAM, "similarity", tmp_path, "--shard", "0/2")
    assert refused.returncode != 0
    assert "under torchrun the blocks are shared out already" in refused.stderr
