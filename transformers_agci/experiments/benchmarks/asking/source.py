"""Where a benchmark's rows and images are, and the questions that they become."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers_agci.data.rows import Row
from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks.declaration import Benchmark, Inputs, Prompt
from transformers_agci.inference.questions import ImageBytes, ImageFile, ImageSource, Question, QuestionSet, up_to
from transformers_agci.storage.result_lines import FailedRow


@dataclass(frozen=True)
class Source:
    """Where the rows and images are, and which of them are asked how."""

    benchmark: Benchmark
    data: Path | None  # a file or folder, or
    hub_id: str | None = None  # a data set for the `datasets` library
    image_root: Path | None = None  # default: the folder of `data`
    protocol: str | None = None  # default: the benchmark's
    mode: str = "direct"
    setting: str | None = None
    split: str = "test"
    limit: int | None = None
    max_new_tokens: int | None = None  # default: the protocol's
    prompt: str | None = None  # instead of the protocol's: "{question}" stands for the row's question
    annotations: Path | None = None  # what scoring needs beside the rows; default: where the folder of `data` has it

    @property
    def how(self) -> str:
        """The protocol in use."""
        return self.protocol or self.benchmark.protocol

    @property
    def folder(self) -> Path | None:
        """The folder of the data."""
        return self.data.parent if self.data is not None and not self.data.is_dir() else self.data

    @property
    def scored_by(self) -> Path | None:
        """What scoring needs beside the rows, where it is there."""
        if self.annotations is not None or self.benchmark.annotations is None or self.folder is None:
            return self.annotations
        shipped = self.folder / self.benchmark.annotations
        return shipped if shipped.is_file() else None

    @property
    def image_folder(self) -> Path | None:
        """The folder that the rows' image names start from."""
        folder = self.folder
        if self.image_root is not None or folder is None:
            return self.image_root
        return next((folder / name for name in self.benchmark.images if (folder / name).is_dir()), folder)


def data_or_hub_id(name: str) -> tuple[Path | None, str | None]:
    """A Source's `data` and `hub_id` for a name that may be either: what is there is a file or folder.

    >>> data_or_hub_id("MMMU/MMMU_Pro")
    (None, 'MMMU/MMMU_Pro')
    """
    local = Path(name)
    return (local, None) if local.exists() else (None, name)


def question_set(source: Source) -> QuestionSet:
    """Every row of the protocol's population as a question."""
    questions: list[Question] = []
    bad_rows: list[FailedRow] = []
    omitted = 0
    for number, (where, row) in enumerate(_rows(source)):
        try:
            prompt = source.benchmark.rows.prompt(row, source.how, source.mode)
        except InputError as error:
            bad_rows.append(FailedRow(number, where, f"{where}: {error}"))
            continue
        if prompt is None:
            omitted += 1
            continue
        questions.append(_question(source, where, row, prompt))
        if source.limit is not None and len(questions) >= source.limit:
            break
    settings = {
        "experiment": source.benchmark.name,
        "protocol": source.how,
        "mode": source.mode,
        "setting": source.setting,
        "prompt": source.prompt or "the protocol's",
        "questions_sha256": _fingerprint(questions),
    }
    notes = {"data": str(source.hub_id or source.data), "image_root": str(source.image_folder)}
    return QuestionSet(questions, bad_rows, settings, notes, omitted)


def _question(source: Source, where: str, row: Row, asked: Prompt) -> Question:
    images = tuple(_image(source, where, image) for image in asked.images)
    text = asked.text if source.prompt is None else source.prompt.replace("{question}", asked.question)
    return Question(
        without_images(row),
        where,
        text,
        images,
        asked.group,
        up_to(asked.max_new_tokens if source.max_new_tokens is None else source.max_new_tokens),
    )


def _image(source: Source, where: str, image: str | bytes) -> ImageSource:
    if isinstance(image, bytes):
        return ImageBytes(image, where)
    root = source.image_folder
    if root is None:
        raise InputError(f"{where}: the image {image!r} needs `image_root`, the folder it lies in.")
    return ImageFile(root, image, where)


def without_images(row: Row) -> Row:
    """The row without the bytes of its images, which a result file need not repeat."""
    return {
        name: value
        for name, value in row.items()
        if not isinstance(value, bytes)
        and not (isinstance(value, dict) and "bytes" in value)
        and not (value is None and name.startswith("image"))
    }


def _rows(source: Source) -> Sequence[tuple[str, Row]]:
    declared = source.benchmark
    if source.setting is not None and source.setting not in declared.settings:
        allowed = ", ".join(map(repr, declared.settings)) or "none"
        raise InputError(f"{declared.name} has no setting {source.setting!r}; available: {allowed}.")
    if source.mode not in declared.modes:
        raise InputError(f"{declared.name} has no mode {source.mode!r}; available: {', '.join(declared.modes)}.")
    if source.hub_id is not None:
        return _hub_rows(source)
    if source.data is None:
        raise InputError(f"{declared.name} needs `data`, its question file or folder (see eval/), or `hub_id`.")
    if not source.data.exists():
        raise InputError(f"`data` {source.data}: there is no such file or folder.")
    return declared.rows.read(source.data, source.setting)


def _hub_rows(source: Source) -> list[tuple[str, Row]]:
    """Rows through the `datasets` library, images as encoded bytes; the one place that may use the network."""
    declared = source.benchmark
    if declared.hub_id is None:
        raise InputError(f"{declared.name} is plain files on the hub; download them and give `data` (see eval/).")
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            "`hub_id` needs the datasets library, installed with: pip install datasets; it cannot be "
            f"imported here ({error})."
        ) from None
    setting = source.setting or (declared.settings[0] if declared.settings else None)
    try:
        loaded = datasets.load_dataset(source.hub_id, setting, split=source.split)
    except Exception as error:  # the library raises many kinds: no network, no such data set, no such split
        raise InputError(f"`hub_id` {source.hub_id} cannot be loaded: {str(error).splitlines()[0]}") from error
    for name, feature in loaded.features.items():
        if isinstance(feature, datasets.Image):
            loaded = loaded.cast_column(name, datasets.Image(decode=False))
    return [(f"{source.hub_id}:row {number}", row) for number, row in enumerate(loaded, 1)]


def _fingerprint(questions: Sequence[Question]) -> str:
    """What is asked, in one number: texts and image names or contents, in order."""
    digest = hashlib.sha256()
    for question in questions:
        names = [p.name if isinstance(p, ImageFile) else str(p.key) for p in question.images]
        digest.update(repr((question.text, names, question.stop)).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def score_inputs(source: Source, answers: Path, partial: bool) -> Inputs:
    """The result file as an answer file: its rows carry their questions."""
    settings = source.benchmark.settings
    variant = f"{source.setting or settings[0]}, {source.mode}" if settings else None
    return Inputs((answers,), annotations=source.scored_by, partial=partial, variant=variant)
