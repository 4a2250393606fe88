"""A model and its processor from a folder or hub id, ready to answer, and what the manifest says about them."""

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from transformers_agci.errors import EVERYTHING, InputError
from transformers_agci.inference.placement import device_of, dtype_of, placement_of, shape_of
from transformers_agci.inference.quick import ALL, chosen, recorded
from transformers_agci.method.lam import LAMBDA_KEY

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[str, ...] = get_args(Dtype)
VISION = ("auto", "stock")  # see vision_tower.py


@dataclass(frozen=True)
class LoadOptions:
    """What a command line says about loading; None leaves the choice to the checkpoint or the machine."""

    model: str
    family: str | None = None  # the model_type, or the name, of the family that the checkpoint must be of
    dtype: str = "auto"  # the checkpoint's own
    device: str | None = None  # "cpu", "cuda", "cuda:1"; default: a GPU if there is one
    device_map: str | None = None  # "auto": the layers over all GPUs
    attn_implementation: str | None = None
    vision: str = "auto"  # or "stock": see vision_tower.py
    kernels: str = "auto"  # or "stock", or names from quick.py with a comma between them
    revision: str | None = None  # of a hub id
    load_in_4bit: bool = False
    min_pixels: int | None = None  # Qwen only: the image is resized into these bounds
    max_pixels: int | None = None


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with its processor.

    identity  what must be equal for a result file to go on: weights, dtype, attention, image size, prompt template
    notes     what the manifest only records: where the model lay, its revision
    lam       the lambda that config.json carries, or None
    quick     which of the ways in quick.py to do with less are on
    """

    model: Any
    processor: Any
    family: Any  # families.Family
    device: Any  # torch.device on which inputs are put
    identity: Mapping[str, Any]
    notes: Mapping[str, Any]
    lam: float | None = None
    quick: frozenset[str] = ALL

    def batch_size(self, asked: int | None, defaults: Mapping[str, int]) -> int:
        """How much goes into a forward call: what was asked for, or the default of the device's type.

        1 where the family's output for a prompt depends on its mates (`Family.alone`).
        """
        return 1 if self.family.alone else asked or defaults.get(self.device.type, defaults["cpu"])


def load(options: LoadOptions, *, weights: bool = True) -> LoadedModel:
    """Load model and processor; `weights=False` gives the model's shape only, on the meta device (for a dry run).

    Raises InputError for everything that is wrong with the folder, the options or the installed packages.
    """
    one_thread_on_cpu()
    _check_words(options)
    quick = chosen(options.kernels)
    from transformers_agci.families import SUPPORTED_FAMILIES, family_of, find_vlm, image_token_id
    from transformers_agci.inference import checkpoint_files
    from transformers_agci.inference.processor import check_image_token, load_processor, processor_identity

    folder, model_type, lam = checkpoint_files.checked_checkpoint(options, weights)
    with _missing_package_named(options.model), _bars_on_a_terminal_only():
        processor = load_processor(folder, SUPPORTED_FAMILIES[model_type], options.min_pixels, options.max_pixels)
        model, unexpected = _load_model(folder, options) if weights else (shape_of(folder, options), [])
    check_image_token(folder, processor, image_token_id(find_vlm(model).config))
    device = model.device if weights else device_of(options)
    attention, embedding = _quicken_vision(model, options, weights)
    kernels = _quicken_layers(model, quick, weights)
    identity = {
        "family": model_type,
        "weights_sha256": checkpoint_files.fingerprint(folder) if weights else None,
        **_model_identity(model, options, device),
        "vision_attention": attention.backend,
        "patch_embedding": embedding.backend,
        **processor_identity(processor),
    }
    notes = {
        "model": options.model,
        "revision": hub_revision(folder),
        "lambda_in_config": lam,
        "vision_attention_because": attention.reason,
        "patch_embedding_because": embedding.reason,
        "unexpected_weights": unexpected,
        **recorded(quick, device.type, kernels.on, kernels.reasons),
    }
    return LoadedModel(model, processor, family_of(model), device, identity, notes, lam, quick)


def _check_words(options: LoadOptions) -> None:
    """InputError where an option that takes one of a few words has another."""
    if options.vision not in VISION:
        raise InputError(f"`vision` must be {' or '.join(VISION)}, but is {options.vision!r}.")
    if options.dtype not in DTYPES:
        raise InputError(f"`dtype` must be one of {', '.join(DTYPES)}, but is {options.dtype!r}.")


def _model_identity(model: Any, options: LoadOptions, device: Any) -> dict[str, Any]:
    """What shapes the numbers, beside the weights."""
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "dtype": dtype,
        "attention": getattr(model.config, "_attn_implementation", None),
        "quantization": f"4bit nf4, vision and output matrix in {dtype}" if options.load_in_4bit else None,
        "device": device.type,
    }


@contextlib.contextmanager
def _missing_package_named(model: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise InputError(
            f"{model} needs a package that is not installed: {_one_line(error)} ({EVERYTHING} brings all of them)."
        ) from error


@contextlib.contextmanager
def _bars_on_a_terminal_only() -> Iterator[None]:
    """transformers draws a progress bar while it loads, which a log file cannot show."""
    from transformers.utils import logging

    quiet = not sys.stderr.isatty() and logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet:
            logging.enable_progress_bar()


def one_thread_on_cpu() -> None:
    """One thread per process unless OMP_NUM_THREADS says otherwise.

    Two threads gain little on an idle machine and lose many times over on a busy one, and the order of a sum over
    several threads is not fixed: with one, a row's bytes are the same in every run. More speed comes from more
    processes.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(1)


