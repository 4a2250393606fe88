"""Occlusion maps: a white square hides one place of an image after another; how far do the answer's logits move?

20 items are drawn with seed 1 (all if there are not more), nine images each. Every image gets a folder
<output_dir>/<name>/ with its scores, its map and the map drawn over it; started again, the command goes on with the
next image. An answer of several tokens is teacher-forced: every token's logit is read after the original answer's
beginning. `agci occlusion-maps` sums the maps up by the place of the target.
"""

import argparse

from transformers_agci.commands.model_default import add_model_arguments, model_options
from transformers_agci.commands.probe_data import positives
from transformers_agci.commands.run_options import add_run_arguments, at_least, run_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the words of the published script work."""
    add_model_arguments(parser)
    data = parser.add_argument_group("data")
    data.add_argument("--eval_file", metavar="F", help="the probe's rows; default: composites of the embedded atlas")
    data.add_argument("--img_path", "--image_path", metavar="I", help="folder of the rows' images")
    data.add_argument("--output_dir", default="occlusion", metavar="D", help="where results go (default occlusion/)")
    data.add_argument("--items", type=int, default=20, metavar="N", help="items to draw (default 20)")
    data.add_argument("--seed", type=int, default=1, help="seed of the draw (default 1)")
    masks = parser.add_argument_group("masks")
    masks.add_argument(
        "--mask_size",
        type=int,
        default=42,
        metavar="PX",
        help="side of the mask in pixels (default 42, the paper's; 1.5 image tokens of Qwen2.5-VL)",
    )
    masks.add_argument("--stride", type=int, metavar="PX", help="distance of the masks in pixels (default: their side)")
    masks.add_argument("--colour", "--color", default="white", help="colour of the mask: a name, or #808080")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--global_context_lambda", default="0", metavar="L", help="lambda while answering (default 0)")
    asked.add_argument(
        "--max_new_tokens", type=int, default=128, metavar="N", help="longest answer in tokens (default 128)"
    )
    group = add_run_arguments(parser)
    group.add_argument("--batch_size", type=int, metavar="N", help="masked copies per forward call")


def run(args: argparse.Namespace) -> int:
    """Mask, measure, write; 1 where images failed."""
    from transformers_agci.inference.processes import one_voice

    with one_voice():
        return _measure(args)


def _measure(args: argparse.Namespace) -> int:
    from pathlib import Path

    from transformers_agci.experiments.occlusion.masks import parse_colour
    from transformers_agci.experiments.occlusion.occlude import MaskOptions, OcclusionRun, draw_items
    from transformers_agci.inference.load import load
    from transformers_agci.method.lam import lambda_text, parse_lambda

    at_least(1, args, "items", "mask_size", "stride", "max_new_tokens", "batch_size")
    lam = parse_lambda(args.global_context_lambda, "--global_context_lambda")
    masks = MaskOptions(args.mask_size, args.stride or args.mask_size, parse_colour(args.colour))
    output_dir = Path(args.output_dir)
    options = model_options(args)
    data = positives(args, output_dir)
    rows = draw_items(data.items, args.items, args.seed)
    loaded = load(options)
    drawn = (
        f"{args.items} of {len(data.items)} items, drawn with seed {args.seed}"
        if args.items < len(data.items)
        else f"all {len(data.items)} items (fewer than --items asks for)"
        if args.items > len(data.items)
        else f"all {len(data.items)} items"
    )
    print(
        f"{drawn}: {len(rows)} images; {loaded.family.name}, lambda {lambda_text(lam)}, masks of {masks.size} px "
        f"every {masks.stride} px",
        flush=True,
    )
    if data.negatives:
        print(f"{data.negatives} rows whose answer is No are left out.", flush=True)
    measured = OcclusionRun(loaded, rows, data.img_path, masks, lam, args.batch_size, args.max_new_tokens)
    notes = {"eval_file": args.eval_file, "img_path": str(data.img_path), "items": args.items, "seed": args.seed}
    summary = measured.write(output_dir, data, notes, run_options(args))
    print("\n".join(summary.lines("images")))
    if not args.shard:
        print(f"\nmaps by target position: agci occlusion-maps --prob_results_dir {output_dir} --output_path maps.png")
    return summary.exit_code
