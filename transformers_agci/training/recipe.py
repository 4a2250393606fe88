"""A recipe: one of LLaMA-Factory's YAML files and `key=value` changes, read and checked key by key.

Every key of the file is used, fixed (only one value makes sense here) or ignored for a stated reason; a key that is
none of the three is refused. `training/recipe_keys.py` has the keys.
"""

import math
import types
import typing
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers_agci.errors import InputError, short
from transformers_agci.storage.reading import can_be_a_name, is_file, path_text, read_text
from transformers_agci.training.recipe_keys import Bounds, MergeRecipe, Recipe, TrainRecipe

MAX_LENGTH = 1 << 20  # characters of a recipe; LLaMA-Factory's longest have 2,000
MAX_INTEGER = 2**31 - 1  # of any count in a recipe


def read_recipe(path: Path | str, changes: Sequence[str] = ()) -> TrainRecipe | MergeRecipe:
    """A training recipe, or a merging one where it has `export_dir`; `changes` are `key=value` words.

    Raises InputError for a file that is missing or not YAML, and for a value of the wrong kind.
    """
    return changed_recipe(path, dict(_parse_change(word) for word in changes))


def changed_recipe(given: Path | str | Mapping[str, Any], changes: Mapping[str, Any]) -> TrainRecipe | MergeRecipe:
    """The recipe of a file, or that a mapping of keys spells, with some of its values replaced."""
    if isinstance(given, Mapping):
        return parse_recipe({**given, **changes}, "the recipe")
    source = recipe_path(Path(given))
    return parse_recipe({**_read_yaml(source), **changes}, source.name)


def recipe_path(path: Path) -> Path:
    """`configs/train_lora/...` where the current folder has it, else the recipe of that name that is shipped."""
    if path.parts[:1] != ("configs",) or is_file(path):
        return path
    package = Path(__file__).parents[1]
    shipped = (package / path, package.parent / path)  # of a wheel, of a clone
    return next((file for file in shipped if is_file(file)), path)


def parse_recipe(found: Mapping[str, Any], source: str) -> TrainRecipe | MergeRecipe:
    """The recipe that a mapping of keys spells; `source` begins the messages."""
    kind: type[TrainRecipe | MergeRecipe] = MergeRecipe if "export_dir" in found else TrainRecipe
    keys, types_of = kind.keys(), typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    ignored, unsupported = [], []
    for name, value in found.items():
        if name in keys:
            if value is not None:
                bounds = keys[name].metadata.get("bounds", Bounds())
                values[name] = _checked(types_of[name], bounds, name, value, source)
        elif name in kind.fixed:
            fixed = kind.fixed[name]
            if value is not None and value not in fixed.allowed:
                only = f"only {_shown(fixed.allowed[0])}" if fixed.allowed else "none"
                unsupported.append(
                    f"{source}: {name} is {_shown(value)}, but {kind.command} takes {only}: {fixed.reason}."
                )
        elif name in kind.without_meaning:
            ignored.append(f"{name} is ignored: {kind.without_meaning[name]}.")
        else:
            unsupported.append(_unknown(name, kind, source))
    for name, key in keys.items():
        if name not in values and _is_required(key):
            raise InputError(f"{source}: the key {name} is missing; give it in the file or as {name}=VALUE.")
    return kind(source=source, ignored=tuple(ignored), unsupported=tuple(unsupported), **values)


def _is_required(key: Any) -> bool:
    return key.default is key.default_factory  # both are dataclasses.MISSING


def _unknown(name: str, kind: type[Recipe], source: str) -> str:
    near = get_close_matches(name[:100], [*kind.keys(), *kind.fixed, *kind.without_meaning], n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(kind.keys()))}."
    return f"{source}: {kind.command} does not know the key {_shown(name)}; {hint}"


# --- values --------------------------------------------------------------------------------------------------------

NAMES = tuple[str, ...]
PLACES = ("_dir", "_or_path")  # how keys end that name a file or folder
KINDS: Mapping[Any, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NAMES: "a name or names separated by commas",
}