# --- model ---------------------------------------------------------------------------------------------------------


def _load_model(folder: Path, options: LoadOptions) -> tuple[Any, list[str]]:
    """The model, and the names of weights that it has no place for."""
    import torch
    from transformers import AutoModelForImageTextToText

    placed = placement_of(folder, options, torch)
    if options.attn_implementation is not None:
        placed["attn_implementation"] = options.attn_implementation
    try:
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            folder,
            dtype=dtype_of(options, folder, torch),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **placed,
        )
    except (ImportError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # safetensors, config and shape errors come as many kinds
        raise InputError(f"The model in {folder} cannot be loaded ({_one_line(error)}).") from error
    model, info = loaded
    return model.eval(), _check_loaded(folder, model, info)


def _quicken_layers(model: Any, quick: frozenset[str], weights: bool) -> Any:
    """Which of the kernels the layers run from now on."""
    from transformers_agci.inference.kernels import Kernels, use_kernels

    return use_kernels(model, quick) if weights else Kernels()


def _quicken_vision(model: Any, options: LoadOptions, weights: bool) -> tuple[Any, Any]:
    """How the vision tower attends and embeds its patches from now on, each with a reason where it stays as it was."""
    from transformers_agci.inference.vision_tower import (
        STOCK,
        PatchEmbedding,
        VisionAttention,
        as_matrix_product,
        use_segments,
    )

    if options.vision == "auto" and weights:
        return use_segments(model), as_matrix_product(model)
    reason = "the stock vision tower was asked for" if weights else "no weights to compare with"
    return VisionAttention(STOCK, reason), PatchEmbedding(STOCK, reason)


def _check_loaded(folder: Path, model: Any, info: Mapping[str, Any]) -> list[str]:
    """Refuse weights that are missing, misshapen or unknown in a part that answers; return the other unknown ones."""
    missing = sorted(info.get("missing_keys", ()))
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of the model's weights, for instance {missing[0]}; they would "
            "be random. The checkpoint is incomplete, or an incompatible transformers version saved it."
        )
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ()))
    if mismatched:
        raise InputError(
            f"{folder} has {len(mismatched)} weights of another shape than config.json says, for instance "
            f"{mismatched[0]}."
        )
    unexpected = sorted(map(str, info.get("unexpected_keys", ())))
    answering = [key for key in unexpected if _is_answering(key, model)]
    if answering:
        raise InputError(
            f"{folder} has {len(answering)} weights that this model does not know in its vision tower, "
            f"projector or decoder, for instance {answering[0]}; config.json belongs to another model."
        )
    return unexpected


# Parts that an image question never reaches, and what older checkpoints saved although it follows from the config.
SILENT = {"audio_tower", "embed_audio"}
CONSTANTS = {"inv_freq", "position_ids"}


def _is_answering(key: str, model: Any) -> bool:
    """Whether a weight of this name belongs to the part of the model that sees images and answers."""
    parts = {name for name, _ in model.model.named_children()} | {
        "lm_head",
        "language_model",
        "layers",
        "visual",
        "vision_tower",
        "multi_modal_projector",
    }
    words = set(key.split("."))
    return bool(words & (parts - SILENT)) and not words & (SILENT | CONSTANTS)


def hub_revision(folder: Path) -> str | None:
    """The commit, where the folder is a snapshot of the hub's cache."""
    return folder.name if folder.parent.name == "snapshots" else None


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."


def loaded_model(model: LoadOptions | LoadedModel) -> LoadedModel:
    """A model that is loaded already, or one that is loaded now."""
    return model if isinstance(model, LoadedModel) else load(model)


class CarriesLambda(Protocol):
    """A loaded model, or an engine that has one."""

    @property
    def lam(self) -> float | None:
        """The lambda of its config.json, or None."""


def lambdas_of(given: Sequence[float] | None, loaded: CarriesLambda) -> tuple[list[float], str]:
    """The lambdas to run and where they come from: the command line, else the config key, else 0."""
    if given:
        return list(given), "the command line"
    if loaded.lam is not None:
        return [loaded.lam], f"{LAMBDA_KEY} in the model's config.json"
    return [0.0], f"the default: config.json has no {LAMBDA_KEY}"
