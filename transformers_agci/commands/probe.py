"""The position probe: is there a sub-image that matches the caption, with the target in each cell of a grid?

Without --eval_file the pictures come from the embedded atlas, without --model_path the embedded model answers: so
`agci probe` alone does something. The answers go to --answer_file (several lambdas: A.lam0.jsonl, A.lam0.5.jsonl);
`agci metrics` turns them into numbers and a map.
"""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from transformers_agci.inference.load import LoadOptions
    from transformers_agci.probes.position_data import ProbeData
    from transformers_agci.probes.position_run import PositionProbe

EMBEDDED = "embedded"
EMBEDDED_ITEMS = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; the words of the published scripts work, in both of their spellings."""
    from transformers_agci.inference.load import add_load_arguments

    add_load_arguments(parser, default=EMBEDDED)
    data = parser.add_argument_group("data")
    data.add_argument("--eval_file", metavar="F", help="the probe's rows; default: composites of the embedded atlas")
    data.add_argument("--img_path", "--image_path", metavar="I", help="folder of the rows' pictures")
    data.add_argument("--negatives_file", metavar="N", help="rows whose right answer is No, on the same pictures")
    data.add_argument("--items", type=int, metavar="N", help="only the first N items (embedded atlas: N, default 100)")
    data.add_argument("--limit", type=int, metavar="N", help="only the first N rows")
    data.add_argument("--seed", type=int, default=0, help="seed of the embedded atlas's composites (default 0)")
    data.add_argument("--answer_file", "--answers_file", default="position_probe.jsonl", metavar="A",
                      help="where the answers go (default position_probe.jsonl)")
    asked = parser.add_argument_group("what is asked")
    asked.add_argument("--global_context_lambda", nargs="+", metavar="L",
                       help="one or several lambdas; default: the key in the model's config.json, else 0")
    asked.add_argument("--method", default="agci", help="agci, or one of its controls: uniform, random")
    asked.add_argument("--text_only", action="store_true", help="ask also without any picture: A.text_only.jsonl")
    asked.add_argument("--blank_image", action="store_true", help="ask also on a white picture: A.blank_image.jsonl")
    run = parser.add_argument_group("run")
    run.add_argument("--batch_size", type=int, metavar="N", help="pictures per forward call")
    run.add_argument("--workers", type=int, metavar="N", help="processes that prepare pictures")
    run.add_argument("--shard", metavar="i/n", help="do only this share of the work (from 0/n); then agci merge-shards")
    run.add_argument("--overwrite", action="store_true", help="start anew instead of going on where the file ends")
    run.add_argument("--strict", action="store_true", help="stop at the first bad row; default: name it and go on")
    run.add_argument("--quiet", action="store_true", help="no progress line")
    run.add_argument("--dry_run", action="store_true", help="check the input and print the plan; loads no weights")


def run(args: argparse.Namespace) -> int:
    """Ask, write, and say what came out; 1 where rows were bad."""
    from pathlib import Path

    from transformers_agci.inference.load import lambdas_of, load
    from transformers_agci.inference.results import parse_shard
    from transformers_agci.lam import lambda_text, parse_lambda
    from transformers_agci.probes.position import Control
    from transformers_agci.probes.position_run import PositionProbe

    _check_numbers(args)
    given = [parse_lambda(text, "--global_context_lambda") for text in args.global_context_lambda or ()]
    shard = parse_shard(args.shard) if args.shard else None
    answer_file = Path(args.answer_file)
    options = _load_options(args)
    data = _data(args, answer_file)
    loaded = load(options, weights=not args.dry_run)
    lambdas, source = lambdas_of(given, loaded)
    print(f"lambda {', '.join(map(lambda_text, lambdas))} (from {source}); {loaded.family.name}, model {args.model}",
          flush=True)
    print(f"{data.rows} rows, {len(data.items)} items from {args.eval_file or 'the embedded atlas'}", flush=True)
    probe = PositionProbe(loaded, data, lambdas, answer_file, {
        "batch_size": args.batch_size, "workers": args.workers, "method": args.method, "shard": shard,
        "overwrite": args.overwrite, "strict": args.strict, "progress": not args.quiet,
        "notes": {"lambda_source": source, "eval_file": args.eval_file, "img_path": str(data.img_path)},
    })  # fmt: skip
    controls = [control for control in Control if getattr(args, control.value)]
    if args.dry_run:
        return _dry_run(probe, controls)
    summaries = [probe.ask(), *(probe.ask_without_picture(control) for control in controls)]
    for line in (line for summary in summaries for line in summary.lines()):
        print(line)
    if shard is None:
        _show(probe, controls)
    return max(summary.exit_code for summary in summaries)


def _check_numbers(args: argparse.Namespace) -> None:
    from transformers_agci.errors import InputError

    for name in ("items", "limit", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, but is {value}.")


def _load_options(args: argparse.Namespace) -> "LoadOptions":
    """The model's options; without --model_path the embedded model, which is of one family."""
    from dataclasses import replace

    from transformers_agci.embedded.location import embedded_model_path
    from transformers_agci.errors import InputError
    from transformers_agci.inference.load import load_options

    options = load_options(args)
    if options.model != EMBEDDED:
        return options
    if options.family not in (None, "qwen2_5_vl"):
        raise InputError("--model_path is needed: without it the embedded model answers, which is a Qwen2.5-VL, but "
                         f"this command is for {options.family}.")
    return replace(options, model=str(embedded_model_path()))


