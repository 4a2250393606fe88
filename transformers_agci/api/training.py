"""Fine-tuning in Python by LLaMA-Factory's recipes: checked, trained, merged. Torch is loaded when a step is near."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from transformers_agci.api.arguments import checked
from transformers_agci.api.folders import quiet
from transformers_agci.api.rows import Displayed, DisplayedLines, Tabular, tables_html
from transformers_agci.errors import InputError, short
from transformers_agci.inference.progress import Say
from transformers_agci.method.lam import lambda_text
from transformers_agci.report.table import Table
from transformers_agci.training.recipe import changed_recipe
from transformers_agci.training.recipe_keys import MergeRecipe, TrainRecipe

Recipe = str | Path | Mapping[str, Any]  # a YAML file, or its keys


@dataclass(frozen=True, eq=False, repr=False)
class RecipeCheck(DisplayedLines):
    """What a check of a recipe found: `errors` stop a run, `warnings` and `notes` are worth knowing."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    lines: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether there is no error."""
        return not self.errors


@checked
def check_recipe(recipe: Recipe, *, progress: bool = True, **changes: Any) -> RecipeCheck:
    """Check a training or merging recipe before its first step: data, images, template, adapter, lambda, disk space.

    `recipe` is a file of LLaMA-Factory's, as in configs/train_lora, or a mapping of its keys; `changes` are keys that
    replace its values. What is wrong with the recipe itself, such as a missing key, is an InputError.

    >>> from transformers_agci import check_recipe
    >>> found = check_recipe("configs/train_lora/qwen2_5_vl.yaml", model_name_or_path="./nowhere", progress=False)
    >>> found.passed, found.errors[0].partition(";")[0]
    (False, 'There is no model folder ./nowhere')
    """
    return run_check_recipe(_recipe(recipe, changes), progress)


def run_check_recipe(recipe: TrainRecipe | MergeRecipe, progress: bool = True) -> RecipeCheck:
    """A check as the command makes it."""
    from transformers_agci.training.prepare import check_recipe as check

    found = check(recipe, progress)
    return RecipeCheck(tuple(found.errors), tuple(found.warnings), tuple(found.notes), tuple(found.lines()))


