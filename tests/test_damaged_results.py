"""What no kill leaves behind: damaged, swapped, removed and unwritable results are named, and nothing is lost."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from transformers_agci.errors import InputError
from transformers_agci.storage import manifest
from transformers_agci.storage.journal import Journal
from transformers_agci.storage.result_file import ResultFile, merge_shards
from transformers_agci.storage.result_lines import FailedRow
from transformers_agci.storage.result_names import Shard

SIZES = [2, 3, 2]
INPUT = [{"id": number, "caption": f"a dog {number}"} for number in range(sum(SIZES))]
FAILED = FailedRow(3, "in.json:4", "in.json:4: the image is missing.")


def results(block: int) -> list[dict[str, object]]:
    start = sum(SIZES[:block])
    rows = range(start, start + SIZES[block])
    return [{**INPUT[row], "prediction": "Yes"} for row in rows if row != FAILED.row]


def open_file(path: Path, **options: Shard) -> ResultFile:
    return ResultFile(path, SIZES, {"lambda": 0.5}, rows=INPUT, **options)


def fill(path: Path, **options: Shard) -> None:
    with open_file(path, **options) as file:
        for block in file.missing():
            if file.shard is None or file.shard.owns(block):
                file.write(block, results(block), [FAILED] if block == 1 else [])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A finished file of 6 rows and one that was skipped."""
    fill(tmp_path / "A.jsonl")
    return tmp_path / "A.jsonl"


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """The part file of shard 0/2, which has blocks 0 and 2."""
    for index in (0, 1):
        fill(tmp_path / "A.jsonl", shard=Shard(index, 2))
    return tmp_path / "A.parts" / "0-of-2.jsonl"


def contents(path: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in path.parent.rglob("*") if file.is_file()}


def refused(path: Path, *said: str) -> None:
    """Opening it is one sentence, and leaves all bytes as they were."""
    before = contents(path)
    with pytest.raises(InputError) as error, open_file(path):
        pass
    for words in said:
        assert words in str(error.value)
    assert contents(path) == before


