"""Similarity from what a user asks for to the file and the lines that the user reads."""

from dataclasses import dataclass
from pathlib import Path

from transformers_agci.embedded.probe_set import build_similarity_set
from transformers_agci.errors import counted
from transformers_agci.experiments.defaults import POOLING
from transformers_agci.experiments.positives import Positives, RowsOptions, only_positives, read_positives
from transformers_agci.experiments.similarity.run import ROWS, SimilarityRun, pooling_named
from transformers_agci.inference.load import LoadedModel, LoadOptions, loaded_model
from transformers_agci.inference.progress import Say
from transformers_agci.inference.runner import RunOptions
from transformers_agci.method.lam import lambda_text
from transformers_agci.storage.overlap import check_answers
from transformers_agci.storage.result_names import sibling_path


@dataclass(frozen=True)
class SimilarityOptions:
    """The model, how tokens are pooled, lambda before pooling, at most so many rows, and how they are batched."""

    model: LoadOptions | LoadedModel
    pooling: str = POOLING
    lam: float = 0.0
    limit: int | None = None  # default: 9,000, as in the paper
    batch_size: int | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        pooling_named(self.pooling)


def measure_rows(options: SimilarityOptions, rows: RowsOptions, answer_file: Path, run: RunOptions, say: Say) -> int:
    """Measure every row and write one result file; 1 where rows were bad."""
    check_answers([answer_file], eval_file=rows.source)
    data = _data(rows, answer_file)
    chosen = data.rows[: options.limit or ROWS]
    loaded = loaded_model(options.model)
    say(
        f"{len(chosen)} of {len(data.rows)} rows from {rows.source}; {loaded.family.name}, {options.pooling} pooling, "
        f"lambda {lambda_text(options.lam)}"
    )
    if data.negatives:
        say(f"{counted(data.negatives, 'row')} whose answer is No are omitted.")
    measured = SimilarityRun(
        loaded, chosen, data.img_path, options.pooling, options.lam, options.batch_size, options.workers
    )
    notes = {name: value for name, value in rows.notes(data.img_path).items() if name in ("eval_file", "img_path")}
    summary = measured.write(answer_file, data, notes, run)
    for line in summary.lines():
        say(line)
    return summary.exit_code


def _data(rows: RowsOptions, answer_file: Path) -> Positives:
    """The file's rows, or those of the embedded atlas, one image per canvas, drawn beside the answers."""
    if rows.data is not None:
        return only_positives(rows.data, rows.source)
    found = rows.file_and_images()
    if found is None:
        made = build_similarity_set(sibling_path(answer_file, ".similarity_set"), rows.items, rows.seed)
        found = made.rows, made.images
    return read_positives(*found)
