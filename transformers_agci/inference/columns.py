"""One column of batches on the model: nothing computed twice, and whatever memory holds.

A column is a list of image lists and some questions about each (`batches.py`). At each lambda

    first token   the first question about each list is answered from one forward call, its keys and values are kept
    tails         all other questions, many per list in one call, on these keys and values: a call holds as many rows
                  as `FOLLOW_UP_TOKENS` keys and values of prompts fit
    generate      whatever is no Yes/No question, or has no verdict after its first token: batch by batch

Where memory runs out, the column is cut by its lists and goes on with what is not answered yet; the size that fitted
is kept for the rest of the run. With 18 lists that do not fit and 9 that do: 18, 9, 9, and for the next column 9, 9.
Where it runs out in a call of tails, such calls hold half as many batches from then on, and the lists stay together.
"""

import contextlib
import gc
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch

from transformers_agci.errors import InputError
from transformers_agci.families import find_vlm, image_token_id
from transformers_agci.inference.answer import Answer, Answerer
from transformers_agci.inference.batches import Block, Column, image_keys
from transformers_agci.inference.first_token import FirstToken, joined_ids, positions_of
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prefix_replay import PrefixReplay, Prompts
from transformers_agci.inference.prepare import Batch, Positions, prepare
from transformers_agci.inference.questions import Question
from transformers_agci.inference.runner import Reporter, out_of_memory
from transformers_agci.inference.upload import OnDevice, Upload
from transformers_agci.inference.vision_replay import VisionReplay
from transformers_agci.storage.result_lines import FailedRow

# Keys and values of prompts that a call of follow-up questions may hold; 7 GB for Qwen2.5-VL-7B on a GPU.
FOLLOW_UP_TOKENS = {"cpu": 30_000, "cuda": 120_000}

Inputs = dict[str, torch.Tensor]
AtLambda = Callable[[int], None]  # sets the lambda of an output


@dataclass
class BlockAnswers:
    """The answers of a block in the making: by number of the output, then by question number; rows without one."""

    block: Block
    outputs: Sequence[int]
    answers: dict[int, dict[int, Answer]] = field(default_factory=dict)
    failed: dict[int, FailedRow] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.answers = {i: {} for i in self.outputs}

    def lacks(self, batch: Batch, i: int) -> bool:
        """Whether some row of the batch has no answer in this output yet."""
        return any(number not in self.answers[i] for number in batch.numbers)


