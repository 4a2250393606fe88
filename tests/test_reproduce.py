"""REPRODUCE.md: every command of it is one that we have, with options that it has, for every family."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from transformers_agci import cli
from transformers_agci.families import paper_families

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "REPRODUCE.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = "".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if re.match(r"agci|python|torchrun|\S+ \S+ sh ", line)]


def values(family: str) -> dict[str, str]:
    row = paper_families()[family]
    assert f"| {row.name} | `scripts/{row.name}` | `{row.hub_id}` |" in TEXT
    return {"FOLDER": f"scripts/{row.name}", "MODEL": row.hub_id, "SLURM_ARRAY_TASK_ID": "0"}


@pytest.mark.parametrize("family", paper_families())
def test_every_command_can_be_typed(family: str) -> None:
    known = values(family)
    assert len(commands()) >= 12
    for line in commands():
        filled = re.sub(r"\$(\w+)", lambda name: known.get(name[1], "x"), line)
        words = shlex.split(filled)
        if words[0] != "agci":
            script = next(word for word in words if word.startswith("scripts/"))
            assert (ROOT / script).is_file(), script
            if script.endswith(".sh"):
                continue
            inner = re.search(r"program\(\[(.*?)[,\]] *\*?", (ROOT / script).read_text())
            assert inner is not None
            words = ["agci", shlex.split(inner[1].replace(",", " "))[0], *words[words.index(script) + 1 :]]
        command = cli.find_command(words[1:])
        assert command is not None, line
        parser = cli.command_parser(command)
        parser.parse_args(words[1:])


def sections(text: str, first: str, last: str) -> list[str]:
    """The command lines between two headings."""
    part = text[text.index(first) : text.index(last)]
    blocks = "".join(re.findall(r"```sh\n(.*?)```", part, flags=re.DOTALL)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if line.startswith(("python ", "agci merge-shards"))]


@pytest.mark.slow
@pytest.mark.parametrize("family", paper_families())
def test_sections_one_and_two_run_on_a_tiny_checkpoint(
    family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Word for word but for the files, the job array's size and how many places are masked."""
    samples, alone = ROOT / "probe_datasets", ROOT / "similarity_data"
    known = {
        **values(family),
        "MODEL": str(tiny_checkpoint(family)),
        "PROBE": str(samples / "sample_noto_840_840.json"),
        "IMAGES": str(samples / "images"),
        "SIMILARITY": str(alone / "sample_noto_840_840.json"),
        "ALONE": str(alone / "images"),
    }
    monkeypatch.chdir(tmp_path)
    ran = []
    for line in sections(TEXT, "## 1. ", "## 3. "):
        if "$SLURM" in line or line.startswith("agci merge-shards"):
            continue  # tests/test_inference_processes.py runs job arrays
        words = shlex.split(re.sub(r"\$(\w+)", lambda name: known[name[1]], line))
        script = ROOT / words[1]
        inner = re.search(r"program\(\[(.*?)[,\]] *\*?", script.read_text())
        assert inner is not None
        command = shlex.split(inner[1].replace(",", " "))[0]
        more = ["--items", "1", "--mask_size", "280", "--max_new_tokens", "2"] if command == "occlusion" else []
        assert cli.main([command, *words[2:], *more]) == 0, line
        ran.append(command)
    assert ran == ["probe", "probe", "metrics", "similarity", "metrics-similarity", "occlusion", "occlusion-maps"]
    assert len((tmp_path / "out/probe.lam0.5.jsonl").read_text().splitlines()) == 36
    for name in ("probe", "similarity", "occlusion"):
        assert (tmp_path / f"out/{name}.png").stat().st_size > 10_000
