"""Occlusion maps: a white square hides one place of an image after another; how far do the answer's logits move?

20 items are drawn with seed 1 (all if there are not more), nine images each. Every image gets a folder
<output_dir>/<name>/ with its scores, its map and the map drawn over it; started again, the command goes on with the
next image. An answer of several tokens is teacher-forced: every token's logit is read after the original answer's
beginning. `agci occlusion-maps` aggregates the maps by the place of the target.
"""

import argparse

from transformers_agci.commands.options.figures import add_draws_options
from transformers_agci.commands.options.method import add_lambda_option, lambdas
from transformers_agci.commands.options.model import add_model_options, model_options
from transformers_agci.commands.options.rows import add_drawn_items_options, add_output_dir_option, add_rows_options
from transformers_agci.commands.options.run import add_run_options, run_options
from transformers_agci.commands.options.types import add_count, path, whole
from transformers_agci.commands.parser import teller
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.experiments.defaults import OCCLUSION_TOKENS
from transformers_agci.experiments.occlusion.masks import MASK


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the words of the published script work."""
    add_model_options(parser, default=EMBEDDED)
    data = parser.add_argument_group("data")
    add_rows_options(data)
    add_output_dir_option(data, "occlusion", "where results go")
    add_drawn_items_options(data)
    masks = parser.add_argument_group("masks")
    side = "side of the mask in pixels; the paper's is 1.5 image tokens of Qwen2.5-VL"
    add_count(masks, "--mask_size", MASK, side, metavar="PX")
    masks.add_argument(
        "--stride", type=whole(1), metavar="PX", help="distance of the masks in pixels (default: their side)"
    )
    masks.add_argument("--colour", "--color", default="white", help="colour of the mask: a name, or #808080")
    asked = parser.add_argument_group("what is asked")
    add_lambda_option(asked, "lambda while answering (default 0)", ("0",), several=False)
    add_count(asked, "--max_new_tokens", OCCLUSION_TOKENS, "longest answer in tokens")
    group = add_run_options(parser)
    group.add_argument("--batch_size", type=whole(1), metavar="N", help="masked copies per forward call")


def run(args: argparse.Namespace) -> int:
    """Mask, measure, write; 1 where images failed."""
    from transformers_agci.api.occlusion import run_occlusion
    from transformers_agci.experiments.occlusion.masks import parse_colour
    from transformers_agci.experiments.occlusion.measure import OcclusionOptions
    from transformers_agci.experiments.occlusion.occlude import MaskOptions
    from transformers_agci.experiments.positives import RowsOptions
    from transformers_agci.inference.process_group import main_process_output

    options = OcclusionOptions(
        model_options(args),
        MaskOptions(args.mask_size, args.stride or args.mask_size, parse_colour(args.colour)),
        lambdas(args)[0],
        args.batch_size,
        args.max_new_tokens,
    )
    rows = RowsOptions(args.eval_file, args.img_path, args.items, args.seed)
    run, say = run_options(args), teller(add_arguments)
    with main_process_output():
        code = run_occlusion(options, rows, args.output_dir, run, say).exit_code
        if run.shard is None:
            words = f"--prob_results_dir {args.output_dir} --output_path maps.png"
            say(f"\nmaps by the target's place: agci occlusion-maps {words}")
    return code


def add_maps_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the published script."""
    parser.add_argument(
        "--prob_results_dir", type=path, required=True, metavar="D", help="the --output_dir of agci occlusion"
    )
    parser.add_argument(
        "--output_path",
        type=path,
        required=True,
        metavar="H",
        help="a folder, or an image (.png): the panel, with the nine maps beside it as H_0 to H_8",
    )
    parser.add_argument("--title", default="", help="title of the panel")
    add_draws_options(parser, "without effect: the intervals over items need no draws")


def run_maps(args: argparse.Namespace) -> int:
    """Occlusion maps aggregated by the place of the target: nine maps on one scale, the target's cell outlined, and the
    share of each map that lies on it, with an interval over items."""
    from transformers_agci.errors import counted
    from transformers_agci.experiments.occlusion.files import listed, read_folder
    from transformers_agci.experiments.occlusion.maps import aggregate, draw_maps, map_files, maps_text

    files = map_files(args.output_path)  # refuses a bad suffix before the work
    folder = read_folder(args.prob_results_dir)
    maps = aggregate(folder.maps)
    print(f"{counted(len(folder.maps), 'image')} from {args.prob_results_dir}\n\n{maps_text(maps)}")
    if folder.unfinished:
        print(f"\n{counted(len(folder.unfinished), 'unfinished image')} omitted: {listed(folder.unfinished)}")
    drawn = draw_maps(maps, files, args.title)
    print(f"\npanel: {drawn[0]}; the nine maps: {drawn[1]} to {drawn[-1].name}")
    return 1 if folder.unfinished else 0
