"""What a build is asked for."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import PIL
from PIL import ImageColor

from transformers_agci.data.draws import DISTRACTORS
from transformers_agci.data.grid import POSITIONS, Grid
from transformers_agci.data.rows import Row
from transformers_agci.data.sources import Source
from transformers_agci.errors import InputError


@dataclass(frozen=True)
class BuildOptions:
    """What is built; everything here decides the bytes of the result (the number of workers does not).

    Files: `<folder>/<name>.json`, `<name>_negatives.json` (probe with negatives), images in `<folder>/<images>/`,
    `<name>.manifest.json`, and `<name>.dropped.jsonl` with every pair that was left out and why.
    """

    kind: Literal["probe", "similarity"]
    source: Source
    folder: Path
    name: str
    images: str = ""  # default: <name>_images
    items: int = 10_000  # at most; a source with fewer good pairs gives fewer
    pool: int = 0  # pairs that distractors are drawn from, the targets among them; default: `items`, at least 10
    grid: Grid = field(default_factory=Grid)
    quality: int = 75  # of the JPEGs, 1 to 95
    background: str = "white"
    seed: int = 0
    negatives: bool = True

    def __post_init__(self) -> None:
        if self.items < 1:
            raise InputError(f"--items must be at least 1, but is {self.items}.")
        if not 1 <= self.quality <= 95:
            raise InputError(f"--quality must be 1 to 95, but is {self.quality}.")
        if len(self.grid) != len(POSITIONS):
            raise InputError("Probe and similarity sets have a 3x3 grid.")
        for flag, text in (("--name", self.name), ("--images", self.image_folder.name)):
            if Path(text).name != text or text in ("", ".."):
                raise InputError(f"{flag} must be a plain name without '/', but is {text!r}.")
        try:
            ImageColor.getrgb(self.background)
        except ValueError:
            raise InputError(
                f"--background must be a colour as in HTML (white, #f0f0f0), but is {self.background!r}."
            ) from None

    @property
    def image_folder(self) -> Path:
        return self.folder / (self.images or f"{self.name}_images")

    @property
    def pairs_wanted(self) -> int:
        """How many good pairs are read: targets first, then those that only serve as distractors."""
        return self.items if self.kind == "similarity" else max(self.items, self.pool, DISTRACTORS + 2)

    def settings(self) -> Row:
        """What must be equal for a build to be continued; Pillow writes the JPEGs."""
        return {
            "kind": self.kind,
            "source": self.source._asdict(),
            "images": self.image_folder.name,
            "items": self.items,
            "pool": self.pairs_wanted,
            "grid": asdict(self.grid),
            "quality": self.quality,
            "background": self.background,
            "seed": self.seed,
            "negatives": self.has_negatives,
            "pillow": PIL.__version__,
        }

    @property
    def has_negatives(self) -> bool:
        return self.kind == "probe" and self.negatives
