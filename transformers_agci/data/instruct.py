"""The fine-tuning sample: drawn from LLaVA's instruction mix, read as a stream, written for two trainers."""

import heapq
import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers_agci.data.images import check_plain_name, resolve_below
from transformers_agci.data.rows import Row, SourcedRow, read_rows
from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import write_atomic
from transformers_agci.storage.json_file import json_bytes, read_json_object, write_json
from transformers_agci.storage.reading import is_file, is_folder

IMAGE_TOKEN = "<image>"
SPEAKERS = {"human": "user", "gpt": "assistant"}  # LLaVA's names -> the names that LLaMA-Factory is told to expect
EXTENSIONS = (".jpg", ".jpeg", ".png", ".gif", ".webp")  # OCR-VQA's downloads do not all have the listed one

# How LLaMA-Factory reads the sharegpt form.
SHAREGPT = {
    "formatting": "sharegpt",
    "columns": {"messages": "messages", "images": "images"},
    "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
}


class SampleOptions(NamedTuple):
    """A sample: `n` conversations of the mix whose images exist below `image_root`, the first of a shuffled order."""

    mix: Path
    image_root: Path
    n: int
    seed: int = 0
    keep_text_only: bool = False


@dataclass
class Sample:
    """The drawn conversations in LLaVA's form, in drawn order, and why others were left out."""

    rows: list[Row] = field(default_factory=list)
    read: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def require(self, count: int, image_root: Path) -> None:
        """InputError where fewer than `count` conversations were found."""
        if len(self.rows) < count:
            raise InputError(
                f"Only {len(self.rows)} of {count} conversations have what they need below {image_root}: "
                "nothing was written. Run agci data check-images, or give a smaller `n`."
            )


class Skip(NamedTuple):
    """Why a conversation cannot be used."""

    reason: str


def read_conversations(path: Path) -> Iterator[SourcedRow]:
    """Yield the records of LLaVA's JSON array (or of JSON Lines) one by one; memory does not grow with the file.

    A record that is no object comes as a row without fields. Raises InputError when the file is missing, cut off or
    holds no object at all.
    """
    others: list[InputError] = []
    found = False
    for record in read_rows(path, others.append, any_name=True):
        found = True
        yield from (SourcedRow(path.name, {}) for _ in others)
        others.clear()
        yield record
    if not found:
        raise others[0]
    yield from (SourcedRow(path.name, {}) for _ in others)


def draw_sample(path: Path, image_root: Path, count: int, seed: int, keep_text_only: bool = False) -> Sample:
    """Shuffle the mix by `seed` and take the first `count` conversations whose image exists below `image_root`.

    One pass: every record gets a random number, and the `count` usable ones with the lowest numbers are the first
    of the shuffled order. Text-only conversations are skipped unless `keep_text_only`.
    """
    if count < 1:
        raise InputError(f"`n` must be at least 1, but is {count}.")
    rng = random.Random(seed)
    sample = Sample()
    kept: list[tuple[float, int, Row]] = []  # a heap with the highest number on top
    for number, (where, record) in enumerate(read_conversations(path)):
        sample.read += 1
        order = rng.random()
        row = usable(record, image_root, keep_text_only, where)
        if isinstance(row, Skip):
            sample.skipped[row.reason] += 1
        elif len(kept) < count:
            heapq.heappush(kept, (-order, number, row))
        else:
            heapq.heappushpop(kept, (-order, number, row))
    sample.rows = [row for _, _, row in sorted(kept, key=lambda entry: -entry[0])]
    return sample


def usable(record: Row, image_root: Path, keep_text_only: bool, where: str) -> Row | Skip:
    """The record with the name its image really has, or why it is left out."""
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns or not all(_is_turn(turn) for turn in turns):
        return Skip("malformed conversation")
    image = record.get("image")
    marks = sum(turn["value"].count(IMAGE_TOKEN) for turn in turns)
    if image is None:
        if not keep_text_only:
            return Skip("text only")
        return Skip("<image> without an image") if marks else record
    if not isinstance(image, str) or marks != 1:
        return Skip("not exactly one <image>")
    name = existing_name(image_root, image, where)
    return Skip(f"missing image in {Path(image).parent}") if name is None else {**record, "image": name}


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and turn.get("from") in tuple(SPEAKERS) and isinstance(turn.get("value"), str)


