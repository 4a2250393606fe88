"""Merge a LoRA adapter into its checkpoint: LLaMA-Factory's export without LLaMA-Factory.

    agci merge-lora configs/merge_lora/internvl3.yaml adapter_name_or_path=out/tiles export_dir=models/tuned

Writes a full checkpoint: sharded safetensors in the base's own layout, processor, tokenizer, chat template, and the
config.json with its lambda. It appears as a whole or not at all.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="one of LLaMA-Factory's, as in configs/merge_lora")
    parser.add_argument("changes", nargs="*", default=(), metavar="key=value", help="values that replace the recipe's")


def run(args: argparse.Namespace) -> int:
    """Merge, and say where the checkpoint is."""
    import sys

    from transformers_agci.errors import InputError
    from transformers_agci.method.lam import lambda_text
    from transformers_agci.training.checks import Findings
    from transformers_agci.training.merge import check_merge, is_done, write
    from transformers_agci.training.recipe import is_merging, read_recipe

    recipe = read_recipe(args.recipe, args.changes)
    if not is_merging(recipe):
        raise InputError(
            f"{args.recipe} has no export_dir, so it trains an adapter; use agci train-lora, or give export_dir=FOLDER."
        )
    recipe.refuse_unsupported()
    findings = Findings(notes=list(recipe.ignored))
    merge = check_merge(recipe, findings)
    for line in findings.notes:
        print(line)
    for line in findings.warnings:
        print(f"warning: {line}", file=sys.stderr)
    if is_done(merge):
        print(f"{merge.target} holds this merged checkpoint already.")
        return 0
    folder = write(merge)
    lam = merge.checkpoint.lam
    print(
        f"{merge.changed} of {len(merge.weights)} weights changed; the merged checkpoint is in {folder}, lambda "
        f"{'absent' if lam is None else lambda_text(lam)}."
    )
    return 0
