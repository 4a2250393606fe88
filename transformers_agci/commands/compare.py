"""AGCI, its controls and rivals on the same rows: one run that goes on after a kill, one report.

Every method answers the same rows of the position probe. Of a method that is named at several strengths the one that
is best on half of the items (split by a hash of their captions) is held against stock on the other half, and so
are all others; where every method has one strength, nothing is chosen and all items report. The tables are those of
`agci evidence`; beside them what each method costs. With --ruler the same methods meet decoder biases of known size,
with --benchmark another task, so that a repair that costs accuracy elsewhere is seen.
"""

import argparse
import contextlib
from pathlib import Path
from typing import get_args

from transformers_agci.commands.options.engine import add_engine_options, engine_options
from transformers_agci.commands.options.figures import add_draws_options
from transformers_agci.commands.options.results import add_margin_option, margin
from transformers_agci.commands.options.types import SEED, json_file, number, path, whole
from transformers_agci.commands.parser import teller
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.experiments.compare.arms import DEFAULT_ARMS
from transformers_agci.experiments.defaults import ATLAS_ITEMS, CHOOSE_BY, DEV_SHARE, Choice
from transformers_agci.method.rivals import RIVALS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; none is needed."""
    parser.add_argument(
        "--model", "--model_path", nargs="+", default=[EMBEDDED], metavar="M", help="checkpoints (default: embedded)"
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=list(DEFAULT_ARMS),
        metavar="W",
        help=f"stock, agci:0.5, uniform:0.5, random-1:0.5, a rival ({', '.join(RIVALS)}) or one at a strength, pai:0.2",
    )
    _add_data_options(parser.add_argument_group("data"))
    _add_options_beside(parser.add_argument_group("beside the probe"))
    report = parser.add_argument_group("report")
    report.add_argument("--output_dir", type=path, default=Path("compared"), metavar="O", help="(default compared)")
    report.add_argument("--choose_by", choices=get_args(Choice), default=CHOOSE_BY)
    report.add_argument(
        "--dev_share",
        type=number,
        default=DEV_SHARE,
        metavar="S",
        help="share of the items that chooses among strengths (default %(default)s)",
    )
    add_margin_option(report)
    report.add_argument("--json", type=json_file, metavar="OUT", help="all numbers (default O/compared.json)")
    add_draws_options(parser, "permutations of the null")
    add_engine_options(parser)
    run = parser.add_argument_group("run")
    run.add_argument("--batch_size", type=whole(1), metavar="N", help="lists of images per forward call")
    run.add_argument("--processes", type=whole(1, 1024), default=1, metavar="N", help="of the ruler (default 1)")
    run.add_argument("--overwrite", action="store_true", help="start over instead of going on")
    run.add_argument("--quiet", action="store_true", help="no progress line")


def _add_data_options(data: "argparse._ArgumentGroup") -> None:
    data.add_argument("--data", type=path, metavar="D", help="rows of the position probe (default: embedded atlas)")
    data.add_argument("--img_path", "--image_path", type=path, metavar="I", help="folder of the rows' images")
    data.add_argument("--negatives_file", type=path, metavar="N", help="rows whose right answer is No")
    data.add_argument(
        "--items", type=whole(1), metavar="N", help=f"at most N items (embedded atlas: default {ATLAS_ITEMS})"
    )
    data.add_argument("--item_seed", type=SEED, default=0, metavar="N", help="seed of the atlas's items (default 0)")


def _add_options_beside(beside: "argparse._ArgumentGroup") -> None:
    beside.add_argument("--ruler", type=whole(3), metavar="N", help="also N items on the ruler (embedded model)")
    beside.add_argument("--benchmark", metavar="NAME", help="also a benchmark, by each method's chosen strength")
    beside.add_argument("--benchmark_data", type=path, metavar="F", help="its rows")
    beside.add_argument("--benchmark_images", type=path, metavar="I", help="the folder of its images")
    beside.add_argument("--benchmark_prompt", metavar="T", help="instead of its own: {question} stands for the row's")


def run(args: argparse.Namespace) -> int:
    """Ask with every method, choose, report."""
    from transformers_agci.api.compare import run_compare
    from transformers_agci.embedded import embedded_model_path
    from transformers_agci.experiments.compare.arms import parse_arms
    from transformers_agci.experiments.compare.models import Beside
    from transformers_agci.experiments.compare.report import ReportOptions
    from transformers_agci.experiments.compare.run import Candidate, CompareOptions
    from transformers_agci.experiments.engines import open_engine
    from transformers_agci.experiments.position.measures import ResamplingConfig
    from transformers_agci.inference.load import LoadOptions
    from transformers_agci.inference.runner import RunOptions

    equal_within, engine = margin(args), engine_options(args)

    def candidate(model: str) -> Candidate:
        name = str(embedded_model_path()) if model == EMBEDDED else model
        return Candidate(name, lambda: contextlib.closing(open_engine(engine, LoadOptions(name))))

    options = CompareOptions(
        [candidate(model) for model in args.model],
        parse_arms(args.methods),
        args.output_dir,
        args.data,
        args.img_path,
        args.negatives_file,
        args.items,
        args.item_seed,
        args.batch_size,
        RunOptions(None, args.overwrite, False, not args.quiet),
        engine.name,
    )
    report = ReportOptions(args.choose_by, args.dev_share, equal_within, ResamplingConfig(args.draws, args.seed))
    benchmark = args.benchmark, args.benchmark_data, args.benchmark_images, args.benchmark_prompt
    beside = Beside(args.ruler, args.processes, *benchmark)
    return run_compare(options, report, beside, args.json, teller(add_arguments)).exit_code
