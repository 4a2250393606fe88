"""Sub-images that are drawn, not photographed: words, numbers and coloured shapes, right answers by construction.

They are drawn with numpy alone, letters from a bitmap of our own, so that no pixel depends on a font or a library.
"""

import random
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from transformers_agci.errors import InputError

Kind = Literal["words", "digits", "shapes"]
KINDS: tuple[Kind, ...] = ("words", "digits", "shapes")

_WORDS = """
anchor apple basket bottle bread bridge camera candle carpet chair cloud desert dinner doctor door eagle
effort energy engine field finger flower forest garden glass ground guitar hammer hand helmet honey insect
invite iron island jacket jewel jungle kettle kite knight ladder lamp lemon letter market mirror moon napkin
needle night number ocean office onion orange paper pencil planet pocket queen rabbit record river rocket
school silver stone sugar table ticket tunnel uncle valley velvet violin wagon water window winter yard yellow
zebra
"""
WORDS = tuple(_WORDS.split())
COLOURS = {
    "red": (214, 39, 40),
    "blue": (31, 92, 220),
    "green": (34, 150, 60),
    "yellow": (240, 200, 0),
    "purple": (130, 60, 180),
    "orange": (250, 130, 20),
    "pink": (245, 130, 190),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")


class Figure(NamedTuple):
    """What a cell shows: a text, or a shape in a colour."""

    caption: str
    text: str = ""
    shape: str = ""
    colour: str = "black"


@dataclass(frozen=True)
class RenderedItem:
    """A target, the distractors in their order, and a figure that is in none of the cells."""

    target: Figure
    distractors: tuple[Figure, ...]
    absent: Figure


def rendered_item(kind: Kind, item: int, seed: int, distractors: int) -> RenderedItem:
    """Item number `item`: a function of its arguments only.

    Of shapes, half of the distractors share the target's colour and half its shape, and the absent figure joins their
    other halves: among red circles and blue squares the red square is asked for, and the blue circle is not there.
    """
    rng = random.Random(f"agci rendered {kind} {seed} {item}")
    if kind == "shapes":
        colours, shapes = rng.sample(sorted(COLOURS), 2), rng.sample(SHAPES, 2)
        others = [_shape(colours[n % 2], shapes[1 - n % 2]) for n in range(distractors)]
        rng.shuffle(others)
        return RenderedItem(_shape(colours[0], shapes[0]), tuple(others), _shape(colours[1], shapes[1]))
    texts = list(WORDS) if kind == "words" else [str(number) for number in range(10, 100)]
    if distractors + 2 > len(texts):
        raise InputError(f"There are {len(texts)} {kind} only, too few for {distractors} distractors.")
    noun = "word" if kind == "words" else "number"
    target, *others, absent = (Figure(f"the {noun} {text}", text) for text in rng.sample(texts, distractors + 2))
    return RenderedItem(target, tuple(others), absent)


def _shape(colour: str, shape: str) -> Figure:
    article = "an" if colour[0] in "aeiou" else "a"
    return Figure(f"{article} {colour} {shape}", shape=shape, colour=colour)


def draw_figure(figure: Figure, side: int) -> Image.Image:
    """The figure in its colour on a white square of `side` px."""
    mask = _text_mask(figure.text, side) if figure.text else _shape_mask(figure.shape, side)
    ink, paper = np.array(COLOURS[figure.colour]), np.full((side, side, 3), 255)
    return Image.fromarray(np.where(mask[..., None], ink, paper).astype(np.uint8))


def _shape_mask(shape: str, side: int) -> np.ndarray:
    """[side, side] bool: the shape fills the middle 80 % of the square."""
    axis = (np.arange(side) + 0.5) / side * 2.5 - 1.25  # the shape reaches from -1 to 1
    x, y = axis[None, :], axis[:, None]
    square = x * x + y * y  # of the distance from the middle; sums and products are the same on every machine
    masks = {
        "circle": square <= 1,
        "ring": (square <= 1) & (square >= 0.3),
        "square": np.maximum(abs(x), abs(y)) <= 0.9,
        "diamond": abs(x) + abs(y) <= 1,
        "cross": (np.minimum(abs(x), abs(y)) <= 0.3) & (np.maximum(abs(x), abs(y)) <= 1),
        "triangle": (y <= 0.85) & (abs(x) <= (y + 0.95) / 1.8),
    }
    return masks[shape]


def _text_mask(text: str, side: int) -> np.ndarray:
    """[side, side] bool: the text in one line, as large as the longest word or number fits."""
    bitmap = np.concatenate([np.pad(_sign(sign), ((0, 0), (0, 1))) for sign in text], axis=1)[:, :-1]
    signs = 2 if text.isdigit() else max(map(len, WORDS))
    scale = max(1, int(0.86 * side / max(7, 6 * signs - 1)))
    enlarged = np.kron(bitmap, np.ones((scale, scale), dtype=bool))[:side, :side]
    top, left = (side - enlarged.shape[0]) // 2, (side - enlarged.shape[1]) // 2
    mask = np.zeros((side, side), dtype=bool)
    mask[top : top + enlarged.shape[0], left : left + enlarged.shape[1]] = enlarged
    return mask


def _sign(sign: str) -> np.ndarray:
    """[7, 5] bool."""
    return np.array([[pixel == "#" for pixel in row] for row in GLYPHS[sign]])


# Seven rows of five pixels, top to bottom.
_DRAWN = """
0 .###. #...# #..## #.#.# ##..# #...# .###.
1 ..#.. .##.. ..#.. ..#.. ..#.. ..#.. .###.
2 .###. #...# ....# ..##. .#... #.... #####
3 .###. #...# ....# ..##. ....# #...# .###.
4 ...#. ..##. .#.#. #..#. ##### ...#. ...#.
5 ##### #.... ####. ....# ....# #...# .###.
6 ..##. .#... #.... ####. #...# #...# .###.
7 ##### ....# ...#. ..#.. .#... .#... .#...
8 .###. #...# #...# .###. #...# #...# .###.
9 .###. #...# #...# .#### ....# ...#. .##..
a ..... ..... .###. ....# .#### #...# .####
b #.... #.... ####. #...# #...# #...# ####.
c ..... ..... .###. #.... #.... #...# .###.
d ....# ....# .#### #...# #...# #...# .####
e ..... ..... .###. #...# ##### #.... .###.
f ..##. .#..# .#... ###.. .#... .#... .#...
g ..... .#### #...# #...# .#### ....# .###.
h #.... #.... ####. #...# #...# #...# #...#
i ..#.. ..... .##.. ..#.. ..#.. ..#.. .###.
j ...#. ..... ..##. ...#. ...#. #..#. .##..
k #.... #.... #..#. #.#.. ##... #.#.. #..#.
l .##.. ..#.. ..#.. ..#.. ..#.. ..#.. .###.
m ..... ..... ##.#. #.#.# #.#.# #...# #...#
n ..... ..... ####. #...# #...# #...# #...#
o ..... ..... .###. #...# #...# #...# .###.
p ..... ..... ####. #...# ####. #.... #....
q ..... ..... .#### #...# .#### ....# ....#
r ..... ..... #.##. ##..# #.... #.... #....
s ..... ..... .#### #.... .###. ....# ####.
t .#... .#... ###.. .#... .#... .#..# ..##.
u ..... ..... #...# #...# #...# #..## .##.#
v ..... ..... #...# #...# #...# .#.#. ..#..
w ..... ..... #...# #...# #.#.# #.#.# .#.#.
x ..... ..... #...# .#.#. ..#.. .#.#. #...#
y ..... ..... #...# #...# .#### ....# .###.
z ..... ..... ##### ...#. ..#.. .#... #####
"""
GLYPHS = {line.split()[0]: line.split()[1:] for line in _DRAWN.strip().splitlines()}
