"""The commands on the embedded model, on the CPU and on a GPU: how far their results lie apart.

    python perf/devices.py                      every command, control and rival; without a GPU: bfloat16 on the CPU

Everything is compared with the CPU in float32, file by file: the largest difference of a number as a share of the
largest number under that name, and how many texts differ (an answer of another word; random words in a long answer).
"""

import argparse
import contextlib
import io
import json
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import announce, say

from transformers_agci.cli import main as agci
from transformers_agci.method.names import CONTROLS, OTHER
from transformers_agci.method.rivals import RIVALS


class Run(NamedTuple):
    """A command without where it computes and what it writes; `output` names the option for that."""

    name: str
    words: str
    output: str


def runs(items: int) -> list[Run]:
    """What is compared: each experiment, and the probe with every control and rival."""
    probe = f"probe --items {items}"
    return [
        Run("probe, lambda 0 and 0.5", f"{probe} --global_context_lambda 0 0.5", "--answer_file"),
        Run(
            "probe, stock layers",
            f"{probe} --global_context_lambda 0.5 --vision stock --kernels stock",
            "--answer_file",
        ),
        Run(
            "probe, eager attention",
            f"{probe} --global_context_lambda 0.5 --attn_implementation eager",
            "--answer_file",
        ),
        *(
            Run(f"probe, {method}", f"{probe} --method {method} --global_context_lambda 1", "--answer_file")
            for method in CONTROLS
            if method != OTHER  # draws other images for another number of them
        ),
        *(
            Run(f"probe, {rival}", f"{probe} --method {rival} --method_options strength=1", "--answer_file")
            for rival in RIVALS
        ),
        Run("occlusion", "occlusion --items 1 --mask_size 126 --global_context_lambda 0.5", "--output_dir"),
        Run("flow", "flow --items 1 --global_context_lambda 0 0.5", "--output_dir"),
        Run("similarity", f"similarity --items {items}", "--answer_file"),
    ]


class Place(NamedTuple):
    device: str
    dtype: str


def made(run: Run, place: Place, folder: Path) -> dict[str, list[Any]]:
    """The values that the command wrote, by name."""
    folder.mkdir(parents=True)
    output = folder / ("out" if run.output == "--output_dir" else "answers.jsonl")
    words = [*run.words.split(), run.output, str(output), "--device", place.device, "--dtype", place.dtype]
    with contextlib.redirect_stdout(io.StringIO()):
        code = agci([*words, "--quiet"])
    if code != 0:
        raise RuntimeError(f"it ends with {code}")
    values: dict[str, list[Any]] = {}
    files = [*folder.glob("answers*.jsonl"), *folder.glob("out/**/*.json*")]
    for file in sorted(file for file in files if "manifest" not in file.name):
        for line in file.read_text(encoding="utf-8").splitlines() if file.suffix == ".jsonl" else [file.read_text()]:
            for name, value in leaves(json.loads(line)):
                values.setdefault(name, []).append(value)
    return values


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and texts of a JSON value, each with the last key above it."""
    if isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, name)
    else:
        yield name, value


def apart(reference: dict[str, list[Any]], other: dict[str, list[Any]]) -> str:
    """Three cells: how many values there are, the largest relative difference with its name, texts that differ."""
    if {name: len(of) for name, of in reference.items()} != {name: len(of) for name, of in other.items()}:
        return "| other values | | |"
    texts, worst = [], (0.0, "-")
    for name, values in reference.items():
        pairs = list(zip(values, other[name], strict=True))
        numbers = [pair for pair in pairs if all(isinstance(value, (int, float)) for value in pair)]
        texts += [f"{one} {two}" for one, two in pairs if isinstance(one, str) and one != two]
        largest = max((abs(one) for one, _ in numbers), default=0) or 1
        worst = max(worst, (max((abs(one - two) for one, two in numbers), default=0.0) / largest, name))
    named = f": {', '.join(text[:40] for text in texts[:4])}" if texts else ""
    return f"| {sum(map(len, reference.values()))} | {worst[0]:.1e} ({worst[1]}) | {len(texts)}{named} |"


def compare(run: Run, places: list[Place], folder: Path) -> int:
    """One row for each place; how many failed."""
    failed = 0
    reference = made(run, Place("cpu", "float32"), folder / "reference")
    for place in places:
        where = f"| {run.name} | {place.device}, {place.dtype} "
        try:
            say(where + apart(reference, made(run, place, folder / place.dtype)))
        except (Exception, SystemExit) as error:  # the others are compared all the same
            traceback.print_exc()
            say(f"{where}| FAILED: {type(error).__name__} ({str(error)[:100]}) | | |")
            failed += 1
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10, help="items of nine images (default 10)")
    parser.add_argument("--only", default="", metavar="WORDS", help="commands whose name begins with these words")
    args = parser.parse_args()
    announce()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    places = [place for place in (Place(device, "float32"), Place(device, "bfloat16")) if place != ("cpu", "float32")]
    say(
        "| command | where | values | differ by, as a share of the largest | texts that differ |\n|---|---|---|---|---|"
    )
    failed = 0
    for run in (run for run in runs(args.items) if run.name.startswith(args.only)):
        with tempfile.TemporaryDirectory() as name:
            failed += compare(run, places, Path(name))
    if failed:
        raise SystemExit(f"{failed} failed")


if __name__ == "__main__":
    main()
