"""`agci train-lora`: a recipe on peft and transformers' Trainer, with AGCI on where the checkpoint's config says so."""

import contextlib
import dataclasses
import gc
import hashlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from safetensors import SafetensorError

from transformers_agci.errors import InputError
from transformers_agci.families import Lacks, require
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.process_group import is_main_process, started_by_torchrun
from transformers_agci.inference.progress import Progress, Say
from transformers_agci.method import autoload
from transformers_agci.method.handle import current_handle
from transformers_agci.storage import manifest
from transformers_agci.training import outputs
from transformers_agci.training.batches import Collator, Examples, wants_image_marks
from transformers_agci.training.checks import CheckReport, Training
from transformers_agci.training.prepare import inputs_of, load_model, validate_lengths, validate_training, with_lora
from transformers_agci.training.recipe_keys import TrainerKeys, TrainRecipe

TORCH_UNWRITTEN = ("PytorchStreamWriter", "iostream error")  # what torch.save says on a full disk

# Keys that change neither the adapter nor what a run can go on from.
NOT_COMPARED = {
    "output_dir",
    "overwrite_output_dir",
    "logging_steps",
    "save_steps",
    "save_total_limit",
    "report_to",
    "run_name",
    "dataloader_num_workers",
    "ddp_timeout",
    "ddp_backend",
    "model_name_or_path",
    "dataset_dir",
    "media_dir",
    "disable_gradient_checkpointing",
}


def train(recipe: TrainRecipe, say: Say = print, progress: bool = True) -> Path:
    """Train the recipe's adapter, or go on with it; returns its folder.

    `say` prints what a user should know; under torchrun only the first process speaks. Without `progress` neither bars
    nor losses are shown.
    Raises InputError for everything that can be known before the first step.
    """
    had_group = dist.is_available() and dist.is_initialized()
    with outputs.held(Path(recipe.output_dir)) if is_main_process() else contextlib.nullcontext(), _own_bars(progress):
        folder = _train(recipe, say, progress)
    if not had_group:
        _leave_group()
    return folder


def _leave_group() -> None:
    """Take down the group that Trainer joined, and what still holds it: its threads end with it.

    A thread of gloo that lets its last work go while the interpreter ends aborts the process, with all written.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # the trainer and its wrapped model are a circle
        dist.barrier()
        dist.destroy_process_group()


@contextlib.contextmanager
def _own_bars(progress: bool) -> Iterator[None]:
    """Without transformers' bars where ours, which fits into a log file, stands for them, or none is wanted."""
    bars = transformers.utils.logging
    quiet = bars.is_progress_bar_enabled() and not (progress and sys.stderr is not None and sys.stderr.isatty())
    if quiet:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        if quiet:
            bars.enable_progress_bar()


def _train(recipe: TrainRecipe, say: Say, progress: bool) -> Path:
    recipe.check_supported()
    is_main = is_main_process()
    speak: Say = say if is_main else lambda text: None
    for line in recipe.ignored:
        speak(line)
    arguments = training_arguments(recipe)
    training = _validated(recipe, is_main, speak, progress)
    loaded = load_model(recipe)
    encoder, inputs = inputs_of(recipe, training, loaded)
    if is_main:
        report = CheckReport()
        cut = validate_lengths(training, encoder, inputs, report, progress)
        report.check()
        speak(f"{len(training.data.conversations)} rows; {cut} of them are cut to cutoff_len {encoder.cutoff}.")
    lam = lambda_of(loaded)
    folder = Path(recipe.output_dir)
    with arguments.main_process_first(local=False):
        if is_main:
            settings, notes = settings_of(recipe, training, loaded, lam, arguments.world_size)
            outputs.open_output(folder, settings, notes, recipe.overwrite_output_dir)
        finished = bool((outputs.read_manifest(folder) or {}).get("finished"))
        resume = None if finished else outputs.last_checkpoint(folder, speak)
    if finished:
        speak(f"{folder} is finished already; give another output_dir, or overwrite_output_dir=true to start over.")
        return folder
    speak(f"{loaded.family.name}, lambda {lam:g}: AGCI is {'on' if lam else 'off'} in this training.")
    examples = Examples(training.data.conversations, encoder, inputs, training.data.root)
    _fit(recipe, loaded, examples, arguments, resume=resume, speak=speak, progress=progress)
    speak(f"The adapter is in {folder}.")
    return folder


