"""The supported families as a Markdown table; README's is the same, with the scripts of each beside it."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No options."""


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    print(families_table())
    return 0


def families_table() -> str:
    """One line per family: name, model_type in config.json, checkpoint, image tokens of an 840x840 image."""
    from transformers_agci.families import SUPPORTED_FAMILIES

    rows = [("model", "`model_type`", "checkpoint", "image tokens at 840x840"), ("---",) * 4] + [
        (family.name, f"`{family.model_type}`", family.hub_id, family.image_tokens)
        for family in SUPPORTED_FAMILIES.values()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
