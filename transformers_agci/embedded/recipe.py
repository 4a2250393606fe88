"""The recipe: four stages, each counted in steps; about 20 minutes of one CPU thread.

1. names    the vision tower learns to name single cells: an image token shall resemble its image's name
2. canvas   the same on whole canvases, where a window may hold parts of several cells
3. words    the decoder learns to find a name among the image tokens: "cat Yes; dog No;"
4. prompt   the whole model learns the probe's own prompt, the naming kept on beside it

Trained from the prompt alone the model stays at chance; the order is what makes it converge.
"""

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Stage:
    """One stage of the recipe."""

    name: str
    steps: int
    canvases: int  # per step
    rate: float  # peak learning rate
    vision_rate: float  # of the vision tower and the embeddings, as a share of `rate`; 0 freezes them
    noise: float  # share of the look's noise: early stages see clearer images
    chained: int = 0  # bare names per canvas
    prompts: int = 0  # questions in the probe's words per canvas
    naming: float = 0.0  # weight of the naming loss beside the questions


STAGES = (
    Stage("names", 450, canvases=21, rate=2e-3, vision_rate=1.0, noise=0.5),
    Stage("canvas", 600, canvases=21, rate=1e-3, vision_rate=1.0, noise=1.0),
    Stage("words", 700, canvases=16, rate=1.5e-3, vision_rate=0.0, noise=1.0, chained=24),
    Stage("prompt", 900, canvases=16, rate=1e-3, vision_rate=0.3, noise=1.0, chained=10, prompts=5, naming=0.5),
)


def rate_at(stage: Stage, step: int) -> float:
    """Warm-up over the first tenth (60 steps at most), then half a cosine down to a twentieth."""
    warm = min(1.0, (step + 1) / max(1, min(60, stage.steps // 10)))
    return stage.rate * warm * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / stage.steps)))


def scaled(steps: int | None) -> tuple[Stage, ...]:
    """The recipe, or a short one of `steps` steps in all (at least one per stage), for a test of the machinery."""
    if steps is None:
        return STAGES
    whole = sum(stage.steps for stage in STAGES)
    return tuple(replace(stage, steps=max(1, round(stage.steps * steps / whole))) for stage in STAGES)
