"""Ask a model a benchmark's questions, at one or several lambdas, and score its answers.

  agci benchmark pope --model M --data lmms-lab-POPE/ --global_context_lambda 0 0.5 --answer_file pope.jsonl
  agci benchmark mmmu_pro --model M --data MMMU_Pro/ --setting vision --mode cot --answer_file mmmu.jsonl

The answers of each lambda go to a file of their own (pope.lam0.jsonl, ...), their figures beside it
(pope.lam0.score.json). Several lambdas are compared with the first one: paired difference, interval, McNemar's test.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers_agci.commands.benchmark_run import Source
    from transformers_agci.experiments.benchmarks.declaration import Score
    from transformers_agci.inference.load import LoadedModel
    from transformers_agci.inference.questions import QuestionSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `agci benchmark`."""
    from transformers_agci.commands.options import add_answer_options, add_bootstrap_options, add_model_options, whole
    from transformers_agci.experiments.benchmarks.declaration import MODES, PROTOCOLS

    parser.add_argument("name", metavar="NAME", help="scienceqa, pope, textvqa, hallusionbench, crpe or mmmu_pro")
    add_model_options(parser)
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        "--eval_file",
        metavar="PATH",
        type=Path,
        help="question file, or the folder that eval/<Benchmark>/README.md describes",
    )
    data.add_argument("--hub_id", metavar="ID", help="instead of --data: a data set for the datasets library")
    data.add_argument(
        "--image_root",
        "--image_path",
        metavar="DIR",
        type=Path,
        help="folder of the images that the rows name (default: the folder of --data)",
    )
    data.add_argument(
        "--annotations",
        metavar="PATH",
        type=Path,
        help="what scoring needs beside the rows: pope's "
        "label files for LLaVA's questions, textvqa's TextVQA_0.5.1_val.json",
    )
    data.add_argument("--answer_file", "--answers_file", metavar="A", type=Path, help="default: NAME.jsonl")
    how = parser.add_argument_group("how it is asked")
    how.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        help="prompt, population and token limit (default: official; hallusionbench: paper)",
    )
    how.add_argument("--mode", choices=MODES, default="direct", help="mmmu_pro: direct answer or chain of thought")
    how.add_argument(
        "--setting",
        "--dataset_variant",
        metavar="S",
        help="mmmu_pro: 'standard (10 options)', 'standard (4 options)' or vision",
    )
    how.add_argument(
        "--prompt",
        metavar="TEXT",
        help="instead of the protocol's: {question} stands for the row's question without its instruction",
    )
    how.add_argument("--max_new_tokens", metavar="N", type=whole(1), help="instead of the protocol's limit")
    add_answer_options(parser)
    add_bootstrap_options(how)


def run(args: argparse.Namespace) -> int:
    """Ask, write, score; 1 where rows were bad or could not be scored."""
    from transformers_agci.commands.benchmark_run import Source, question_set
    from transformers_agci.commands.options import model_options
    from transformers_agci.experiments.benchmarks import benchmark
    from transformers_agci.inference.load import load
    from transformers_agci.inference.process_group import main_process_output

    source = Source(
        benchmark(args.name),
        args.data,
        args.hub_id,
        args.image_root,
        args.protocol,
        args.mode,
        args.setting,
        limit=args.limit,
        max_new_tokens=args.max_new_tokens,
        prompt=args.prompt,
    )
    made = question_set(source)
    loaded = load(model_options(args), weights=not args.dry_run)
    with main_process_output():
        return ask_and_score(args, source, made, loaded, args.answer_file or Path(f"{args.name}.jsonl"))


def ask_and_score(
    args: argparse.Namespace, source: "Source", made: "QuestionSet", loaded: "LoadedModel", answer_file: Path
) -> int:
    """One benchmark on a loaded model. Of `args`: the engine's options, annotations, resamples, seed."""
    from transformers_agci.commands.benchmark_run import with_notes
    from transformers_agci.commands.options import answer_options, lambdas
    from transformers_agci.inference.answering import answer_questions
    from transformers_agci.inference.load import lambdas_of
    from transformers_agci.inference.process_group import is_main_process
    from transformers_agci.storage.result_file import output_paths

    given, options = lambdas(args), answer_options(args)
    asked, told = lambdas_of(given, loaded)
    outputs = output_paths(answer_file, asked, options.method)
    print(
        f"{source.benchmark.title}, protocol {source.how}{' with a prompt of your own' if source.prompt else ''}: "
        f"{len(made)} questions" + (f", {made.omitted} rows outside its population" if made.omitted else ""),
        flush=True,
    )
    if args.dry_run:
        return _dry_run(args, loaded, made, asked, outputs)
    summary = answer_questions(loaded, with_notes(made, lambda_source=told), asked, outputs, options)
    for line in summary.lines():
        print(line)
    if not summary.complete or not is_main_process():
        return summary.exit_code
    partial = args.limit is not None or bool(summary.counts.failed)
    return max(summary.exit_code, score_outputs(source, outputs, asked, args, partial))


def _dry_run(
    args: argparse.Namespace,
    loaded: "LoadedModel",
    made: "QuestionSet",
    lambdas: Sequence[float],
    outputs: Sequence[Path],
) -> int:
    from transformers_agci.inference.dry_run import describe

    for line in describe(loaded, made.questions, lambdas, outputs, batch_size=args.batch_size):
        print(line)
    for row in made.bad_rows:
        print(row.error)
    return 1 if made.bad_rows else 0


def score_outputs(
    source: "Source", outputs: Sequence[Path], lambdas: Sequence[float], args: argparse.Namespace, partial: bool
) -> int:
    """Score each result file, write the figures beside it, compare the later lambdas with the first.

    Of `args`: annotations, resamples, seed.
    """
    from transformers_agci.commands.benchmark_run import score_inputs
    from transformers_agci.commands.score import difference_report, interval_report, print_report
    from transformers_agci.errors import InputError
    from transformers_agci.experiments.benchmarks import score_answers
    from transformers_agci.method.lam import lambda_text
    from transformers_agci.storage.json_file import write_json
    from transformers_agci.storage.manifest import sibling_path

    declared = source.benchmark
    first: Score | None = None
    for path, lam in zip(outputs, lambdas, strict=True):
        try:
            score = score_answers(declared, score_inputs(source, path, args.annotations, partial))
        except InputError as error:
            print(f"no score: {error}")
            return 1
        report: dict[str, Any] = {
            "benchmark": declared.name,
            "variant": score.variant,
            "protocol": source.how,
            "mode": source.mode,
            "setting": source.setting,
            "lambda": lam,
            **score.figures,
        }
        if args.resamples > 0:
            report |= interval_report(declared, score, args.resamples, args.seed)
        if first is not None:
            report["difference"] = difference_report(declared, first, score, args.resamples, args.seed)
        print(
            f"\nlambda {lambda_text(lam)}, protocol {source.how}"
            + (", not all questions were asked" if partial else "")
        )
        print_report(declared, score, report)
        write_json(sibling_path(path, ".score.json"), report, indent=1)
        first = first or score
    return 0
