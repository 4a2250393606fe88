"""Score the answers of any model on a benchmark, as its official program does: no model, no GPU.

  agci score pope --annotations coco/ --questions llava_pope_test.jsonl --answers answers.jsonl --json pope.json
  agci score scienceqa --questions llava_test_CQM-A.json --answers answers.jsonl --items items.jsonl
  agci score mmmu_pro --answers model_vision_direct.jsonl --against other_vision_direct.jsonl

Answers are joined to questions by key: a missing, duplicate or unknown answer is an error. eval/<Benchmark>/README.md
tells where the files come from and what each figure means.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from transformers_agci.commands.options import add_bootstrap_options, json_file, path
from transformers_agci.experiments.benchmarks import benchmark_names

if TYPE_CHECKING:
    from transformers_agci.experiments.benchmarks.declaration import Inputs


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
    from transformers_agci.experiments.benchmarks.score_report import (
        CHOICES,
        Bootstrap,
        check_choices,
        score_files,
        write_scored,
    )

    check_choices(args.name, {name for name in CHOICES if getattr(args, name) is not None})
    against = _inputs(args, args.against) if args.against else None
    scored = score_files(args.name, _inputs(args, args.answers), against, Bootstrap(args.resamples, args.seed))
    print(scored.text)
    write_scored(scored, args.json, args.items)
    return 0


def _inputs(args: argparse.Namespace, answers: list[Path]) -> "Inputs":
    from transformers_agci.experiments.benchmarks.declaration import Inputs

    return Inputs(
        answers=tuple(answers),
        questions=tuple(args.questions or ()),
        annotations=args.annotations,
        problems=args.problems,
        splits=args.splits,
        split=args.split or "test",
        judge=args.judge or "auto",
        official=args.official,
    )
