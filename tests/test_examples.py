"""The notebooks of examples/: what is committed was executed, in order and on no one's machine; they still run."""

import importlib.util
import json
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def kinds(cell: dict) -> list[list[str]]:
    """Of each output its kinds of content."""
    return [sorted(output.get("data", {output["output_type"]: None})) for output in cell["outputs"]]


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["1_probe_and_map", "2_ruler", "3_your_model_and_photos"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_committed_notebook_was_executed_from_top_to_bottom(path: Path) -> None:
    cells = code_cells(json.loads(path.read_text()))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"execute_result", "display_data", "stream"}
    assert all(output.get("name") != "stderr" for output in outputs)
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(path: Path) -> None:
    pytest.importorskip("nbclient", reason="make notebook-env brings what executes notebooks")
    pytest.importorskip("ipykernel")
    spec = importlib.util.spec_from_file_location("execute", EXAMPLES / "execute.py")
    assert spec is not None and spec.loader is not None
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    executed, committed = (code_cells(found) for found in (execute.execute(path), json.loads(path.read_text())))
    assert [kinds(cell) for cell in executed] == [kinds(cell) for cell in committed]
