"""Check a recipe of LLaMA-Factory's before the first step: data, images, template, adapter, lambda, disk space.

    agci check-recipe configs/train_lora/internvl3.yaml && llamafactory-cli train configs/train_lora/internvl3.yaml

For training recipes every image is read once and every row encoded once; for merging recipes (with export_dir) the
adapter is compared with the checkpoint. `agci train-lora` and `agci merge-lora` do the same checks themselves.
"""

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers_agci.training.checks import Findings
    from transformers_agci.training.recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="a recipe for llamafactory-cli train or export")
    parser.add_argument("changes", nargs="*", default=(), metavar="key=value", help="values that replace the recipe's")


def run(args: argparse.Namespace) -> int:
    """Print what was found; 2 where the recipe would not run."""
    from transformers_agci.errors import InputError
    from transformers_agci.training.checks import Findings
    from transformers_agci.training.recipe import is_merging, read_recipe

    recipe = read_recipe(args.recipe, args.changes)
    findings = Findings()
    findings.notes += [f"only LLaMA-Factory can tell: {line}" for line in recipe.unsupported]
    try:
        (_check_merging if is_merging(recipe) else _check_training)(recipe, findings)
    except InputError as error:
        findings.errors.append(str(error))
    for line in findings.lines():
        print(line)
    return 2 if findings.errors else 0


def _check_merging(recipe: "Recipe", findings: "Findings") -> None:
    from transformers_agci.training.merge import check_merge

    merge = check_merge(recipe, findings)
    findings.notes.append(
        f"{merge.changed} of {len(merge.weights)} weights would change, {merge.size} bytes would be written."
    )


def _check_training(recipe: "Recipe", findings: "Findings") -> None:
    from transformers_agci.training.lora import target_layers
    from transformers_agci.training.prepare import inputs_of, load_model, look_at, measure

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
