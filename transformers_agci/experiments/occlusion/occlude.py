"""Occlusion maps: which places of an image the answer depends on (the paper's "perception" of the vision encoder).

A white square hides one place of the image after another. The value of a place is the mean, over the answer's
tokens, of |raw logit on the masked image - raw logit on the original|; the map is divided by its maximum.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from transformers_agci.data.probe_rows import PROMPT, ProbeRow
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.defaults import OCCLUSION_TOKENS
from transformers_agci.experiments.forced_answer import Answered, ForcedAnswer
from transformers_agci.experiments.occlusion.files import SUMMARY_FIELDS, Occluded, write_image_files
from transformers_agci.experiments.occlusion.masks import (
    MASK,
    WHITE,
    Mask,
    Raster,
    as_tensor,
    one_colour,
    raster_on,
)
from transformers_agci.experiments.occlusion.painting import Painter, Painters, Processed
from transformers_agci.experiments.occlusion.window_reuse import reused_windows
from transformers_agci.experiments.positives import Positives, check_unique
from transformers_agci.inference.host_values import host_values
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prefetch import prefetched_in_threads
from transformers_agci.inference.progress import Counts, RunSummary
from transformers_agci.inference.questions import ImageFile, Question
from transformers_agci.inference.runner import BlockResult, Job, Output, Reporter, Results, RunOptions, Task, run
from transformers_agci.method.attach import agci
from transformers_agci.storage.result_lines import FailedRow

INFINITE = 1e5  # takes the place of an infinite difference
RESULTS = "occlusion.jsonl"  # in the output folder: which images are finished
BATCH_SIZE = {"cpu": 10, "cuda": 16}  # masked copies per forward call


@dataclass(frozen=True)
class MaskOptions:
    """Side of the masks and their distance in pixels, and their colour."""

    size: int = MASK
    stride: int = MASK
    colour: tuple[int, int, int] = WHITE


def files_name(row: ProbeRow) -> str:
    """What an image's files are called: its file name without suffix."""
    return PurePosixPath(row.image).stem


@dataclass
class OcclusionCounts(Counts):
    """What masking took."""

    forward_calls: int = 0
    masked_copies_run: int = 0
    masked_copies_painted: int = 0  # of them: painted where the model is, instead of going through the processor
    one_colour_crops_not_run: int = 0

    def note(self, crops: int, run: int, painted: bool) -> None:
        """An image of so many crops was done, of which so many were run."""
        self.masked_copies_run += run
        self.masked_copies_painted += run if painted else 0
        self.one_colour_crops_not_run += crops - run

    def details(self) -> list[str]:
        """Forward calls, and how many masked copies were run and were not."""
        return [
            counted(self.forward_calls, "forward call"),
            f"{self.masked_copies_run} masked copies run",
            f"{counted(self.one_colour_crops_not_run, 'crop')} of one colour not run",
        ]


