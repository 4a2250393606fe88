"""Made-up images that cost what photographs cost: patches of colour at several scales with a little grain."""

import numpy as np
from PIL import Image


def photograph(number: int, width: int, height: int) -> Image.Image:
    """The image with this number; its JPEG is about as large as one of a photograph."""
    rng = np.random.default_rng(number)
    coarse = [Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8)) for n in (4, 12, 48)]
    layers = [np.asarray(patches.resize((width, height), Image.Resampling.BICUBIC)) for patches in coarse]
    mixed = 0.5 * layers[0] + 0.35 * layers[1] + 0.15 * layers[2] + rng.normal(0, 5, layers[0].shape)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))
