"""Score the answers of any model on a benchmark, as its official program does: no model, no GPU.

  agci score pope --annotations coco/ --questions llava_pope_test.jsonl --answers answers.jsonl --json pope.json
  agci score scienceqa --questions llava_test_CQM-A.json --answers answers.jsonl --items items.jsonl
  agci score mmmu_pro --answers model_vision_direct.jsonl --against other_vision_direct.jsonl

Answers are joined to questions by key: a missing, duplicate or unknown answer is an error. eval/<Benchmark>/README.md
tells where the files come from and what each figure means.
"""

import argparse

from transformers_agci.commands.options.figures import add_bootstrap_options
from transformers_agci.commands.options.types import json_file, path
from transformers_agci.experiments.benchmarks import benchmark_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `agci score`."""
    parser.add_argument("name", metavar="NAME", help=", ".join(benchmark_names()))
    _add_files(parser)
    parser.add_argument(
        "--judge",
        choices=("auto", "codes", "replies", "yes-no"),
        help="hallusionbench: score by recorded codes, by recorded replies of a judge, or by the "
        "Yes/No rule (default: codes where the rows carry them)",
    )
    parser.add_argument(
        "--official",
        action="store_true",
        help="score incomplete or repeated answers as the official program does, where it takes them",
    )
    parser.add_argument("--json", metavar="OUT", type=json_file, help="write the unrounded figures here")
    parser.add_argument("--items", metavar="OUT", type=path, help="write one JSON line per answer here")
    parser.add_argument(
        "--against",
        metavar="FILE",
        type=path,
        action="append",
        help="answers of a second model: also print the paired difference, second minus first",
    )
    add_bootstrap_options(parser)


def _add_files(parser: argparse.ArgumentParser) -> None:
    """What is scored, and what scoring needs beside it."""
    parser.add_argument(
        "--answers",
        metavar="FILE",
        type=path,
        action="append",
        required=True,
        help="answers in the official form, or result rows with `prediction`; may be repeated",
    )
    parser.add_argument(
        "--questions",
        metavar="FILE",
        type=path,
        action="append",
        help="question file; may be repeated (crpe: one for each --answers)",
    )
    parser.add_argument(
        "--annotations",
        metavar="PATH",
        type=path,
        help="pope: folder with coco_pope_<category>.json; textvqa: TextVQA_0.5.1_val.json",
    )
    parser.add_argument("--problems", metavar="FILE", type=path, help="scienceqa: problems.json")
    parser.add_argument("--splits", metavar="FILE", type=path, help="scienceqa: pid_splits.json")
    parser.add_argument("--split", metavar="NAME", help="scienceqa: the split to score (default: test)")


def run(args: argparse.Namespace) -> int:
    """Score, print a table, write the files asked for."""
    from transformers_agci.api.score import AnswersToScore, run_score
    from transformers_agci.experiments.benchmarks.score_report import CHOICES, Bootstrap, write_scored

    choices = {name: getattr(args, name) for name in CHOICES}
    wanted = AnswersToScore(args.answers, args.against or (), args.official)
    found = run_score(args.name, wanted, choices, Bootstrap(args.resamples, args.seed))
    print(found.text)
    write_scored(found.scored, args.json, args.items)
    return 0
