"""Build a probe or similarity set: fill the pool, paint nine composites per item, write rows and manifest."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers_agci.data.built_set import (
    SUFFIX,
    BuildOptions,
    BuildSummary,
    counted,
    file_hash,
    json_line,
    manifest_path,
    read_manifest,
    set_hash,
    summary_of,
    write_set,
)
from transformers_agci.data.composites import image_name
from transformers_agci.data.draws import draw
from transformers_agci.data.painting import Painter, Task, in_order
from transformers_agci.data.pool import RECORDS, Pool, fill_pool
from transformers_agci.data.rows import Row
from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import write_atomic
from transformers_agci.storage.journal import Journal
from transformers_agci.storage.lock import exclusive_lock
from transformers_agci.storage.settings import as_stored

ITEMS = "items.jsonl"

Progress = Callable[[int, int], None]


def build(
    options: BuildOptions,
    workers: int = 1,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> BuildSummary:
    """Build the set, or go on where an earlier call with the same options stopped.

    Same source, options and seed give the same bytes for any number of workers and interruptions. Other options on
    the same name raise InputError that names the difference, unless `overwrite`. `progress(done, items)` is called
    after every item.
    """
    with _scratch_folder(options) as scratch:
        summary = _finished(options, scratch, overwrite)
        if summary is None:
            _claim(options, scratch, overwrite)
            summary = _build(options, scratch, workers, progress)
        (scratch / RECORDS).unlink(missing_ok=True)
    return summary


@contextlib.contextmanager
def _scratch_folder(options: BuildOptions) -> Iterator[Path]:
    """The folder of unfinished work, under a lock; removed at the end unless it holds records to go on from."""
    folder = options.folder / f".{options.name}.building"
    _make_folder(options.folder)
    with exclusive_lock(options.folder / options.name, "building"):
        _make_folder(folder)
        try:
            yield folder
        except OSError as error:  # a full or vanished disk
            raise InputError(
                f"{options.folder / options.name} could not be written ({error}); what was finished is kept, the same "
                "command goes on from there."
            ) from error
        finally:
            if not _has_records(folder / RECORDS):
                shutil.rmtree(folder, ignore_errors=True)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"The folder {path} cannot be made ({error.strerror}).") from None


def _has_records(journal: Path) -> bool:
    return journal.exists() and journal.stat().st_size > 0


def _build(options: BuildOptions, scratch: Path, workers: int, progress: Progress | None) -> BuildSummary:
    pool = fill_pool(scratch, options.source, options.pairs_wanted, options.grid, options.background)
    _check_size(options, pool)
    _make_folder(options.image_folder)
    journal = Journal(scratch / ITEMS)
    _keep_whole_items(journal, pool, options.image_folder)
    done = len(journal.records)
    painter = Painter(pool.cells, options.image_folder, options.grid, options.quality, options.background)
    items = min(options.items, len(pool.pairs))
    tasks = (_task(options, pool, item) for item in range(done, items))
    with contextlib.closing(in_order(painter.paint, tasks, workers)) as painted:
        for item, hashes in enumerate(painted, done):
            journal.append(hashes)
            if progress:
                progress(item + 1, items)
    journal.close()
    return write_set(options, pool, items, painted=items - done)


def _check_size(options: BuildOptions, pool: Pool) -> None:
    try:
        if not pool.pairs:
            raise InputError(f"The source {options.source.path} gave no good pair.")
        _task(options, pool, 0)
    except InputError as error:
        pool.records.unlink()  # nothing to go on from: the source itself has to change
        raise InputError(f"{error} Dropped: {counted(pool.dropped)}.") from None


def _claim(options: BuildOptions, scratch: Path, overwrite: bool) -> None:
    """Write the settings down, or compare them with those of the build that is to be continued."""
    path = scratch / "settings.json"
    if _has_records(scratch / RECORDS) and not overwrite:
        _same_settings(options, json.loads(path.read_text("utf-8")))
        return
    for other in options.folder.glob(f"*{SUFFIX}"):
        theirs = read_manifest(other)["settings"]["images"]
        if other != manifest_path(options) and theirs == options.image_folder.name:
            raise InputError(f"{options.image_folder} holds the images of {other.name}: give `images` another name.")
    for leftover in scratch.glob("*.*"):  # with the hidden ones: what a killed painter had begun
        leftover.unlink()
    manifest_path(options).unlink(missing_ok=True)
    write_atomic(path, json_line(options.settings()))


def _same_settings(options: BuildOptions, before: Row) -> None:
    now = as_stored(options.settings())
    different = [f"{key} was {before.get(key)!r}, now {now[key]!r}" for key in now if now[key] != before.get(key)]
    if different:
        raise InputError(
            f"{options.folder / options.name} was begun with other settings ({'; '.join(different)}): "
            "use another `name`, or `overwrite` to start over."
        )


def _finished(options: BuildOptions, scratch: Path, overwrite: bool) -> BuildSummary | None:
    """The summary of a set that stands complete with these settings; None when there is something to do."""
    if overwrite or _has_records(scratch / RECORDS) or not manifest_path(options).exists():
        return None
    manifest = read_manifest(manifest_path(options))
    _same_settings(options, manifest["settings"])
    whole = set_hash(options.folder, manifest) == manifest["sha256"]
    return summary_of(options, manifest, painted=0) if whole else None


def _keep_whole_items(journal: Journal, pool: Pool, folder: Path) -> None:
    """Cut the journal at the first item whose nine files are not all there with the recorded bytes."""
    for item, hashes in enumerate(journal.records):
        paths = [folder / image_name(pool.pairs[item].key, k) for k in range(len(hashes))]
        if [file_hash(path) for path in paths] != hashes:
            journal.keep(item)
            return


def _task(options: BuildOptions, pool: Pool, item: int) -> Task:
    drawn = draw(item, len(pool.pairs), options.seed).distractors if options.kind == "probe" else ()
    return Task(pool.pairs[item], tuple(pool.pairs[number] for number in drawn))
