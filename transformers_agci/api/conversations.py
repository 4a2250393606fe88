"""Conversations in LLaVA's form: the fine-tuning sample, the images that a mix names, ScienceQA's questions."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import checked, whole_number
from transformers_agci.api.folders import quiet
from transformers_agci.api.rows import Displayed, Tabular, tables_html
from transformers_agci.data.instruct import (
    FolderCount,
    SampleOptions,
    count_images,
    draw_sample,
    sample_files,
    sample_name,
    write_sample,
)
from transformers_agci.data.scienceqa import conversations, write_questions
from transformers_agci.errors import InputError, counted
from transformers_agci.experiments.defaults import INSTRUCT_ROWS
from transformers_agci.inference.progress import Say
from transformers_agci.report.table import Table
from transformers_agci.storage.overlap import Named, refuse_overlap


@dataclass(frozen=True, eq=False, repr=False)
class InstructSample(Displayed, Tabular):
    """A sample of conversations: `rows` in LLaVA's form in drawn order, why others were skipped, the files if written.

    read     conversations of the mix
    skipped  reason -> conversations
    """

    mix: Path
    conversations: tuple[Mapping[str, Any], ...]
    read: int
    skipped: Mapping[str, int]
    files: tuple[Path, ...] = ()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The conversations."""
        return [dict(row) for row in self.conversations]

    @property
    def text(self) -> str:
        """What `agci data sample-instruct` prints."""
        return "\n".join([*_read_lines(self.mix, self.read, self.skipped), self.written])

    @property
    def written(self) -> str:
        """How many were drawn, and where they are."""
        where = f" in {' and '.join(map(str, self.files))}" if self.files else ""
        return f"{counted(len(self.conversations), 'conversation')}{where}"

    def _repr_html_(self) -> str:
        rows = [["read", str(self.read)], ["drawn", str(len(self.conversations))]]
        rows += [[f"skipped: {reason}", str(count)] for reason, count in sorted(self.skipped.items())]
        return tables_html([Table(str(self.mix), ["conversations", "n"], rows)], [self.written] if self.files else ())


@checked
def sample_instruct(
    mix: str | Path,
    image_root: str | Path,
    *,
    n: int = INSTRUCT_ROWS,
    seed: int = 0,
    keep_text_only: bool = False,
    folder: str | Path | None = None,
    name: str | None = None,
) -> InstructSample:
    """Draw `n` conversations of LLaVA's llava_v1_5_mix665k.json: shuffled by `seed`, those whose image exists.

    With a `folder` <name>_for_llava1.5.json (LLaVA's form) and <name>.json (LLaMA-Factory's, entered into its
    dataset_info.json) are written there. Images are named relative to `image_root`. Text alone is skipped unless
    `keep_text_only`. InputError where there are fewer than `n`.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from transformers_agci import sample_instruct
    >>> folder = tempfile.TemporaryDirectory()
    >>> mix = Path(folder.name, "mix.json")
    >>> asked = [{"from": "human", "value": "<image> What is it?"}, {"from": "gpt", "value": "A dog."}]
    >>> _ = mix.with_name("a.jpg").write_bytes(b"")
    >>> _ = mix.write_text(json.dumps([{"image": f"{name}.jpg", "conversations": asked} for name in "ab"]))
    >>> sample = sample_instruct(mix, folder.name, n=1)
    >>> sample.rows[0]["image"], dict(sample.skipped)
    ('a.jpg', {'missing image in .': 1})
    """
    if name is not None and folder is None:
        raise InputError("`name` is of the files that are written to `folder`: give a `folder`, or omit `name`.")
    options = SampleOptions(
        Path(mix), Path(image_root), whole_number("n", n), whole_number("seed", seed, 0), keep_text_only
    )
    return run_sample(options, None if folder is None else Path(folder), name, quiet([]))


def run_sample(options: SampleOptions, folder: Path | None, name: str | None, say: Say) -> InstructSample:
    """A sample as the command draws it; `say` takes what was read and skipped before anything is written."""
    named = name or sample_name(options.n)
    if folder is not None:
        files = sample_files(folder, named)
        refuse_overlap([Named("output_dir", file) for file in files], [Named("mix", options.mix)])
    sample = draw_sample(*options)
    for line in _read_lines(options.mix, sample.read, sample.skipped):
        say(line)
    sample.require(options.n, options.image_root)
    written: tuple[Path, ...] = ()
    if folder is not None:
        written = write_sample(sample.rows, folder, named)
    return InstructSample(options.mix, tuple(sample.rows), sample.read, dict(sample.skipped), written)


