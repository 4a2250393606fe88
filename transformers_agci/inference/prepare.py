"""Images decoded and prompts tokenized ahead of the model, in this process or in workers."""

import contextlib
import multiprocessing
import signal
import sys
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
from PIL import Image

from transformers_agci.errors import InputError
from transformers_agci.inference import prompt
from transformers_agci.inference.batches import Column, image_keys
from transformers_agci.inference.questions import Question
from transformers_agci.storage.result_file import FailedRow

AHEAD = 2  # columns a worker may be ahead: what bounds the memory
# What a processor makes of the text; everything else comes from the images and is the same for every question.
TEXT_KEYS = frozenset({"input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"})


@dataclass(frozen=True)
class Batch:
    """One forward call: question numbers, their images' keys in order, and the text tensors [B, S]."""

    numbers: tuple[int, ...]
    images: tuple[Hashable, ...]
    text: dict[str, torch.Tensor]
    pixels: dict[str, torch.Tensor]  # shared by all batches about the same images

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        return {**self.text, **self.pixels}


@dataclass(frozen=True)
class Prepared:
    """The batches of a column, and the rows that had to be left out."""

    batches: tuple[Batch, ...]
    failed: tuple[FailedRow, ...]


def prepare(
    column: Column, questions: Sequence[Question], processor: Any, at: Callable[[int], None] = lambda number: None
) -> Prepared:
    """Decode, preprocess and tokenize a column; rows whose image or text is bad are left out and named.

    `at` is told the number of each question before its images are opened.
    """
    opened: dict[Hashable, Image.Image] = {}
    failed: dict[int, FailedRow] = {}
    for number in (number for batch in column.batches for number in batch):
        at(number)
        reason = _open_images(questions[number], opened)
        if reason is not None:
            failed[number] = FailedRow(number, questions[number].where, reason)
    try:
        batches = _tokenize(column, failed, questions, opened, processor)
    except Exception:  # some row's image or text; processors raise what they like
        found = {
            number: _alone(number, questions, opened, processor)
            for batch in column.batches
            for number in batch
            if number not in failed
        }
        wrong = {number: reason for number, reason in found.items() if reason is not None}
        if not wrong:
            raise
        failed |= {number: FailedRow(number, questions[number].where, reason) for number, reason in wrong.items()}
        batches = _tokenize(column, failed, questions, opened, processor)
    return Prepared(batches, tuple(failed[number] for number in sorted(failed)))


def _open_images(question: Question, opened: dict[Hashable, Image.Image]) -> str | None:
    """Put the question's images into `opened`; the reason if that fails."""
    try:
        for image in question.images:
            if image.key not in opened:
                opened[image.key] = image.open()
    except InputError as error:
        return str(error)
    return None


def _tokenize(
    column: Column,
    failed: dict[int, FailedRow],
    questions: Sequence[Question],
    opened: dict[Hashable, Image.Image],
    processor: Any,
) -> tuple[Batch, ...]:
    batches: list[Batch] = []
    with contextlib.ExitStack() as stack:
        for numbers in (tuple(n for n in batch if n not in failed) for batch in column.batches):
            if not numbers:
                continue
            asked = [questions[number] for number in numbers]
            keys = tuple(key for question in asked for key in image_keys(question.images))
            if not batches or batches[-1].images != keys:
                stack.close()
                if keys:
                    stack.enter_context(prompt.images_once(processor))
            made = _call(asked, opened, processor)
            same = bool(batches) and batches[-1].images == keys
            pixels = batches[-1].pixels if same else {k: v for k, v in made.items() if k not in TEXT_KEYS}
            batches.append(Batch(numbers, keys, {k: v for k, v in made.items() if k in TEXT_KEYS}, pixels))
    return tuple(batches)


def _call(asked: Sequence[Question], opened: dict[Hashable, Image.Image], processor: Any) -> dict[str, torch.Tensor]:
    prompts = [prompt.chat_text(processor, question) for question in asked]
    images = [[opened[image.key] for image in question.images] for question in asked]
    return prompt.tokenize(processor, prompts, images)


