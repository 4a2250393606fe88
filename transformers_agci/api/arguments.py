"""What a caller gives to the functions of this package, checked as the commands check their options."""

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, get_args

from transformers_agci.errors import InputError, short
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.experiments.position.questions import Control
from transformers_agci.method.lam import lambda_text, validate_lambda
from transformers_agci.method.names import SEEDED
from transformers_agci.method.rivals import RIVALS
from transformers_agci.storage.reading import can_be_a_name

LARGEST_SEED = 999_999_999  # of a control, as its name can hold it
LARGEST_COUNT = 2**63 - 1
# What a command's option is called -> arguments of this package that are the same: a function has one of them, if any.
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "answer_file": ("folder",),
    "eval_file": ("rows",),
    "global_context_lambda": ("lambdas",),
    "img_path": ("images",),
    "local_copy": ("folder",),
    "method": ("methods",),
    "methods": ("method",),
    "negatives_file": ("negatives",),
    "output_dir": ("folder",),
    "output_path": ("path",),
    "prob_results_dir": ("folder",),
    "results_file": ("files", "results"),
}

P = ParamSpec("P")
R = TypeVar("R")

_KINDS: Mapping[type, tuple[str, Callable[[Any], bool]]] = {
    bool: ("True or False", lambda given: isinstance(given, bool)),
    int: ("a whole number", lambda given: isinstance(given, Integral) and not isinstance(given, bool)),
    float: ("a number", lambda given: isinstance(given, Real) and not isinstance(given, bool) and _is_a_float(given)),
    str: ("a text", lambda given: isinstance(given, str)),
    Path: ("a path", lambda given: isinstance(given, os.PathLike)),
    NoneType: ("None", lambda given: given is None),
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """A function that a user calls: its arguments are of the kinds that it says, and errors are in their names.

    In a file or folder ~ is the home.

    What lies below names an argument as the command's option, `global_context_lambda` for `lambdas`: here it is
    respelled, as `commands.parser.with_flags` does for the command line.

    >>> @checked
    ... def ask(lambdas: float, folder: str | None = None) -> None:
    ...     raise InputError("`global_context_lambda` is 0; give another `output_dir`, or `overwrite`.")
    >>> ask(0)
    Traceback (most recent call last):
    transformers_agci.errors.InputError: `lambdas` is 0; give another `folder`, or `overwrite`.
    >>> ask("0")
    Traceback (most recent call last):
    transformers_agci.errors.InputError: `lambdas` must be a number, but is '0'.
    """
    names = list(inspect.signature(function).parameters)
    paths = {name for name, kind in function.__annotations__.items() if _may_be_a_path(kind)}

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            check_kinds(function, dict(zip(names, args, strict=False)) | kwargs)
            placed = [_at_home(value) if name in paths else value for name, value in zip(names, args, strict=False)]
            named = {name: _at_home(value) if name in paths else value for name, value in kwargs.items()}
            return function(*placed, *args[len(placed) :], **named)  # type: ignore[arg-type]
        except InputError as error:
            error.args = (in_arguments(str(error), names),)
            raise

    return called


def in_arguments(text: str, names: Sequence[str]) -> str:
    """The text with every option of a command in backticks spelled as the argument, among `names`, that is the same."""

    def spelled(found: re.Match[str]) -> str:
        same = () if found[1] in names else OPTIONS.get(found[1], ())
        return next((f"`{name}`" for name in same if name in names), found[0])

    return re.sub(r"`(\w+)`", spelled, text)


def check_kinds(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """InputError names the first of a function's arguments that is not of the kind that its signature says.

    Flags, numbers, texts and paths are checked, and options that are a dataclass's fields; what has other kinds too,
    such as a list or a model, is left to its own reader.

    >>> def ask(rows: str | Path, limit: int | None = None) -> None: ...
    >>> check_kinds(ask, {"rows": "rows.json"})
    >>> check_kinds(ask, {"rows": 5})
    Traceback (most recent call last):
    transformers_agci.errors.InputError: `rows` must be a text or a path, but is 5.
    """
    for name, kind in function.__annotations__.items():
        kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
        if name not in given or any(each not in _KINDS for each in kinds):
            continue
        if not any(_KINDS[each][1](given[name]) for each in kinds):
            said = " or ".join(_KINDS[each][0] for each in kinds)
            raise InputError(f"`{name}` must be {said}, but is {short(given[name])}.")
        if Path in kinds and isinstance(given[name], str | Path) and not can_be_a_name(str(given[name])):
            raise InputError(f"`{name}` must be a file or folder, but is {short(given[name])}.")


def lambda_list(given: Sequence[float] | float | None) -> tuple[float, ...]:
    """The lambdas in their order; one number is a list of one, None is ().

    >>> lambda_list([0, 0.5]), lambda_list(0.5), lambda_list(None)
    ((0.0, 0.5), (0.5,), ())
    """
    if given is None:
        return ()
    if isinstance(given, str | bytes):
        raise InputError(f"`lambdas` is a number or a list of numbers, such as [0, 0.5], but is {given!r}.")
    values = [given] if isinstance(given, Real) else elements("lambdas", given, "numbers, such as [0, 0.5]")
    return tuple(validate_lambda(value, "one of `lambdas`") for value in values)


def some_lambdas(given: Sequence[float] | float) -> tuple[float, ...]:
    """As `lambda_list`, where at least one lambda is needed and none is measured twice."""
    found = lambda_list(given)
    if not found:
        raise InputError("`lambdas` must name at least one lambda; 0 is the unmodified model.")
    if len(set(found)) < len(found):
        raise InputError(f"`lambdas` names a lambda twice: {', '.join(map(lambda_text, found))}.")
    return found


def maybe_lambdas(given: Sequence[float] | float | None) -> tuple[float, ...]:
    """As `some_lambdas`; None, which is (), leaves it to the model."""
    return () if given is None else some_lambdas(given)


def place_of_lambda(lambdas: Sequence[float], wanted: float | None) -> int:
    """Where a lambda stands among those of a run; 0 (the first) where none is named."""
    if wanted is None:
        return 0
    if wanted not in lambdas:
        raise InputError(f"This run is at lambda {', '.join(map(lambda_text, lambdas))}, but {wanted!r} is asked for.")
    return list(lambdas).index(wanted)


def method_list(given: str | Sequence[str]) -> list[str]:
    """The methods in their order; one name is a list of one. That each exists is for the run to say."""
    methods = [given] if isinstance(given, str) else elements("method", given, "names of methods")
    if not methods:
        raise InputError("`method` is an empty list; name at least one method.")
    if (wrong := next((name for name in methods if not isinstance(name, str)), None)) is not None:
        raise InputError(f"`method` must be a name or a list of names, but has {wrong!r}.")
    if len(set(methods)) < len(methods):
        raise InputError(f"Each of `method` is run once, but the list is {', '.join(methods)}.")
    return methods


def with_options(method: str, given: Mapping[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """A method and the options that are a rival's; the seed of a control goes into its name. InputError lists what
    the method has where it is given something else.

    >>> with_options("random", {"seed": 3}), with_options("bapa", {"strength": 1})
    (('random-3', {}), ('bapa', {'strength': 1}))
    """
    if given is not None and not isinstance(given, Mapping):
        raise InputError(f"`method_options` must be options by name, such as {{'strength': 1}}, but is {short(given)}.")
    options = dict(given or {})
    if (rival := RIVALS.get(method)) is not None:
        rival.settings({name: value for name, value in options.items() if name != "strength"})
        if "strength" in options:
            rival.strength_of(options["strength"], "strength")
        return method, options
    control, seeded, _ = method.partition("-")
    for name, value in options.items():
        if name != "seed" or control not in SEEDED:
            has = "seed" if control in SEEDED else "none (its strength is `lambdas`)"
            raise InputError(f"`method_options`: {method} has no option {short(name)}; it has: {has}.")
        if seeded:
            raise InputError(f"`method_options`: the seed is given twice, here and by the name {method}.")
        method = f"{method}-{whole_number('seed', value, least=0, most=LARGEST_SEED)}"
    return method, {}


def control_list(given: str | Sequence[str]) -> list[Control]:
    """The controls by their names; one name is a list of one."""
    known = [control.value for control in Control]
    names = [given] if isinstance(given, str) else elements("controls", given, "names of controls")
    if (wrong := next((name for name in names if name not in known), None)) is not None:
        raise InputError(f"`controls` must be of {' and '.join(known)}, but has {wrong!r}.")
    return [Control(name) for name in names]


def needed_data(given: Any) -> ProbeData | None:
    """Rows with their images, or None for the embedded atlas."""
    if given is None or isinstance(given, ProbeData):
        return given
    raise InputError(
        "`data` must be what `probe_data`, `published_data` or `composites` give, or None for the embedded atlas, but "
        f"is a {type(given).__name__}: a file is read by probe_data(rows, images)."
    )


def whole_number(name: str, given: Any, least: int = 1, most: int | None = None) -> int:
    """A number of items, draws or pixels. InputError names it where it is none, below `least` or above `most`."""
    if isinstance(given, bool) or not isinstance(given, Integral) or given < least:
        raise InputError(f"`{name}` must be a whole number of at least {least}, but is {short(given)}.")
    most = LARGEST_COUNT if most is None else most
    if int(given) > most:
        raise InputError(f"`{name}` must be a whole number of at most {most}, but is {short(given)}.")
    return int(given)


def maybe_whole(name: str, given: Any, least: int = 1) -> int | None:
    """As `whole_number`, or None for the default."""
    return None if given is None else whole_number(name, given, least)


def share(name: str, given: Any) -> float:
    """A share between 0 and 1, such as an equivalence margin."""
    if isinstance(given, bool) or not isinstance(given, Real) or not 0 < float(given) < 1:
        raise InputError(f"`{name}` must lie between 0 and 1 (0.02: two points), but is {short(given)}.")
    return float(given)


def one_of(name: str, given: Any, choices: Any) -> None:
    """InputError where an argument is none of the words of its Literal.

    >>> from typing import Literal
    >>> one_of("mode", "dark", Literal["page", "folder"])
    Traceback (most recent call last):
    transformers_agci.errors.InputError: `mode` must be one of page, folder, but is 'dark'.
    """
    if not isinstance(given, str) or given not in get_args(choices):
        raise InputError(f"`{name}` must be one of {', '.join(get_args(choices))}, but is {short(given)}.")


def path_list(name: str, given: Any) -> tuple[Path, ...]:
    """Files in their order; one is a list of one."""
    single, several = isinstance(given, str | Path), isinstance(given, Iterable)
    found = [given] if single else elements(name, given, "files") if several else [None]
    if any(not isinstance(each, str | Path) for each in found):
        raise InputError(f"`{name}` must be a file or a list of files, but is {short(given)}.")
    return tuple(map(path_of, found))


def path_of(given: str | Path) -> Path:
    """A file or folder that a caller names; ~ is the home, as a shell has it."""
    try:
        return Path(given).expanduser()
    except RuntimeError:  # ~name of nobody here: a name like any other
        return Path(given)


def _is_a_float(given: Real) -> bool:
    try:
        float(given)
    except OverflowError:  # a whole number beyond every float
        return False
    return True


def _may_be_a_path(kind: Any) -> bool:
    """Whether an argument of this annotation may be a file or folder."""
    return kind is Path or Path in get_args(kind)


def _at_home(given: Any) -> Any:
    """A path that begins with ~ as `path_of` has it; what is none as it is, such as a hub id or a list."""
    return path_of(given) if isinstance(given, str | Path) and str(given).startswith("~") else given


def elements(name: str, given: Any, what: str) -> list[Any]:
    """The elements of a list, a tuple, a column of a DataFrame, a generator. InputError where it is none of these.

    >>> elements("files", (n for n in "ab"), "files")
    ['a', 'b']
    """
    if hasattr(given, "columns"):
        raise InputError(f"`{name}` must be a list of {what}, but is a {type(given).__name__}: give a column of it.")
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise InputError(f"`{name}` must be a list of {what}, but is {short(given)}.")
    return list(given)
