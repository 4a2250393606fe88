"""Images decoded and prompts tokenized for the model: one column of batches at a time."""

import contextlib
import copy
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from transformers_agci.data.images import changes_of
from transformers_agci.errors import InputError
from transformers_agci.inference import prompt
from transformers_agci.inference.batches import Column, image_keys
from transformers_agci.inference.host_values import crossing
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prefetch import prefetched
from transformers_agci.inference.questions import Question
from transformers_agci.method.forward_call import keep_on_host
from transformers_agci.storage.result_lines import FailedRow

BYTES_CROSS_TO = ("cuda",)  # devices that normalise images themselves where they can
TOLERANCE = 1e-6
PIXELS = "pixel_values"
TRIAL_SIZES = ((56, 56), (170, 60), (60, 170), (400, 300))  # pixels: width, height
# What a processor makes of the text; everything else comes from the images and is the same for every question.
TEXT_KEYS = frozenset(
    {"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids"}
)  # as long as the prompt

Positions = Callable[[dict[str, torch.Tensor]], torch.Tensor]  # of the tokens of a batch, on the CPU


@dataclass(frozen=True)
class Batch:
    """One forward call: question numbers, their images' keys in order, and the text tensors [B, S]."""

    numbers: tuple[int, ...]
    images: tuple[Hashable, ...]
    text: dict[str, torch.Tensor]
    pixels: dict[str, torch.Tensor]  # shared by all batches about the same images
    positions: torch.Tensor | None = None  # [3, B, S] or [B, S], of the tokens within their prompts

    @property
    def padding(self) -> int:
        """How many tokens the shortest prompt lacks to the longest."""
        return int((self.text["attention_mask"] == 0).sum(dim=1).max())

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return {**self.text, **self.pixels}


@dataclass(frozen=True)
class Prepared:
    """The batches of a column, the rows that had to be omitted, and what had to be done to how many images."""

    batches: tuple[Batch, ...]
    failed: tuple[FailedRow, ...]
    image_changes: Counter[str] = field(default_factory=Counter)


def prepare(
    column: Column,
    questions: Sequence[Question],
    processor: Any,
    at: Callable[[int], None] = lambda number: None,
    positions: Positions | None = None,
) -> Prepared:
    """Decode, preprocess and tokenize a column; rows whose image or text is bad are omitted and named.

    `at` is called with the number of each question before its images are opened; `positions` numbers a batch's tokens.
    """
    opened: dict[Hashable, Image.Image] = {}
    failed: dict[int, FailedRow] = {}
    for number in (number for batch in column.batches for number in batch):
        at(number)
        reason = _open_images(questions[number], opened)
        if reason is not None:
            failed[number] = FailedRow(number, questions[number].where, reason)
    try:
        batches = _tokenize(column, failed, questions, opened, processor)
    except Exception:  # some row's image or text; processors raise what they like
        found = {
            number: _refusal(number, questions, opened, processor)
            for batch in column.batches
            for number in batch
            if number not in failed
        }
        wrong = {number: reason for number, reason in found.items() if reason is not None}
        if not wrong:
            raise
        failed |= {number: FailedRow(number, questions[number].where, reason) for number, reason in wrong.items()}
        batches = _tokenize(column, failed, questions, opened, processor)
    if positions is not None:
        batches = tuple(replace(batch, positions=positions(batch.inputs)) for batch in batches)
    changes = Counter(change for image in opened.values() for change in changes_of(image))
    return Prepared(batches, tuple(failed[number] for number in sorted(failed)), changes)


def _open_images(question: Question, opened: dict[Hashable, Image.Image]) -> str | None:
    """Put the question's images into `opened`; the reason if that fails."""
    try:
        for image in question.images:
            if image.key not in opened:
                opened[image.key] = image.open()
    except InputError as error:
        return str(error)
    return None


def _tokenize(
    column: Column,
    failed: dict[int, FailedRow],
    questions: Sequence[Question],
    opened: dict[Hashable, Image.Image],
    processor: Any,
) -> tuple[Batch, ...]:
    batches: list[Batch] = []
    once = processor  # for the images of the batch before
    for numbers in (tuple(n for n in batch if n not in failed) for batch in column.batches):
        if not numbers:
            continue
        asked = [questions[number] for number in numbers]
        keys = tuple(key for question in asked for key in image_keys(question.images))
        same = bool(batches) and batches[-1].images == keys
        if not same:
            once = prompt.images_once(processor) if keys else processor
        made = _call(asked, opened, once)
        pixels = batches[-1].pixels if same else {k: v for k, v in made.items() if k not in TEXT_KEYS}
        batches.append(Batch(numbers, keys, {k: v for k, v in made.items() if k in TEXT_KEYS}, pixels))
    return tuple(batches)


