"""Which pairs of a source are fit for a data set: images whole, of usable size and shape, nothing twice."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from transformers_agci.data.composites import fit
from transformers_agci.data.grid import Grid
from transformers_agci.data.images import TooLarge, as_rgb, decode_image, turned_upright
from transformers_agci.data.sources import Pair
from transformers_agci.errors import InputError, short

MIN_SIDE = 64  # pixels
MAX_ASPECT = 10  # longer side / shorter side; beyond it a cell shows a strip of less than 27 px
NEAR_BITS = 5  # of the 64 bits of the difference hash
NEAR_LEVELS = 10  # of the 256 brightness levels, for every colour of the 8x8 miniature
FLAT_LEVELS = 2  # neighbours closer than this count as equal: JPEG noise on a plain ground is no pattern

# 16-bit number -> how many of its bits are 1
_BITS = np.array([number.bit_count() for number in range(1 << 16)], dtype=np.uint8)


class Fingerprint(NamedTuple):
    """An image's perceptual hash: `bits` [1] uint64, the brightness steps of a 9x8 miniature, and `colours` [192]."""

    bits: np.ndarray
    colours: np.ndarray

    def hex(self) -> str:
        return (self.bits.tobytes() + self.colours.tobytes()).hex()

    @classmethod
    def from_hex(cls, text: str) -> "Fingerprint":
        data = bytes.fromhex(text)
        return cls(np.frombuffer(data[:8], dtype="<u8"), np.frombuffer(data[8:], dtype=np.uint8))


def fingerprint(image: Image.Image) -> Fingerprint:
    """The hash of an RGB image; copies of other size or compression have a near one."""
    grey = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    steps = grey[:, 1:] - grey[:, :-1] > FLAT_LEVELS
    colours = np.asarray(image.resize((8, 8), Image.Resampling.BOX), dtype=np.uint8).reshape(-1)
    return Fingerprint(np.packbits(steps.reshape(-1)).view("<u8"), colours)


class Seen:
    """The keys, captions and images accepted so far; letter case does not tell keys or captions apart."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._captions: set[str] = set()
        self._count = 0
        self._bits = np.zeros(1024, dtype="<u8")
        self._colours = np.zeros((1024, 192), dtype=np.uint8)

    def has_key(self, key: str) -> bool:
        return key.casefold() in self._keys

    def has_caption(self, caption: str) -> bool:
        return caption.casefold() in self._captions

    def has_image(self, new: Fingerprint) -> bool:
        """Whether an accepted image looks the same: a near hash and near colours everywhere."""
        apart = _BITS[(self._bits[: self._count] ^ new.bits).view("<u2")].reshape(-1, 4).sum(axis=1)
        near = np.flatnonzero(apart <= NEAR_BITS)
        differences = np.abs(self._colours[near].astype(np.int16) - new.colours)
        return bool((differences.max(axis=1, initial=0) <= NEAR_LEVELS).any()) if len(near) else False

    def add(self, key: str, caption: str, new: Fingerprint) -> None:
        """Take in a pair, so that a later one is recognised as its duplicate."""
        if self._count == len(self._bits):
            self._bits = np.concatenate([self._bits, np.zeros_like(self._bits)])
            self._colours = np.concatenate([self._colours, np.zeros_like(self._colours)])
        self._bits[self._count], self._colours[self._count] = new.bits[0], new.colours
        self._count += 1
        self._keys.add(key.casefold())
        self._captions.add(caption.casefold())


class Cell(NamedTuple):
    """An accepted pair's image in the size of its cell (RGB), with its hash."""

    image: Image.Image
    fingerprint: Fingerprint


class Dropped(NamedTuple):
    """A pair that is left out: the reason as a word to count by, and a sentence."""

    reason: str
    detail: str


def screen(pair: Pair, seen: Seen, grid: Grid, background: str) -> Cell | Dropped:
    """Decode a pair's image once and decide. An accepted pair must then be added to `seen`."""
    if not pair.caption:
        return Dropped("no caption", "the caption is empty")
    if seen.has_caption(pair.caption):
        return Dropped("duplicate caption", f"the caption {short(pair.caption)} has been used")
    decoded = _decoded(pair.image, grid, background)
    if isinstance(decoded, Dropped):
        return decoded
    image = fit(decoded, grid, background)
    cell = Cell(image, fingerprint(image))
    if seen.has_image(cell.fingerprint):
        return Dropped("duplicate image", "it looks like an image that has been used")
    return cell


def _decoded(image: bytes | str, grid: Grid, background: str) -> Image.Image | Dropped:
    """The upright RGB image, or why it cannot be used."""
    if isinstance(image, str):
        return Dropped("broken image", image)
    try:
        # Twice the box: the cell looks the same, and a photograph of 20 megapixels is decoded several times faster.
        decoded = turned_upright(decode_image(image, "the image", draft=max(2 * grid.box, MIN_SIDE)))
        decoded = as_rgb(decoded, "the image", background)
    except TooLarge as error:
        return Dropped("extreme image", str(error))
    except InputError as error:
        return Dropped("broken image", str(error))
    short, long = sorted(decoded.size)
    if short < MIN_SIDE:
        return Dropped("tiny image", f"its shorter side is {short} px, less than {MIN_SIDE}")
    if long > MAX_ASPECT * short:
        return Dropped("extreme image", f"its sides are {decoded.width} and {decoded.height} px")
    return decoded