def _validated(recipe: TrainRecipe, is_main: bool, speak: Say, progress: bool) -> Training:
    report = CheckReport()
    training = validate_training(recipe, report, images=is_main, progress=progress)
    report.check()
    for line in (*report.warnings, *report.notes):
        speak(line)
    return training


def lambda_of(loaded: LoadedModel) -> float:
    """The lambda that is active on the model: 0 where the key is missing or switched off."""
    handle = current_handle(loaded.model)
    return handle.lam if handle else 0.0


def training_arguments(recipe: TrainRecipe) -> Any:
    """transformers' TrainingArguments; InputError where it refuses a value."""
    given = {key.name: getattr(recipe, key.name) for key in dataclasses.fields(TrainerKeys)}
    given = {name: value for name, value in given.items() if value is not None}
    given.setdefault("use_cpu", not torch.cuda.is_available())
    steps, ratio = recipe.warmup_steps, recipe.warmup_ratio
    if int(transformers.__version__.partition(".")[0]) >= 5:  # there a number below 1 is a ratio
        given["warmup_steps"] = steps or ratio
    else:
        given |= {"warmup_steps": int(steps), "warmup_ratio": ratio if steps < 1 else 0.0}
    _check_tracker(recipe)
    try:
        return transformers.TrainingArguments(
            output_dir=recipe.output_dir,
            remove_unused_columns=False,
            label_names=["labels"],
            disable_tqdm=True,
            ddp_find_unused_parameters=False if started_by_torchrun() else None,
            **given,
        )
    except (ValueError, ImportError, RuntimeError) as error:
        raise InputError(
            f"{recipe.source}: transformers refuses these training settings ({' '.join(str(error).split())[:300]})."
        ) from error


def _check_tracker(recipe: TrainRecipe) -> None:
    """InputError where `report_to` names something that is not installed; Trainer would say so when the model is up."""
    known = ("none", "all", *transformers.integrations.get_available_reporting_integrations())
    if recipe.report_to not in known:
        raise InputError(
            f"{recipe.source}: report_to is {recipe.report_to}, but installed here are only: {', '.join(known)}."
        )


