"""Occlusion maps summed up by the place of the target: nine maps on one scale, the target's cell outlined, and the
share of each map that lies on it, with an interval over items."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the published script."""
    parser.add_argument("--prob_results_dir", required=True, metavar="D", help="the --output_dir of agci occlusion")
    parser.add_argument(
        "--output_path",
        required=True,
        metavar="H",
        help="a folder, or an image (.png): the panel, with the nine maps beside it as H_0 to H_8",
    )
    parser.add_argument("--title", default="", help="title of the panel")
    parser.add_argument("--draws", type=int, default=2000, metavar="N", help="bootstrap resamples (default 2000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the resampling (default 0)")


def run(args: argparse.Namespace) -> int:
    """Print the shares and draw; 1 where images are unfinished."""
    from pathlib import Path

    from transformers_agci.commands.run_options import at_least
    from transformers_agci.experiments.occlusion.files import names, read_folder
    from transformers_agci.experiments.occlusion.maps import draw_maps, maps_text, sum_up
    from transformers_agci.report.heatmap import image_path

    at_least(1, args, "draws")
    output = Path(args.output_path)
    if output.suffix and not output.is_dir():
        image_path(output)
    folder = read_folder(Path(args.prob_results_dir))
    maps = sum_up(folder.maps, args.draws, args.seed)
    print(f"{len(folder.maps)} images from {args.prob_results_dir}\n\n{maps_text(maps)}")
    if folder.unfinished:
        print(f"\n{len(folder.unfinished)} images are unfinished and left out: {names(folder.unfinished)}")
    drawn = draw_maps(maps, output, args.title)
    print(f"\npanel: {drawn[0]}; the nine maps: {drawn[1]} to {drawn[-1].name}")
    return 1 if folder.unfinished else 0
