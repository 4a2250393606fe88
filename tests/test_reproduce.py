"""REPRODUCE.md: every command of it is one that we have, with options that it has, for every family."""

import re
import shlex
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
def test_every_command_can_be_typed(family) -> None:
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
