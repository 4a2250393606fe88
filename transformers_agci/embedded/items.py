"""Which images stand together: a target, the eight others on its canvas, and one that is absent."""

from dataclasses import dataclass

import numpy as np

from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.drawing import Look

LOOK_ALIKES = 24  # how many of an image's nearest neighbours count as looking like it


@dataclass(frozen=True)
class Item:
    """Ten different images of the atlas, by number."""

    target: int
    distractors: tuple[int, ...]  # eight
    absent: int

    @property
    def shown(self) -> tuple[int, ...]:
        return (self.target, *self.distractors)


def draw_item(atlas: Atlas, rng: np.random.Generator, look: Look) -> Item:
    """A random target; each of the other nine images looks like it with probability `look.alike`."""
    target = int(rng.integers(len(atlas)))
    near = rng.permutation(atlas.neighbours(target)[:LOOK_ALIKES])
    far = rng.permutation(len(atlas))
    alike = int(rng.binomial(9, look.alike))
    others = [int(image) for image in near[:alike]]
    others += [int(image) for image in far if image != target and image not in others][: 9 - alike]
    others = [int(image) for image in rng.permutation(others)]
    return Item(target, tuple(others[:8]), others[8])
