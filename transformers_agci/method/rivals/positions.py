"""Position ids of image tokens and of the text behind them, changed on their way into the decoder.

Stock's positions are kept wherever no image stands, so that padding, videos and later turns are stock's own affair:
only how far the text is moved forward is our number. It is kept on the cache, column by column, and later calls on that
cache, of one token or several, also after it was cropped, go on from there.

BaPA, one row of M-RoPE with an image of 2 x 3 tokens (height and width shown), t text:

    stock   t0 t1 (2,2) (2,3) (2,4) (3,2) (3,3) (3,4) t5 t6        the text goes on behind the largest
    ours    t0 t1 (2,2) (2,2) (2,2) (2,2) (2,2) (2,2) t3 t4
    moved   0  0    2     2     2     2     2     2    2  2         5 = 2 + 1 + 2: kept on the cache
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from transformers_agci.errors import CannotServe
from transformers_agci.families import Family, ForwardCall, decoder_of, family_of
from transformers_agci.families.token_layout import ImageInfo
from transformers_agci.method.image_positions import ImagePositions
from transformers_agci.method.rivals.declaration import Grid, PositionRule, Rival

_MOVED = "_agci_rival_moved"  # attribute of a cache: [B, L], by how much each column's text was moved forward


def rope_axes(config: Any) -> int:
    """How many numbers a position of this model's decoder has: 1, or 3 and more with M-RoPE."""
    text = config.get_text_config()
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    section = next((scaling[name] for name in ("mrope_section", "xdrope_section") if scaling.get(name)), None)
    return 1 if section is None else len(section)


def check_packing(rival: Rival, vlm: Any) -> None:
    """CannotServe where the attention backend would take equal positions for the starts of packed sequences."""
    attention = str(getattr(decoder_of(vlm).config, "_attn_implementation", ""))
    if rival.positions is not None and "flash" in attention and rope_axes(vlm.config) == 1:
        raise CannotServe(
            f"{rival.name} gives several tokens one position, from which {attention} would read packed sequences in "
            f"{family_of(vlm).name}: load the model with attn_implementation='sdpa' or 'eager'."
        )


def past_length(cache: Any) -> int:
    """The number of columns in a cache; 0 where there is none."""
    return int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0


def positions_of(given: torch.Tensor | None, rows: int, length: int, past: int, device: Any) -> torch.Tensor:
    """Stock's position ids as [axes, B, S] long, a copy; those that the decoder would count where none are given."""
    if given is None:
        given = torch.arange(past, past + length, device=device)
    if given.ndim < 3:
        given = given.reshape(1, -1, length)
    return given.expand(-1, rows, -1).clone()


