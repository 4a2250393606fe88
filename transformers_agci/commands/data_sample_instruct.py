"""Draw the fine-tuning sample from LLaVA's llava_v1_5_mix665k.json: shuffled by a seed, images that exist.

Written: <name>_for_llava1.5.json (LLaVA's form) and <name>.json (LLaMA-Factory's sharegpt form, entered into
dataset_info.json). Images are named relative to --image_root: that is LLaMA-Factory's media_dir.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--mix", type=Path, required=True, help="llava_v1_5_mix665k.json")
    parser.add_argument(
        "--image_root", type=Path, default=Path("scripts/LLaVA/playground/data"), help="(default: %(default)s)"
    )
    parser.add_argument("--n", type=int, default=10_000, help="conversations (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default: %(default)s)")
    parser.add_argument("--keep_text_only", action="store_true", help="keep conversations without an image")
    parser.add_argument("--output_dir", type=Path, default=Path("data"), help="(default: %(default)s)")
    parser.add_argument("--name", help="(default: llava_v1_5_instruct_sample_10k, the number as --n)")


def run(args: argparse.Namespace) -> int:
    from transformers_agci.data.instruct import draw_sample, write_sample
    from transformers_agci.errors import InputError

    sample = draw_sample(args.mix, args.image_root, args.n, args.seed, args.keep_text_only)
    print(f"{args.mix}: {sample.read} conversations read")
    for reason, count in sorted(sample.skipped.items()):
        print(f"  skipped {count}: {reason}")
    if len(sample.rows) < args.n:
        raise InputError(
            f"Only {len(sample.rows)} of {args.n} conversations have what they need below {args.image_root}: "
            "nothing was written. Run agci data check-images, or give a smaller --n."
        )
    number = f"{args.n // 1000}k" if args.n % 1000 == 0 else str(args.n)
    written = write_sample(sample.rows, args.output_dir, args.name or f"llava_v1_5_instruct_sample_{number}")
    print(f"{len(sample.rows)} conversations in {written[0]} and {written[1]}")
    return 0