def existing_name(image_root: Path, image: str, where: str) -> str | None:
    """The name below `image_root` under which an image exists: as listed, or with another extension; None: nowhere."""
    path = resolve_below(image_root, image, where)
    if is_file(path):
        return image
    there = (path.with_suffix(extension) for extension in EXTENSIONS)
    found = next((other for other in there if is_file(other)), None)
    return None if found is None else str(Path(image).with_suffix(found.suffix))


def to_sharegpt(row: Row) -> Row:
    """A conversation in LLaMA-Factory's sharegpt form.

    >>> to_sharegpt({"id": "7", "image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\nHi"}]})
    {'messages': [{'role': 'user', 'content': '<image>\\nHi'}], 'images': ['a.jpg']}
    """
    messages = [{"role": SPEAKERS[turn["from"]], "content": turn["value"]} for turn in row["conversations"]]
    return {"messages": messages, "images": [row["image"]] if "image" in row else []}


def sample_name(number: int) -> str:
    """The published name of a sample of so many conversations.

    >>> sample_name(10_000), sample_name(25)
    ('llava_v1_5_instruct_sample_10k', 'llava_v1_5_instruct_sample_25')
    """
    return f"llava_v1_5_instruct_sample_{f'{number // 1000}k' if number % 1000 == 0 else number}"


def sample_files(folder: Path, name: str) -> tuple[Path, Path, Path]:
    """What a sample of this name is written to: LLaVA's form, LLaMA-Factory's, and the list that the latter is on."""
    return folder / f"{name}_for_llava1.5.json", folder / f"{name}.json", folder / "dataset_info.json"


def write_sample(rows: list[Row], folder: Path, name: str) -> tuple[Path, Path]:
    """Write <name>_for_llava1.5.json and <name>.json, and enter the latter into dataset_info.json under its name.

    Each file appears whole or not at all. Raises InputError for a name with a folder in it, and where the disk is full
    or the folder cannot be written.
    """
    check_plain_name(name, "name")
    for_llava, for_llama_factory, _ = sample_files(folder, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_array(for_llava, rows)
        _write_array(for_llama_factory, [to_sharegpt(row) for row in rows])
        register(folder, name)
    except OSError as error:
        raise InputError(f"The sample {name} cannot be written into {folder} ({error.strerror or error}).") from None
    return for_llava, for_llama_factory


def register(folder: Path, name: str) -> None:
    """Enter <name>.json into the folder's dataset_info.json; other entries stay."""
    *_, path = sample_files(folder, name)
    entries = read_json_object(path, "repair it or remove it") if is_file(path) else {}
    entries[name] = {"file_name": f"{name}.json", **SHAREGPT}
    write_json(path, entries, indent=1)


def _write_array(path: Path, rows: list[Row]) -> None:
    lines = (json_bytes(row, ascii_only=False).rstrip(b"\n") for row in rows)
    write_atomic(path, [b"[\n", b",\n".join(lines), b"\n]\n"])


@dataclass
class FolderCount:
    """Images of one folder that a mix names: how many, how many are missing, the first missing ones."""

    named: int = 0
    missing: int = 0
    first_missing: list[str] = field(default_factory=list)


def count_images(mix: Path, image_root: Path) -> dict[str, FolderCount]:
    """Per folder of `mix`'s images (LLaVA's form), which exist below `image_root`; each image counts once."""
    if not is_folder(image_root):
        raise InputError(f"There is no image folder {image_root}: give `image_root`.")
    folders: dict[str, FolderCount] = defaultdict(FolderCount)
    seen = set()
    for where, record in read_conversations(mix):
        image = record.get("image")
        if not isinstance(image, str) or image in seen:
            continue
        seen.add(image)
        count = folders[str(Path(image).parent)]
        count.named += 1
        if existing_name(image_root, image, where) is None:
            count.missing += 1
            if len(count.first_missing) < 3:
                count.first_missing.append(image)
    return dict(sorted(folders.items()))
