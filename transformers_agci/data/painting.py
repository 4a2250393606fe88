"""Paint composites: the files of one item, in whatever process."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from transformers_agci.data.composites import alone, compose, encode_jpeg, image_name, smaller, with_target
from transformers_agci.data.grid import Grid
from transformers_agci.data.pool import PoolPair
from transformers_agci.data.rendered import Figure, draw_figure
from transformers_agci.storage.atomic import open_atomic


class Task(NamedTuple):
    """One item's work: the stem of its files, what its target and its distractors are (none: it stands alone).

    `size` is the target's longer side in px where that is not the box's.
    """

    key: str
    target: PoolPair | Figure
    distractors: tuple[PoolPair | Figure, ...]
    size: int | None = None


@dataclass(frozen=True)
class Painter:
    """Paints an item's composites into `folder`; sent to the worker processes. `cells` is the pool's file.

    `single`: the target alone, once, as large as the box: an image of its own instead of a composite.
    """

    cells: Path
    folder: Path
    grid: Grid
    quality: int
    background: str
    single: bool = False

    def paint(self, task: Task) -> list[str]:
        """Write the JPEGs of an item; returns their SHA-256, in the order of the cells."""
        hashes = []
        for name, image in self.composites(task):
            data = encode_jpeg(image, self.quality)
            path = self.folder / name
            # Not synced: a run that goes on compares the hashes. Unfinished files lie beside the pool, which goes.
            with open_atomic(path, sync=False, temporary_in=self.cells.parent) as file:
                file.write(data)
            hashes.append(hashlib.sha256(data).hexdigest())
        return hashes

    def composites(self, task: Task) -> Iterator[tuple[str, Image.Image]]:
        """(file name, image) of everything that is painted for an item."""
        target = self._sub_image(task.target)
        if task.size is not None:
            target = smaller(target, task.size, self.grid, self.background)
        if self.single:
            yield f"{task.key}.jpg", compose([target], self.grid, self.background)
            return
        distractors = [self._sub_image(other) for other in task.distractors]
        for k in range(len(self.grid)):
            images = with_target(target, distractors, k) if distractors else alone(target, k, len(self.grid))
            yield image_name(task.key, k), compose(images, self.grid, self.background)

    def _sub_image(self, shown: PoolPair | Figure) -> Image.Image:
        return draw_figure(shown, self.grid.box) if isinstance(shown, Figure) else shown.image(self.cells)
