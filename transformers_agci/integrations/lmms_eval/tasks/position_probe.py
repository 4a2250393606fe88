"""The task: greedy answers as `agci probe` asks for them, scored by our rule, clustered by item."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from lmms_eval.api.task import ConfigurableMessagesTask, ConfigurableTask

from transformers_agci.experiments.position.results import is_right
from transformers_agci.integrations.probe_task import FIGURES, TaskData, figures

SPLIT = "test"
MAX_NEW_TOKENS = 128  # of `agci probe`, which stops earlier where the verdict is fixed


class _Figures:
    """The aggregations of all figures over what `process_results` returned for every row.

    lmms-eval asks for one figure after the other, each over the same rows: they are measured once.
    """

    def __init__(self) -> None:
        self._rows: list[Mapping[str, Any]] = []
        self._found: dict[str, float] = {}

    def aggregation(self, name: str) -> Callable[[Sequence[Mapping[str, Any]]], float]:
        """The aggregation of one figure; nan where it does not exist."""

        def aggregate(results: Sequence[Mapping[str, Any]]) -> float:
            rows = [result["row"] for result in results]
            if rows != self._rows:
                self._rows, self._found = rows, figures(rows)
            return self._found.get(name, float("nan"))

        return aggregate


class _PositionProbe:
    """Rows of the probe file and its negatives; `cluster_key` makes lmms-eval's standard errors those over items."""

    def __init__(self, config: Mapping[str, Any] | None = None, model_name: str | None = None) -> None:
        aggregations = _Figures()
        own = {
            "task": "agci_position_probe",
            "test_split": SPLIT,
            "output_type": "generate_until",
            "doc_to_visual": lambda doc: [image.convert("RGB") for image in doc["images"]],
            "doc_to_text": lambda doc: doc["text"],
            "doc_to_target": "answer",
            "process_results": _score,
            "generation_kwargs": {
                "max_new_tokens": MAX_NEW_TOKENS,
                "do_sample": False,
                "temperature": 0,
                "num_beams": 1,
            },
            "metric_list": [
                {"metric": name, "aggregation": aggregations.aggregation(name), "higher_is_better": higher}
                for name, higher in FIGURES.items()
            ],
            "cluster_key": "item",
            "metadata": {"version": 1.0},
        }
        super().__init__(config=own, model_name=model_name)  # type: ignore[call-arg]

    def download(self, dataset_kwargs: Any = None) -> None:
        """Read the rows; nothing is fetched."""
        self._drawn = tempfile.TemporaryDirectory(prefix="agci_probe_")  # the atlas's composites, as long as the task
        rows = TaskData.from_environment().rows(Path(self._drawn.name))
        docs = [
            {**row.fields, "item": row.item, "text": row.text, "images": [str(path) for path in row.images]}
            for row in rows
        ]
        made = datasets.Dataset.from_list(docs).cast_column("images", datasets.Sequence(datasets.Image()))
        self.dataset = {SPLIT: made}
        self.dataset_no_image = {SPLIT: made.remove_columns("images")}


class PositionProbe(_PositionProbe, ConfigurableMessagesTask):
    """For the models that lmms-eval speaks to in chat messages, which most are."""


class SimplePositionProbe(_PositionProbe, ConfigurableTask):
    """For those that it gives a text and its images."""


def _score(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, Any]:
    """`row` is what our figures read; `score` (points) and `item` are what lmms-eval makes its standard errors of, so
    only the accuracy of the row's own answer has them: of other figures an error over rows would mean nothing."""
    row = {name: value for name, value in doc.items() if name not in ("item", "text", "images") and value is not None}
    answered = {**row, "prediction": results[0].strip()}
    side = "no" if row["answer"] == "No" else "yes"  # a choice between options is a Yes where its letter is right
    scored = {"row": answered, "item": doc["item"], "score": 100.0 * is_right(answered)}
    return {name: scored if name == f"accuracy_{side}" else {"row": answered} for name in FIGURES}
