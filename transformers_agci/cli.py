"""`agci <command>`: the table of commands, and what happens to their errors."""

import argparse
import contextlib
import errno
import functools
import importlib
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, NoReturn, TextIO

from transformers_agci.errors import EVERYTHING, InputError


class Command(NamedTuple):
    """A command as typed ("data check" is two words), the file in commands/ that holds it, and one line of help.

    A file holds `add_arguments(parser)` and `run(args)`; where it holds several commands, each has its `name`:
    `add_check_arguments` and `run_check` for the name "check".
    """

    words: str
    module: str
    help: str
    name: str = ""

    def load(self) -> "LoadedCommand":
        """Import the command's file."""
        module = importlib.import_module(f"transformers_agci.commands.{self.module}")
        if not self.name:
            return LoadedCommand(module.__doc__ or "", module.add_arguments, module.run)
        import inspect  # with ast and dis it takes longer than `agci --help`

        run = getattr(module, f"run_{self.name}")
        return LoadedCommand(inspect.getdoc(run) or "", getattr(module, f"add_{self.name}_arguments"), run)


class LoadedCommand(NamedTuple):
    """What `agci <command> --help` says above the options, what declares these, and what runs."""

    description: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


# As `agci --help` shows them; within a group by the order in which they are used.
GROUPS: Mapping[str, tuple[Command, ...]] = {
    "measure": (
        Command("demo", "embedded", "from nothing to a heat map: the embedded model, with and without AGCI", "demo"),
        Command("probe", "probe", "the position probe: ask a model about every cell of a grid"),
        Command("metrics", "metrics", "the position probe's results in numbers and as a map"),
        Command("evidence", "evidence", "several results on the same items: everything that can be tested, at once"),
        Command("report", "report", "one page with the verdicts, the maps, and every item behind each cell"),
        Command("compare", "compare", "AGCI, its controls and rivals on the same rows: one run, one report"),
        Command("sweep", "evidence", "lambda chosen on some items and reported on others", "sweep"),
        Command("plan", "evidence", "how many items show an effect of a given size, from a pilot", "plan"),
        Command("benchmark", "benchmark", "ask a model a benchmark's questions, with and without AGCI, and score it"),
        Command("score", "score", "score the answers of any model on a benchmark, as its official program does"),
        Command(
            "downstream", "downstream", "five benchmarks in one go, in the words of the published eval_downstream.py"
        ),
        Command(
            "mmmu-pro", "mmmu_pro", "MMMU-Pro in the words of the published infer scripts, with files for its scorer"
        ),
        Command("ruler", "embedded", "biases of known size on the embedded model, what AGCI does to them", "ruler"),
    ),
    "look": (
        Command("app", "app", "the live page: what a model answers in nine places while lambda moves"),
        Command("similarity", "similarity", "how well the vision encoder understands an image in each of nine places"),
        Command("metrics-similarity", "similarity", "similarity results in numbers and as a map", "metrics"),
        Command("occlusion", "occlusion", "occlusion maps: which places of an image the answer depends on"),
        Command("occlusion-maps", "occlusion", "occlusion maps aggregated by the place of the target", "maps"),
        Command("flow", "flow", "information flow: what the text after the image attends to, on the image"),
    ),
    "train": (
        Command(
            "check-recipe", "fine_tuning", "check a fine-tuning recipe and its data before the first step", "check"
        ),
        Command(
            "train-lora",
            "fine_tuning",
            "fine-tune with LoRA and AGCI by a recipe of LLaMA-Factory, without it",
            "train",
        ),
        Command("merge-lora", "fine_tuning", "merge a LoRA adapter into its checkpoint", "merge"),
        Command(
            "study",
            "embedded",
            "fine-tune the embedded model with AGCI off and on, over five seeds, and probe it",
            "study",
        ),
        Command(
            "train-embedded",
            "embedded",
            "train the embedded model from scratch, on a CPU",
            "train",
        ),
    ),
    "data": (
        Command("data fetch", "data", "the published sets from the hub, unpacked and checked", "fetch"),
        Command("data check", "data", "counts, balance, duplicates and images of a probe or similarity set", "check"),
        Command("data build-probe", "data_build", "composites of nine images from any captioned images", "probe"),
        Command("data build-similarity", "data_build", "one image in each of nine places", "similarity"),
        Command("data build-samples", "data_build", "the samples that the repository ships, from the atlas", "samples"),
        Command("data build-scienceqa", "data_build", "LLaVA's question file from ScienceQA's own files", "scienceqa"),
        Command(
            "data sample-instruct", "data", "the fine-tuning sample from LLaVA's instruction mix", "sample_instruct"
        ),
        Command("data check-images", "data", "which images of an instruction file are missing", "check_images"),
    ),
    "maintain": (
        Command("families", "self_check", "the supported models as a table", "families"),
        Command("self-check", "self_check", "proof on a checkpoint that AGCI is on and correct"),
        Command("set-lambda", "set_lambda", "write lambda into a checkpoint's config.json"),
        Command("convert-llava", "convert_llava", "an original LLaVA checkpoint in the layout that transformers loads"),
        Command("merge-shards", "merge_shards", "join what the shards of a job array wrote"),
    ),
}
COMMANDS = tuple(command for group in GROUPS.values() for command in group)
PREFIXES = ("data",)  # first words of commands of two
# What a disk or the rights on it do to a run anywhere; commands that know more say more.
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; 0 is success, 1 a finished run with errors, 2 a mistake of the user, 130 an interruption."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        command = find_command(arguments)
        if command is None:
            return _list_commands(arguments)
        return _run(command, arguments)
    except InputError as error:
        from transformers_agci.commands.parser import without_long_words

        print(f"agci: {without_long_words(str(error))}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "transformers_agci"):
            raise
        print(
            f"agci: this command needs the package '{package}', which is not installed; everything that the commands "
            f"need comes with: {EVERYTHING}",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"agci: {_file_of(error)} cannot be read or written ({error.strerror}).", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("agci: interrupted; what was finished is kept, the same command goes on from there.", file=sys.stderr)
        return 130


def _run(command: Command, arguments: Sequence[str]) -> int:
    from transformers_agci.commands.files import check_files
    from transformers_agci.commands.parser import STDOUT, with_flags  # needless for a list of the commands

    parser = command_parser(command)
    args = parser.parse_args(arguments)
    try:
        check_files(command.words, args)
        # --json - : the figures alone go to the standard output, the tables beside it
        stream = sys.stderr if str(getattr(args, "json", None)) == STDOUT else sys.stdout
        with contextlib.redirect_stdout(_UntilClosed(stream)):
            return int(command.load().run(args))
    except InputError as error:
        raise InputError(with_flags(str(error), parser)) from error


def _file_of(error: OSError) -> str:
    from transformers_agci.storage.reading import path_text

    return path_text(str(error.filename)) if error.filename else "a file of this run"


class _UntilClosed(io.TextIOBase):
    """A standard output whose reader may leave: `agci probe | head -1` has seen enough, the work goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._until_closed():
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._until_closed():
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @contextlib.contextmanager
    def _until_closed(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def command_parser(command: Command) -> argparse.ArgumentParser:
    """The parser of one command; its words are the first arguments."""
    from transformers_agci.commands.parser import Parser

    loaded = command.load()
    parser = Parser(
        f"agci {command.words}",
        description=loaded.description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs=len(command.words.split()), help=argparse.SUPPRESS)
    loaded.add_arguments(parser)
    return parser


def _list_commands(arguments: Sequence[str]) -> int:
    """`agci`, `agci --help`, `agci data --help`: the commands by group; a word that is none of them is refused."""
    from transformers_agci import __version__

    prefix = next((word for word in arguments[:1] if word in PREFIXES), None)
    words = [word for word in arguments if not word.startswith("-")]
    if words[1 if prefix else 0 :]:
        raise InputError(_unknown(" ".join(words[: 2 if prefix else 1])))
    groups = {
        title: [command for command in group if prefix is None or command.words.split()[0] == prefix]
        for title, group in GROUPS.items()
    }
    width = max(len(command.words) for command in COMMANDS) + 2
    table = "\n\n".join(
        "\n".join([f"{title}:", *(f"  {command.words:<{width}}{command.help}" for command in group)])
        for title, group in groups.items()
        if group
    )
    parser = argparse.ArgumentParser(
        f"agci {prefix}" if prefix else "agci",
        usage="agci <command> [options]",
        description=f"AGCI: spatial bias in vision-language models, measured and treated.\n\n{table}",
        epilog="agci <command> --help shows a command's options.",
        # Nothing here is wrapped; to learn the terminal's width argparse loads what packs files.
        formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, width=78),
    )
    parser.add_argument("--version", action="version", version=f"transformers-agci {__version__}")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.parse_args(arguments)
    parser.print_help()
    return 2


def find_command(arguments: Sequence[str]) -> Command | None:
    """The command that the first one or two words name."""
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
    from transformers_agci.inference.process_group import started_by_torchrun

    if started_by_torchrun():
        # Everything is written. While Python shuts down, a thread of torchrun's process group now and then aborts the
        # process, and torchrun then calls the whole run a failure.
        with contextlib.suppress(OSError, ValueError):  # a reader that has gone away
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    program()