def settings_of(
    recipe: TrainRecipe, training: Training, loaded: LoadedModel, lam: float, world_size: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What must be equal for a run to go on, and what the manifest only records."""
    identity = {name: value for name, value in loaded.identity.items() if name != "chat_template_sha256"}
    settings = {
        "lambda": lam,
        "model": identity,
        "data": {entry.name: _sha256(entry.file) for entry in training.data.entries},
        "rows": len(training.data.conversations),
        "processes": world_size,
        "recipe": {name: value for name, value in recipe.values.items() if name not in NOT_COMPARED},
    }
    switched_off = bool(training.checkpoint.lam) and not lam
    notes = {
        "recipe": recipe.source,
        "model": recipe.model_name_or_path,
        "lambda_source": f"{autoload.SWITCH}=0 (config.json says {training.checkpoint.lam:g})"
        if switched_off
        else "the key in the checkpoint's config.json"
        if training.checkpoint.lam is not None
        else "the default: the checkpoint's config.json has no such key",
        "dataset_dir": recipe.dataset_dir,
        "media_dir": str(training.data.root),
        "ignored_keys": list(recipe.ignored),
    }
    return settings, notes


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- the run -------------------------------------------------------------------------------------------------------


def _fit(
    recipe: TrainRecipe,
    loaded: LoadedModel,
    examples: Examples,
    arguments: Any,
    *,
    resume: outputs.Checkpoint | None,
    speak: Say,
    progress: bool = True,
) -> None:
    folder = Path(recipe.output_dir)
    steps = Steps(progress)
    trainer = make_trainer(recipe, loaded, examples, arguments, steps)
    trainable = sum(weight.numel() for weight in trainer.model.parameters() if weight.requires_grad)
    speak(f"{trainable} weights are trained.")
    if resume:
        speak(f"Going on from {resume.path}.")
    started, seconds = manifest.now(), time.monotonic()
    try:
        _make_steps(trainer, resume, folder)
    finally:
        steps.close()
    if trainer.is_world_process_zero():
        losses = [entry for entry in trainer.state.log_history if "loss" in entry]
        outputs.add_run(
            folder,
            {
                **manifest.environment(),
                "started": started,
                "seconds": round(time.monotonic() - seconds, 1),
                "from_checkpoint": resume.path.name if resume else None,
                "steps": trainer.state.global_step,
                "losses": [[entry["step"], entry["loss"]] for entry in losses],
                "peak_memory": manifest.peak_memory(),
            },
            finished=True,
        )


def _make_steps(trainer: Any, resume: outputs.Checkpoint | None, folder: Path) -> None:
    """Make the steps that are left and save the adapter; InputError where a remedy is known for what fails."""
    try:
        if resume and resume.holds_last_step:
            _take(trainer, resume.path)
        else:
            trainer.train(resume_from_checkpoint=str(resume.path) if resume else None)
        trainer.save_model()
        trainer.save_state()
    except (InputError, OSError, SafetensorError, RuntimeError, ImportError) as error:
        remedy = _remedy(error, folder)
        if remedy is None:
            raise
        raise InputError(remedy) from error


def _take(trainer: Any, checkpoint: Path) -> None:
    """The result of a training that was killed behind its last step; Trainer would go on with one step more."""
    trainer.model.load_adapter(str(checkpoint), trainer.model.active_adapter, is_trainable=True)
    trainer.state = transformers.TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))


def _remedy(error: Exception, folder: Path) -> str | None:
    """What a user can do about an error of a running training; None where it is not theirs."""
    if isinstance(error, torch.OutOfMemoryError):
        return (
            "The GPU has not enough memory for this training: lower per_device_train_batch_size (raising "
            "gradient_accumulation_steps) or cutoff_len, or take more GPUs."
        )
    if isinstance(error, ImportError):  # of an optimizer
        return (
            f"This training needs a package that is not installed ({' '.join(str(error).split())[:200]}); install "
            "it or give another optim."
        )
    if isinstance(error, OSError | SafetensorError) or any(word in str(error) for word in TORCH_UNWRITTEN):
        reason = "the disk may be full" if isinstance(error, RuntimeError) else " ".join(str(error).split())[:200]
        return f"output_dir {folder} cannot be written ({reason}); the same command goes on from the last checkpoint."
    if isinstance(error, InputError):  # of a worker process: our sentence is the end of its traceback
        return str(error).strip().rpartition("InputError: ")[2]
    return None


class Steps(transformers.TrainerCallback):
    """Counts the steps of this process; only the first process of several shows anything, and it where `shown`."""

    def __init__(self, shown: bool = True) -> None:
        self._bar: Progress | None = None
        self._shown = shown

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._shown = self._shown and state.is_world_process_zero
        self._bar = Progress(state.max_steps - state.global_step, shown=self._shown, unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar:
            self._bar.add(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self._bar and self._shown and logs and "loss" in logs:
            rate = logs.get("learning_rate", 0.0)
            self._bar.say(
                f"step {state.global_step} of {state.max_steps}: loss {float(logs['loss']):.4f}, "
                f"learning rate {float(rate):.2e}"
            )

    def close(self) -> None:
        """Leave the bar's last state standing."""
        if self._bar:
            self._bar.close()


def make_trainer(recipe: TrainRecipe, loaded: LoadedModel, examples: Examples, arguments: Any, steps: Steps) -> Any:
    """transformers' Trainer around the model with its adapter; `steps` shows how far it is."""
    transformers.set_seed(recipe.seed)
    model = with_lora(loaded.model, recipe)
    model.train()
    text = loaded.model.config.get_text_config()
    text.use_cache = False
    support = require(loaded.family, "training", loaded.family.training)
    if not recipe.disable_gradient_checkpointing and not isinstance(support.gradient_checkpointing, Lacks):
        _checkpoint_layers(loaded.model)
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        data_collator=Collator(
            inputs=examples.inputs,
            pad=loaded.processor.tokenizer.pad_token_id,
            image_token=loaded.model.config.image_token_id,
            dtype=_pixel_dtype(recipe, loaded.model),
            marks_images=wants_image_marks(loaded.model),
        ),
        processing_class=loaded.processor,
    )
    # The mean over a micro-batch, and the mean of these over the accumulated ones, as LLaMA-Factory takes it for
    # models with images.
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.add_callback(steps)
    return trainer


def _checkpoint_layers(model: Any) -> None:
    """Compute the layers' insides a second time in the backward pass instead of keeping them."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _pixel_dtype(recipe: TrainRecipe, model: Any) -> torch.dtype:
    if recipe.bf16:
        return torch.bfloat16
    return torch.float16 if recipe.fp16 else model.dtype
