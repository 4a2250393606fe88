"""Report which images of an instruction file (LLaVA's form) are missing, folder by folder.

Ends with exit code 1 when images are missing.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("mix", type=Path, help="llava_v1_5_mix665k.json, or a sample of it in LLaVA's form")
    parser.add_argument(
        "--image_root", type=Path, default=Path("scripts/LLaVA/playground/data"), help="(default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    from transformers_agci.data.image_tree import count_images

    folders = count_images(args.mix, args.image_root)
    print(f"{'folder':<28}{'named':>9}{'missing':>9}")
    for name, count in folders.items():
        examples = f"   {', '.join(count.first_missing)}" if count.missing else ""
        print(f"{name:<28}{count.named:>9}{count.missing:>9}{examples}")
    missing = sum(count.missing for count in folders.values())
    print(f"{missing} of {sum(count.named for count in folders.values())} images are missing below {args.image_root}")
    return 1 if missing else 0