def _call(asked: Sequence[Question], opened: dict[Hashable, Image.Image], processor: Any) -> dict[str, torch.Tensor]:
    prompts = [prompt.chat_text(processor, question) for question in asked]
    images = [[opened[image.key] for image in question.images] for question in asked]
    return prompt.tokenize(processor, prompts, images)


def _refusal(
    number: int, questions: Sequence[Question], opened: dict[Hashable, Image.Image], processor: Any
) -> str | None:
    """Why this question cannot be asked even by itself, or None."""
    try:
        with prompt.refusal_named(questions[number].where):
            _call([questions[number]], opened, processor)
    except InputError as error:
        return str(error)
    return None


@contextlib.contextmanager
def prepared_ahead(
    columns: Sequence[Column],
    questions: Sequence[Question],
    processor: Any,
    workers: int,
    positions: Positions | None = None,
) -> Iterator[Iterator[Prepared]]:
    """`prepare` for each column, in order; with `workers` > 0 in that many processes, a bounded number ahead.

    A worker that dies is an InputError that names the row it was at.
    """

    def make(column: Column, at: Callable[[int], None]) -> Prepared:
        return prepare(column, questions, processor, at, positions)

    with prefetched(columns, make, workers, lambda row: questions[row].where) as ahead:
        yield ahead


# --- onto the device ---


def to_device(
    loaded: LoadedModel, tensors: Mapping[str, torch.Tensor], raw: "RawPixels | None" = None
) -> dict[str, torch.Tensor]:
    """A processor's tensors where the model is, pixels in its dtype; bytes are normalised there by `raw`."""
    dtype, moved = loaded.model.dtype, {}
    for name, value in tensors.items():
        if not isinstance(value, torch.Tensor):  # a list of numbers, as some processors give
            moved[name] = value
            continue
        there = crossing(value, loaded.device) if "pinned" in loaded.quick else value.to(loaded.device)
        if value.device.type == "cpu" != there.device.type and value.dtype == torch.long:
            keep_on_host(there, value)
        if raw is not None and there.dtype == torch.uint8:
            there = raw.normalise(there)
        moved[name] = there.to(dtype) if there.is_floating_point() else there
    return moved


@dataclass(frozen=True)
class RawPixels:
    """`processor` makes uint8 pixels; `normalise` makes of them, on any device, what the original processor makes."""

    processor: Any
    mean: tuple[float, ...]  # of the three channels, in grey levels from 0 to 255
    std: tuple[float, ...]
    _there: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = field(
        default_factory=dict, repr=False, kw_only=True
    )

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 [patches, channels * values] (Qwen) or [..., channels, height, width] -> float32 of that shape."""
        if pixels.device not in self._there:  # they cross once
            mean, std = (torch.tensor(of_channel, device=pixels.device) for of_channel in (self.mean, self.std))
            self._there[pixels.device] = (mean, std)
        mean, std = self._there[pixels.device]
        if pixels.dim() == 2:  # a patch has its channels one after the other
            mean, std = (of.repeat_interleave(pixels.shape[1] // len(of)) for of in (mean, std))
        else:
            mean, std = (of[:, None, None] for of in (mean, std))
        return (pixels.float() - mean) / std


def crossing_pixels(loaded: LoadedModel) -> RawPixels | None:
    """How images reach the model as bytes, a quarter of what floats take; None: they are normalised before."""
    asked = loaded.device.type in BYTES_CROSS_TO and "painting" in loaded.quick
    return raw_pixels(loaded.processor) if asked else None


def raw_pixels(processor: Any) -> RawPixels | None:
    """The processor that leaves normalising to the device, if that gives its own result.

    Tried on images of several shapes in one call, since some processors pad behind their normalising: where any value
    differs by more than 1e-6, or where the pixels are no bytes before it, None.
    """
    real = processor.image_processor
    factor, mean, std = (getattr(real, name, None) for name in ("rescale_factor", "image_mean", "image_std"))
    if not getattr(real, "do_normalize", False):
        mean, std = (0.0,) * 3, (1.0,) * 3
    if not (getattr(real, "do_rescale", False) and factor and mean and std):
        return None
    other = copy.copy(processor)
    other.image_processor = copy.copy(real)
    other.image_processor.do_rescale = other.image_processor.do_normalize = False
    found = RawPixels(other, *(tuple(value / factor for value in of) for of in (mean, std)))
    images = [_trial_image(number, *size) for number, size in enumerate(TRIAL_SIZES)]
    try:
        wanted, raw = (dict(each(images=images, return_tensors="pt"))[PIXELS] for each in (real, other.image_processor))
    except (TypeError, ValueError, KeyError):  # a processor with rules of its own keeps them
        return None
    if not isinstance(raw, torch.Tensor) or raw.dtype != torch.uint8 or raw.shape != wanted.shape:
        return None
    apart = (found.normalise(raw) - wanted).abs().max()
    return found if float(apart) <= TOLERANCE else None


def _trial_image(seed: int, width: int, height: int) -> Image.Image:
    noise = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(noise.numpy())
