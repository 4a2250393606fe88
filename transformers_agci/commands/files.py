"""Which options of the commands name files to read and which name files to write; `cli` holds them against each other.

An option that names a file is one to read unless it stands among `WRITTEN`. A command that writes names of its own
making has an entry in `DERIVED`, unless what it calls holds them against its inputs before any work, as a build does.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from transformers_agci.commands.options.method import lambdas, method_names
from transformers_agci.storage.overlap import OF_A_RESULT, Named, refuse_overlap, refuse_to_replace_rows
from transformers_agci.storage.result_names import sibling_path

ANSWERS = (*OF_A_RESULT, ".score.json")
# option -> endings of what is written beside its file
WRITTEN: Mapping[str, tuple[str, ...]] = {
    "answer_file": ANSWERS,
    "items": (),  # of agci score; elsewhere a number
    "json": (),
    "output": (),
    "output_curve": (),
    "output_figure": (),
    "output_heatmap": (),
    "output_path": (),
}
IMAGES = ("output_curve", "output_figure", "output_heatmap", "output_path")  # a name without an ending gets one
FOLDERS = ("output_dir", "output_root")  # with names of our own in them
READ_AS_TEXT = ("captions", "recipe", "source")  # files that the parser leaves as texts, for they may be something else


def check_files(words: str, args: argparse.Namespace) -> None:
    """InputError where the command would write over what it reads or over other rows, or write one file twice."""
    outputs, inputs = [], []
    for option, value in vars(args).items():
        for path in _paths(option, value):
            beside = _beside(words, option)
            if option in FOLDERS or (words == "merge-shards" and option == "answer_file"):  # whose file is both
                continue
            if beside is None:
                inputs.append(Named(option, path))
            else:
                outputs.append(Named(option, path, beside))
    outputs = [name for named in outputs for name in _names(named, args)]
    derive = DERIVED.get(words)
    refuse_overlap([*outputs, *(derive(args) if derive else ())], inputs)
    for named in outputs:
        if named.option == "json":
            refuse_to_replace_rows(named.path)


def _paths(option: str, value: object) -> Iterator[Path]:
    for each in value if isinstance(value, list | tuple) else [value]:
        if isinstance(each, Path):
            yield each
        elif isinstance(each, str) and each.strip() and "\0" not in each and option in (*IMAGES, *READ_AS_TEXT):
            yield Path(each)


def _beside(words: str, option: str) -> tuple[str, ...] | None:
    """The endings beside a file to write; None for one to read."""
    if option.startswith("answers_file_"):  # of agci downstream
        return ANSWERS
    if words == "sweep" and option == "json":
        return (".manifest.json",)
    return WRITTEN.get(option)


def _names(named: Named, args: argparse.Namespace) -> Iterator[Named]:
    """The files that an option makes: an image's ending, a file for each lambda, the controls."""
    option, path, beside = named
    if option in IMAGES and not path.suffix:
        yield Named(option, path.with_name(path.name + ".png") if path.name else path)
    elif option != "answer_file" or not path.name:
        yield named
    else:
        from transformers_agci.inference.runner import output_paths

        asked = list(dict.fromkeys(lambdas(args))) if hasattr(args, "global_context_lambda") else []
        controls = [name for name in ("text_only", "blank_image") if getattr(args, name, False)]
        for method in method_names(args) if hasattr(args, "method") else ["agci"]:
            written = output_paths(path, asked or [0.0], method)
            for control in controls:
                written += output_paths(sibling_path(path, f".{control}.jsonl"), [0.0], method)
            yield from (Named(option, file, beside) for file in written)


def _flow_files(args: argparse.Namespace) -> Iterator[Named]:
    if args.image is not None:
        image = next(_names(Named("output_path", args.output_path), args)).path
        if image.name:
            yield Named("output_path", image.with_suffix(".json"))
            yield Named("output_path", image.with_stem(f"{image.stem}_answer"))


def _compared_files(args: argparse.Namespace) -> Iterator[Named]:
    from transformers_agci.experiments.compare.arms import parse_arms
    from transformers_agci.experiments.compare.models import FIGURE, NUMBERS, TEXT

    for arm in parse_arms(args.methods):
        yield Named("output_dir", args.output_dir / arm.file_name, OF_A_RESULT)
    for name in (TEXT, FIGURE, *([] if args.json else [NUMBERS])):
        yield Named("output_dir", args.output_dir / name)


DERIVED: Mapping[str, Callable[[argparse.Namespace], Iterator[Named]]] = {
    "compare": _compared_files,
    "flow": _flow_files,
}
