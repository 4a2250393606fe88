"""Result rows with a known effect, for the tests of evidence, sweep and plan."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from transformers_agci.data.grid import POSITIONS
from transformers_agci.experiments.position.results import Tables


def rows(
    yes: np.ndarray | None, no: np.ndarray | None = None, margin: bool = True, shape: tuple[int, int] | None = None
) -> list[dict[str, Any]]:
    """Rows of a result from margins [items, cells]; caption and image name the item."""
    found = []
    for answer, table in (("Yes", yes), ("No", no)):
        for item in range(0 if table is None else len(table)):
            for cell in range(table.shape[1]):
                if np.isnan(table[item, cell]):
                    continue
                row = {"image": f"i{item:03d}_{cell}.jpg", "caption": f"{answer} {item}", "answer": answer}
                row["prediction"] = "Yes" if table[item, cell] > 0 else "No"
                if shape:
                    row |= {"grid": f"{shape[0]}x{shape[1]}", "row": cell // shape[1], "col": cell % shape[1]}
                else:
                    row["position"] = POSITIONS[cell]
                if margin:
                    row["margin"] = float(table[item, cell])
                found.append(row)
    return found


def write(path: Path, content: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return str(path)


def margins(items: int, seed: int, bias: float = 0.0, mean: float = 1.3, cells: int = 9) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lean = bias * np.linspace(1, -1, cells)
    return mean + lean + 0.7 * rng.normal(size=(items, 1)) + 0.7 * rng.normal(size=(items, cells))


@pytest.fixture
def three(tmp_path: Path) -> list[str]:
    """A biased baseline, the same with a moved threshold, and one without the bias."""
    yes, no = margins(80, 0, bias=0.5, mean=0.9), margins(80, 1, mean=-1.3)
    repaired = yes - 0.5 * np.linspace(1, -1, 9) + 0.1 * margins(80, 2, mean=0)
    pairs = [(yes, no), (yes + 0.5, no + 0.5), (repaired, no)]
    return [write(tmp_path / f"r{number}.jsonl", rows(*pair)) for number, pair in enumerate(pairs)]


def as_tables(margin: np.ndarray, yes: bool = True) -> Tables:
    """What `read_results` makes of such rows."""
    said = (margin > 0) * 1.0
    return Tables(correct=said if yes else 1 - said, said_yes=said, unreadable=0 * said, margin=margin)