def _checked(annotation: Any, bounds: Bounds, name: str, value: Any, source: str) -> Any:
    """The value in the key's type and within its bounds; InputError says what is allowed."""
    kind = _without_none(annotation)
    try:
        typed = _converted(kind, value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{source}: {name} must be {KINDS[kind]}, but is {_shown(value)}.") from None
    if kind is str and name.endswith(PLACES) and not can_be_a_name(typed):
        raise InputError(f"{source}: {name} must be a file or folder, but none can be called {_shown(value)}.")
    if bounds.choices and typed not in bounds.choices:
        raise InputError(f"{source}: {name} must be one of {', '.join(bounds.choices)}, but is {_shown(value)}.")
    if bounds.minimum is not None and typed < bounds.minimum:
        raise InputError(f"{source}: {name} must be at least {bounds.minimum}, but is {_shown(value)}.")
    maximum = MAX_INTEGER if kind is int and bounds.maximum is None else bounds.maximum
    if maximum is not None and typed > maximum:
        raise InputError(f"{source}: {name} must be at most {maximum}, but is {_shown(value)}.")
    return typed


def _without_none(annotation: Any) -> Any:
    """int of int | None."""
    if isinstance(annotation, types.UnionType):
        return next(kind for kind in typing.get_args(annotation) if kind is not type(None))
    return annotation


def _converted(kind: Any, value: Any) -> Any:
    """The value as `kind`; TypeError or ValueError where it is none."""
    if kind is bool:
        return _only_if(isinstance(value, bool), value)
    if kind == NAMES:
        words = value if isinstance(value, list) else _text(value).split(",")
        return tuple(_text(word).strip() for word in words)
    if kind is str:
        return _text(value)
    _only_if(isinstance(value, int | float | str) and not isinstance(value, bool), value)
    number = float(value)  # YAML 1.1 reads 1e-4 as a text
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ValueError
    return kind(number)


def _text(value: Any) -> str:
    return str(_only_if(isinstance(value, int | float | str) and not isinstance(value, bool), value))


def _only_if(right: bool, value: Any) -> Any:
    if not right:
        raise TypeError
    return value


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    try:
        text = "not given" if value is None else str(value)
    except ValueError:  # a hexadecimal number of thousands of digits
        return short(value)
    return text if len(text) <= 100 and text.isprintable() else short(text)


# --- YAML ----------------------------------------------------------------------------------------------------------


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        is_there = path.exists()
    except OSError:  # a name that is too long
        is_there = False
    if not is_there:
        raise InputError(
            f"There is no recipe {path_text(path)}; there is one for each of the paper's models, also where only the "
            "package is installed: configs/train_lora/qwen2_5_vl.yaml, configs/merge_lora/qwen2_5_vl.yaml, ..."
        )
    text = read_text(path)
    if len(text) > MAX_LENGTH:
        raise InputError(f"{path} has {len(text)} characters; a recipe has at most {MAX_LENGTH}.")
    try:
        found = _load_yaml(text)
    except ValueError as error:
        raise InputError(f"{path} is not YAML ({error}).") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path} must hold lines of 'key: value', as LLaMA-Factory's recipes do.")
    return found


def _parse_change(word: str) -> tuple[str, Any]:
    name, sign, text = word.partition("=")
    if not sign or not name.strip():
        raise InputError(f"{_shown(word)!r} is not a change of the recipe; write key=value, for instance max_steps=10.")
    try:
        return name.strip(), _load_yaml(text)
    except ValueError:
        return name.strip(), text


def _load_yaml(text: str) -> Any:
    """What a YAML text holds; ValueError with one clause where that is nothing that a recipe can hold."""
    import yaml

    try:
        return yaml.load(text, Loader=_loader())
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except Exception as error:  # PyYAML's own for !!bool maybe, !!int x, the 99th of a month: KeyError and others
        raise ValueError(f"a value is not of the type that it says: {short(str(error))}") from None


def _loader() -> Any:
    """YAML's safe loader, made safer.

    A key that occurs twice is an error, which PyYAML would resolve silently. So are aliases: a few lines of them spell
    a list that fills the memory when it is printed. A date is a text, as every name that looks like one is meant to be.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.events.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.composer.ComposerError(None, None, "aliases (*name) have no meaning in a recipe", mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            seen = set()
            for key, _ in node.value:
                name = key.value if isinstance(key.value, str) else None
                if name is not None and name in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"the key {name} occurs twice", node.start_mark)
                seen.add(name)
            return super().construct_mapping(node, deep)

    Loader.yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return Loader
