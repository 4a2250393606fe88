"""agci data: the published sets, checks of a set, and the fine-tuning sample."""

import argparse
from pathlib import Path

from transformers_agci.commands.options.types import SEED, add_count, path, whole
from transformers_agci.commands.parser import teller
from transformers_agci.data.fetch import FOLDERS, MAX_RATIO
from transformers_agci.experiments.defaults import INSTRUCT_ROWS

IMAGE_ROOT = Path("scripts/LLaVA/playground/data")  # of LLaVA's instruction mix


def add_fetch_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("set", choices=sorted(FOLDERS), help="which of the two published sets")
    parser.add_argument("--output_dir", type=path, help="(default: probe_datasets or similarity_data)")
    parser.add_argument("--local_copy", type=path, help="folder with a copy of the set: arrange it, download nothing")
    ratio = "refuse an archive that unpacks to more than N times its size"
    add_count(parser, "--max_unpack_ratio", MAX_RATIO, ratio, most=1_000_000)


def run_fetch(args: argparse.Namespace) -> int:
    """Fetch the published probe or similarity set from the Hugging Face hub, say what it holds, and check it.

    Loose files, zip, tar and parquet are all understood; a broken-off download goes on where it stopped.
    """
    from transformers_agci.data.fetch import arrange, describe, download

    folder = args.local_copy or download(args.set, args.output_dir or FOLDERS[args.set])
    print(f"{folder} holds {describe(folder)}")
    codes = []
    for found in arrange(folder, args.max_unpack_ratio):
        print(f"rows: {found.rows}\nimages below: {found.images}")
        codes.append(_check(found.rows, found.images))
    return max(codes)


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("file", metavar="FILE", type=path, help="rows: .json, .jsonl (also .gz) or .parquet")
    parser.add_argument("--img_path", "--image_path", type=path, help="folder of the images; default: not checked")


def run_check(args: argparse.Namespace) -> int:
    """Check a probe or similarity set: counts, balance, nine rows per item, duplicates, images and their sizes.

    Ends with exit code 1 when there are errors.
    """
    return _check(args.file, args.img_path)


def _check(file: Path, image_root: Path | None) -> int:
    """Check one file and print what was found; 1 when there are errors."""
    from transformers_agci.api.check import run_check

    checked = run_check([file], image_root)
    teller(add_check_arguments)(checked.text)
    return 0 if checked.passed else 1


def add_sample_instruct_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--mix", type=path, required=True, help="llava_v1_5_mix665k.json")
    parser.add_argument("--image_root", type=path, default=IMAGE_ROOT, help="(default: %(default)s)")
    parser.add_argument("--n", type=whole(1), default=INSTRUCT_ROWS, help="conversations (default: %(default)s)")
    parser.add_argument("--seed", type=SEED, default=0, help="of the shuffle (default: %(default)s)")
    parser.add_argument("--keep_text_only", action="store_true", help="keep conversations without an image")
    parser.add_argument("--output_dir", type=path, default=Path("data"), help="(default: %(default)s)")
    parser.add_argument("--name", help="(default: llava_v1_5_instruct_sample_10k, the number as --n)")


def run_sample_instruct(args: argparse.Namespace) -> int:
    """Draw the fine-tuning sample from LLaVA's llava_v1_5_mix665k.json: shuffled by a seed, images that exist.

    Written: <name>_for_llava1.5.json (LLaVA's form) and <name>.json (LLaMA-Factory's sharegpt form, entered into
    dataset_info.json). Images are named relative to --image_root: that is LLaMA-Factory's media_dir.
    """
    from transformers_agci.api.conversations import run_sample
    from transformers_agci.data.instruct import SampleOptions

    options = SampleOptions(args.mix, args.image_root, args.n, args.seed, args.keep_text_only)
    sample = run_sample(options, args.output_dir, args.name, say=print)
    print(sample.written)
    return 0


def add_check_images_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "mix", metavar="MIX", type=path, help="llava_v1_5_mix665k.json, or a sample of it in LLaVA's form"
    )
    parser.add_argument("--image_root", type=path, default=IMAGE_ROOT, help="(default: %(default)s)")


def run_check_images(args: argparse.Namespace) -> int:
    """Report which images of an instruction file (LLaVA's form) are missing, folder by folder.

    Ends with exit code 1 when images are missing.
    """
    from transformers_agci.api.conversations import run_check_images as check

    checked = check(args.mix, args.image_root)
    print(checked.text)
    return 1 if checked.missing else 0
