"""Build a probe or similarity set: fill the pool, paint a composite per item and cell, write rows and manifest."""

import contextlib
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, cast

from transformers_agci.data.built_set import (
    SET_FILES,
    SUFFIX,
    BuildOptions,
    BuildSummary,
    SetItem,
    counts_text,
    file_hash,
    json_line,
    manifest_path,
    read_manifest,
    set_hash,
    summary_of,
    write_set,
)
from transformers_agci.data.composites import image_name
from transformers_agci.data.draws import Draw, draw, draw_near
from transformers_agci.data.painting import Painter, Task
from transformers_agci.data.pool import CELLS, RECORDS, Drop, Pool, fill_pool, pool_colours
from transformers_agci.data.rendered import Kind, rendered_item
from transformers_agci.data.rows import Row
from transformers_agci.data.worker_processes import in_order
from transformers_agci.errors import InputError
from transformers_agci.storage.atomic import write_atomic
from transformers_agci.storage.journal import Journal
from transformers_agci.storage.json_file import read_json_object
from transformers_agci.storage.lock import exclusive_lock
from transformers_agci.storage.overlap import Named, refuse_overlap
from transformers_agci.storage.reading import is_file, path_text
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
    source = options.source
    given = () if source is None else (("source", source.path), ("captions", source.captions))
    read = [Named(option, Path(text)) for option, text in given if text is not None and is_file(text)]
    refuse_overlap([Named("name", options.folder / f"{options.name}{ending}") for ending in SET_FILES], read)
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


class Plan(NamedTuple):
    """What a set consists of: the work of painting it and its items as their rows tell them."""

    tasks: list[Task]
    items: list[SetItem]


def _build(options: BuildOptions, scratch: Path, workers: int, progress: Progress | None) -> BuildSummary:
    if options.is_rendered:
        plan, drops, dropped = _rendered_plan(options), cast(Iterator[Drop], iter(())), Counter[str]()
    else:
        pool = fill_pool(scratch, options.source, options.pairs_wanted, options.grid, options.background)
        plan, drops, dropped = _pool_plan(options, pool), pool.drops(), pool.dropped
    _make_folder(options.image_folder)
    journal = Journal(scratch / ITEMS)
    _keep_whole_items(options, journal, plan)
    done = len(journal.records)
    look = options.canvas, options.quality, options.background
    painter = Painter(scratch / CELLS, options.image_folder, *look, single=options.is_sequence)
    with contextlib.closing(in_order(painter.paint, iter(plan.tasks[done:]), workers)) as painted:
        for item, hashes in enumerate(painted, done):
            journal.append(hashes)
            if progress:
                progress(item + 1, len(plan.tasks))
    journal.close()
    return write_set(
        options, plan.items, (drop._asdict() for drop in drops), dropped, min(len(plan.items), len(plan.tasks) - done)
    )


def _pool_plan(options: BuildOptions, pool: Pool) -> Plan:
    """The pool's first pairs as targets; for images in a sequence also the other pairs, which stand beside them."""
    try:
        if not pool.pairs:
            raise InputError("The source gave no good pair.")
        draws = _draws(options, pool)
    except InputError as error:
        pool.records.unlink()  # nothing to go on from: the source itself has to change
        raise InputError(f"{path_text(options.source.path)}: {error} Dropped: {counts_text(pool.dropped)}.") from None
    tasks, items = [], []
    for target, drawn in zip(pool.pairs, draws, strict=False):
        others = [pool.pairs[number] for number in drawn.distractors]
        absent = pool.pairs[drawn.absent].caption if options.kind == "probe" else ""
        for size in options.target_sizes or (None,):
            key = target.key if size is None else f"{target.key}-s{size}"
            items.append(SetItem(key, target.caption, absent, tuple((o.key, o.caption) for o in others), size))
            tasks.append(Task(key, target, tuple(others), size))
    if options.content == "images":
        tasks = [Task(pair.key, pair, ()) for pair in pool.pairs]
    return Plan(tasks, items)


def _draws(options: BuildOptions, pool: Pool) -> list[Draw]:
    """Distractors and absent caption of every item."""
    items, pairs = min(options.items, len(pool.pairs)), len(pool.pairs)
    if options.kind == "similarity":
        return [Draw((), item) for item in range(items)]
    if options.distractors == "random":
        return [draw(item, pairs, options.seed, options.others) for item in range(items)]
    colours = pool_colours(pool)
    return [draw_near(item, colours, options.seed, options.others) for item in range(items)]


def _rendered_plan(options: BuildOptions) -> Plan:
    kind = cast(Kind, options.content)
    tasks, items = [], []
    for number in range(options.items):
        item = rendered_item(kind, number, options.seed, options.others)
        for size in options.target_sizes or (None,):
            key = f"{kind}_{number:05d}" + ("" if size is None else f"-s{size}")
            items.append(SetItem(key, item.target.caption, item.absent.caption, (), size))
            tasks.append(Task(key, item.target, item.distractors, size))
    return Plan(tasks, items)


def _claim(options: BuildOptions, scratch: Path, overwrite: bool) -> None:
    """Write the settings down, or compare them with those of the build that is to be continued."""
    path = scratch / "settings.json"
    if _has_records(scratch / RECORDS) and not overwrite:
        _same_settings(options, read_json_object(path, "give `overwrite` to start over"))
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


def _keep_whole_items(options: BuildOptions, journal: Journal, plan: Plan) -> None:
    """Cut the journal at the first item whose files are not all there with the recorded bytes."""
    for item, hashes in enumerate(journal.records):
        key = plan.tasks[item].key if item < len(plan.tasks) else ""
        number = len(hashes) if isinstance(hashes, list) else 0
        names = [f"{key}.jpg"] if options.is_sequence else [image_name(key, k) for k in range(number)]
        if not number or [file_hash(options.image_folder / name) for name in names] != hashes:
            journal.keep(item)
            return
