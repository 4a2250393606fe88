"""From a recipe to what the first step needs: checked rows, the model, tokens and pixels."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from transformers_agci.errors import InputError
from transformers_agci.families import decoder_of, family_of, find_vlm, require
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.progress import ticking
from transformers_agci.method import autoload
from transformers_agci.training.batches import Bounds, ImageInputs
from transformers_agci.training.checks import CheckReport, Training, check_lengths, check_training
from transformers_agci.training.encoding import Encoder
from transformers_agci.training.merge import check_merge
from transformers_agci.training.recipe_keys import ATTENTION, MergeRecipe, TrainRecipe


def validate_training(recipe: TrainRecipe, report: CheckReport, images: bool = True, progress: bool = True) -> Training:
    """`check_training` with its images on a bar."""
    with ticking("image", progress) as tick:
        return check_training(recipe, report, tick, images)


def validate_lengths(
    training: Training, encoder: Encoder, inputs: ImageInputs, report: CheckReport, progress: bool = True
) -> int:
    """`check_lengths` with its rows on a bar."""
    with ticking("row", progress) as tick:
        return check_lengths(training, encoder, inputs, report, tick)


def check_recipe(recipe: TrainRecipe | MergeRecipe, progress: bool = True) -> CheckReport:
    """Everything that can be known about a training or merging recipe before its first step."""
    report = CheckReport()
    report.notes += [f"only LLaMA-Factory can tell: {line}" for line in recipe.unsupported]
    try:
        if isinstance(recipe, MergeRecipe):
            _check_merging(recipe, report)
        else:
            _check_training(recipe, report, progress)
    except InputError as error:
        report.errors.append(str(error))
    return report


def _check_merging(recipe: MergeRecipe, report: CheckReport) -> None:
    merge = check_merge(recipe, report)
    report.notes.append(
        f"{merge.changed} of {len(merge.weights)} weights would change, {merge.size} bytes would be written."
    )


def _check_training(recipe: TrainRecipe, report: CheckReport, progress: bool) -> None:
    training = validate_training(recipe, report, progress=progress)
    loaded = load_model(recipe, weights=False)
    layers = target_layers(loaded.model, recipe.lora_target)
    encoder, inputs = inputs_of(recipe, training, loaded)
    cut = validate_lengths(training, encoder, inputs, report, progress)
    data = training.data
    report.notes.append(f"{len(layers)} linear layers of the language model get an adapter.")
    report.notes.append(
        f"{len(data.conversations)} rows, {len(data.sizes)} images; {cut} rows are cut to cutoff_len {encoder.cutoff}."
    )


def load_model(recipe: TrainRecipe, weights: bool = True) -> LoadedModel:
    """Model and processor; the config key is honoured as everywhere (TRANSFORMERS_AGCI=0 turns it off).

    `weights=False` gives the shape only, which is enough to count tokens.
    """
    autoload.activate()
    options = LoadOptions(
        recipe.model_name_or_path,
        device="cpu" if recipe.use_cpu else None,
        attn_implementation=ATTENTION[recipe.flash_attn],
    )
    return load(options, weights=weights)


def inputs_of(recipe: TrainRecipe, training: Training, loaded: LoadedModel) -> tuple[Encoder, ImageInputs]:
    """What turns the recipe's rows into tokens, and images into pixels."""
    encoder = Encoder(training.template, loaded.processor.tokenizer, recipe.cutoff_len, recipe.enable_thinking)
    bounds = Bounds(recipe.image_max_pixels, recipe.image_min_pixels, recipe.crop_to_patches)
    return encoder, ImageInputs(loaded.processor, loaded.model.config, bounds)


# --- the adapter -----------------------------------------------------------------------------------------------------

ALL = "all"


def with_lora(model: Any, recipe: TrainRecipe) -> Any:
    """The model with a new adapter in its language model; everything else is frozen. peft's wrapper is returned."""
    from peft import LoraConfig, get_peft_model

    rank = recipe.lora_rank
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=recipe.lora_alpha or 2 * rank,
        lora_dropout=recipe.lora_dropout,
        use_rslora=recipe.use_rslora,
        target_modules=target_layers(model, recipe.lora_target),
    )
    config.base_model_name_or_path = recipe.model_name_or_path
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)  # peft's own
        return get_peft_model(model, config)


def target_layers(model: Any, wanted: Sequence[str]) -> list[str]:
    """Full names of the language model's linear layers that `lora_target` means: "all", or ends of names (up_proj,
    mlp.up_proj).

    Raises InputError for a name that no linear layer of the language model has.
    """
    vlm: Any = find_vlm(model)
    prefix = next(name for name, module in model.named_modules() if module is decoder_of(vlm))
    layers = [
        f"{prefix}.{name}" for name, module in decoder_of(vlm).named_modules() if isinstance(module, torch.nn.Linear)
    ]
    kinds = sorted({layer.rpartition(".")[2] for layer in layers})
    if list(wanted) == [ALL]:
        family = family_of(model)
        support = require(family, "training", family.training)
        require(family, "lora_on_all_layers", support.lora_on_all_layers)
        return layers
    meant = {word: [layer for layer in layers if layer.endswith(f".{word}")] for word in wanted}
    unknown = next((word for word in wanted if not meant[word]), None)
    if unknown is not None:
        raise InputError(
            f"lora_target: the language model has no linear layer {unknown!r}; it has: {', '.join(kinds)} (or all)."
        )
    return [layer for layer in layers if any(layer in named for named in meant.values())]
