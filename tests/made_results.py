"""Made-up results of the position probe whose numbers are known, for the tests of metrics."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from transformers_agci.data.grid import POSITIONS
from transformers_agci.experiments.compare.arms import parse_arm
from transformers_agci.experiments.compare.run import ArmResult
from transformers_agci.experiments.position.measures import ResamplingConfig

RESAMPLING = ResamplingConfig(200)


def result_rows(
    items: int, correct: Callable[..., Any], margin: bool = True, answers: tuple[str, str] = ("Yes", "No")
) -> list[dict[str, Any]]:
    """Rows of a result; `correct(item, answer, cell)` says whether the reply is right."""
    rows = []
    for item in range(items):
        for answer in answers:
            for cell, position in enumerate(POSITIONS):
                right = correct(item, answer, cell)
                said = answer if right else ("No" if answer == "Yes" else "Yes")
                row = {
                    "id": 9 * item + cell,
                    "image": f"{item:04d}_{cell}.jpg",
                    "caption": f"{answer} {item}",
                    "position": position,
                    "answer": answer,
                    "prediction": said,
                    "qs": "?",
                }
                if margin:
                    row["margin"] = 1.0 + 0.1 * cell if said == "Yes" else -1.0
                rows.append(row)
    return rows


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def coin(p: float | Callable[..., Any], seed: int) -> Callable[..., Any]:
    """A reply that is right with probability p(cell), drawn per row."""
    draws = np.random.default_rng(seed).random((500, 2, 9))
    return lambda item, answer, cell: bool(draws[item, int(answer == "No"), cell] < (p(cell) if callable(p) else p))


def margin_rows(tables: dict[str, np.ndarray], margin: bool = True) -> list[Any]:
    """Rows of a result from margins {answer: [items, 9]}; NaN: no row."""
    return [
        {
            "image": f"{item:04d}_{cell}.jpg",
            "position": position,
            "answer": answer,
            "prediction": "Yes" if table[item, cell] > 0 else "No",
        }
        | ({"margin": float(table[item, cell])} if margin else {})
        for answer, table in tables.items()
        for item in range(len(table))
        for cell, position in enumerate(POSITIONS)
        if not np.isnan(table[item, cell])
    ]


def margins(items: int, bias: float, seed: int) -> dict[str, np.ndarray]:
    """Yes rows lean to No by `bias` per row of the grid; an item has much in common with itself."""
    rng = np.random.default_rng(seed)
    tables = {answer: 0.7 * rng.normal(size=(items, 1)) + 0.7 * rng.normal(size=(items, 9)) for answer in ("Yes", "No")}
    return {"Yes": tables["Yes"] + 1.3 + bias * np.repeat([1, 0, -1], 3), "No": tables["No"] - 1.3}


def result_file(folder: Path, word: str, shift: float, spread: float, items: int = 60) -> ArmResult:
    """An arm whose margins are those of a seed plus `shift`, lower by `spread` in the last cell."""
    generator = np.random.default_rng(0)
    rows = []
    for item in range(items):
        for answer, mean in (("Yes", 1.5), ("No", -1.5)):
            for cell in range(9):
                margin = mean + shift + generator.normal() - spread * (cell == 8)
                position = POSITIONS[cell]
                rows.append(
                    {
                        "id": item,
                        "image": f"{item}_{cell}.jpg",
                        "caption": f"thing {item}",
                        "position": position,
                        "answer": answer,
                        "prediction": "Yes" if margin > 0 else "No",
                        "margin": margin,
                    }
                )
    arm = parse_arm(word)
    file = folder / arm.file_name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ArmResult(arm, file, 10.0, None)