def change_line(path: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[number] = change(lines[number])
    path.write_bytes(b"".join(lines))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda line: line[: len(line) // 2] + b"\n",
    "zeros": lambda line: b"\0" * (len(line) - 1) + b"\n",
    "a list": lambda line: b"[1]\n",
    "empty": lambda line: b"\n",
    "not UTF-8": lambda line: b'{"id": "\xff"}\n',
    "deep": lambda line: b"[" * 100_000 + b"]" * 100_000 + b"\n",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_row_with_whole_ones_behind_it_is_named(path: Path, kind: str) -> None:
    change_line(path, 1, DAMAGE[kind])
    refused(path, f"{path}:2 is damaged", "delete it and everything behind it")


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_last_row_has_its_block_done_again(path: Path, kind: str) -> None:
    whole = path.read_bytes()
    change_line(path, 5, DAMAGE[kind])
    with open_file(path) as file:
        assert file.finished == {0, 1}
        file.write(2, results(2))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_block_of_a_shard_is_named(part: Path, kind: str) -> None:
    path = part.parents[1] / "A.jsonl"
    change_line(part, 0, DAMAGE[kind])
    refused(path, f"{part}:1 is damaged")
    with pytest.raises(InputError, match=r"0-of-2\.jsonl:1 is damaged"):
        merge_shards(path)


@pytest.mark.parametrize(
    "line",
    [
        '{"rows": [], "failed": []}',
        '{"block": "0", "rows": [], "failed": []}',
        '{"block": 0, "rows": 5, "failed": []}',
        '{"block": 0, "rows": [{}, null], "failed": []}',
        '{"block": 0, "rows": [], "failed": [{"row": 1}]}',
    ],
)
def test_a_line_that_is_no_block_is_named(part: Path, line: str) -> None:
    change_line(part, 0, lambda _: line.encode() + b"\n")
    refused(part.parents[1] / "A.jsonl", f"{part}:1 is damaged", "not a block of results")


@pytest.mark.parametrize(
    "line", ["no JSON", "[]", '{"block": 1}', '{"block": 1, "row": "3", "where": "", "error": ""}']
)
def test_a_damaged_list_of_skipped_rows_is_named(path: Path, line: str) -> None:
    path.with_name("A.bad.jsonl").write_text(line + "\n")
    refused(path, "A.bad.jsonl:1 is damaged", "`overwrite`")


@pytest.mark.parametrize("rows", [[3, 3], [1], [7], [-1]])
def test_skipped_rows_of_another_block_are_named(path: Path, rows: list[int]) -> None:
    lines = [{"block": 1, "row": row, "where": "in.json:4", "error": "gone"} for row in rows]
    path.with_name("A.bad.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused(path, "A.bad.jsonl is damaged: it names rows of block 1 that are not in it")


MANIFESTS: dict[str, str | bytes] = {
    "cut": '{"settings": {',
    "a list": "[]",
    "not UTF-8": b"\xff\xfe",
    "no settings": '{"notes": {}, "rows": 7, "blocks": [[2, 1]], "runs": []}',
    "settings are a list": '{"settings": [], "notes": {}, "rows": 7, "blocks": [[2, 1]], "runs": []}',
    "blocks are numbers": '{"settings": {}, "notes": {}, "rows": 7, "blocks": [2, 3], "runs": []}',
    "blocks without end": '{"settings": {}, "notes": {}, "rows": 7, "blocks": [[2, 10000000000000]], "runs": []}',
    "more rows than memory": '{"settings": {}, "notes": {}, "rows": 1e30, "blocks": [[2, 1]], "runs": []}',
    "runs are texts": '{"settings": {}, "notes": {}, "rows": 2, "blocks": [[2, 1]], "runs": ["a"]}',
    "deep": '{"a": ' * 5000 + "1" + "}" * 5000,
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_damaged_manifest_is_named(path: Path, kind: str) -> None:
    content = MANIFESTS[kind]
    manifest.path_of(path).write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(path, "A.manifest.json", "`overwrite`")
    with pytest.raises(InputError, match=r"A\.manifest\.json"):
        merge_shards(path)


def test_two_swapped_rows_are_named(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]))
    refused(path, f"{path}:3 is not the result of row 3 of the input", "its id is 4 and the input's 2")


def test_a_changed_row_of_a_shard_is_named(part: Path) -> None:
    change_line(part, 1, lambda line: line.replace(b"a dog 6", b"a cat 6"))
    refused(part.parents[1] / "A.jsonl", f"{part}:2 is not the result of row 7 of the input", "a cat 6")


def test_fields_that_the_result_has_of_its_own_are_not_compared(tmp_path: Path) -> None:
    """Asking about the rows of an earlier result file, which have a prediction already."""
    path = tmp_path / "A.jsonl"
    with open_file(path) as file:
        file.write(0, [{**row, "prediction": "No"} for row in INPUT[:2]])
    with open_file(path) as file:
        assert file.finished == {0}


def removed(path: Path) -> None:
    path.unlink()


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


@pytest.mark.parametrize("happens", [removed, replaced])
@pytest.mark.parametrize("shard", [None, Shard(0, 2)])
def test_output_that_is_removed_in_mid_run_is_named(
    tmp_path: Path, happens: Callable[[Path], None], shard: Shard | None
) -> None:
    path = tmp_path / "A.jsonl"
    with ResultFile(path, SIZES, {"lambda": 0.5}, shard=shard) as file:
        file.write(0, results(0))
        happens(path if shard is None else tmp_path / "A.parts" / "0-of-2.jsonl")
        with pytest.raises(InputError, match="was removed or replaced while this run was writing it"):
            file.write(2, results(2))


def test_a_folder_that_is_removed_in_mid_run_is_named(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "A.jsonl"
    with open_file(path) as file:
        file.write(0, results(0))
        for found in path.parent.iterdir():
            found.unlink()
        path.parent.rmdir()
        with pytest.raises(InputError, match="was removed or replaced"):
            file.write(1, results(1), [FAILED])
        with pytest.raises(InputError, match="Cannot write"):
            file.record({"seconds": 1})


def test_a_manifest_that_is_removed_in_mid_run_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "A.jsonl"
    with open_file(path) as file:
        manifest.path_of(path).unlink()
        file.write(0, results(0))
        file.record({"seconds": 1})
    with open_file(path) as file:
        assert file.finished == {0}


@pytest.mark.parametrize("shard", [None, Shard(0, 1)])
def test_a_full_disk_is_one_sentence_and_leaves_whole_blocks(
    tmp_path: Path, shard: Shard | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "A.jsonl"

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with ResultFile(path, SIZES, {"lambda": 0.5}, shard=shard) as file:
        file.write(0, results(0))
        out = path if shard is None else tmp_path / "A.parts" / "0-of-1.jsonl"
        before = out.read_bytes()
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(InputError, match=r"Cannot write .*A\.jsonl: No space left on device\. Finished blocks"):
            file.write(2, results(2))
        monkeypatch.undo()
        assert out.read_bytes() == before


def test_a_journal_names_a_damaged_record_and_cuts_a_torn_one(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    journal = Journal(path)
    journal.close()
    assert journal.records == [{"a": 1}, {"a": 2}]
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'
    path.write_text('{"a": 1}\n{"a"\n{"a": 3}\n')
    with pytest.raises(InputError, match=r"journal\.jsonl:2 is damaged"):
        Journal(path)
    assert len(path.read_text().splitlines()) == 3


def test_rows_are_compared_as_json_has_them(tmp_path: Path) -> None:
    """Tuples are lists, keys are texts, and NaN is equal to itself."""
    odd = [{"size": (3, 4), "of": {1: 2}, "nan": float("nan")}]
    path = tmp_path / "A.jsonl"
    for _ in range(2):
        with ResultFile(path, [1], {}, rows=odd) as file:
            if file.missing():
                file.write(0, [{**odd[0], "prediction": "Yes"}])
    assert json.loads(path.read_text())["size"] == [3, 4]
