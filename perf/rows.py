"""Questions about made-up images, for models that need not understand them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from photographs import photograph

from transformers_agci.experiments.position.questions import PROMPT
from transformers_agci.inference.questions import ImageFile, Question

CAPTION = "a photograph of a {} on a wooden table beside a window, in the afternoon light"
THINGS = ("dog", "cat", "kettle", "bicycle", "lamp", "violin", "boat", "chair", "clock", "tree", "horse", "cup")
POPE_PROMPT = "Is there a {caption} in the image?\nAnswer the question using a single word or phrase."


def probe_questions(folder: Path, images: int, width: int, height: int, per_image: int = 1) -> list[Question]:
    """The position probe's prompt, `per_image` captions for each image; nine images are an item."""
    texts = [PROMPT.format(caption=CAPTION.format(thing)) for thing in _things(images + per_image)]
    return _questions(folder, (width, height), [texts[n : n + per_image] for n in range(images)], of_group=9)


def pope_questions(folder: Path, images: int, width: int, height: int, per_image: int = 18) -> list[Question]:
    """POPE's shape: many short questions about each image."""
    texts = [POPE_PROMPT.format(caption=thing) for thing in _things(images + per_image)]
    return _questions(folder, (width, height), [texts[n : n + per_image] for n in range(images)], of_group=1)


def _questions(folder: Path, size: tuple[int, int], texts: Sequence[Sequence[str]], of_group: int) -> list[Question]:
    """One image for each entry of `texts`, which holds what is asked about it."""
    folder.mkdir(parents=True, exist_ok=True)
    asked: list[Question] = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # numpy and Pillow let go of Python's lock
        names = list(threads.map(lambda number: _draw(folder, number, size), range(len(texts))))
    for number, (name, of_image) in enumerate(zip(names, texts, strict=True)):
        for text in of_image:
            where = f"rows.json:{len(asked) + 1}"
            asked.append(
                Question(
                    {"id": number, "image": name}, where, text, (ImageFile(folder, name, where),), number // of_group
                )
            )
    return asked


def _things(count: int) -> list[str]:
    return [f"{THINGS[number % len(THINGS)]} {number // len(THINGS)}" for number in range(count)]


def _draw(folder: Path, number: int, size: tuple[int, int]) -> str:
    name = f"{number:05d}_{size[0]}x{size[1]}.jpg"
    if not (folder / name).exists():
        photograph(number, *size).save(folder / name, "JPEG", quality=75)
    return name
