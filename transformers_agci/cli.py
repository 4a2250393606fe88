"""`agci <command>`: the table of commands, and what happens to their errors."""

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

from transformers_agci.errors import InputError


class Command(NamedTuple):
    """`words` as typed ("data check" is two), the file in commands/ that holds it, one line of help."""

    words: str
    module: str
    help: str


COMMANDS: tuple[Command, ...] = (
    Command("benchmark", "benchmark", "ask a model one of six benchmarks, with and without AGCI, and score it"),
    Command("check-recipe", "check_recipe", "check a fine-tuning recipe and its data before the first step"),
    Command("convert-llava", "convert_llava", "an original LLaVA checkpoint in the layout that transformers loads"),
    Command("data build-probe", "data_build_probe", "composites of nine images from any captioned images"),
    Command("data build-samples", "data_build_samples", "the samples that the repository ships, from the atlas"),
    Command("data build-scienceqa", "data_build_scienceqa", "LLaVA's question file from ScienceQA's own files"),
    Command("data build-similarity", "data_build_similarity", "one image in each of nine places"),
    Command("data check", "data_check", "counts, balance, duplicates and images of a probe or similarity set"),
    Command("data check-images", "data_check_images", "which images of an instruction file are missing"),
    Command("data fetch", "data_fetch", "the published sets from the hub, unpacked and checked"),
    Command("data sample-instruct", "data_sample_instruct", "the fine-tuning sample from LLaVA's instruction mix"),
    Command("demo", "demo", "from nothing to a heat map: the embedded model, with and without AGCI"),
    Command("downstream", "downstream", "five benchmarks in one go, in the words of the published eval_downstream.py"),
    Command("families", "families", "the supported models as a table"),
    Command("flow", "flow", "information flow: what the text after the image attends to, on the image"),
    Command("merge-lora", "merge_lora", "merge a LoRA adapter into its checkpoint"),
    Command("merge-shards", "merge_shards", "join what the shards of a job array wrote"),
    Command("metrics", "metrics", "the position probe's results in numbers and as a map"),
    Command("metrics-similarity", "metrics_similarity", "similarity results in numbers and as a map"),
    Command("mmmu-pro", "mmmu_pro", "MMMU-Pro in the words of the published infer scripts, with files for its scorer"),
    Command("occlusion", "occlusion", "occlusion maps: which places of an image the answer depends on"),
    Command("occlusion-maps", "occlusion_maps", "occlusion maps summed up by the place of the target"),
    Command("probe", "probe", "the position probe: ask a model about every cell of a grid"),
    Command("score", "score", "score the answers of any model on a benchmark, as its official program does"),
    Command("self-check", "self_check", "proof on a checkpoint that AGCI is on and correct"),
    Command("set-lambda", "set_lambda", "write lambda into a checkpoint's config.json"),
    Command("similarity", "similarity", "how well the vision encoder understands an image in each of nine places"),
    Command("study", "study", "fine-tune the embedded model with AGCI off and on, over five seeds, and probe it"),
    Command("train-embedded", "train_embedded", "train the embedded model anew on a CPU, from the shipped atlas"),
    Command("train-lora", "train_lora", "fine-tune with LoRA and AGCI by a recipe of LLaMA-Factory, without it"),
)

GROUPS = {"data": "build, check and fetch data sets"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 is success, 1 a finished run with errors, 2 a mistake of the user, 130 an interruption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        parser, command = _parser(arguments)
        args = parser.parse_args(arguments)
        if command is None:
            parser.print_help()
            return 2
        return int(importlib.import_module(f"transformers_agci.commands.{command.module}").run(args))
    except InputError as error:
        print(f"agci: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "transformers_agci"):
            raise
        print(
            f"agci: this command needs the package '{package}', which is not installed; everything that the commands "
            "need comes with: pip install 'transformers-agci[eval]'",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # `agci ... | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("agci: interrupted; what was finished is kept, the same command goes on from there.", file=sys.stderr)
        return 130


def _parser(arguments: Sequence[str]) -> tuple[argparse.ArgumentParser, Command | None]:
    """The parser for these arguments; only the command that is asked for is imported."""
    command = _asked_for(arguments)
    if command is not None:
        module = importlib.import_module(f"transformers_agci.commands.{command.module}")
        parser = argparse.ArgumentParser(
            f"agci {command.words}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument("command", nargs=len(command.words.split()), help=argparse.SUPPRESS)
        module.add_arguments(parser)
        return parser, command
    group = next((word for word in arguments[:1] if word in GROUPS), None)
    listed = [c for c in COMMANDS if group is None or c.words.split()[0] == group]
    width = max((len(c.words) for c in listed), default=0) + 2
    table = "\n".join(f"  {c.words:<{width}}{c.help}" for c in listed)
    parser = argparse.ArgumentParser(
        f"agci {group}" if group else "agci",
        usage="agci <command> [options]",
        description=f"AGCI: spatial bias in vision-language models, measured and repaired.\n\ncommands:\n{table}",
        epilog="agci <command> --help shows a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    from transformers_agci import __version__

    parser.add_argument("--version", action="version", version=f"transformers-agci {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    words = [word for word in arguments if not word.startswith("-")]
    if words and words[0] not in GROUPS:
        raise InputError(_unknown(" ".join(words[:1])))
    if group and len(words) > 1:
        raise InputError(_unknown(" ".join(words[:2])))
    return parser, None


def _asked_for(arguments: Sequence[str]) -> Command | None:
    by_words = {tuple(c.words.split()): c for c in COMMANDS}
    return by_words.get(tuple(arguments[:2])) or by_words.get(tuple(arguments[:1]))


def _unknown(words: str) -> str:
    import difflib

    names = [c.words for c in COMMANDS]
    near = difflib.get_close_matches(words, names, n=1)
    hint = f" Did you mean: {near[0]}?" if near else ""
    return f"Unknown command '{words}'.{hint} Available: {', '.join(names)}."


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """`main` as a process of its own: what the `agci` command and the scripts are."""
    code = main(argv)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Everything is written. While Python shuts down, a thread of torchrun's process group now and then aborts the
        # process, and torchrun then calls the whole run a failure.
        with contextlib.suppress(OSError, ValueError):  # a reader that has gone away
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    program()