def _data(args: argparse.Namespace, answer_file: "Path") -> "ProbeData":
    from pathlib import Path

    from transformers_agci.errors import InputError
    from transformers_agci.inference.results import beside
    from transformers_agci.probes.position_data import embedded_data, read_data

    if args.eval_file is None:
        if args.img_path or args.negatives_file:
            raise InputError("--img_path and --negatives_file belong to --eval_file; without it the embedded atlas "
                             "makes the pictures and the negatives.")
        folder = beside(answer_file, ".probe_set")
        return embedded_data(folder, args.items or EMBEDDED_ITEMS, args.seed, args.limit)
    if args.img_path is None:
        raise InputError("--img_path is needed with --eval_file: the folder that holds the rows' pictures.")
    negatives = Path(args.negatives_file) if args.negatives_file else None
    return read_data(Path(args.eval_file), Path(args.img_path), negatives, args.items, args.limit)


def _dry_run(probe: "PositionProbe", controls: list[Any]) -> int:
    """The first prompt, its tokens, the plan and the files; nothing is written."""
    from transformers_agci.inference.prompt import chat_text, tokenize
    from transformers_agci.inference.run import make_plan
    from transformers_agci.probes.position import questions

    asked = questions(probe.data.items, probe.data.img_path)
    plan = make_plan(asked, _device_type(probe), probe.options["batch_size"])
    prompt = chat_text(probe.loaded.processor, asked[0])
    pictures = [[picture.open() for picture in asked[0].pictures]]
    ids = tokenize(probe.loaded.processor, [prompt], pictures)["input_ids"][0]
    image_tokens = int((ids == probe.loaded.model.config.image_token_id).sum())
    parameters = sum(p.numel() for p in probe.loaded.model.parameters())
    print(f"first prompt ({asked[0].where}), {len(ids)} tokens, {image_tokens} of them the picture's:\n{prompt}")
    print(f"{parameters / 1e6:.1f} M parameters; {probe.data.rows * len(probe.lambdas)} answers in {len(plan.blocks)} "
          f"blocks, batches of up to {plan.batch_size} pictures")
    for path in [*probe.outputs, *(path for control in controls for path in probe.control_outputs(control))]:
        print(f"would write {path}")
    for row in probe.data.bad_rows:
        print(row.error)
    return 1 if probe.data.bad_rows else 0


def _device_type(probe: "PositionProbe") -> str:
    return probe.loaded.device.type if probe.loaded.device else "cpu"


def _show(probe: "PositionProbe", controls: list[Any]) -> None:
    """Accuracy per lambda, the Yes-rates without a picture, and the command that draws the map."""
    from transformers_agci.probes.position_metrics import accuracies_text, controls_text, load_controls

    outputs = [str(path) for path in probe.outputs]
    files = {control.value: [str(path) for path in probe.control_outputs(control)] for control in controls}
    print(f"\n{accuracies_text(probe.outputs)}")
    if controls:
        print(f"\n{controls_text(load_controls(files.get('text_only', []), files.get('blank_image', [])))}")
    if len(outputs) <= 2:
        options = {"results": outputs, **files}
        words = " ".join(f"--{name}_file {' '.join(paths)}" for name, paths in options.items())
        print(f"\nnumbers and map: agci metrics {words} --output_heatmap map.png")
