"""What the page's script shows of every item: captions, images, replies and margins as columns, thumbnails of some."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from transformers_agci.data.grid import Box, Shape
from transformers_agci.data.images import open_image, resolve_below
from transformers_agci.data.probe_rows import ANSWERS
from transformers_agci.errors import InputError
from transformers_agci.experiments.items import target_box
from transformers_agci.experiments.position.results import ProbeResult, Tables
from transformers_agci.report.page.columns import Texts, column, margins
from transformers_agci.report.page.images import jpeg

MISSING, NO, YES, UNREADABLE = range(4)


@dataclass
class Answers:
    """The columns, and which images they name; the thumbnails are made afterwards."""

    results: Sequence[ProbeResult]
    captions: Texts = field(default_factory=Texts)
    images: Texts = field(default_factory=Texts)
    replies: Texts = field(default_factory=Texts)

    def data(self) -> dict[str, Any]:
        """Everything but thumbnails and overlays."""
        first = self.results[0]
        sides = {name: self._side(name) for name in ANSWERS if any(_tables(r, name) for r in self.results)}
        return {
            "shape": list(first.shape),
            "cells": list(first.cells),
            "items": len(first.items),
            "results": [result.label for result in self.results],
            "sides": sides,
            "captions": self.captions.all,
            "images": self.images.all,
            "replies": self.replies.all,
        }

    def _side(self, answer: str) -> dict[str, Any]:
        size = len(self.results[0].items) * len(self.results[0].cells)
        caption, image = np.zeros(size, dtype=int), np.zeros(size, dtype=int)
        replies = []
        for result in self.results:
            reply = np.zeros(size, dtype=int)
            for at, row in _placed(result, self.results[0], answer):
                caption[at], image[at] = self.captions.number(row.caption), self.images.number(row.image)
                reply[at] = self.replies.number(row.prediction)
            replies.append(column(reply))
        tables = [_tables(result.select(self.results[0].items), answer) for result in self.results]
        return {
            "caption": column(caption),
            "image": column(image),
            "reply": replies,
            "said": [column(_said(table, size)) for table in tables],
            "margin": [None if table is None else margins(table.margin.ravel()) for table in tables],
        }

    def failures(self) -> Iterator[str]:
        """Images worth a thumbnail: what changed from the first result (what is wrong, where there is one), the
        largest change of every cell first, then every cell's second largest, and so on."""
        ranked: list[tuple[int, int, int]] = []  # rank within its cell and answer, answer, place
        for number, answer in enumerate(ANSWERS):
            found = self._changes(answer)
            if found is None:
                continue
            for cell in range(found.shape[1]):
                order = np.argsort(-np.nan_to_num(found[:, cell], nan=-1), kind="stable")
                chosen = [item for item in order if found[item, cell] >= 0]
                ranked += [(rank, number, item * found.shape[1] + cell) for rank, item in enumerate(chosen)]
        names = {answer: self._image_names(answer) for answer in ANSWERS}
        yield from dict.fromkeys(
            name for _, number, at in sorted(ranked) if (name := names[ANSWERS[number]].get(at)) is not None
        )

    def _image_names(self, answer: str) -> dict[int, str]:
        return {at: row.image for result in self.results for at, row in _placed(result, self.results[0], answer)}

    def _changes(self, answer: str) -> np.ndarray | None:
        """[items, cells]: by how much a row that became right or wrong moved, NaN where it did not."""
        tables = [_tables(result.select(self.results[0].items), answer) for result in self.results]
        first = tables[0]
        if first is None:
            return None
        if len(tables) == 1:
            return np.where(first.correct == 0, _size(first.margin), np.nan)
        found = np.full(first.correct.shape, np.nan)
        for other in tables[1:]:
            if other is not None:
                changed = np.abs(first.correct - other.correct) == 1
                found = np.fmax(found, np.where(changed, _size(other.margin - first.margin), np.nan))
        return found


def _size(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.abs(values))


def _tables(result: ProbeResult, answer: str) -> Tables | None:
    return result.yes if answer == "Yes" else result.no


def _placed(result: ProbeResult, first: ProbeResult, answer: str) -> Iterator[tuple[int, Any]]:
    """The rows of one answer and where they stand: item * cells + cell, by the first result's items."""
    order = {item: number for number, item in enumerate(first.items)}
    places = [order[item] for item in result.items]
    for row in result.rows:
        if row.answer == answer:
            yield places[row.item] * len(first.cells) + row.cell, row


def _said(table: Tables | None, size: int) -> np.ndarray:
    if table is None:
        return np.full(size, MISSING)
    said = np.where(table.unreadable == 1, UNREADABLE, np.where(table.said_yes == 1, YES, NO))
    return np.where(np.isnan(table.correct), MISSING, said).ravel()


@dataclass(frozen=True)
class Thumbnails:
    """JPEGs by the image's number, what could not be read, and the cells' boxes in percent of an image."""

    content: dict[int, bytes]
    unreadable: list[str]
    boxes: list[list[float]] | None


def thumbnails(names: Sequence[str], all_names: Sequence[str], folder: Path, side: int, shape: Shape) -> Thumbnails:
    """Thumbnails of `names`, which lie below `folder`; their numbers are their places in `all_names`."""
    numbers = {name: number for number, name in enumerate(all_names)}
    content, unreadable, boxes = {}, [], None
    for name in names:
        if name not in numbers:  # a name that was cut to be shown
            unreadable.append(name)
            continue
        try:
            image = open_image(resolve_below(folder, name, "report"), "report")
        except InputError:
            unreadable.append(name)
            continue
        boxes = boxes or _boxes(shape, *image.size)
        content[numbers[name]] = jpeg(image, side)
    return Thumbnails(content, unreadable, boxes)


def _boxes(shape: Shape, width: int, height: int) -> list[list[float]]:
    """Left, top, width and height of every cell's box in percent of the image."""
    rows, columns = shape
    if shape == (3, 3):
        boxes = [target_box(cell, width, height) for cell in range(9)]
    else:
        wide, tall = width / columns, height / rows
        corners = [(column * wide, row * tall) for row in range(rows) for column in range(columns)]
        boxes = [Box(x, y, x + wide, y + tall) for x, y in corners]
    return [
        [
            round(100 * share, 3)
            for share in (
                box.left / width,
                box.top / height,
                (box.right - box.left) / width,
                (box.bottom - box.top) / height,
            )
        ]
        for box in boxes
    ]