@dataclass(frozen=True, eq=False, repr=False)
class TrainedAdapter(Displayed, Tabular):
    """A LoRA adapter that was trained, or stood finished: its `folder`, and what the command says."""

    folder: Path
    log: tuple[str, ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The logged losses: run (from 0; a training that was interrupted has several), step, loss."""
        from transformers_agci.training.outputs import read_manifest

        runs = (read_manifest(self.folder) or {}).get("runs", [])
        return [
            {"run": number, "step": step, "loss": loss}
            for number, run in enumerate(runs)
            for step, loss in run.get("losses", [])
        ]

    @property
    def text(self) -> str:
        """The folder, and the first and the last loss that was logged."""
        losses = self.rows
        said = f"; loss {losses[0]['loss']:.4f} at step {losses[0]['step']}" if losses else ""
        end = f", {losses[-1]['loss']:.4f} at step {losses[-1]['step']}" if len(losses) > 1 else ""
        return f"The adapter is in {self.folder}{said}{end}."

    def _repr_html_(self) -> str:
        rows = [[str(row["step"]), f"{row['loss']:.4f}"] for row in self.rows]
        return tables_html([Table("", ["step", "loss"], rows)], [self.text])


@checked
def train_lora(recipe: Recipe, *, progress: bool = True, **changes: Any) -> TrainedAdapter:
    """Fine-tune with LoRA by a recipe, AGCI on where the checkpoint's config.json says so; needs the extra [eval].

    Arguments as in `check_recipe`. A training that was interrupted goes on from its last checkpoint in `output_dir`,
    and one that is finished is returned; `overwrite_output_dir=True` starts over. Several GPUs need the command, under
    torchrun.

    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from transformers_agci import train_lora
    >>> from transformers_agci.embedded import embedded_model_path
    >>> folder = tempfile.TemporaryDirectory()
    >>> data = Path(folder.name)
    >>> Image.new("RGB", (252, 252), "red").save(data / "red.png")
    >>> turns = [{"from": "human", "value": "<image>Is there a cat?"}, {"from": "gpt", "value": "No"}]
    >>> _ = (data / "rows.json").write_text(json.dumps([{"conversations": turns, "images": ["red.png"]}] * 2))
    >>> columns = {"messages": "conversations", "images": "images"}
    >>> entry = {"file_name": "rows.json", "formatting": "sharegpt", "columns": columns}
    >>> _ = (data / "dataset_info.json").write_text(json.dumps({"red": entry}))
    >>> recipe = {"model_name_or_path": embedded_model_path(), "template": "qwen2_vl", "dataset": "red"}
    >>> trained = train_lora(
    ...     recipe, dataset_dir=data, output_dir=data / "adapter", max_steps=1, logging_steps=1, progress=False
    ... )
    >>> trained.to_pandas()[["run", "step"]].values.tolist()
    [[0, 1]]
    """
    lines: list[str] = []
    return run_train(_recipe(recipe, changes), quiet(lines), progress)


def run_train(recipe: TrainRecipe | MergeRecipe, say: Say, progress: bool = True) -> TrainedAdapter:
    """A training as the command runs it; `say` takes what a user reads while it goes on."""
    if not isinstance(recipe, TrainRecipe):
        raise InputError(f"{recipe.source} merges an adapter (it has export_dir); use agci merge-lora.")
    recipe.check_supported()
    from transformers_agci.training.run import train

    lines: list[str] = []

    def tell(line: str) -> None:
        lines.append(line)
        say(line)

    return TrainedAdapter(train(recipe, tell, progress), tuple(lines))


@dataclass(frozen=True, eq=False, repr=False)
class MergedCheckpoint(Displayed):
    """A checkpoint with an adapter merged into it. `written` is False where an earlier call had made it.

    changed, weights  how many of its weights the adapter changes, and how many there are
    lam               its lambda, None where its config.json has none
    """

    folder: Path
    changed: int
    weights: int
    lam: float | None
    written: bool
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def summary(self) -> str:
        """What was made, or that it was there."""
        if not self.written:
            return f"{self.folder} holds this merged checkpoint already."
        lam = "absent" if self.lam is None else lambda_text(self.lam)
        changed = f"{self.changed} of {self.weights} weights changed"
        return f"{changed}; the merged checkpoint is in {self.folder}, lambda {lam}."

    @property
    def text(self) -> str:
        """What `agci merge-lora` prints."""
        return "\n".join([*self.notes, *(f"warning: {line}" for line in self.warnings), self.summary])


@checked
def merge_lora(recipe: Recipe, **changes: Any) -> MergedCheckpoint:
    """Merge a LoRA adapter into its checkpoint, by a recipe with `export_dir`; arguments as in `check_recipe`.

    Written is a full checkpoint in the base's own layout, with the base's lambda; it appears as a whole or not at all,
    and one that is there already is returned.

    >>> from transformers_agci import InputError, merge_lora
    >>> try:
    ...     merge_lora({"model_name_or_path": "base", "export_dir": "merged"})
    ... except InputError as error:
    ...     print(str(error).partition(",")[0])
    the recipe: adapter_name_or_path is missing
    """
    return run_merge(_recipe(recipe, changes), quiet([]), quiet([]))


def run_merge(recipe: TrainRecipe | MergeRecipe, say: Say, warn: Say) -> MergedCheckpoint:
    """A merge as the command does it; `say` and `warn` take what a user reads before anything is written."""
    if not isinstance(recipe, MergeRecipe):
        raise InputError(
            f"{recipe.source} has no export_dir, so it trains an adapter; use agci train-lora, or give "
            "export_dir=FOLDER."
        )
    recipe.check_supported()
    from transformers_agci.training.checks import CheckReport
    from transformers_agci.training.merge import check_merge, write

    report = CheckReport(notes=list(recipe.ignored))
    merge = check_merge(recipe, report)
    for line in report.notes:
        say(line)
    for line in report.warnings:
        warn(f"warning: {line}")
    written, lam = write(merge), merge.checkpoint.lam
    said = tuple(report.notes), tuple(report.warnings)
    return MergedCheckpoint(merge.target, merge.changed, len(merge.weights), lam, written, *said)


# --- arguments -----------------------------------------------------------------------------------------------------


def _recipe(given: Any, changes: Mapping[str, Any]) -> TrainRecipe | MergeRecipe:
    """The recipe with its changes; InputError where it is neither a file nor a mapping of names."""
    if not isinstance(given, str | Path | Mapping):
        raise InputError(f"`recipe` must be a YAML file or a mapping of its keys, but is {short(given)}.")
    if isinstance(given, Mapping):
        wrong = next((name for name in given if not isinstance(name, str)), None)
        if wrong is not None:
            raise InputError(f"`recipe`: its keys must be texts, but one is {short(wrong)}.")
        given = {name: _plain(value) for name, value in given.items()}
    return changed_recipe(given, {name: _plain(value) for name, value in changes.items()})


def _plain(value: Any) -> Any:
    """A value as YAML would give it: a path as text, numbers of numpy as Python's, a tuple as a list.

    >>> _plain(Path("a/b")), _plain(("x", "y")), _plain(True)
    ('a/b', ['x', 'y'], True)
    """
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, tuple | list):
        return [_plain(each) for each in value]
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value
