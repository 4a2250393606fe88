"""What the embedded model is asked in training: canvases, and questions about them."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.drawing import Look, canvases, pose, through_jpeg, tiles
from transformers_agci.embedded.items import draw_item
from transformers_agci.embedded.sheet import IGNORED, QuestionSheet

POSES = 12  # training poses per image, drawn once; the probe set draws poses of its own


class Studio:
    """An endless, seeded supply of canvases."""

    def __init__(self, atlas: Atlas, look: Look, seed: int, poses: int = POSES) -> None:
        self.atlas, self.look = atlas, look
        self.rng = np.random.default_rng(seed)
        self._poses = np.stack(
            [[pose(atlas.image(i), self.rng, look) for _ in range(poses)] for i in range(len(atlas))]
        )  # [400, poses, 84, 84, 4]

    def draw(self, count: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Canvases [count, 252, 252, 3] uint8, their images [count, 9] and one absent image each [count]."""
        items = [draw_item(self.atlas, self.rng, self.look) for _ in range(count)]
        shown = np.stack([self.rng.permutation(item.shown) for item in items])
        chosen = self._poses[shown.ravel(), self.rng.integers(self._poses.shape[1], size=shown.size)]
        seen = np.stack([through_jpeg(canvas) for canvas in canvases(tiles(chosen, self.rng, self.look))])
        return torch.from_numpy(seen), shown, np.array([item.absent for item in items])


class Exercise(NamedTuple):
    """One batch: what the model sees, and what it should say."""

    images: Tensor  # [B, 252, 252, 3] uint8
    shown: Tensor  # [B, 9] image numbers, row-major
    ids: Tensor  # [B, T]
    short_labels: Tensor  # [B, T] Yes/No after a bare name
    answer_labels: Tensor  # [B, T] Yes/No to the probe's prompt
    end_labels: Tensor  # [B, T] the end of that answer


class Lesson:
    """Exercises with `chained` bare names and `prompts` questions in the probe's words on every canvas."""

    def __init__(self, tokenizer: Any, studio: Studio, chained: int, prompts: int) -> None:
        self.studio, self.chained, self.prompts = studio, chained, prompts
        self.sheet = QuestionSheet(tokenizer, studio.atlas.names, chained, prompts)

    def next_batch(self, count: int) -> Exercise:
        images, shown, absent = self.studio.draw(count)
        ids = self.sheet.blank(count)
        short, answers, ends = (torch.full_like(ids, IGNORED) for _ in range(3))
        for row in range(count):
            asked = self._asked(shown[row], int(absent[row]))
            if self.chained:
                self.sheet.write_chain(ids[row], short[row], asked)
            for number in range(self.prompts):
                image, is_shown = next(asked)
                place = self.sheet.write_question(ids[row], number, image, is_shown)
                answers[row, place] = self.sheet.yes if is_shown else self.sheet.no
                ends[row, place + 1] = self.sheet.end
        return Exercise(images, torch.from_numpy(shown), ids, short, answers, ends)

    def _asked(self, shown: np.ndarray, absent: int) -> Iterator[tuple[int, bool]]:
        """Images to ask for, and whether they are shown: half of them are."""
        rng = self.studio.rng
        while True:
            if rng.random() < 0.5:
                yield int(rng.choice(shown)), True
                continue
            # Half of the absent ones are the item's own, the others come from the whole atlas.
            other = int(rng.integers(len(self.studio.atlas)))
            yield (absent if rng.random() < 0.5 or other in shown else other), False