def _alone(
    number: int, questions: Sequence[Question], opened: dict[Hashable, Image.Image], processor: Any
) -> str | None:
    """Why this question cannot be asked even by itself, or None."""
    try:
        _call([questions[number]], opened, processor)
    except InputError as error:
        return str(error)
    except Exception as error:
        return f"{questions[number].where}: the processor refuses this row ({' '.join(str(error).split())[:300]})."
    return None


def prepared_ahead(
    columns: Iterable[Column], questions: Sequence[Question], processor: Any, workers: int
) -> Generator[Prepared, None, None]:
    """`prepare` for each column, in order; with `workers` > 0 in that many processes, a bounded number ahead.

    A worker that dies is an InputError that names the row it was at.
    """
    if workers == 0:
        for column in columns:
            yield prepare(column, questions, processor)
        return
    pool = _start(workers, questions, processor)
    waiting: deque[tuple[_Worker, Column]] = deque()
    source = iter(columns)
    try:
        for turn, column in enumerate(islice(source, workers * AHEAD)):
            worker = pool[turn % workers]
            worker.ask(column)
            waiting.append((worker, column))
        while waiting:
            worker, column = waiting.popleft()
            yield worker.receive(questions)
            for following in islice(source, 1):
                worker.ask(following)
                waiting.append((worker, following))
    finally:
        for worker in pool:
            worker.stop()


class _Worker:
    """A process that prepares columns in the order in which it is given them."""

    def __init__(self, context: Any, questions: Sequence[Question], processor: Any) -> None:
        self.connection, theirs = context.Pipe()
        self.at = context.Value("q", 0)  # the number of the question it is at, which survives its death
        self.process = context.Process(
            target=_work, daemon=True, args=(theirs, self.connection, self.at, questions, processor)
        )
        self.process.start()
        theirs.close()

    def ask(self, column: Column) -> None:
        with contextlib.suppress(BrokenPipeError):  # a dead worker is reported where its answer is awaited
            self.connection.send(column)

    def receive(self, questions: Sequence[Question]) -> Prepared:
        """The next column in the order of `ask`."""
        ready = wait([self.connection, self.process.sentinel])
        try:
            if self.connection not in ready and not self.connection.poll():
                raise EOFError
            kind, content = self.connection.recv()
        except (EOFError, OSError):  # OSError: its answer was there, but the memory it shared has gone with it
            self.process.join()
            raise InputError(
                f"{questions[self.at.value].where}: the process that prepares images died at this row (exit code "
                f"{self.process.exitcode}); finished blocks are kept. Look at the image, or give --workers 0 to "
                "prepare it in the main process."
            ) from None
        if kind == "error":
            raise RuntimeError(f"preparing {questions[self.at.value].where} failed in a worker:\n{content}")
        return content

    def stop(self) -> None:
        self.connection.close()
        self.process.terminate()
        self.process.join()


def _start(workers: int, questions: Sequence[Question], processor: Any) -> list[_Worker]:
    # A forked worker has the questions and the processor at once; elsewhere they are pickled.
    method = "fork" if sys.platform == "linux" else "spawn"
    context = multiprocessing.get_context(method)
    return [_Worker(context, questions, processor) for _ in range(workers)]


def _work(
    connection: Connection, other_end: Connection, at: Any, questions: Sequence[Question], processor: Any
) -> None:
    import traceback

    def remember(number: int) -> None:
        at.value = number

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's to handle
    other_end.close()
    torch.set_num_threads(1)
    while True:
        try:
            column = connection.recv()
        except EOFError:
            return
        answer: tuple[str, Any]
        try:
            answer = ("prepared", prepare(column, questions, processor, remember))
        except Exception:
            answer = ("error", traceback.format_exc())
        connection.send(answer)