class ColumnWork:
    """Answers columns on a model that AGCI is attached to."""

    def __init__(
        self,
        loaded: LoadedModel,
        questions: Sequence[Question],
        answerer: Answerer,
        *,
        upload: Upload,
        positions: Positions | None,
        scope: str,
        counts: Any,
        replays_off: Collection[str] = (),
    ) -> None:
        self.loaded, self.questions, self.answerer = loaded, questions, answerer
        self.upload, self.positions, self.scope, self.counts = upload, positions, scope, counts
        self.replays_off = replays_off  # what must not serve the method: see methods.py
        served = positions is not None and "first_token" not in replays_off
        behind = loaded.device.type == "cuda" and "padding_behind" in loaded.quick
        self.first = FirstToken(answerer, behind) if served else None
        self.fits: int | None = None  # lists per batch, once memory has run out
        self.follow_up_tokens = FOLLOW_UP_TOKENS.get(loaded.device.type, FOLLOW_UP_TOKENS["cpu"])
        self.vision, self.prefix = VisionReplay(loaded.model), PrefixReplay(loaded.model)
        self.vision.records = "vision_replay" not in replays_off

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """Within this block what was computed once is not computed again."""
        with self.vision, self.prefix:
            yield

    def answer(
        self,
        column: Sequence[Batch],
        made: BlockAnswers,
        at_lambda: AtLambda,
        reporter: Reporter,
        sent: Any = None,
    ) -> None:
        """All batches of a column in every output; `at_lambda(i)` sets the lambda of output i.

        `sent` is the column's transfer to the device, where that has begun.
        """
        parts = self._cut(column, made.block)
        if sent is not None and len(parts) > 1:
            sent.let_go()
        for part in parts:
            try:
                on_device = self.upload.receive(sent if part is column and sent else self.upload.send(part))
                self._answer_part(part, on_device, made, at_lambda, reporter)
                continue
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                lists = max(len(batch.numbers) for batch in part)
                if lists == 1:
                    where = self.questions[part[0].numbers[0]].where
                    raise InputError(
                        f"{where}: memory does not suffice even for this row alone ({str(error).splitlines()[0]}); "
                        "try `dtype` bfloat16, `max_pixels` or `load_in_4bit`."
                    ) from error
            sent, on_device = None, []
            # Outside the except clause: the traceback would keep the failed attempt's tensors alive.
            self._make_room((lists + 1) // 2)
            self.answer(part, made, at_lambda, reporter)

    def _make_room(self, lists: int) -> None:
        self.fits = self.upload.most = lists
        self.vision.set_images(None)
        self.prefix.clear()
        _release()

    # --- answering ---

    def _answer_part(
        self,
        column: Sequence[Batch],
        inputs: Sequence[OnDevice],
        made: BlockAnswers,
        at_lambda: AtLambda,
        reporter: Reporter,
    ) -> None:
        # The first batch's keys and values serve the others. With one mean for a whole batch they depend on its mates.
        alike = self.scope == "image" or len({batch.images for batch in column}) == 1
        for i in made.outputs:
            at_lambda(i)
            left = [number for number, batch in enumerate(column) if made.lacks(batch, i)]
            for numbers, answers in self._answers(column, inputs, left, alike, made.block):
                self._keep(numbers, answers, made, i)
                reporter.advance(len(numbers))
            self.prefix.clear()  # another lambda, other keys and values

    def _answers(
        self, column: Sequence[Batch], inputs: Sequence[OnDevice], left: list[int], alike: bool, block: Block
    ) -> Iterator[tuple[Sequence[int], list[Answer]]]:
        """The question numbers and answers of the batches `left`, at the lambda that is set."""
        if left and self._from_first_token(column[left[0]]):
            for answered, answers in self._from_one_call_each(column, inputs, left, alike, block):
                left = [number for number in left if number not in answered]
                yield [row for number in answered for row in column[number].numbers], answers
        for number in left:
            batch = column[number]
            self._set_images(batch, keep=alike and number == left[0] and len(left) > 1)
            answers = self.answerer.answer(inputs[number].inputs, self.questions[batch.numbers[0]].stop)
            self.counts.batches += 1
            yield batch.numbers, answers

    def _from_first_token(self, batch: Batch) -> bool:
        return (
            self.first is not None
            and batch.positions is not None
            and self.questions[batch.numbers[0]].stop.yes_no
            and self.first.serves(batch.text)
        )

    def _from_one_call_each(
        self, column: Sequence[Batch], inputs: Sequence[OnDevice], left: Sequence[int], alike: bool, block: Block
    ) -> Iterator[tuple[Sequence[int], list[Answer]]]:
        """Batches and their answers, for as long as every row has its verdict in its first token."""
        assert self.first is not None
        groups: list[Sequence[int]] = [left[:1]]
        while groups:
            group = groups.pop(0)
            counted, fitted = (self.prefix.prefill_tokens, self.prefix.replayed_tokens), True
            answers: list[Answer] | None = None
            try:
                answers = self._of_group(column, inputs, group, keep=alike and len(left) > 1 and group[0] == left[0])
            except RuntimeError as error:
                if len(group) == 1 or not out_of_memory(error):
                    raise
                fitted = False
            if not fitted:  # outside the except clause, as in `answer`
                self.prefix.prefill_tokens, self.prefix.replayed_tokens = counted
                self.follow_up_tokens = _tokens(column, group) * ((len(group) + 1) // 2)
                self._note_halved(block)
                _release()
                groups = self._groups(column, [number for some in (group, *groups) for number in some], alike)
                continue
            if answers is None:
                self.prefix.clear()
                return
            self.counts.batches += 1
            yield group, answers
            if group[0] == left[0]:
                groups = self._groups(column, left[1:], alike)

    def _of_group(
        self, column: Sequence[Batch], inputs: Sequence[OnDevice], group: Sequence[int], keep: bool
    ) -> list[Answer] | None:
        assert self.first is not None
        batches = [column[number] for number in group]
        recorded = self.prefix.recorded is not None
        if recorded and not keep and "tails" in self.loaded.quick:
            self._set_images(None)
            image_token = image_token_id(self.vision.vlm.config)
            tail = self.prefix.tail([self._prompts(batch) for batch in batches], image_token)
            if tail is not None:
                return self.first.tails(tail, joined_ids([batch.text["input_ids"] for batch in batches]))
        answers: list[Answer] = []
        for number, batch in zip(group, batches, strict=True):
            self._set_images(batch, keep)
            there = inputs[number]
            assert there.positions is not None
            of_batch = self.first.whole(there.inputs, there.positions, batch.padding, cache=keep or recorded)
            if of_batch is None:
                return None
            answers += of_batch
        return answers

    def _groups(self, column: Sequence[Batch], left: Sequence[int], alike: bool) -> list[Sequence[int]]:
        """Batches that share a call: as many as fit, evenly."""
        if not left or not alike or "tails" not in self.loaded.quick:
            return [[number] for number in left]
        groups = -(-len(left) // max(1, self.follow_up_tokens // _tokens(column, left)))
        bounds = [len(left) * group // groups for group in range(groups + 1)]
        return [left[low:high] for low, high in pairwise(bounds)]

    def _set_images(self, batch: Batch | None, keep: bool = False) -> None:
        """Name what the coming call of the model is about; None: it has no images and its own keys and values."""
        if batch is not None:
            self.vision.set_images(batch.images)
        shares = batch is not None and batch.images and "prefix_replay" not in self.replays_off
        self.prefix.set_prompts(self._prompts(batch) if batch is not None and shares else None, keep)

    def _prompts(self, batch: Batch) -> Prompts:
        keys = tuple(image_keys(self.questions[number].images) for number in batch.numbers)
        return Prompts(keys, batch.text["input_ids"], batch.text["attention_mask"], batch.positions)

    def _keep(self, numbers: Sequence[int], answers: Sequence[Answer], made: BlockAnswers, i: int) -> None:
        for number, answer in zip(numbers, answers, strict=True):
            made.answers[i][number] = answer
            if answer.not_a_number:
                where = self.questions[number].where
                reason = f"{where}: the model gives logits that are not numbers; try `dtype` float32."
                made.failed[number] = FailedRow(number, where, reason)

    # --- cutting ---

    def _cut(self, column: Sequence[Batch], block: Block) -> list[Sequence[Batch]]:
        """The column, or as few parts of nearly equal size as memory holds."""
        lists = list(dict.fromkeys(self._list_of(number) for batch in column for number in batch.numbers))
        if self.fits is None or len(lists) <= self.fits:
            return [column] if column else []
        self._note_halved(block)
        parts = -(-len(lists) // self.fits)
        bounds = [len(lists) * part // parts for part in range(parts + 1)]
        return [self._about(column, set(lists[low:high])) for low, high in pairwise(bounds)]

    def _note_halved(self, block: Block) -> None:
        if block.index not in self.counts.halved_blocks:
            self.counts.halved_blocks.append(block.index)

    def _list_of(self, number: int) -> Hashable:
        return image_keys(self.questions[number].images) or number

    def _about(self, column: Sequence[Batch], lists: set[Hashable]) -> Sequence[Batch]:
        """The rows of a column about these lists, sliced from the tensors that are there."""
        found: list[Batch] = []
        pixels: dict[int, Inputs | None] = {}
        for batch in column:
            rows = [row for row, number in enumerate(batch.numbers) if self._list_of(number) in lists]
            if not rows:
                continue
            if id(batch.pixels) not in pixels:
                pixels[id(batch.pixels)] = self._pixels_of(batch, rows)
            sliced = pixels[id(batch.pixels)]
            numbers = tuple(batch.numbers[row] for row in rows)
            if sliced is None:  # a form of pixels that cannot be sliced row by row
                processor = self.loaded.processor if self.upload.raw is None else self.upload.raw.processor
                found += prepare(Column((numbers,)), self.questions, processor, positions=self.positions).batches
                continue
            keys = tuple(key for number in numbers for key in image_keys(self.questions[number].images))
            text = {name: value[rows] for name, value in batch.text.items()}
            places = None if batch.positions is None else batch.positions[..., rows, :]
            found.append(replace(batch, numbers=numbers, images=keys, text=text, pixels=sliced, positions=places))
        return found

    def _pixels_of(self, batch: Batch, rows: Sequence[int]) -> Inputs | None:
        """The image tensors of these rows; None where it is not known which part belongs to which row."""
        counts = [len(self.questions[number].images) for number in batch.numbers]
        starts = [sum(counts[:row]) for row in range(len(counts))]
        images = [starts[row] + image for row in rows for image in range(counts[row])]
        grid = batch.pixels.get("image_grid_thw")
        patches = None if grid is None else grid.prod(dim=1).tolist()
        sliced = {}
        for name, value in batch.pixels.items():
            if len(value) == sum(counts):
                sliced[name] = _taken(value, images)
            elif patches is not None and len(value) == sum(patches):
                parts = value.split(patches)
                sliced[name] = torch.cat([parts[image] for image in images])
            elif len(value) == len(counts):
                sliced[name] = _taken(value, rows)
            else:
                return None
        return sliced


def _taken(values: Any, places: Sequence[int]) -> Any:
    """Of a tensor, or of a list, as some processors give."""
    return values[list(places)] if isinstance(values, torch.Tensor) else [values[place] for place in places]


def _tokens(column: Sequence[Batch], numbers: Sequence[int]) -> int:
    """Of the largest of these batches, padding included."""
    return max(column[number].text["input_ids"].numel() for number in numbers)


def _release() -> None:
    """Give back what a call that failed has left of the GPU's memory."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def positions_by(loaded: LoadedModel) -> Positions | None:
    """What numbers the tokens of a batch before it reaches the device, or None where that was not asked for."""
    if "first_token" not in loaded.quick:
        return None
    vlm = find_vlm(loaded.model)
    return lambda inputs: positions_of(vlm, inputs)