def _read_lines(mix: Path, read: int, skipped: Mapping[str, int]) -> list[str]:
    reasons = [f"  skipped {count}: {reason}" for reason, count in sorted(skipped.items())]
    return [f"{mix}: {counted(read, 'conversation')} read", *reasons]


@dataclass(frozen=True, eq=False, repr=False)
class ImagesCheck(Displayed, Tabular):
    """Which images of an instruction file exist, folder by folder."""

    image_root: Path
    folders: Mapping[str, FolderCount]

    @property
    def missing(self) -> int:
        """Images that are missing, over all folders."""
        return sum(count.missing for count in self.folders.values())

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A row per folder: how many images the file names, how many are missing, the first missing ones."""
        return [{"folder": name, **vars(count)} for name, count in self.folders.items()]

    @property
    def text(self) -> str:
        """What `agci data check-images` prints."""
        lines = [f"{'folder':<28}{'named':>9}{'missing':>9}"]
        for name, count in self.folders.items():
            examples = f"   {', '.join(count.first_missing)}" if count.missing else ""
            lines.append(f"{name:<28}{count.named:>9}{count.missing:>9}{examples}")
        return "\n".join([*lines, self._total])

    @property
    def _total(self) -> str:
        named = sum(count.named for count in self.folders.values())
        return f"{self.missing} of {named} images are missing below {self.image_root}"

    def _repr_html_(self) -> str:
        rows = [
            [name, str(count.named), str(count.missing), ", ".join(count.first_missing)]
            for name, count in self.folders.items()
        ]
        return tables_html([Table(self._total, ["folder", "named", "missing", "the first of them"], rows)])


@checked
def check_images(mix: str | Path, image_root: str | Path) -> ImagesCheck:
    """Which images of an instruction file (LLaVA's form) are missing below `image_root`; each image counts once.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from transformers_agci import check_images
    >>> folder = tempfile.TemporaryDirectory()
    >>> mix = Path(folder.name, "mix.json")
    >>> _ = mix.write_text(json.dumps([{"image": "coco/a.jpg", "conversations": []}]))
    >>> check_images(mix, folder.name).to_pandas()[["folder", "missing"]].values.tolist()
    [['coco', 1]]
    """
    return run_check_images(Path(mix), Path(image_root))


def run_check_images(mix: Path, image_root: Path) -> ImagesCheck:
    """The same as the command does it."""
    return ImagesCheck(image_root, count_images(mix, image_root))


@dataclass(frozen=True, eq=False, repr=False)
class ScienceQAQuestions(Displayed, Tabular):
    """ScienceQA's questions in LLaVA's form, and the file that they were written to, if one was named."""

    conversations: tuple[Mapping[str, Any], ...]
    file: Path | None = None

    @property
    def rows(self) -> list[dict[str, Any]]:
        """A conversation per question; its second turn is the right letter."""
        return [dict(row) for row in self.conversations]

    @property
    def text(self) -> str:
        """What `agci data build-scienceqa` prints."""
        answers = Counter(str(row["conversations"][1]["value"]) for row in self.conversations)
        letters = ", ".join(f"{letter} {count}" for letter, count in sorted(answers.items()))
        images = sum("image" in row for row in self.conversations)
        head = "" if self.file is None else f"{self.file}: "
        return f"{head}{counted(len(self.conversations), 'item')}, {images} with an image; correct answers: {letters}"

    def _repr_html_(self) -> str:
        return tables_html([], [self.text])


@checked
def build_scienceqa(
    problems: str | Path, pid_splits: str | Path, *, split: str = "test", output: str | Path | None = None
) -> ScienceQAQuestions:
    """LLaVA's llava_test_CQM-A.json from ScienceQA's problems.json and pid_splits.json; written where `output` says.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from transformers_agci import build_scienceqa
    >>> folder = tempfile.TemporaryDirectory()
    >>> problems, splits = Path(folder.name, "problems.json"), Path(folder.name, "pid_splits.json")
    >>> _ = problems.write_text(json.dumps({"7": {"question": "Which?", "choices": ["a", "b"], "answer": 1}}))
    >>> _ = splits.write_text(json.dumps({"test": ["7"]}))
    >>> print(build_scienceqa(problems, splits))
    1 item, 0 with an image; correct answers: B 1
    """
    return run_build_scienceqa(Path(problems), Path(pid_splits), split, None if output is None else Path(output))


def run_build_scienceqa(problems: Path, pid_splits: Path, split: str, output: Path | None) -> ScienceQAQuestions:
    """The same as the command does it."""
    if output is not None:
        refuse_overlap([Named("output", output)], [Named("problems", problems), Named("pid_splits", pid_splits)])
    rows = conversations(problems, pid_splits, split)
    if output is not None:
        write_questions(rows, output)
    return ScienceQAQuestions(tuple(rows), output)
