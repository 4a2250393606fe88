"""Information flow over a probe file: per row the answers, the flow's share on the target's cell, and the map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_agci.data.probe_rows import PROMPT, ProbeRow
from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import FLOW_LAYERS, FLOW_TOKENS
from transformers_agci.experiments.flow.flow import Flow, layer_count, layers_text, measure_flow, parse_layers
from transformers_agci.experiments.flow.maps import SOURCES
from transformers_agci.experiments.items import target_box
from transformers_agci.experiments.occlusion.maps import share_in
from transformers_agci.experiments.positives import Positives, check_unique
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.progress import RunSummary
from transformers_agci.inference.questions import ImageFile, Question
from transformers_agci.inference.runner import BlockResult, Job, Output, Reporter, Results, RunOptions, Task, run
from transformers_agci.storage.result_lines import FailedRow

RASTER = 27  # rows and columns of a kept map: nine per cell of the 3x3 grid
DIGITS = 4  # significant, of a kept map's values
RESULTS = "flow.jsonl"  # in the output folder


@dataclass(frozen=True)
class FlowRun:
    """A model, the rows to ask about, the lambdas and layers."""

    loaded: LoadedModel
    rows: Sequence[ProbeRow]
    img_path: Path
    lambdas: Sequence[float]
    layers: str = FLOW_LAYERS
    max_new_tokens: int = FLOW_TOKENS

    @property
    def layers_text(self) -> str:
        """The layers in words."""
        return layers_text(self._chosen)

    @property
    def _chosen(self) -> list[int]:
        return parse_layers(self.layers, layer_count(self.loaded.model))

    def write(self, output_dir: Path, data: Positives, notes: Mapping[str, Any], options: RunOptions) -> RunSummary:
        """Measure every row that the folder lacks; a row is the unit of resuming."""
        check_unique(self.rows, "id", [str(row.id) for row in self.rows])

        def work(tasks: Sequence[Task], reporter: Reporter) -> Results:
            for task in tasks:
                row = self.rows[task.block]
                try:
                    yield BlockResult([[self.measure(row)]])
                except InputError as error:
                    yield BlockResult([[]], [FailedRow(task.block, row.where, str(error))])
                reporter.advance(1)

        job = Job(
            work,
            [row.fields for row in self.rows],
            [1] * len(self.rows),
            [Output(output_dir / RESULTS, self._settings | data.settings)],
            {**self.loaded.notes, **notes},
            data.bad_rows,
            replaced=("flows",),
        )
        return run(job, options)

    @property
    def _settings(self) -> dict[str, Any]:
        """What a results folder must have been made with to go on."""
        return {
            "experiment": "flow",
            "model": dict(self.loaded.identity),
            "lambdas": list(self.lambdas),
            "layers": self._chosen,
            "prompt": PROMPT,
            "max_new_tokens": self.max_new_tokens,
            "rows": [row.id for row in self.rows],
        }

    def measure(self, row: ProbeRow) -> dict[str, Any]:
        """The result row: the input row and one entry in `flows` per lambda."""
        image = ImageFile(self.img_path, row.image, row.where)
        question = Question(row=row.fields, where=row.where, text=PROMPT.format(caption=row.caption), images=(image,))
        flows = measure_flow(self.loaded, question, self.lambdas, self.layers, self.max_new_tokens)
        size = image.open().size
        return {**row.fields, "flows": [_entry(flow, row.cell, *size) for flow in flows]}


def _entry(flow: Flow, cell: int, width: int, height: int) -> dict[str, Any]:
    box = target_box(cell, width, height)
    entry: dict[str, Any] = {"lambda": flow.lam, "prediction": flow.prediction}
    for source in SOURCES:
        values = flow.of(source)
        pixels = flow.layout.rasterize(values, height, width).numpy()
        coarse = flow.layout.rasterize(values, RASTER, RASTER).tolist()
        entry[source] = {
            "on_picture": round(float(values.sum()), 6),
            "on_target": round(share_in(pixels, box), 6),
            "map": [[float(f"{value:.{DIGITS}g}") for value in row] for row in coarse],
        }
    return entry
