"""Fine-tuning data as LLaMA-Factory reads it: dataset_info.json, and conversations in the sharegpt form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from typing import Any

from transformers_agci.data.instruct import IMAGE_TOKEN
from transformers_agci.data.rows import OnError, Row, read_rows, require
from transformers_agci.errors import InputError, short
from transformers_agci.storage.json_file import read_json_object
from transformers_agci.storage.reading import is_file

INFO_FILE = "dataset_info.json"

# What an entry of dataset_info.json may say, with LLaMA-Factory's defaults.
ENTRY_KEYS = ("file_name", "formatting", "columns", "tags")
COLUMNS = {"messages": "conversations", "images": None, "system": None}
TAGS = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt", "system_tag": "system"}
OTHER_TAGS = ("observation_tag", "function_tag")  # of tool calls, which are refused as unknown roles


@dataclass(frozen=True)
class Turn:
    """What one side says, with a mark <image> where an image stands."""

    text: str
    where: str  # 'rows.json:12, messages[0]'


@dataclass(frozen=True)
class Conversation:
    """Questions and answers in turn, beginning with a question; `images` are paths below the media folder."""

    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    system: str
    where: str  # 'rows.json:12'
    images_field: str = "images"

    @property
    def pairs(self) -> Iterator[tuple[Turn, Turn]]:
        """(question, answer) of every turn."""
        return zip(self.turns[::2], self.turns[1::2], strict=True)

    def image_where(self, number: int) -> str:
        """Where an image is named: 'rows.json:12, images[0]'."""
        return f"{self.where}, {self.images_field}[{number}]"


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of a dataset_info.json."""

    name: str
    file: Path
    columns: Mapping[str, str | None]
    tags: Mapping[str, str | None]

    def conversations(self, count: int | None = None, on_error: OnError | None = None) -> Iterator[Conversation]:
        """The first `count` rows (None: all); a bad row raises InputError, or is given to `on_error` and left out."""
        for where, row in islice(read_rows(self.file, on_error), count):
            try:
                yield self.parse(row, where)
            except InputError as error:
                if on_error is None:
                    raise
                on_error(error)

    def parse(self, row: Row, where: str) -> Conversation:
        """A conversation from its JSON object; InputError names `where`, the field and what is allowed."""
        field = str(self.columns["messages"])
        messages = require(row, field, where)
        if not isinstance(messages, list) or not messages:
            raise InputError(f'{where}: "{field}" must be a list of turns that is not empty.')
        system = str(row.get(self.columns["system"]) or "") if self.columns["system"] else ""
        said = [self._said(message, f"{where}, {field}[{number}]") for number, message in enumerate(messages)]
        if self.tags["system_tag"] is not None and said[0][0] == self.tags["system_tag"]:
            system, said = said[0][1].text, said[1:]
        self._check_order(said, where, field)
        images = self._images(row, where)
        turns = tuple(turn for _, turn in said)
        marks = sum(turn.text.count(IMAGE_TOKEN) for turn in turns)
        if marks != len(images):
            raise InputError(
                f"{where}: the turns hold {marks} marks {IMAGE_TOKEN}, but the row names {len(images)} "
                "images; the two numbers must be equal."
            )
        return Conversation(turns, images, system, where, str(self.columns["images"]))

    def _said(self, message: Any, where: str) -> tuple[str, Turn]:
        """(role, turn) of a message."""
        if not isinstance(message, dict):
            raise InputError(f"{where}: a turn must be a JSON object, but this is {type(message).__name__}.")
        role, text = (require(message, str(self.tags[tag]), where) for tag in ("role_tag", "content_tag"))
        if not isinstance(text, str):
            raise InputError(f'{where}: "{self.tags["content_tag"]}" must be a text, but is {type(text).__name__}.')
        return str(role), Turn(text, where)

    def _check_order(self, said: Sequence[tuple[str, Turn]], where: str, field: str) -> None:
        speakers = str(self.tags["user_tag"]), str(self.tags["assistant_tag"])
        for number, (role, turn) in enumerate(said):
            if role != speakers[number % 2]:
                raise InputError(
                    f"{turn.where}: the role is {short(role)}, but it must be {speakers[number % 2]!r} here: "
                    f"{speakers[0]!r} and {speakers[1]!r} take turns (after at most one system turn)."
                )
        if not said or len(said) % 2:
            raise InputError(f'{where}: "{field}" must end with a turn of {speakers[1]!r}, the one that is learnt.')

    def _images(self, row: Row, where: str) -> tuple[str, ...]:
        field = self.columns["images"]
        found = row.get(field) if field else None
        names = found if isinstance(found, list) else [] if found is None else [found]
        for number, name in enumerate(names):
            if not isinstance(name, str) or not name:
                raise InputError(
                    f"{where}, {field}[{number}]: an image is named by its path below the media folder, "
                    f"but this is {short(name)}."
                )
        return tuple(names)


def read_entry(folder: Path, name: str) -> DatasetEntry:
    """The data set `name` of <folder>/dataset_info.json.

    Raises InputError: no such file or entry (with the nearest name), a form that is not sharegpt, no data file.
    """
    path = folder / INFO_FILE
    if not is_file(path):
        raise InputError(f"There is no {path}; it lists the data sets of the recipe's dataset_dir.")
    entries = read_json_object(path)
    if not isinstance(entries.get(name, {}), dict):
        raise InputError(f"{path} must hold a JSON object of data sets, each a JSON object.")
    if name not in entries:
        near = get_close_matches(name, entries, n=1)
        hint = f" Did you mean: {near[0]}?" if near else ""
        raise InputError(
            f"{path} has no data set {short(name)}.{hint} Available: {', '.join(sorted(entries)) or 'none'}."
        )
    return _entry(entries[name], name, path)


def _entry(found: Mapping[str, Any], name: str, path: Path) -> DatasetEntry:
    where = f"{path}, {name}"
    if found.get("formatting") != "sharegpt":
        raise InputError(f'{where}: "formatting" must be "sharegpt", but is {short(found.get("formatting"))}.')
    other = sorted(set(found) - set(ENTRY_KEYS))
    if other:
        raise InputError(f"{where}: the key {short(other[0])} is not served here; known: {', '.join(ENTRY_KEYS)}.")
    if not isinstance(found.get("file_name"), str):
        raise InputError(f'{where}: "file_name" must name the file with the rows.')
    file = path.parent / found["file_name"]
    if not is_file(file):
        raise InputError(f"{where}: there is no file {file}.")
    columns = _settings(found, "columns", COLUMNS, (), where)
    tags = _settings(found, "tags", TAGS, OTHER_TAGS, where)
    lacking = next((tag for tag in TAGS if tag != "system_tag" and tags[tag] is None), None)
    if lacking or columns["messages"] is None:
        what = f'"tags" must name {lacking}' if lacking else '"columns" must name messages'
        raise InputError(f"{where}: {what}.")
    return DatasetEntry(name, file, columns, tags)


def _settings(
    found: Mapping[str, Any], part: str, defaults: Mapping[str, str | None], passed_over: Sequence[str], where: str
) -> dict[str, str | None]:
    """The part's settings: the defaults where it is missing; where it is given, what it leaves out is not there."""
    given = found.get(part)
    if given is None:
        return dict(defaults)
    if not isinstance(given, dict):
        raise InputError(f'{where}: "{part}" must be a JSON object.')
    unknown = sorted(set(given) - set(defaults) - set(passed_over))
    if unknown:
        raise InputError(f'{where}: {short(unknown[0])} in "{part}" is not served here; known: {", ".join(defaults)}.')
    return {key: given.get(key) for key in defaults}
