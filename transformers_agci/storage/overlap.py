"""What a command writes is never what it reads, nor what stands beside that, nor written twice.

Compared are files, not spellings: a link, a hard link and `../here/a.jsonl` are the file that they lead to.
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import is_stream
from transformers_agci.storage.reading import is_file, is_folder, open_file, path_text
from transformers_agci.storage.result_names import base_path

OF_A_RESULT = (".manifest.json", ".bad.jsonl", ".lock", ".parts")  # made by every run, or by the next one
BESIDE = (".score.json", ".dropped.jsonl", "_negatives.json")  # which only some files have
ROWS_HAVE = ("prediction", "image", "block")  # a row of answers, of questions, of a shard


class Named(NamedTuple):
    """A file as an option names it, and the endings of what is written beside it."""

    option: str
    path: Path
    beside: tuple[str, ...] = ()


def refuse_overlap(outputs: Iterable[Named], inputs: Iterable[Named]) -> None:
    """InputError where an output is an input, belongs to one, or is another output of the same command.

    `beside` of an input is not looked at: everything that may belong to it does. Folders and streams are left alone.
    """
    written = [each for each in outputs if not _is_no_file(each.path)]
    read = [each for each in inputs if not is_stream(each.path)]
    for output in written:
        for mine in _files(output, output.beside):
            for source in read:
                for its in _files(source, (*OF_A_RESULT, *_existing(source.path))):
                    if same_place(mine, its):
                        raise InputError(_of_an_input(output, mine, source, its))
    for first, second in combinations(written, 2):
        for mine in _files(first, first.beside):
            if any(same_place(mine, other) for other in _files(second, second.beside)):
                raise InputError(
                    f"`{first.option}` and `{second.option}` would both write {path_text(mine)}: one would be lost; "
                    "give them different names."
                )


def check_answers(outputs: Iterable[Path], **inputs: Path | str | None) -> None:
    """InputError where a file of answers, or what is written beside it, is or belongs to one of the files `inputs`.

    What is None, or words of a source that is no file, was not read.
    """
    read = [Named(option, Path(path)) for option, path in inputs.items() if path is not None and is_file(path)]
    refuse_overlap([Named("answer_file", path, OF_A_RESULT) for path in outputs], read)


def refuse_to_replace_rows(path: Path) -> None:
    """InputError where figures would replace what is no file of figures: rows, or a manifest or list beside them."""
    ending = next((ending for ending in OF_A_RESULT[:2] if path.name.endswith(ending)), None)
    if ending is not None and path.exists():
        kind = "the manifest of a run or data set" if ending == OF_A_RESULT[0] else "the list of a run's skipped rows"
        raise InputError(f"{path_text(path)} is {kind}, which figures may not replace; choose another name.")
    if is_file(path) and not is_stream(path) and _holds_rows(path):
        raise InputError(f"{path_text(path)} holds rows, which figures may not replace; choose another name.")


def same_place(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file, or would if it were there."""
    try:
        return first.samefile(second)
    except (OSError, ValueError):
        pass
    try:
        return os.path.realpath(first) == os.path.realpath(second)
    except (OSError, ValueError):  # a name that no file can have is for others to refuse
        return False


def _files(named: Named, endings: Iterable[str]) -> Iterator[Path]:
    yield named.path
    if named.path.name not in ("", ".."):
        yield from (_beside(named.path, ending) for ending in endings)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(base_path(path).name + ending)


def _existing(path: Path) -> tuple[str, ...]:
    """What stands beside an input that not every input has."""
    if path.name in ("", ".."):
        return ()
    return tuple(ending for ending in BESIDE if is_file(_beside(path, ending)))


def _is_no_file(path: Path) -> bool:
    return is_folder(path) or is_stream(path)


def _of_an_input(output: Named, mine: Path, source: Named, its: Path) -> str:
    said, read = path_text(output.path), path_text(source.path)
    whose = f"{read}, which this command reads (`{source.option}`)"
    if mine == output.path and its == source.path:
        return f"`{output.option}` would be written over {whose}; choose another name."
    if mine == output.path:
        return f"`{output.option}`: {said} is a file that belongs to {whose}; choose another name."
    if its == source.path:
        return f"`{output.option}`: beside {said} {path_text(mine)} would be written, but that is {whose}; {_OTHER}"
    return f"`{output.option}`: {path_text(mine)} beside {said} belongs to {whose}; {_OTHER}"


_OTHER = "choose a name with another beginning, or another folder."


def _holds_rows(path: Path) -> bool:
    """Whether a file is JSON Lines of rows; a file of figures is one object."""
    with open_file(path) as file:
        line, more = file.readline(1_000_000), file.read(1)
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and ("prediction" in row or (bool(more) and any(name in row for name in ROWS_HAVE)))
