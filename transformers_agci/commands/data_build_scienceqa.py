"""Build LLaVA's llava_test_CQM-A.json from ScienceQA's problems.json and pid_splits.json."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--problems", type=Path, required=True, help="problems.json of ScienceQA")
    parser.add_argument("--pid_splits", "--splits", type=Path, required=True, help="pid_splits.json of ScienceQA")
    parser.add_argument("--split", default="test", help="(default: %(default)s)")
    parser.add_argument(
        "--output", type=Path, default=Path("llava_test_CQM-A.json"), help="file to write (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    import json
    from collections import Counter

    from transformers_agci.data.scienceqa import conversations
    from transformers_agci.storage.atomic import write_atomic

    rows = conversations(args.problems, args.pid_splits, args.split)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(args.output, [json.dumps(rows, ensure_ascii=False, indent=1).encode(), b"\n"])
    gold = Counter(row["conversations"][1]["value"] for row in rows)
    images = sum("image" in row for row in rows)
    answers = ", ".join(f"{letter} {count}" for letter, count in sorted(gold.items()))
    print(f"{args.output}: {len(rows)} items, {images} with an image; gold {answers}")
    return 0
