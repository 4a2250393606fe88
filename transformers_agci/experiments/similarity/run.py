"""How well the vision encoder understands an image in each place ("understanding" in the paper; docs/method.md).

t = element-wise maximum over the caption's decoder input embeddings, v = element-wise maximum over the projected
image tokens, similarity = cos(t, v). The images show the target alone, in one of nine cells. The decoder never
runs: v is taken at its door, before AGCI.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.defaults import POOLING
from transformers_agci.experiments.positives import Positives, check_unique
from transformers_agci.inference.batches import Block, Column, plan_blocks
from transformers_agci.inference.host_values import crossing, host_values
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prefetch import default_workers
from transformers_agci.inference.prepare import crossing_pixels, prepared_ahead
from transformers_agci.inference.progress import Counts, RunSummary
from transformers_agci.inference.prompt import check_text
from transformers_agci.inference.questions import ImageFile, Question
from transformers_agci.inference.runner import BlockResult, Job, Output, Reporter, Results, RunOptions, Task, run
from transformers_agci.inference.upload import Upload
from transformers_agci.method.image_embeddings import image_embeddings
from transformers_agci.method.injection import inject_global_context
from transformers_agci.storage.result_lines import FailedRow

ROWS = 9_000  # of the published set's 90,000, as evaluated in the paper
DIGITS = 6  # behind the point in the result file
BATCH_SIZE = {"cpu": 9, "cuda": 36}  # images per call of the vision side
BATCHES_PER_BLOCK = 4
# The prompt around the image never reaches the decoder; it is the same for all, so that nothing is padded.
TEXT = "Picture."

Pool = Callable[[torch.Tensor], torch.Tensor]
# tokens [N, D] -> [D]
POOLINGS: Mapping[str, Pool] = {"max": lambda tokens: tokens.amax(dim=0), "mean": lambda tokens: tokens.mean(dim=0)}


@dataclass
class SimilarityCounts(Counts):
    """Images that the vision side encoded, under the name that the manifest has always given them."""

    pictures: int = 0

    def details(self) -> list[str]:
        """The images."""
        return [f"vision ran on {counted(self.pictures, 'image')}"]


@dataclass(frozen=True)
class SimilarityRun:
    """A model, rows with one image each, and how tokens are pooled; `lam` > 0 pools the tokens after AGCI."""

    loaded: LoadedModel
    rows: Sequence[ProbeRow]
    img_path: Path
    pooling: str = POOLING
    lam: float = 0.0
    batch_size: int | None = None
    workers: int | None = None

    @property
    def _batch_size(self) -> int:
        return self.loaded.batch_size(self.batch_size, BATCH_SIZE)

    @property
    def settings(self) -> dict[str, Any]:
        """What a result file must have been made with to go on."""
        return {
            "experiment": "similarity",
            "model": dict(self.loaded.identity),
            "pooling": self.pooling,
            "lambda": self.lam,
            "batch_size": self._batch_size,
            "rows": len(self.rows),
        }

    def write(self, answer_file: Path, data: Positives, notes: Mapping[str, Any], options: RunOptions) -> RunSummary:
        """Measure every row that the file lacks: the input row plus `similarity`."""
        check_unique(self.rows, "id", [str(row.id) for row in self.rows])
        questions = [
            Question(
                row=row.fields, where=row.where, text=TEXT, images=(ImageFile(self.img_path, row.image, row.where),)
            )
            for row in self.rows
        ]
        blocks = plan_blocks(questions, self._batch_size * BATCHES_PER_BLOCK)
        counts = SimilarityCounts()
        job = Job(
            functools.partial(self._work, questions, blocks, counts),
            [row.fields for row in self.rows],
            [block.size for block in blocks],
            [Output(answer_file, self.settings | data.settings)],
            {**self.loaded.notes, **notes},
            data.bad_rows,
            counts,
            replaced=("similarity",),
        )
        return run(job, options)

    def _work(
        self,
        questions: Sequence[Question],
        blocks: Sequence[Block],
        counts: SimilarityCounts,
        tasks: Sequence[Task],
        reporter: Reporter,
    ) -> Results:
        """The runner's work function: the images of each block, prepared ahead, batch by batch."""
        shares = [self._shares(blocks[task.block].start, blocks[task.block].stop) for task in tasks]
        columns = [Column((share,)) for of_block in shares for share in of_block]
        raw = crossing_pixels(self.loaded)
        processor = self.loaded.processor if raw is None else raw.processor
        host = host_values(self.loaded)
        upload = Upload(self.loaded, raw, grids_stay=host is not None and host.grids_stay)
        with (
            prepared_ahead(columns, questions, processor, self._workers) as ahead,
            host or contextlib.nullcontext(),
            contextlib.closing(upload.ahead(ahead)) as arriving,
        ):
            for of_block in shares:
                rows: list[dict[str, Any]] = []
                failed: list[FailedRow] = []
                for share in of_block:
                    prepared, sent = next(arriving)
                    failed += prepared.failed
                    on_device = upload.receive(sent or upload.send(prepared.batches))
                    for batch, there in zip(prepared.batches, on_device, strict=True):
                        for number, value in zip(
                            batch.numbers, self._measure(batch.numbers, there.inputs), strict=True
                        ):
                            if math.isfinite(value):
                                rows.append({**self.rows[number].fields, "similarity": round(value, DIGITS)})
                            else:
                                failed.append(self._no_number(number))
                        counts.pictures += len(batch.numbers)
                    reporter.advance(len(share))
                yield BlockResult([rows], sorted(failed))

    def _no_number(self, number: int) -> FailedRow:
        where = self.rows[number].where
        return FailedRow(number, where, f"{where}: its similarity is not a number; try `dtype` float32.")

    @property
    def _workers(self) -> int:
        return default_workers(self.loaded.device.type) if self.workers is None else self.workers

    def _shares(self, start: int, stop: int) -> list[tuple[int, ...]]:
        numbers = range(start, stop)
        return [tuple(numbers[at : at + self._batch_size]) for at in range(0, len(numbers), self._batch_size)]

    def _measure(self, numbers: Sequence[int], inputs: Mapping[str, torch.Tensor]) -> list[float]:
        with torch.inference_mode():
            images = image_embeddings(self.loaded.model, inputs)
            found = [self._similarity(tokens, number) for number, tokens in zip(numbers, images, strict=True)]
            return torch.stack(found).tolist()  # one read-back for all

    def _similarity(self, tokens: torch.Tensor, number: int) -> torch.Tensor:
        pool = POOLINGS[self.pooling]
        seen = pool(inject_global_context(tokens, self.lam).float())
        check_text(self.rows[number].caption, self.rows[number].where)
        said = pool(caption_embeddings(self.loaded, self.rows[number].caption).float())
        return cosine_similarity(said, seen.to(said.device), dim=0)


def caption_embeddings(loaded: LoadedModel, caption: str) -> torch.Tensor:
    """The decoder's input embeddings [T, D] of a bare caption, as the processor tokenizes it (no chat template)."""
    ids = torch.as_tensor(loaded.processor.tokenizer(caption)["input_ids"])
    embedding = loaded.model.get_input_embeddings()
    return embedding(crossing(ids, embedding.weight.device))


def pooling_named(name: str) -> str:
    """The name itself, or an InputError that lists the poolings."""
    if name not in POOLINGS:
        raise InputError(f"`pooling` must be one of {', '.join(POOLINGS)}, but is {name!r}.")
    return name
