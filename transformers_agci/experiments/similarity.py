"""How well the vision encoder understands an image in each place (METHOD of the paper: "understanding").

t = element-wise maximum over the caption's decoder input embeddings, v = element-wise maximum over the projected
image tokens, similarity = cos(t, v). The images show the target alone, in one of nine cells. The decoder never
runs: v is taken at its door, before AGCI.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cosine_similarity

from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.errors import InputError
from transformers_agci.experiments.block_run import BlockSummary, Counts, Done, RunOptions, run_blocks
from transformers_agci.experiments.on_device import on_device
from transformers_agci.experiments.positives import Positives, refuse_twice
from transformers_agci.inference.batches import Column, plan_blocks
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import prepared_ahead
from transformers_agci.inference.progress import Progress
from transformers_agci.inference.questions import ImageFile, Question
from transformers_agci.method.hooks import image_embeddings
from transformers_agci.method.injection import inject_global_context

ROWS = 9_000  # of the published set's 90,000, as evaluated in the paper
DIGITS = 6  # behind the point in the result file
BATCH_SIZE = {"cpu": 9, "cuda": 36}  # images per call of the vision side
BATCHES_PER_BLOCK = 4
# The prompt around the image never reaches the decoder; it is the same for all, so that nothing is padded.
TEXT = "Picture."

Pool = Callable[[torch.Tensor], torch.Tensor]
# tokens [N, D] -> [D]
POOLINGS: Mapping[str, Pool] = {"max": lambda tokens: tokens.amax(dim=0), "mean": lambda tokens: tokens.mean(dim=0)}


@dataclass(frozen=True)
class SimilarityRun:
    """A model, rows with one image each, and how tokens are pooled; `lam` > 0 pools the tokens after AGCI."""

    loaded: LoadedModel
    rows: Sequence[ProbeRow]
    img_path: Path
    pooling: str = "max"
    lam: float = 0.0
    batch_size: int | None = None
    workers: int | None = None

    @property
    def _batch_size(self) -> int:
        return self.batch_size or BATCH_SIZE.get(self.loaded.device.type, BATCH_SIZE["cpu"])

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

    def write(self, answer_file: Path, data: Positives, notes: Mapping[str, Any], options: RunOptions) -> BlockSummary:
        """Measure every row that the file lacks: the input row plus `similarity`."""
        refuse_twice(self.rows, "id", [str(row.id) for row in self.rows])
        questions = [
            Question(
                row=row.fields, where=row.where, text=TEXT, images=(ImageFile(self.img_path, row.image, row.where),)
            )
            for row in self.rows
        ]
        blocks = plan_blocks(questions, self._batch_size * BATCHES_PER_BLOCK)

        def work(todo: Sequence[int], bar: Progress, counts: Counts) -> Iterator[Done]:
            counts["pictures"] = 0
            shares = [self._shares(blocks[block].start, blocks[block].stop) for block in todo]
            columns = (Column((share,)) for of_block in shares for share in of_block)
            ahead = prepared_ahead(columns, questions, self.loaded.processor, self._workers)
            with contextlib.closing(ahead):
                for of_block in shares:
                    done = Done([], [])
                    for share in of_block:
                        prepared = next(ahead)
                        done.failed.extend(prepared.failed)
                        for batch in prepared.batches:
                            done.rows.extend(self._measure(batch.numbers, batch.inputs))
                            counts["pictures"] += len(batch.numbers)
                        bar.add(len(share))
                    yield done

        return run_blocks(
            answer_file,
            [block.size for block in blocks],
            work,
            self.settings | data.settings,
            {**self.loaded.notes, **notes},
            bad_rows=data.bad_rows,
            options=options,
        )

    @property
    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        return 0 if self.loaded.device.type == "cpu" else 4

    def _shares(self, start: int, stop: int) -> list[tuple[int, ...]]:
        numbers = range(start, stop)
        return [tuple(numbers[at : at + self._batch_size]) for at in range(0, len(numbers), self._batch_size)]

    def _measure(self, numbers: Sequence[int], inputs: Mapping[str, torch.Tensor]) -> list[dict[str, Any]]:
        with torch.inference_mode():
            images = image_embeddings(self.loaded.model, on_device(self.loaded, inputs))
            return [
                {**self.rows[number].fields, "similarity": round(self._similarity(tokens, number), DIGITS)}
                for number, tokens in zip(numbers, images, strict=True)
            ]

    def _similarity(self, tokens: torch.Tensor, number: int) -> float:
        pool = POOLINGS[self.pooling]
        seen = pool(inject_global_context(tokens, self.lam).float())
        said = pool(caption_embeddings(self.loaded, self.rows[number].caption).float())
        return float(cosine_similarity(said, seen.to(said.device), dim=0))


def caption_embeddings(loaded: LoadedModel, caption: str) -> torch.Tensor:
    """The decoder's input embeddings [T, D] of a bare caption, as the processor tokenizes it (no chat template)."""
    ids = torch.as_tensor(loaded.processor.tokenizer(caption)["input_ids"])
    embedding = loaded.model.get_input_embeddings()
    return embedding(ids.to(embedding.weight.device))


def pooling_named(name: str) -> str:
    """The name itself, or an InputError that lists the poolings."""
    if name not in POOLINGS:
        raise InputError(f"--pooling must be one of {', '.join(POOLINGS)}, but is {name!r}.")
    return name
