"""The parser of every command, and how messages from below are said in its words: the flags.

Whatever a command needs beside this is imported by the command's own file.
"""

import argparse
import re
from collections.abc import Callable
from typing import Any, NoReturn

from transformers_agci.errors import InputError

STDOUT = "/dev/stdout"  # what `--json -` writes to


class Store(argparse.Action):
    """What argparse does without an action, but that a list is given once: the second would replace the first."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        if option_string and self.nargs == "+":
            if self.dest in parser.lists:
                parser.error(f"argument {'/'.join(self.option_strings)}: given twice: put all its values behind one")
            parser.lists.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An option that is wrong, missing or unknown is an InputError: one sentence instead of the usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lists: set[str] = set()  # options with lists that this command line gave
        for name in (None, "store"):
            self.register("action", name, Store)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A positional may stand behind options: argparse alone gives an optional one up at the first option."""
        self.lists.clear()
        return self.parse_intermixed_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        found = re.match(r"argument ([^:]+): (.*)", message, flags=re.DOTALL)
        if found:
            flag, reason = found[1].partition("/")[0], found[2]
            message = f"{flag}{' ' if reason.startswith('must ') else ': '}{reason}"
        raise InputError(f"{message.rstrip('.')}. {self.prog} --help shows the options.")


def with_flags(text: str, parser: argparse.ArgumentParser) -> str:
    """The text with every `quantity` in backticks that is an option of the parser spelled as its flag.

    What lies below commands/ knows no flags: its messages name the quantity, as in "give `overwrite` to start over".
    """
    spelled = {
        action.dest: action.option_strings[0] if action.option_strings else str(action.metavar or action.dest)
        for action in parser._actions
    }
    return re.sub(r"`(\w+)`", lambda name: spelled.get(name[1], name[0]), text)


def without_long_words(text: str) -> str:
    """The text with names and values that no reader would finish cut off, such as a path of 5,000 characters."""
    return re.sub(r"\S{300,}", lambda word: f"{word[0][:120]}...", text)


def teller(add_arguments: Callable[[argparse.ArgumentParser], None]) -> Callable[[str], None]:
    """A print that spells quantities as the flags of these arguments, at once and line by line."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)

    def say(line: str) -> None:
        print(with_flags(line, parser), flush=True)

    return say
