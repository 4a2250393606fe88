"""Where the tokens of each image stand in the sequences of one forward call.

An image is a set of positions of one row: one run of image tokens, or several with other tokens between them (tiles
with separators, rows with breaks). Its tokens are counted off the runs by the lengths that the family knows.

LLaVA, rows of two prompts, T text and I image tokens; the images have 3 tokens each:

    row 0   T I I I I I I T     one run of 6 = images at 1-3 and 4-6 (nothing stands between them)
    row 1   T T I I I T T T     one run of 3 = the image at 2-4

Pixtral, an image of 2 x 3 tokens with a break token B behind each row: T I I I B I I I B T. The runs have 3 tokens, the
image 6: positions 1, 2, 3, 5, 6, 7.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

from transformers_agci.families import Family, ForwardCall, image_token_id
from transformers_agci.families.declaration import Inside, RowOfRuns
from transformers_agci.families.image_tokens import ROW_SEPARATOR, check_frames


class Run(NamedTuple):
    """Tokens start..stop-1 of a row."""

    start: int
    stop: int


@dataclass(frozen=True)
class ImagePositions:
    """The tokens of one image: runs of row `row`, in order."""

    row: int
    runs: tuple[Run, ...]

    def __len__(self) -> int:
        return sum(run.stop - run.start for run in self.runs)

    def index(self, device: torch.device | str = "cpu") -> torch.Tensor:
        """[N] the positions in the row."""
        return torch.cat([torch.arange(run.start, run.stop, device=device) for run in self.runs])

    def take(self, embeds: torch.Tensor) -> torch.Tensor:
        """[B, S, D] -> [N, D]; a view where the image is one run."""
        if len(self.runs) == 1:
            return embeds[self.row, self.runs[0].start : self.runs[0].stop]
        return embeds[self.row].index_select(0, self.index(embeds.device))

    def put(self, embeds: torch.Tensor, tokens: torch.Tensor) -> None:
        """Write tokens [N, D] into embeds [B, S, D]."""
        written = 0
        for run in self.runs:
            count = run.stop - run.start
            embeds[self.row, run.start : run.stop] = tokens[written : written + count]
            written += count


def image_token_mask(vlm: Any, call: ForwardCall) -> torch.Tensor:
    """[B, S] bool, true at image tokens.

    With inputs_embeds in place of ids an image token is a row equal to the image token's embedding, as stock finds it.
    """
    token_id = image_token_id(vlm.config)
    if call.input_ids is not None:
        mask: torch.Tensor = call.input_ids == token_id
        return mask
    if call.inputs_embeds is None:
        raise ValueError("Give input_ids or inputs_embeds along with the images.")
    embeds = call.inputs_embeds
    marker = vlm.get_input_embeddings()(torch.tensor(token_id, device=embeds.device))
    equal: torch.Tensor = (embeds == marker).all(dim=-1)
    return equal


def image_positions(vlm: Any, family: Family, call: ForwardCall, mask: torch.Tensor) -> list[ImagePositions]:
    """The images of a call in the order of their tokens, images that the attention mask hides left out.

    Raises:
        ValueError: the tokens do not divide into the images of the call, or an image is cut by chunked prefill.
    """
    _check_images_whole(call)
    rows = _runs(mask)
    total = sum(run.stop - run.start for runs in rows.values() for run in runs)
    lengths = family.images.lengths(vlm.config, call, total) if total else None
    units: dict[int, list[Unit]] = {row: [(run,) for run in runs] for row, runs in rows.items()}
    if lengths is not None:
        units = _count_off(rows, lengths, family.images.rows(vlm.config))
    if family.images.touching:
        merged = {row: _touching(found) for row, found in units.items()}
        _check_touching(call, units, merged, family.images.frame(vlm.config))
        units = merged
    several = [row for row, found in units.items() if len(found) > 1]
    if family.images.inside is not None and several:
        known = Marks(family.images.marks(vlm.config), family.images.frame(vlm.config))
        tokens = _token_numbers(vlm, call, several, [*known.around, *known.frame])
        units |= {row: _join(units[row], family.images.inside, tokens[row], known) for row in several}
    images = [ImagePositions(row, runs) for row, found in units.items() for runs in found]
    return _visible(images, call, mask.shape[1])


def _runs(mask: torch.Tensor) -> dict[int, list[Run]]:
    """Row -> its runs of image tokens, in order; rows without any are not there.

    Padded with False at both ends, a row changes where a run begins and where it ends, in turn:
    False [T I I T I] False -> changes before columns 1, 3, 4 and 5 -> runs 1..3 and 4..5.
    """
    padded = nn.functional.pad(mask, (1, 1))
    edges = (padded[:, 1:] != padded[:, :-1]).nonzero().tolist()  # (row, column)
    rows: dict[int, list[Run]] = {}
    for (row, start), (_, stop) in zip(edges[::2], edges[1::2], strict=True):
        rows.setdefault(row, []).append(Run(start, stop))
    return rows


Unit = tuple[Run, ...]


def _count_off(rows: dict[int, list[Run]], lengths: Sequence[int], cut_into_rows: bool) -> dict[int, list[Unit]]:
    """Row -> units: runs cut by the lengths of the units, and put together where a unit is cut into rows."""
    units: dict[int, list[Unit]] = {row: [] for row in rows}
    remaining = iter(lengths)
    for row, runs in rows.items():
        parts: list[Run] = []  # of the unit at hand
        missing = 0  # how many of its tokens are still to come
        for run in runs:
            if missing and (not cut_into_rows or run.start - parts[-1].stop > ROW_SEPARATOR):
                raise _mismatch(rows, lengths)
            start = run.start
            while start < run.stop:
                if not missing:
                    missing = next(remaining, 0)
                    if missing <= 0:
                        raise _mismatch(rows, lengths)
                stop = min(run.stop, start + missing)
                parts.append(Run(start, stop))
                missing -= stop - start
                start = stop
                if not missing:
                    units[row].append(tuple(parts))
                    parts = []
        if missing:
            raise _mismatch(rows, lengths)
    if next(remaining, None) is not None:
        raise _mismatch(rows, lengths)
    return units


def _touching(units: list[Unit]) -> list[Unit]:
    """Units of a row put together where nothing stands between them."""
    images = units[:1]
    for unit in units[1:]:
        if images[-1][-1].stop == unit[0].start:
            images[-1] = (*images[-1][:-1], Run(images[-1][-1].start, unit[0].stop), *unit[1:])
        else:
            images.append(unit)
    return images


def _check_touching(
    call: ForwardCall, units: dict[int, list[Unit]], images: dict[int, list[Unit]], frame: Sequence[int]
) -> None:
    """Raise ValueError where units were put together and the marks around an image, if known, are not around them."""
    ids = call.input_ids
    if ids is None or len(frame) < 2:
        return
    alone = {unit for found in units.values() for unit in found}
    for row, image in ((row, image) for row, found in images.items() for image in found if image not in alone):
        around = [*ids[row, : image[0].start][-1:].tolist(), *ids[row, image[-1].stop :][:1].tolist()]
        if around != list(frame):
            raise ValueError(
                f"AGCI cannot tell whether {len(range(image[0].start, image[-1].stop))} image tokens in one run are "
                f"one image or several: the marks of {frame[0]} and {frame[1]} (token ids), which the family's "
                "processor writes around every image, do not stand around them. Give the prompt as that processor "
                "writes it."
            )


class Marks(NamedTuple):
    """Ids of tokens around image tokens, as far as they are known."""

    around: Sequence[int]  # `ImageTokens.marks`
    frame: Sequence[int]  # `ImageTokens.frame`


def _join(units: list[Unit], inside: Inside, tokens: Sequence[int], known: Marks) -> list[Unit]:
    """Units of a row put together into images, as the family reads the gaps between them."""
    gaps = [tokens[a[-1].stop : b[0].start] for a, b in pairwise(units)]
    behind = tokens[units[-1][-1].stop :]
    lengths = [sum(run.stop - run.start for run in unit) for unit in units]
    row = RowOfRuns(tokens[: units[0][0].start], gaps, behind, lengths, known.around, known.frame)
    joins = inside(row)
    check_frames(row, joins)
    images = [units[0]]
    for unit, joined in zip(units[1:], joins, strict=True):
        if joined:
            images[-1] += unit
        else:
            images.append(unit)
    return images


def _token_numbers(vlm: Any, call: ForwardCall, rows: Sequence[int], marks: Sequence[int]) -> dict[int, list[int]]:
    """Row -> its token ids; of embeddings, numbers that are equal where the embeddings are: the ids of marks, and
    negative ones for other tokens."""
    if call.input_ids is not None:
        found = call.input_ids[list(rows)].tolist()
    else:
        assert call.inputs_embeds is not None
        chosen = call.inputs_embeds.detach()[list(rows)]  # [rows, S, D]
        kinds, numbers = torch.unique(chosen.flatten(0, 1), dim=0, return_inverse=True)
        names = [-1 - number for number in range(len(kinds))]
        for mark in marks:
            embedding = vlm.get_input_embeddings()(torch.tensor(mark, device=kinds.device))
            for number in (kinds == embedding).all(dim=-1).nonzero().flatten().tolist():
                names[number] = mark
        found = [[names[number] for number in row] for row in numbers.view(chosen.shape[:2]).tolist()]
    return dict(zip(rows, found, strict=True))


def _mismatch(rows: dict[int, list[Run]], lengths: Sequence[int]) -> ValueError:
    runs = [run.stop - run.start for found in rows.values() for run in found]
    said = f"The image tokens of this call stand in runs of {_short(runs)}, "
    if sorted(runs) == sorted(lengths):
        return ValueError(
            f"{said}but its images have {_short(lengths)} tokens: they are not in the order of the prompts, and the "
            "model itself would show images to the wrong ones. generate() of transformers does that to GLM's with "
            "num_beams or num_return_sequences and several images in a prompt: leave these at 1, and sample by one "
            "call each."
        )
    return ValueError(
        f"{said}which do not divide into its images of {_short(lengths)} tokens. A chunked prefill or a truncated "
        "prompt can cut an image: leave prefill_chunk_size unset and keep every image whole."
    )


def _short(numbers: Sequence[int]) -> str:
    """The numbers as text, repetitions counted: 24 x 17, 576."""

    def parts() -> Iterator[str]:
        for number, group in groupby(numbers):
            count = len(list(group))
            yield f"{count} x {number}" if count > 3 else ", ".join([str(number)] * count)

    return f"[{', '.join(parts())}]"


def _check_images_whole(call: ForwardCall) -> None:
    if call.has_sliced_images:
        raise ValueError(
            "AGCI needs each image whole, but chunked prefill (prefill_chunk_size) cuts images: leave it unset."
        )


def _visible(images: list[ImagePositions], call: ForwardCall, length: int) -> list[ImagePositions]:
    """The images that are attended to; all, where the mask does not say so token by token.

    A training framework may give a text-only batch a dummy image that no token attends to.

    The mask [B, L] begins with the tokens in the cache. It ends with those of this call, or goes on for as long as a
    static cache is: with 3 tokens in a cache of 16 and 5 in this call, L is 8 or 16, and columns 3 to 7 are looked at.
    """
    mask, cache = call.attention_mask, call.cache
    if not images or not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        return images
    start = mask.shape[1] - length
    if start > 0 and (cache is None or hasattr(cache, "get_seq_length")):
        start = min(start, 0 if cache is None else int(cache.get_seq_length()))
    if start < 0 or len(mask) <= max(image.row for image in images):
        return images
    rows, columns = [image.row for image in images], [start + image.runs[0].start for image in images]
    firsts = (mask[rows, columns] != 0).tolist()
    return [image for image, visible in zip(images, firsts, strict=True) if visible]