def grid_of(image: ImagePositions, number: int, stock: torch.Tensor, vlm: Any, call: ForwardCall) -> Grid:
    """How the tokens of image `number` lie, from M-RoPE's positions [axes, B, S], the call's grids, or a square.

    Raises CannotServe where the image is no single grid of tokens.
    """
    count = len(image)
    place = image.row, image.index(stock.device)
    if stock.shape[0] == 3:
        high, wide = stock[1][place], stock[2][place]
        rows, cols = int(high.max() - high.min()) + 1, int(wide.max() - wide.min()) + 1
        if rows * cols == count:
            return Grid(rows, cols)
    family = family_of(vlm)
    found = _declared_grid(count, vlm, family, call, number)
    if found is None and len({run.stop - run.start for run in image.runs}) == 1 and len(image.runs) > 1:
        found = Grid(len(image.runs), count // len(image.runs))  # Pixtral: a break token behind each row
    if found is None:
        raise CannotServe(
            f"An image of {count} tokens is no single grid in {family.name}: where its rings lie is not defined. "
            "Take bapa or flat, or an image that is not cut into tiles."
        )
    return found


def _declared_grid(count: int, vlm: Any, family: Family, call: ForwardCall, number: int) -> Grid | None:
    """The grid that the family's own layout gives, where it is one grid of all the image's tokens."""
    if not callable(family.layout):
        return None
    patches = call.image_grid_thw
    thw = patches[number].tolist() if patches is not None and number < len(patches) else None
    try:
        grids = family.layout(ImageInfo(1, 1, count, vlm.config, None, thw))
    except (ValueError, AttributeError, TypeError):  # it needs the image's size or processor: no single grid
        grids = _square_of(vlm, count)
    if len(grids) != 1 or grids[0].first or grids[0].rows * grids[0].cols != count:
        return None
    return Grid(grids[0].rows, grids[0].cols)


def _square_of(vlm: Any, count: int) -> list[Any]:
    """The grid of an image squeezed or cropped into the vision tower's square."""
    from transformers_agci.families.token_layout import square

    vision = getattr(vlm.config, "vision_config", None)
    size, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if isinstance(size, int) and isinstance(patch, int) and (size // patch) ** 2 == count:
        return square(ImageInfo(1, 1, count, vlm.config, None))
    return []


class Placement:
    """The decoder's position ids of one call under a rule."""

    def __init__(self, rule: PositionRule, axes: int) -> None:
        self.rule, self.axes = rule, axes

    def placed(
        self,
        given: torch.Tensor | None,
        shape: tuple[int, int],
        cache: Any,
        images: Sequence[tuple[ImagePositions, Grid | None]],
        device: Any,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """New position ids in the form of `given` ([B, S] or [axes, B, S]), and the moves [B, S] to keep on the cache.

        None where nothing changes.
        """
        (rows, length), past = shape, past_length(cache)
        before = moved_before(cache, past, rows)
        if not images and before is None:
            return None, None
        stock = positions_of(given, rows, length, past, device)
        first = 1 if stock.shape[0] == self.axes + 1 else 0  # generate() puts the text's positions, for masks, first
        start = torch.zeros(rows, dtype=torch.long, device=device) if before is None else before.to(device)
        moved = start[:, None].repeat(1, length)
        changed = stock.clone()
        real = stock[first:]
        changed[first:] = real - moved
        for image, grid in images:
            self._place(image, grid, real, changed[first:], moved)
        return (changed if given is not None and given.ndim == 3 else changed[0]), moved

    def _place(
        self, image: ImagePositions, grid: Grid | None, stock: torch.Tensor, changed: torch.Tensor, moved: torch.Tensor
    ) -> None:
        """Write one image's positions, and move the text behind it; images are placed in order."""
        row, begin, end = image.row, image.runs[0].start, image.runs[-1].stop
        start = int(stock[0, row, begin] - moved[row, begin])
        offsets = torch.tensor(list(self.rule.offsets(len(image), grid)), device=stock.device)
        inside = torch.zeros(end - begin, dtype=torch.long, device=stock.device)
        inside[image.index(stock.device) - begin] = offsets
        for left, right in pairwise(image.runs):  # a mark between two rows or tiles stands where the token before does
            inside[left.stop - begin : right.start - begin] = inside[left.stop - begin - 1]
        changed[:, row, begin:end] = start + inside
        if self.rule.text_follows:
            behind = int(stock[:, row, begin:end].max()) + 1
            moved[row, begin:] = behind - (start + int(offsets.max()) + 1)
            changed[:, row, end:] = stock[:, row, end:] - moved[row, end:]


def moved_before(cache: Any, past: int, rows: int) -> torch.Tensor | None:
    """[rows] by how much the text that continues a cache of `past` columns is moved; None where it never was."""
    moved: torch.Tensor | None = getattr(cache, _MOVED, None)
    if moved is None or past == 0:
        return None
    last = moved[:, min(past, moved.shape[1]) - 1]
    return last if len(last) == rows else last.repeat_interleave(rows // len(last))


def keep_moved(cache: Any, moved: torch.Tensor, past: int) -> None:
    """Note the moves [B, S] of a call behind those of the `past` columns that were there."""
    if not hasattr(cache, "__dict__"):
        return
    found: torch.Tensor | None = getattr(cache, _MOVED, None)
    if past:
        earlier = torch.zeros(len(moved), past, dtype=moved.dtype, device=moved.device)
        if found is not None:
            known = found if len(found) == len(moved) else found.repeat_interleave(len(moved) // len(found), 0)
            width = min(past, known.shape[1])
            earlier[:, :width] = known[:, :width]
            earlier[:, width:] = known[:, width - 1 : width]
        moved = torch.cat([earlier, moved], dim=1)
    setattr(cache, _MOVED, moved)


def note_moved_on(output_cache: Any, moved: torch.Tensor) -> None:
    """Note the moves on a cache that the decoder made itself."""
    keep_moved(output_cache, moved, 0)


def carry_over(recorded: Any, cache: Any, rows: torch.Tensor, columns: int) -> None:
    """Note on a cache made of these rows and first columns of a recorded one what is noted there by row and column.

    That is every tensor [rows, columns] among its attributes: positions that a rival moved, a planted bias's rows.
    """
    for name, noted in list(vars(recorded).items()):
        if isinstance(noted, torch.Tensor) and noted.dim() == 2 and noted.shape[1] >= columns:
            setattr(cache, name, noted[rows.to(noted.device), :columns])
