"""What the embedded model is trained on: canvases, and many questions about each, packed into one sequence.

A canvas is read once and all its questions are answered in one forward: they lie one after the other, and a mask lets
each see only the canvas and its own words, as if it stood alone.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from transformers_agci.embedded import architecture as shape
from transformers_agci.embedded.atlas import Atlas, RenderConfig, canvases, draw_item, pose, through_jpeg, tiles

IGNORED = -100  # label of a position that is not trained
POSES = 12  # training poses per image, drawn once; the probe set draws poses of its own


class CanvasSampler:
    """An endless supply of canvases, drawn from `rng`."""

    def __init__(self, atlas: Atlas, render: RenderConfig, rng: np.random.Generator, poses: int = POSES) -> None:
        self.atlas, self.render, self.rng = atlas, render, rng
        self._poses = np.stack(
            [[pose(atlas.image(i), rng, render) for _ in range(poses)] for i in range(len(atlas))]
        )  # [400, poses, 84, 84, 4]

    def sample(self, count: int) -> tuple[Tensor, np.ndarray, np.ndarray]:
        """Canvases [count, 252, 252, 3] uint8, their images [count, 9] and one absent image each [count]."""
        items = [draw_item(self.atlas, self.rng, self.render) for _ in range(count)]
        shown = np.stack([self.rng.permutation(item.shown) for item in items])
        chosen = self._poses[shown.ravel(), self.rng.integers(self._poses.shape[1], size=shown.size)]
        seen = np.stack([through_jpeg(canvas) for canvas in canvases(tiles(chosen, self.rng, self.render))])
        return torch.from_numpy(seen), shown, np.array([item.absent for item in items])


@dataclass(frozen=True)
class Segment:
    """A stretch of the sequence that sees the canvas, the segments before it in `after`, and itself."""

    length: int
    after: "Segment | None" = None
    start: int = 0


@dataclass
class PackedSequence:
    """The fixed layout of one packed sequence: the canvas first, then `segments`."""

    opening: list[int]  # ids up to and with <|vision_start|>
    closing: list[int]  # <|vision_end|>
    image_token: int
    segments: list[Segment] = field(default_factory=list)

    @property
    def image(self) -> slice:
        """Where the image tokens stand."""
        return slice(len(self.opening), len(self.opening) + shape.IMAGE_TOKENS)

    @property
    def canvas_length(self) -> int:
        """Tokens up to and with <|vision_end|>."""
        return len(self.opening) + shape.IMAGE_TOKENS + len(self.closing)

    @property
    def length(self) -> int:
        """Tokens in all."""
        return self.canvas_length + sum(segment.length for segment in self.segments)

    def add(self, length: int, after: Segment | None = None) -> Segment:
        """Append a segment."""
        segment = Segment(length, after, start=self.length)
        self.segments.append(segment)
        return segment

    def positions(self) -> Tensor:
        """Qwen2.5-VL's position ids: [3 (time, height, width), T]."""
        first = len(self.opening)
        token = torch.arange(shape.IMAGE_TOKENS)
        image = torch.stack([torch.zeros_like(token), token // shape.GRID, token % shape.GRID]) + first
        after_image = first + shape.GRID
        stretches = [torch.arange(first).expand(3, -1), image]
        stretches.append(torch.arange(after_image, after_image + len(self.closing)).expand(3, -1))
        ends: dict[int, int] = {}
        for segment in self.segments:
            begin = after_image + len(self.closing) if segment.after is None else ends[segment.after.start]
            ends[segment.start] = begin + segment.length
            stretches.append(torch.arange(begin, begin + segment.length).expand(3, -1))
        return torch.cat(stretches, 1)

    def mask(self) -> Tensor:
        """Additive attention mask [T, T]: causal within the canvas and a segment, closed between questions."""
        seen = torch.zeros(self.length, self.length, dtype=torch.bool)
        seen[:, : self.canvas_length] = True
        for segment in self.segments:
            rows = slice(segment.start, segment.start + segment.length)
            part: Segment | None = segment
            while part is not None:
                seen[rows, part.start : part.start + part.length] = True
                part = part.after
        return torch.zeros(self.length, self.length).masked_fill(~seen.tril(), -1e4)


class PackedQuestions:
    """A packed sequence with `chained` bare names ("cat Yes; dog No;") and `prompts` questions in the probe's words."""

    def __init__(self, tokenizer: Any, names: list[str], chained: int, prompts: int) -> None:
        def ids(text: str) -> list[int]:
            return tokenizer(text, add_special_tokens=False).input_ids

        self.names = [ids(f" {name}") for name in names]
        (self.yes,), (self.no,), (self.end,) = ids("Yes"), ids("No"), ids("<|im_end|>")
        (self.short_yes,), (self.short_no,), (self.separator,) = ids(" Yes"), ids(" No"), ids(";")
        answer_begins = ids("<|im_end|>\n<|im_start|>assistant\n")
        self._head, self._tail = ids(shape.QUESTION_HEAD), ids(shape.QUESTION_TAIL) + answer_begins
        self._chain_head = ids(shape.SHORT_QUESTIONS) + answer_begins
        opening = ids(f"<|im_start|>system\n{shape.SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|>")
        self.layout = PackedSequence(opening, ids("<|vision_end|>"), image_token=ids("<|image_pad|>")[0])
        longest = max(map(len, self.names))
        typical = sum(map(len, self.names)) / len(self.names)
        chain_length = len(self._chain_head) + round(chained * (typical + 2))
        self._chain = self.layout.add(chain_length) if chained else None
        self._prompt = self.layout.add(len(self._head)) if prompts else None
        question_length = longest + len(self._tail) + 2
        self._questions = [self.layout.add(question_length, after=self._prompt) for _ in range(prompts)]

    def template(self, count: int) -> Tensor:
        """Token ids [count, T] with the canvas and the prompt's head filled in."""
        ids = torch.zeros(count, self.layout.length, dtype=torch.long)
        layout = self.layout
        canvas = [*layout.opening, *[layout.image_token] * shape.IMAGE_TOKENS, *layout.closing]
        ids[:, : layout.canvas_length] = torch.tensor(canvas)
        if self._prompt is not None:
            ids[:, self._prompt.start : self._prompt.start + self._prompt.length] = torch.tensor(self._head)
        return ids

    def write_chain(self, ids: Tensor, labels: Tensor, asked: Iterable[tuple[int, bool]]) -> None:
        """Fill the chain with (image, is it shown) as far as there is room; the answer follows the bare name."""
        assert self._chain is not None
        text, wanted = list(self._chain_head), [IGNORED] * len(self._chain_head)
        for image, is_shown in asked:
            name, answer = self.names[image], self.short_yes if is_shown else self.short_no
            if len(text) + len(name) + 2 > self._chain.length:
                break
            text += [*name, answer, self.separator]
            wanted += [*[IGNORED] * (len(name) - 1), answer, IGNORED, IGNORED]
        place = slice(self._chain.start, self._chain.start + len(text))
        ids[place], labels[place] = torch.tensor(text), torch.tensor(wanted)

    def write_question(self, ids: Tensor, number: int, image: int, is_shown: bool = True) -> int:
        """Ask for an image in the probe's words, answered; returns where the answer is predicted."""
        question = [*self.names[image], *self._tail]
        start = self._questions[number].start
        text = [*question, self.yes if is_shown else self.no, self.end]
        ids[start : start + len(text)] = torch.tensor(text)
        return start + len(question) - 1


class Batch(NamedTuple):
    """What the model sees in one step, and what it should say."""

    images: Tensor  # [B, 252, 252, 3] uint8
    shown: Tensor  # [B, 9] image numbers, row-major
    ids: Tensor  # [B, T]
    short_labels: Tensor  # [B, T] Yes/No after a bare name
    answer_labels: Tensor  # [B, T] Yes/No to the probe's prompt
    end_labels: Tensor  # [B, T] the end of that answer


class Dataset:
    """Batches with `chained` bare names and `prompts` questions in the probe's words on every canvas."""

    def __init__(self, tokenizer: Any, sampler: CanvasSampler, chained: int, prompts: int) -> None:
        self.sampler, self.chained, self.prompts = sampler, chained, prompts
        self.questions = PackedQuestions(tokenizer, sampler.atlas.names, chained, prompts)

    def next_batch(self, count: int) -> Batch:
        """`count` canvases with their questions and labels."""
        images, shown, absent = self.sampler.sample(count)
        ids = self.questions.template(count)
        short, answers, ends = (torch.full_like(ids, IGNORED) for _ in range(3))
        for row in range(count):
            asked = self._asked(shown[row], int(absent[row]))
            if self.chained:
                self.questions.write_chain(ids[row], short[row], asked)
            for number in range(self.prompts):
                image, is_shown = next(asked)
                place = self.questions.write_question(ids[row], number, image, is_shown)
                answers[row, place] = self.questions.yes if is_shown else self.questions.no
                ends[row, place + 1] = self.questions.end
        return Batch(images, torch.from_numpy(shown), ids, short, answers, ends)

    def _asked(self, shown: np.ndarray, absent: int) -> Iterator[tuple[int, bool]]:
        """Images to ask for, and whether they are shown: half of them are."""
        rng = self.sampler.rng
        while True:
            if rng.random() < 0.5:
                yield int(rng.choice(shown)), True
                continue
            # Half of the absent ones are the item's own, the others come from the whole atlas.
            other = int(rng.integers(len(self.sampler.atlas)))
            yield (absent if rng.random() < 0.5 or other in shown else other), False
