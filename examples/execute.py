"""Executes the notebooks of this folder in place: python examples/execute.py [NOTEBOOK ...] (make notebooks).

What differs from run to run is not kept: times, progress, warnings. An output that names a folder of this machine is an
error.
"""

import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent
SECONDS = 600  # for one cell
MACHINE_PATH = re.compile(r"(?<![\w/.])/(?:home|root|tmp|work|usr|var|opt|Users|private)/")


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in an empty folder; raises where a cell fails or names a path."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as empty:
        NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": empty}}
        ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("metadata", {}).clear()
                if "image/png" in output.get("data", {}):
                    output.data.pop("image/jpeg", None)  # Pillow gives both
    found = MACHINE_PATH.search(nbformat.writes(notebook))
    if found:
        raise ValueError(f"{path.name}: an output names a folder of this machine: {found.group()}...")
    return notebook


def main(names: list[str]) -> None:
    """Execute and write the notebooks that are named, or all."""
    for path in [Path(name) for name in names] or sorted(FOLDER.glob("*.ipynb")):
        started = time.monotonic()
        notebook = execute(path)
        nbformat.write(notebook, path)
        print(f"{path.name}: {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
