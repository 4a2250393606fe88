"""How the image tokens of a call divide into images: the rules that several kin share.

A *unit* is what the vision side encodes as one: an image, or a tile of one. A family says how many tokens each unit
has (`Lengths`); where an image is several units with separators between them, it also says which gaps between runs of
image tokens lie within an image (`Inside`). No processor is at hand: a rule sees the token ids of one row, or numbers
that are equal where tokens are.
"""

from collections.abc import Sequence
from typing import Any

from transformers_agci.families.declaration import ForwardCall, ImageTokens, RowOfRuns

# --- how many tokens a unit has ------------------------------------------------------------------------------------


def by_runs(config: Any, call: ForwardCall, total: int) -> None:
    """A contiguous run of image tokens is one unit: the prompt puts marks around it."""


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


# --- which gaps lie within an image --------------------------------------------------------------------------------

LONGEST_SEPARATOR = 24  # tokens; "<|img_row_10_col_10|>" spelled in bytes has 21


def until_end_mark(row: RowOfRuns) -> list[bool]:
    """An end mark follows each image: it is the token behind the last run of the row, and lies in no image.

    Llama 4, one image of two tiles and its whole, then a small one; S start, X and Y separators, G whole, E end:

        S [tile] X [tile] Y G [whole] E  S G [whole] E
                 ^        ^              ^ gaps: X | Y G | E S G
    The row ends with E, so the gap E S G lies between two images, and the other gaps within one.
    """
    end = row.behind[0]
    return [0 < len(gap) <= LONGEST_SEPARATOR and end not in gap for gap in row.gaps]


def until_mark_returns(row: RowOfRuns) -> list[bool]:
    """As `until_end_mark`, where each tile of an image has a mark of its own before it: none comes twice in an image.

    Aya: S TILE_1 [tile] TILE_2 [tile] TILE_GLOBAL [whole] E; a small image is S TILE_GLOBAL [whole] E.
    """
    inside, seen = [], set[tuple[int, ...]]()
    for gap, closed in zip(row.gaps, until_end_mark(row), strict=True):
        within = closed and tuple(gap) not in seen
        seen = seen | {tuple(gap)} if within else set()
        inside.append(within)
    return inside


def between_fakes(row: RowOfRuns) -> list[bool]:
    """A fake token F stands before every tile's mark and behind the last tile: once within an image, twice between two.

    Idefics3, an image of 1 x 2 tiles and its whole G, then a small one; N is a line break (one token or two):

        F R1C1 [tile] F R1C2 [tile] N N F G [whole] F  F G [whole] F
                      ^             ^               ^ gaps: F R1C2 | N N F G | F F G
    """
    fake, seen, inside = row.behind[0], set[tuple[int, ...]](), []
    for gap in row.gaps:
        within = gap.count(fake) == 1 and len(gap) <= LONGEST_SEPARATOR and tuple(gap) not in seen
        seen = seen | {tuple(gap)} if within else set()
        inside.append(within)
    return inside


def line_breaks(row: RowOfRuns) -> list[bool]:
    """One line break behind every tile, the last one included: S [tile] L [tile] L [whole] L E (Cohere 2)."""
    return [len(gap) == 1 and gap[0] == row.behind[0] for gap in row.gaps]


def tile_marks_at_start(row: RowOfRuns) -> list[bool]:
    """Every image begins with the same fake token and tile mark, as the row's first one does (Granite-Docling).

    F R1C1 [tile] F R1C2 [tile] N N F G [whole] F  F R1C1 [tile] N
                  ^             ^                  ^ gaps: F R1C2 | N N F G | F F R1C1
    """
    first = tuple(row.before[-2:])
    return [
        0 < len(gap) <= LONGEST_SEPARATOR and first[0] in gap and tuple(gap[-2:]) != first if len(first) == 2 else False
        for gap in row.gaps
    ]


def visual_indicators(row: RowOfRuns) -> list[bool]:
    """One indicator stands between the views of an image, G behind the whole and C, R between tiles (Ovis 2).

    S [whole] G [tile] C [tile] E  S [whole] G E
              ^        ^        ^ gaps: G | C | E S
    """
    return [len(gap) == 1 for gap in row.gaps]


ROW_SEPARATOR = 3  # tokens at most between two rows of one image: Molmo 2's column token, end and start


RUNS = ImageTokens(by_runs)
GRID = ImageTokens(by_grid)
EQUAL = ImageTokens(equal_shares)
