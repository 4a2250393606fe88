"""How the image tokens of a call divide into images: the rules that several kin share.

A *unit* is what the vision side encodes as one: an image, or a tile of one. A family says how many tokens each unit
has (`Lengths`); where an image is several units with separators between them, it also says which gaps between runs of
image tokens lie within an image (`Inside`). No processor is at hand: a rule sees the token ids of one row, or numbers
that are equal where tokens are.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from transformers_agci.families.declaration import ForwardCall, ImageTokens, RowOfRuns
from transformers_agci.families.special_tokens import token_ids

# --- how many tokens a unit has ------------------------------------------------------------------------------------


def by_grid(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """image_grid_thw says the patches of each image, a square of which is merged into a token."""
    if call.image_grid_thw is None:
        return encoded_lengths(call)
    merged = config.vision_config.spatial_merge_size**2  # patches per image token
    lengths: list[int] = (call.image_grid_thw.prod(dim=-1) // merged).tolist()
    return lengths


def equal_shares(config: Any, call: ForwardCall, total: int) -> Sequence[int]:
    """All units of the call have the same number of tokens."""
    units = len(call.pixel_values if call.encoded is None else _features(call.encoded))
    return [total // units] * units


def _features(encoded: Any) -> Any:
    """One entry per unit; Llama 4 projects its features after they are encoded and pools none."""
    pooled = getattr(encoded, "pooler_output", None)
    return encoded.last_hidden_state if pooled is None else pooled


def encoded_lengths(call: ForwardCall) -> Sequence[int] | None:
    """What `get_image_features` returned, one entry per unit, as far as the call carries it."""
    return None if call.encoded is None else [len(features) for features in call.encoded.pooler_output]


def pairs(sizes: Any) -> list[tuple[int, int]]:
    """(height, width) of each image, however the processor hands them over."""
    return [(int(height), int(width)) for height, width in (sizes if isinstance(sizes, list) else sizes.tolist())]


def per_tile(config: Any, call: ForwardCall, total: int) -> Sequence[int] | None:
    """Idefics3's kin: all tiles of a call are of one size, and squares of their patches are merged into a token.

    364 pixels, patches of 14, scale_factor 2: (26 // 2) * (26 // 2) = 169 tokens.
    """
    if call.arguments.get("tile_fine_mask") is not None:  # Granite-Docling: four times as many in some tiles
        return None
    vision = config.vision_config
    sides = [vision.image_size] * 2 if call.encoded is not None else call.pixel_values.shape[-2:]
    height, width = (side // vision.patch_size for side in sides)
    tokens = height * width // getattr(config, "scale_factor", getattr(vision, "scale_factor", 1)) ** 2
    if total % tokens and call.encoded is not None:
        return encoded_lengths(call)
    return [tokens] * (total // tokens)


# --- which gaps lie within an image --------------------------------------------------------------------------------

LONGEST_SEPARATOR = 24  # tokens; "<|img_row_10_col_10|>" spelled in bytes has 21
LEAST_UNITS = 3  # of an image that is cut: two tiles and the whole


def framed_by(*texts: str) -> Callable[[Any], Sequence[int]]:
    """`ImageTokens.frame` of a family whose marks are these special tokens, where the checkpoint has a tokenizer."""
    return lambda config: token_ids(config, texts)


def check_frames(row: RowOfRuns, inside: Sequence[bool]) -> None:
    """Where the ids of the marks around an image are known: raise ValueError unless they say the same as `inside`."""
    if len(set(row.frame)) < 2:
        return
    begin, end = row.frame
    opened = False  # whether the mark before an image is the last one so far
    for number, text in enumerate([row.before, *row.gaps, row.behind]):
        marks = [token for token in text if token in row.frame]
        if 0 < number <= len(inside) and inside[number - 1]:
            fits = opened and not marks
        else:
            touch = 0 < number <= len(inside) and not text  # crops whose image has lost its marks
            fits = number == 0 or (opened == (marks[:1] == [end]) and not touch)
            opened = marks[-1:] == [begin]
        if not fits:
            raise ValueError(
                f"AGCI cannot tell which runs of image tokens are one image: the marks of {begin} and {end} (token "
                "ids), which the family's processor writes around every image, do not stand around these. Give the "
                "prompt as that processor writes it."
            )


def until_end_mark(row: RowOfRuns) -> list[bool]:
    """An end mark follows each image: it is the token behind the last run of the row, and lies in no image.

    Llama 4, one image of two tiles and its whole, then a small one; S start, X and Y separators, G whole, E end:

        S [tile] X [tile] Y G [whole] E  S G [whole] E
                 ^        ^              ^ gaps: X | Y G | E S G
    The row ends with E, so the gap E S G lies between two images, and the other gaps within one.
    """
    end = _token_behind(row)
    inside = [0 < len(gap) <= LONGEST_SEPARATOR and not {end, *row.frame} & set(gap) for gap in row.gaps]
    if end not in row.frame:
        _check_tiles(row, inside, _are_in_a_grid)
    return inside


def _are_in_a_grid(opening: Sequence[int], gaps: Sequence[Sequence[int]], closing: Sequence[int]) -> bool:
    """X between the tiles of a row, Y behind each row, and before the whole a mark of its own."""
    if [len(gap) for gap in gaps] != [1] * (len(gaps) - 1) + [2]:
        return False
    separators = [gap[0] for gap in gaps]
    columns = separators.index(separators[-1]) + 1
    row, rows = separators[:columns], len(separators) // columns
    return separators == row * rows and len(set(row[:-1])) < 2


def until_mark_returns(row: RowOfRuns) -> list[bool]:
    """As `until_end_mark`, where each tile of an image has a mark of its own before it: none comes twice in an image.

    Aya: S TILE_1 [tile] TILE_2 [tile] TILE_GLOBAL [whole] E; a small image is S TILE_GLOBAL [whole] E.
    """
    return _marked_tiles(row, [True] * len(row.gaps))


def squares_until_mark_returns(row: RowOfRuns) -> list[bool]:
    """As `until_mark_returns`, where the tiles of an image are equal squares and only the last one differs (LFM2-VL).

    Units without anything between them are images, unless they could be tiles: then nothing tells.
    """
    sizes = row.lengths
    for gap, (before, after) in zip(row.gaps, pairwise(sizes), strict=True):
        if not gap and before == after and _is_square(before):
            raise ValueError(
                f"Two squares of {before} image tokens each stand side by side with nothing between them: AGCI cannot "
                "tell tiles of one image from images. Leave the processor's use_image_special_tokens on."
            )
    behind_two = [False, *(a == b for a, b in pairwise(sizes))]  # of each gap, whether two equal units end there
    return _marked_tiles(
        row, [_is_square(a) and (a == b or two) for (a, b), two in zip(pairwise(sizes), behind_two, strict=False)]
    )


def _is_square(number: int) -> bool:
    return math.isqrt(number) ** 2 == number


def _marked_tiles(row: RowOfRuns, possible: Sequence[bool]) -> list[bool]:
    """`possible`: for every gap, whether the units beside it may be tiles of one image."""
    end, inside, seen = _token_behind(row), [], set[tuple[int, ...]]()
    for gap, fits in zip(row.gaps, possible, strict=True):
        within = fits and 0 < len(gap) <= LONGEST_SEPARATOR and end not in gap and tuple(gap) not in seen
        seen = seen | {tuple(gap)} if within else set()
        inside.append(within)
    _check_tiles(row, inside, _are_spelled_alike)
    return inside


def _are_spelled_alike(opening: Sequence[int], gaps: Sequence[Sequence[int]], closing: Sequence[int]) -> bool:
    """Whether these may be marks of tiles, as there is one before the first tile, and one of the image before that.

    A token each, or several that begin with the same one (<row_1_col_2>).
    """
    if all(len(gap) == 1 for gap in gaps):
        return len(opening) > 1
    return len({gap[0] for gap in gaps}) == 1 and gaps[0][0] in opening[1:][-LONGEST_SEPARATOR:]


def _token_behind(row: RowOfRuns) -> int:
    if not row.behind:
        raise ValueError(
            "This prompt ends with an image token, so that its images cannot be told apart: give the whole prompt, "
            "with what the processor writes behind an image."
        )
    return row.behind[0]


# The text before an image, the gaps within it, the text behind it -> whether these may be a family's separators.
Likely = Callable[[Sequence[int], Sequence[Sequence[int]], Sequence[int]], bool]


def _check_tiles(row: RowOfRuns, inside: Sequence[bool], likely: Likely) -> None:
    """Raise ValueError where gaps taken for separators do not look like a family's, as in a prompt written by hand."""
    opening: Sequence[int] = row.before
    within: list[Sequence[int]] = []
    for gap, joined in [*zip(row.gaps, inside, strict=True), (row.behind, False)]:
        if joined:
            within.append(gap)
            continue
        if within and (len(within) + 1 < LEAST_UNITS or not likely(opening, within, gap)):
            raise _unclear(within)
        opening, within = gap, []


def _unclear(gaps: Sequence[Sequence[int]]) -> ValueError:
    return ValueError(
        f"AGCI cannot tell whether {len(gaps) + 1} runs of image tokens with {len(gaps[0])} other token(s) between "
        "them are tiles of one image or images: give the prompt as the family's processor writes it, with its marks "
        "around every image."
    )


def _check_apart(row: RowOfRuns, inside: Sequence[bool], mark: int) -> None:
    """Raise ValueError where gaps without the family's mark share a token, as those between tiles do.

    Words that images stand between are other ones each time; tiles whose image has lost its marks are not.
    """
    for (a, b), joined in zip(pairwise(row.gaps), pairwise(inside), strict=True):
        if not any(joined) and mark not in (*a, *b) and max(len(a), len(b)) <= LONGEST_SEPARATOR and set(a) & set(b):
            raise _unclear([a, b])


def between_fakes(row: RowOfRuns) -> list[bool]:
    """A fake token F stands before every tile's mark and behind the last tile: once within an image, twice between two.

    Idefics3, an image of 1 x 2 tiles and its whole G, then a small one; N is a line break (one token or two):

        F R1C1 [tile] F R1C2 [tile] N N F G [whole] F  F G [whole] F
                      ^             ^               ^ gaps: F R1C2 | N N F G | F F G
    """
    fake, seen, inside = row.frame[0] if row.frame else _token_behind(row), set[tuple[int, ...]](), []
    for gap in row.gaps:
        within = gap.count(fake) == 1 and len(gap) <= LONGEST_SEPARATOR and tuple(gap) not in seen
        seen = seen | {tuple(gap)} if within else set()
        inside.append(within)
    _check_tiles(row, inside, lambda opening, gaps, closing: _are_faked(fake, opening, gaps) and fake in closing[:1])
    _check_apart(row, inside, fake)
    return inside


def _are_faked(fake: int, opening: Sequence[int], gaps: Sequence[Sequence[int]]) -> bool:
    """F and a mark before every tile, and line breaks only before F: one behind each row, and more before the whole."""
    if fake not in opening[-LONGEST_SEPARATOR:-1] or any(gap[-1] == fake for gap in gaps):
        return False
    *rows, last = [list(gap[: gap.index(fake)]) for gap in gaps]
    return 0 < len(last) <= LINE_BREAKS and last not in rows and all(len(breaks) <= LINE_BREAKS for breaks in rows)


LINE_BREAKS = 2  # tokens at most


def line_breaks(row: RowOfRuns) -> list[bool]:
    """One line break behind every tile, the last one included: S [tile] L [tile] L [whole] L E (Cohere 2)."""
    end = _token_behind(row)
    inside = [len(gap) == 1 and gap[0] == end for gap in row.gaps]
    _check_tiles(row, inside, lambda opening, gaps, closing: _are_marks(row, [row.before[-1:], row.behind[:1]]))
    for (a, b), joined in zip(pairwise(row.gaps), pairwise(inside), strict=True):
        if len(a) == 1 and a == b and not any(joined):
            raise _unclear([a, b])
    return inside


def tile_marks_at_start(row: RowOfRuns) -> list[bool]:
    """Every image begins with the same fake token and tile mark, as the row's first one does (Granite-Docling).

    F R1C1 [tile] F R1C2 [tile] N N F G [whole] F  F R1C1 [tile] N
                  ^             ^                  ^ gaps: F R1C2 | N N F G | F F R1C1
    """
    first = list(row.before[-2:])
    fake = (*row.frame, *first, -1)[0]
    if len(first) < 2 or (first[0] != fake and any(fake in gap for gap in row.gaps)):
        raise _unclear(row.gaps)
    inside = [0 < len(gap) <= LONGEST_SEPARATOR and fake in gap and list(gap[-2:]) != first for gap in row.gaps]
    _check_tiles(row, inside, lambda opening, gaps, closing: _are_faked(fake, opening, gaps))
    _check_apart(row, inside, fake)
    return inside


def visual_indicators(row: RowOfRuns) -> list[bool]:
    """One indicator stands between the views of an image, G behind the whole and C, R between tiles (Ovis 2).

    S [whole] G [tile] C [tile] E  S [whole] G E
              ^        ^        ^ gaps: G | C | E S
    """
    closing = [token for token in row.behind[:2] if token in row.marks]  # E, or G E
    ends = {*row.before[-1:], *closing[-1:]}
    inside = [len(gap) == 1 and (not row.marks or gap[0] in row.marks) and gap[0] not in ends for gap in row.gaps]
    _check_tiles(row, inside, lambda opening, gaps, closing: True)
    return inside


def between_marks(row: RowOfRuns) -> list[bool]:
    """Units that touch are parts of one image where the same two marks stand around every run (GOT-OCR2, Aria).

    S [crop] [crop] E  S [crop] E      two images, of two crops and of one
    [crop] [crop] text                 two images: their template would have put marks around one of two crops
    """
    edges = [row.before[-1:], *(gap for gap in row.gaps if gap), row.behind]
    framed = {(tuple(a[-1:]), tuple(b[:1])) for a, b in pairwise(edges)}
    marked = len(framed) == 1 and len(row.before) > 0 and row.before[-1] not in row.marks
    inside = [marked and not gap for gap in row.gaps]
    if any(inside) and not _are_marks(row, [row.before[-1:], row.behind[:1]]):
        raise ValueError(
            "AGCI cannot tell whether runs of image tokens that touch are crops of one image or images: the tokens "
            "around them are no marks, for they are equal or stand elsewhere, too. Give the prompt as the family's "
            "processor writes it, with its marks around every image."
        )
    return inside


def _are_marks(row: RowOfRuns, marks: Sequence[Sequence[int]]) -> bool:
    """Whether these stand beside image tokens only, as special tokens of a processor do and words do not."""
    first, last = marks
    if not first or not last or first == last or first[0] in row.marks:
        return False
    texts = [list(row.before), *map(list, row.gaps), list(row.behind)]
    away = [*texts[0][:-1], *(token for text in texts[1:-1] for token in text[1:-1]), *texts[-1][1:]]
    return not {first[0], last[0]} & set(away)


def slices_behind_whole(row: RowOfRuns) -> list[bool]:
    """A mark B stands before every whole image, another one, C, before every slice of it (MiniCPM); N is a line break.

    B [whole] E C [slice] F C [slice] F N C [slice] F  B [whole] E
              ^           ^           ^                ^ gaps: E C | F C | F N C | F B
    Where the config does not say C, an image is cut into two slices at least, and E differs from F.
    """
    if row.marks:
        return [len(gap) in _BEFORE_SLICE and gap[-1] in row.marks for gap in row.gaps]
    begin = tuple(row.before[-1:])
    inside = [len(gap) in _BEFORE_SLICE and tuple(gap[-1:]) != begin for gap in row.gaps]
    _check_tiles(row, inside, _are_before_slices)
    return inside


_BEFORE_SLICE = (2, 3)  # tokens


def _are_before_slices(opening: Sequence[int], gaps: Sequence[Sequence[int]], closing: Sequence[int]) -> bool:
    first, *others = gaps
    same = len({gap[-1] for gap in gaps}) == 1 and {gap[0] for gap in others} == set(closing[:1])
    return same and len(first) == 2 and first[0] != others[0][0]


ROW_SEPARATOR = 3  # tokens at most between two rows of one image: Molmo 2's column token, end and start


def in_rows(config: Any) -> bool:
    """`ImageTokens.rows` of a family that always cuts its images into rows."""
    return True


TOUCHING = ImageTokens(equal_shares, touching=True, frame=framed_by("<img>", "</img>"))
GRID = ImageTokens(by_grid)
EQUAL = ImageTokens(equal_shares)
