"""Fine-tune a model with LoRA, AGCI on where its config.json says so: LLaMA-Factory's recipe without LLaMA-Factory.

    agci train-lora configs/train_lora/internvl3.yaml output_dir=out/internvl3 lora_rank=16

Takes the recipes and data of llamafactory-cli train. A killed run goes on from its last checkpoint with the same
command; several GPUs: torchrun --nproc_per_node 4 -m transformers_agci.cli train-lora RECIPE.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="one of LLaMA-Factory's, as in configs/train_lora")
    parser.add_argument("changes", nargs="*", default=(), metavar="key=value", help="values that replace the recipe's")


def run(args: argparse.Namespace) -> int:
    """Train, and say where the adapter is."""
    import functools

    from transformers_agci.errors import InputError
    from transformers_agci.training.recipe import is_merging, read_recipe

    recipe = read_recipe(args.recipe, args.changes)
    if is_merging(recipe):
        raise InputError(f"{args.recipe} merges an adapter (it has export_dir); use agci merge-lora.")
    recipe.refuse_unsupported()
    from transformers_agci.training.run import train

    train(recipe, functools.partial(print, flush=True))
    return 0
