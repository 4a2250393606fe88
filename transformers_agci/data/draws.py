"""Which images share a composite: distractors and the absent caption, drawn per item from the seed."""

import random
from typing import NamedTuple

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
