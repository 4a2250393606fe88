"""agci check-recipe, train-lora, merge-lora: LLaMA-Factory's recipes, checked, run and merged without it."""

import argparse
import functools
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers_agci.training.recipe_keys import MergeRecipe, TrainRecipe


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    _add_recipe_arguments(parser, "a recipe for llamafactory-cli train or export")


def run_check(args: argparse.Namespace) -> int:
    """Check a LLaMA-Factory recipe before its first step: data, images, template, adapter, lambda, disk space.

        agci check-recipe RECIPE.yaml && llamafactory-cli train RECIPE.yaml

    For training recipes every image is read once and every row encoded once; for merging recipes (with export_dir) the
    adapter is compared with the checkpoint. `agci train-lora` and `agci merge-lora` do the same checks themselves.
    """
    from transformers_agci.api.training import run_check_recipe

    checked = run_check_recipe(_recipe(args))
    print(checked.text)
    return 0 if checked.passed else 2


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    _add_recipe_arguments(parser, "one of LLaMA-Factory's, as in configs/train_lora")


def run_train(args: argparse.Namespace) -> int:
    """Fine-tune a model with LoRA, AGCI on where its config.json says so: LLaMA-Factory's recipe without LLaMA-Factory.

        agci train-lora configs/train_lora/internvl3.yaml output_dir=out/internvl3 lora_rank=16

    Takes the recipes and data of llamafactory-cli train. A killed run goes on from its last checkpoint with the same
    command; several GPUs: torchrun --nproc_per_node 4 -m transformers_agci.cli train-lora RECIPE.
    """
    from transformers_agci.api.training import run_train as train

    train(_recipe(args), functools.partial(print, flush=True))
    return 0


def add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    _add_recipe_arguments(parser, "one of LLaMA-Factory's, as in configs/merge_lora")


def run_merge(args: argparse.Namespace) -> int:
    """Merge a LoRA adapter into its checkpoint: LLaMA-Factory's export without LLaMA-Factory.

        agci merge-lora configs/merge_lora/internvl3.yaml adapter_name_or_path=out/internvl3 export_dir=models/tuned

    Writes a full checkpoint: sharded safetensors in the base's own layout, processor, tokenizer, chat template, and the
    config.json with its lambda. It appears as a whole or not at all.
    """
    from transformers_agci.api.training import run_merge as merge

    print(merge(_recipe(args), print, functools.partial(print, file=sys.stderr)).summary)
    return 0


def _add_recipe_arguments(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml", help=text)
    parser.add_argument("changes", nargs="*", default=(), metavar="key=value", help="values that replace the recipe's")


def _recipe(args: argparse.Namespace) -> "TrainRecipe | MergeRecipe":
    from transformers_agci.training.recipe import read_recipe

    return read_recipe(args.recipe, args.changes)