@dataclass(frozen=True)
class OcclusionRun:
    """A model, the rows whose images are masked, and how. `lam` is the lambda of AGCI while it answers."""

    loaded: LoadedModel
    rows: Sequence[ProbeRow]
    img_path: Path
    masks: MaskOptions = MaskOptions()
    lam: float = 0.0
    batch_size: int | None = None
    max_new_tokens: int = OCCLUSION_TOKENS

    @property
    def settings(self) -> dict[str, Any]:
        """What a results folder must have been made with to go on."""
        return {
            "experiment": "occlusion",
            "model": dict(self.loaded.identity),
            "lambda": self.lam,
            "prompt": PROMPT,
            "mask_size": self.masks.size,
            "stride": self.masks.stride,
            "colour": list(self.masks.colour),
            "batch_size": self.batch,
            "max_new_tokens": self.max_new_tokens,
        }

    def write(self, output_dir: Path, data: Positives, notes: Mapping[str, Any], options: RunOptions) -> RunSummary:
        """Mask every image that the folder lacks; an image is the unit of resuming.

        Raises InputError where two rows would write the same files.
        """
        check_unique(self.rows, "id", [str(row.id) for row in self.rows])
        check_unique(self.rows, "image name", [files_name(row) for row in self.rows])
        counts = OcclusionCounts()

        def work(tasks: Sequence[Task], reporter: Reporter) -> Results:
            with agci(self.loaded.model, self.lam):
                for task in tasks:
                    row = self.rows[task.block]
                    try:
                        occluded = self.occlude(row, counts)
                    except InputError as error:
                        yield BlockResult([[]], [FailedRow(task.block, row.where, str(error))])
                    else:
                        write_image_files(output_dir, files_name(row), occluded)
                        yield BlockResult([[occluded.summary]])
                    reporter.advance(1)

        drawn = {"rows": [row.id for row in self.rows]}
        job = Job(
            work,
            [row.fields for row in self.rows],
            [1] * len(self.rows),
            [Output(output_dir / RESULTS, self.settings | data.settings | drawn)],
            {**self.loaded.notes, **notes, "pictures": [files_name(row) for row in self.rows]},
            data.bad_rows,
            counts,
            unit="image",
            replaced=SUMMARY_FIELDS,
        )
        return run(job, options)

    def occlude(
        self, row: ProbeRow, counts: OcclusionCounts | None = None, progress: Callable[[float], None] | None = None
    ) -> Occluded:
        """The map of one row's image; InputError where image or answer do not allow one.

        `progress` is called with the share of the forward calls that are done, 0 to 1; what it raises ends the work.
        """
        counts = OcclusionCounts() if counts is None else counts

        def advance(share: float) -> None:
            counts.forward_calls += 1
            if progress is not None:
                progress(share)

        file = ImageFile(self.img_path, row.image, row.where)
        image = file.open()
        raster = raster_on(image, self.masks.size, self.masks.stride, row.where)
        pixels = as_tensor(image)
        masks = [mask for mask in raster.masks() if not one_colour(pixels, mask)]
        asked = ForcedAnswer(self.loaded, _question(row, file), self.max_new_tokens, self._painters.crossing)
        with host_values(self.loaded) or contextlib.nullcontext():
            alone = asked.inputs([pixels])
            answered = asked.answer(alone)
            shown = self._painters.of(asked, pixels, alone, self.masks.colour)
            with reused_windows(self.loaded.model, self.loaded.family, asked.on_device(shown.copies([None]))):
                logits = self._logits(asked, answered, shown, [None, *masks], advance)
        if bool(logits.isnan().any()):
            raise InputError(f"{row.where}: the model gives logits that are not numbers; try `dtype` float32.")
        counts.note(raster.rows * raster.cols, len(masks), shown.painted)
        return Occluded(
            row.fields,
            answered.text,
            answered.tokens,
            raster,
            self.masks.colour,
            logits[0].tolist(),
            _in_raster(raster, masks, logits[1:]),
            difference_map(raster, masks, logits),
            image,
        )

    @cached_property
    def _painters(self) -> Painters:
        return Painters(self.loaded)

    def _logits(
        self,
        asked: ForcedAnswer,
        answered: Answered,
        shown: Painter | Processed,
        masks: Sequence[Mask | None],
        advance: Callable[[float], None],
    ) -> torch.Tensor:
        """[len(masks), T] logits, in batches of one shape: in bfloat16 another batch shape alone moves a logit."""
        size = even_size(len(masks), self.batch)
        filled = [*masks, *[None] * (-len(masks) % size)]
        shares = [filled[at : at + size] for at in range(0, len(filled), size)]
        # The processor makes the next batches while a GPU is at work; a CPU has the model to run.
        at_once = shown.painted or self.loaded.device.type == "cpu"
        ready: Iterator[Any] = map(shown.copies, shares) if at_once else prefetched_in_threads(shares, shown.copies)
        made = []
        for each in ready:
            made.append(asked.logits(each, answered))
            advance(len(made) / len(shares))
        return torch.cat(made)[: len(masks)]

    @property
    def batch(self) -> int:
        """The most masked copies in a forward call."""
        return self.loaded.batch_size(self.batch_size, BATCH_SIZE)


def _question(row: ProbeRow, image: ImageFile) -> Question:
    return Question(row=row.fields, where=row.where, text=PROMPT.format(caption=row.caption), images=(image,))


def even_size(copies: int, most: int) -> int:
    """Copies per call of at most `most`, so that filling the last call up costs least: 401 by 16 is 31 calls of 13.

    >>> even_size(401, 16), even_size(82, 10), even_size(5, 16)
    (13, 7, 5)
    """
    sizes = range(max(1, min(most, copies) * 2 // 3), min(most, copies) + 1)
    return min(sizes, key=lambda size: (-(-copies // size) * size, -size))


def difference_map(raster: Raster, masks: Sequence[Mask], logits: torch.Tensor) -> np.ndarray:
    """[rows, cols] of mean |masked - original| over the answer's tokens; 0 where nothing was masked.

    `logits` [1 + len(masks), T]: the original image's first.
    """
    change = (logits[1:] - logits[0]).abs().mean(dim=1).double()
    change = change.masked_fill(change.isinf(), INFINITE)
    values = dict(zip(masks, change.tolist(), strict=True))
    return np.array([values.get(mask, 0.0) for mask in raster.masks()]).reshape(raster.rows, raster.cols)


def _in_raster(raster: Raster, masks: Sequence[Mask], logits: torch.Tensor) -> list[list[float] | None]:
    """The masked logits of every cell of the raster, row-major; None where the crop was one colour."""
    values = dict(zip(masks, logits.tolist(), strict=True))
    return [values.get(mask) for mask in raster.masks()]
