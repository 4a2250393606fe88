"""What is checked before the first step: the same checks for our own trainer and for users of llamafactory-cli."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers_agci.data.images import image_size, resolve_below
from transformers_agci.data.sharegpt import Conversation, DatasetEntry, read_entry
from transformers_agci.errors import InputError, counted
from transformers_agci.families.training_support import Template
from transformers_agci.inference.checkpoint_files import check_weights, model_folder, read_config
from transformers_agci.inference.progress import Tick
from transformers_agci.method.lam import LAMBDA_KEY, validate_lambda
from transformers_agci.training.encoding import template_for
from transformers_agci.training.recipe_keys import Recipe, TrainRecipe


@dataclass
class CheckReport:
    """What checks found: `errors` stop a run, `warnings` and `notes` are worth knowing."""

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def check(self) -> None:
        """InputError with the first error, and how many more there are."""
        if self.errors:
            more = len(self.errors) - 1
            tail = f" And {more} more of such errors; agci check-recipe lists them." if more else ""
            raise InputError(f"{self.errors[0]}{tail}")

    def lines(self, errors_shown: int = 20) -> Iterator[str]:
        """The report as text."""
        yield from (f"note: {note}" for note in self.notes)
        yield from (f"warning: {warning}" for warning in self.warnings)
        yield from (f"error: {error}" for error in self.errors[:errors_shown])
        hidden = len(self.errors) - errors_shown
        if hidden > 0:
            yield f"error: and {hidden} more"
        yield f"{counted(len(self.errors), 'error')}, {counted(len(self.warnings), 'warning')}"


@dataclass(frozen=True)
class Checkpoint:
    """The model of a recipe, as its files say; nothing is loaded."""

    folder: Path
    config: dict[str, Any]
    lam: float | None  # of the config key

    @property
    def model_type(self) -> str:
        return str(self.config["model_type"])


def read_checkpoint(recipe: Recipe) -> Checkpoint:
    """The recipe's checkpoint: supported, without code of its own, with all its weights and a lambda that is one."""
    folder = model_folder(recipe.model_name_or_path, None)
    config = read_config(folder)
    check_weights(folder)
    lam = config.get(LAMBDA_KEY)
    if lam is not None:
        lam = validate_lambda(lam, f"{LAMBDA_KEY} of {folder / 'config.json'}")
    return Checkpoint(folder, config, lam)


@dataclass(frozen=True)
class TrainingData:
    """The rows that a recipe trains on; sizes are those of the images in pixels, (width, height)."""

    conversations: Sequence[Conversation]
    entries: Sequence[DatasetEntry]
    root: Path  # media_dir
    sizes: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Training:
    """A training recipe whose checkpoint, template and data are right."""

    checkpoint: Checkpoint
    template: Template
    data: TrainingData


def check_training(recipe: TrainRecipe, report: CheckReport, tick: Tick | None = None, images: bool = True) -> Training:
    """Everything that can be known before the model is loaded; bad rows and images are added to `report`.

    `images=False` leaves the images unread: under torchrun one process looks at them for all.
    Raises InputError where nothing can be read at all.
    """
    checkpoint = read_checkpoint(recipe)
    template = template_for(recipe.template, checkpoint.model_type)
    if checkpoint.lam is None:
        report.notes.append(
            f"{checkpoint.folder}/config.json has no {LAMBDA_KEY}: AGCI is off in this training "
            "(agci set-lambda CHECKPOINT 0.5 turns it on)."
        )
    data = read_data(recipe, report, tick, images)
    return Training(checkpoint, template, data)


def read_data(recipe: TrainRecipe, report: CheckReport, tick: Tick | None = None, images: bool = True) -> TrainingData:
    """The rows of the recipe's data sets, each image of them read once."""
    folder = Path(recipe.dataset_dir)
    root = Path(recipe.media_dir or folder)
    entries = [read_entry(folder, name) for name in recipe.dataset]
    conversations = [
        conversation for entry in entries for conversation in entry.conversations(recipe.max_samples, _note(report))
    ]
    if not conversations:
        report.errors.append(f"{', '.join(str(entry.file) for entry in entries)}: there is no row to train on.")
    named = any(conversation.images for conversation in conversations)
    if named and not root.is_dir():
        raise InputError(
            f"There is no folder {root}, below which the images of the data are expected; give the recipe's media_dir."
        )
    sizes = _image_sizes(conversations, root, report, tick) if images and named else {}
    return TrainingData(conversations, entries, root, sizes)


def _note(report: CheckReport) -> Callable[[InputError], None]:
    return lambda error: report.errors.append(str(error))


def _image_sizes(
    conversations: Sequence[Conversation], root: Path, report: CheckReport, tick: Tick | None
) -> dict[str, tuple[int, int]]:
    first_use: dict[str, str] = {}
    for conversation in conversations:
        for number, name in enumerate(conversation.images):
            first_use.setdefault(name, conversation.image_where(number))
    sizes = {}
    for done, (name, where) in enumerate(first_use.items(), 1):
        try:
            sizes[name] = image_size(resolve_below(root, name, where), where)
        except InputError as error:
            report.errors.append(str(error))
        if tick:
            tick(done, len(first_use))
    return sizes


def check_lengths(training: Training, encoder: Any, inputs: Any, report: CheckReport, tick: Tick | None = None) -> int:
    """Encode every row once, so that a cut through an image's tokens is named before the first step.

    Returns how many rows are cut (their text, which is allowed). Needs `sizes` of every image.
    """
    cut = 0
    for done, conversation in enumerate(training.data.conversations, 1):
        if all(name in training.data.sizes for name in conversation.images):  # else it is among the errors
            try:
                tokens = [inputs.tokens(training.data.sizes[name]) for name in conversation.images]
                cut += encoder.encode(conversation, tokens).cut
            except InputError as error:
                report.errors.append(str(error))
        if tick:
            tick(done, len(training.data.conversations))
    return cut
