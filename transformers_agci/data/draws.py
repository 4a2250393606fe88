"""Which images share a composite: distractors and the absent caption, drawn per item from the seed."""

import hashlib
import random
from typing import NamedTuple

import numpy as np

from transformers_agci.errors import InputError

DISTRACTORS = 8


class Draw(NamedTuple):
    """Numbers of pool pairs: the distractors in their order, and the pair whose caption the negatives ask for."""

    distractors: tuple[int, ...]
    absent: int


def draw(item: int, pool: int, seed: int, distractors: int = DISTRACTORS) -> Draw:
    """Draw for target `item` uniformly, without repetition, among the other pairs of a pool of `pool` pairs.

    The captions of a pool are all different, so no distractor has the target's caption. The draw depends on its
    arguments only: neither on the order of work nor on whether negatives are wanted.

    >>> draw(3, 20, seed=0).distractors == draw(3, 20, seed=0).distractors
    True
    """
    if pool < distractors + 2:
        raise InputError(
            f"A probe set needs at least {distractors + 2} good pairs (a target, {distractors} distractors and an "
            f"absent caption), but the source gave {pool}."
        )
    # Text seeds go through SHA-512, so neighbouring items share nothing.
    rng = random.Random(f"agci probe {seed} {item}")
    chosen = tuple(other + (other >= item) for other in rng.sample(range(pool - 1), distractors))
    absent = item
    while absent == item or absent in chosen:
        absent = rng.randrange(pool)
    return Draw(chosen, absent)


def draw_near(item: int, colours: np.ndarray, seed: int, distractors: int = DISTRACTORS) -> Draw:
    """Distractors that look most like the target, in an order drawn from the seed; the absent pair as in `draw`.

    `colours` [pairs, n] are miniatures of the pool's images; the distance is the mean difference of their values.
    """
    plain = draw(item, len(colours), seed, distractors)  # checks the size of the pool
    apart = np.abs(colours.astype(np.int32) - colours[item]).sum(axis=1)
    apart[item] = -1
    nearest = np.argsort(apart, kind="stable")[1 : distractors + 1].tolist()
    rng = random.Random(f"agci near {seed} {item}")
    rng.shuffle(nearest)
    absent = plain.absent
    while absent == item or absent in nearest:
        absent = rng.randrange(len(colours))
    return Draw(tuple(nearest), absent)


StreamName = tuple[str | int, ...]


def stream_seed(*name: str | int) -> int:
    """A seed of 63 bits, the same everywhere, from a name such as ("embedded", "training", 0, "words")."""
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def random_stream(*name: str | int) -> np.random.Generator:
    """NumPy's generator of that name: unlike default_rng(0) and default_rng([0, 0]), two names never coincide."""
    return np.random.default_rng(stream_seed(*name))
