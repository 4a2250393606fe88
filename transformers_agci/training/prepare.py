"""From a recipe to what the first step needs: checked rows, the model, tokens and pixels."""

import contextlib
from collections.abc import Iterator

from transformers_agci.errors import InputError
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.progress import Progress
from transformers_agci.method import autoload
from transformers_agci.training.checks import Findings, Seen, Training, check_lengths, check_training
from transformers_agci.training.encoding import Encoder
from transformers_agci.training.images import Bounds, ImageInputs
from transformers_agci.training.recipe import Recipe, is_merging
from transformers_agci.training.recipe_keys import ATTENTION


def look_at(recipe: Recipe, findings: Findings, images: bool = True) -> Training:
    """`check_training` with its images on a bar."""
    with _bar("picture") as seen:
        return check_training(recipe, findings, seen, images)


def measure(training: Training, encoder: Encoder, inputs: ImageInputs, findings: Findings) -> int:
    """`check_lengths` with its rows on a bar."""
    with _bar("row") as seen:
        return check_lengths(training, encoder, inputs, findings, seen)


def check_recipe(recipe: Recipe) -> Findings:
    """Everything that can be known about a training or merging recipe before its first step."""
    findings = Findings()
    findings.notes += [f"only LLaMA-Factory can tell: {line}" for line in recipe.unsupported]
    try:
        (_check_merging if is_merging(recipe) else _check_training)(recipe, findings)
    except InputError as error:
        findings.errors.append(str(error))
    return findings


def _check_merging(recipe: Recipe, findings: Findings) -> None:
    from transformers_agci.training.merge import check_merge

    merge = check_merge(recipe, findings)
    findings.notes.append(
        f"{merge.changed} of {len(merge.weights)} weights would change, {merge.size} bytes would be written."
    )


def _check_training(recipe: Recipe, findings: Findings) -> None:
    from transformers_agci.training.lora import target_layers

    training = look_at(recipe, findings)
    loaded = load_model(recipe, weights=False)
    layers = target_layers(loaded.model, recipe["lora_target"])
    encoder, inputs = inputs_of(recipe, training, loaded)
    cut = measure(training, encoder, inputs, findings)
    data = training.data
    findings.notes.append(f"{len(layers)} linear layers of the language model get an adapter.")
    findings.notes.append(
        f"{len(data.conversations)} rows, {len(data.sizes)} images; {cut} rows are cut to cutoff_len {encoder.cutoff}."
    )


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[Seen]:
    """A bar that appears with the first call of what is yielded."""
    bar: Progress | None = None

    def seen(done: int, total: int) -> None:
        nonlocal bar
        bar = bar or Progress(total, unit=unit)
        bar.add(1)

    try:
        yield seen
    finally:
        if bar:
            bar.close()


def load_model(recipe: Recipe, weights: bool = True) -> LoadedModel:
    """Model and processor; the config key is honoured as everywhere (TRANSFORMERS_AGCI=0 turns it off).

    `weights=False` gives the shape only, which is enough to count tokens.
    """
    autoload.activate()
    options = LoadOptions(
        recipe["model_name_or_path"],
        device="cpu" if recipe["use_cpu"] else None,
        attn_implementation=ATTENTION[recipe["flash_attn"]],
    )
    return load(options, weights=weights)


def inputs_of(recipe: Recipe, training: Training, loaded: LoadedModel) -> tuple[Encoder, ImageInputs]:
    """What turns the recipe's rows into tokens, and images into pixels."""
    encoder = Encoder(training.template, loaded.processor.tokenizer, recipe["cutoff_len"], recipe["enable_thinking"])
    bounds = Bounds(recipe["image_max_pixels"], recipe["image_min_pixels"], recipe["crop_to_patches"])
    return encoder, ImageInputs(loaded.processor, loaded.model.config, bounds)
