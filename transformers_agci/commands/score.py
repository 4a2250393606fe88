"""Score the answers of any model on a benchmark, as its official program does: no model, no GPU.

  agci score pope --annotations coco/ --questions llava_pope_test.jsonl --answers answers.jsonl --json pope.json
  agci score scienceqa --questions llava_test_CQM-A.json --answers answers.jsonl --items items.jsonl
  agci score mmmu_pro --answers model_vision_direct.jsonl --against other_vision_direct.jsonl

Answers are joined to questions by key: a missing, duplicate or unknown answer is an error. eval/<Benchmark>/README.md
tells where the files come from and what each figure means.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_agci.commands.options import add_bootstrap_options

if TYPE_CHECKING:
    from transformers_agci.experiments.benchmarks.declaration import Benchmark, Inputs, Score


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `agci score`."""
    parser.add_argument("name", metavar="NAME", help="scienceqa, pope, textvqa, hallusionbench, crpe or mmmu_pro")
    parser.add_argument(
        "--answers",
        metavar="FILE",
        type=Path,
        action="append",
        required=True,
        help="answers in the official form, or result rows with `prediction`; may be repeated",
    )
    parser.add_argument(
        "--questions",
        metavar="FILE",
        type=Path,
        action="append",
        help="question file; may be repeated (crpe: one for each --answers)",
    )
    parser.add_argument(
        "--annotations",
        metavar="PATH",
        type=Path,
        help="pope: folder with coco_pope_<category>.json; textvqa: TextVQA_0.5.1_val.json",
    )
    parser.add_argument("--problems", metavar="FILE", type=Path, help="scienceqa: problems.json")
    parser.add_argument("--splits", metavar="FILE", type=Path, help="scienceqa: pid_splits.json")
    parser.add_argument("--split", metavar="NAME", help="scienceqa: the split to score (default: test)")
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
    parser.add_argument("--json", metavar="OUT", type=Path, help="write the unrounded figures here")
    parser.add_argument("--items", metavar="OUT", type=Path, help="write one JSON line per answer here")
    parser.add_argument(
        "--against",
        metavar="FILE",
        type=Path,
        action="append",
        help="answers of a second model: also print the paired difference, second minus first",
    )
    add_bootstrap_options(parser)


def run(args: argparse.Namespace) -> int:
    """Score, print a table, write the files asked for."""
    from transformers_agci.experiments.benchmarks import benchmark, score_answers

    declared = benchmark(args.name)
    _refuse_what_is_not_taken(args, declared)
    score = score_answers(declared, _inputs(args, args.answers))
    report: dict[str, Any] = {
        "benchmark": declared.name,
        "variant": score.variant,
        "official": args.official,
        **score.figures,
    }
    if args.resamples > 0:
        report |= interval_report(declared, score, args.resamples, args.seed)
    if args.against:
        second = score_answers(declared, _inputs(args, args.against))
        report["difference"] = difference_report(declared, score, second, args.resamples, args.seed)
    print_report(declared, score, report)
    if args.json:
        _write(args.json, json.dumps(report, indent=1) + "\n")
    if args.items:
        _write(args.items, "".join(json.dumps(item.as_row()) + "\n" for item in score.items))
    return 0


def _refuse_what_is_not_taken(args: argparse.Namespace, declared: "Benchmark") -> None:
    from transformers_agci.errors import InputError

    for option in ("questions", "annotations", "problems", "splits", "split", "judge"):
        if getattr(args, option) is not None and option not in declared.score_options:
            taken = ", ".join(f"--{name}" for name in ("answers", *declared.score_options))
            raise InputError(f"{declared.name} takes no --{option}; it takes: {taken}.")


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


def interval_report(declared: "Benchmark", score: "Score", resamples: int, seed: int) -> dict[str, Any]:
    """The headline's interval for the result file; null where the headline is not known."""
    from transformers_agci.experiments.benchmarks.uncertainty import headline_interval

    interval = headline_interval(declared, score, resamples, seed)
    return {
        "interval_95": {
            declared.headline: [interval.low, interval.high] if interval.n else None,
            "resamples": resamples,
            "seed": seed,
            "clustered_by": "picture",
        }
    }


def difference_report(
    declared: "Benchmark", first: "Score", second: "Score", resamples: int, seed: int
) -> dict[str, Any]:
    """Second minus first for the result file, with McNemar's test where answers are right or wrong."""
    from transformers_agci.experiments.benchmarks.uncertainty import headline_difference

    found = headline_difference(declared, first, second, max(1, resamples), seed)
    report: dict[str, Any] = {
        declared.headline: found.headline.estimate,
        "interval_95": [found.headline.low, found.headline.high],
    }
    if found.test is not None:
        report |= {"gained": found.test.gained, "lost": found.test.lost, "mcnemar_p": found.test.p}
    return report


def print_report(declared: "Benchmark", score: "Score", report: dict[str, Any]) -> None:
    """The figures as tables, the population above them, what to know about them below."""
    from transformers_agci.report.table import format_table

    print(f"{declared.title}: {_printable(score.variant)}")
    flat = {name: value for name, value in score.figures.items() if not isinstance(value, dict)}
    print(format_table(["figure", "value"], [[name, figure_text(name, value)] for name, value in flat.items()]))
    for title, group in score.figures.items():
        if isinstance(group, dict) and group:
            print(f"\n{title}")
            print(_group_table(group))
    interval = (report.get("interval_95") or {}).get(declared.headline)
    if interval:
        low, high = (figure_text(declared.headline, bound) for bound in interval)
        print(f"\n95 % interval of {declared.headline}: {low} to {high} (bootstrap over images)")
    if "difference" in report:
        print(_difference_text(declared.headline, report["difference"]))
    for note in score.notes:
        print(f"note: {_printable(note)}")


def _group_table(group: dict[str, Any]) -> str:
    """One line per member; a table of its own columns where the members are figures themselves."""
    from transformers_agci.report.table import format_table

    if not all(isinstance(value, dict) for value in group.values()):
        lines = [[_printable(name), figure_text(name, value)] for name, value in group.items()]
        return format_table(["figure", "value"], lines)
    columns = [name for name, value in next(iter(group.values())).items() if not isinstance(value, dict)]
    lines = [
        [_printable(member), *(figure_text(name, values[name]) for name in columns)] for member, values in group.items()
    ]
    return format_table(["", *columns], lines)


def _difference_text(headline: str, difference: dict[str, Any]) -> str:
    low, high = (figure_text(headline, bound, signed=True) for bound in difference["interval_95"])
    change = figure_text(headline, difference[headline], signed=True)
    text = f"second minus first, {headline}: {change} (95 % interval {low} to {high})"
    if "mcnemar_p" in difference:
        text += f"\n{difference['gained']} answers became right, {difference['lost']} wrong"
        text += f", McNemar's exact p = {difference['mcnemar_p']:.3g}"
    return text


def figure_text(name: str, value: Any, signed: bool = False) -> str:
    """A figure for people, in the unit of the result file: percent for _pct, else a fraction; counts as they are."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    sign = "+" if signed else ""
    return f"{value:{sign}.2f} %" if name.endswith("_pct") else f"{value:{sign}.4f}"


def _printable(text: str) -> str:
    """Names out of a file may hold anything; a terminal shall not be given what is no sign."""
    return "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in text)


def _write(path: Path, text: str) -> None:
    from transformers_agci.errors import InputError
    from transformers_agci.storage.atomic import write_atomic

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    except OSError as error:
        raise InputError(f"{path}: the file cannot be written ({error.strerror}).") from None
