"""A recipe: one of LLaMA-Factory's YAML files and `key=value` changes, read and checked key by key.

Every key of the file is used, fixed (only one value makes sense here) or ignored for a stated reason; a key that is
none of the three is refused. `training/recipe_keys.py` has the tables.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from transformers_agci.errors import InputError
from transformers_agci.training.recipe_keys import MERGE, TRAIN, Key, KeyTable


@dataclass(frozen=True)
class Recipe:
    """A recipe's values, defaults filled in.

    ignored      keys without a meaning here, each as a sentence that says why
    unsupported  keys and values that LLaMA-Factory may take and we do not, each as a sentence
    """

    source: str
    values: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()

    def __getitem__(self, key: str) -> Any:
        return self.values[key]

    def refuse_unsupported(self) -> None:
        """InputError for the first thing that our own trainer cannot do."""
        if self.unsupported:
            raise InputError(self.unsupported[0])


def read_recipe(path: Path | str, changes: Sequence[str] = ()) -> Recipe:
    """A training recipe, or a merging one where it has `export_dir`; `changes` are `key=value` words.

    Raises InputError for a file that is missing or not YAML, and for a value of the wrong kind.
    """
    source = Path(path)
    found = _read_yaml(source) | dict(_parse_change(word) for word in changes)
    return parse_recipe(found, source.name)


def is_merging(recipe: Recipe) -> bool:
    """Whether the recipe merges an adapter (LLaMA-Factory's export) instead of training one."""
    return "export_dir" in recipe.values


def parse_recipe(found: Mapping[str, Any], source: str) -> Recipe:
    """The recipe that a mapping of keys spells; `source` begins the messages."""
    table = MERGE if "export_dir" in found else TRAIN
    values: dict[str, Any] = {name: key.default for name, key in table.used.items()}
    ignored, unsupported = [], []
    for name, value in found.items():
        if name in table.used:
            if value is not None:
                values[name] = _typed(table.used[name], name, value, source)
        elif name in table.fixed:
            fixed = table.fixed[name]
            if value is not None and value not in fixed.allowed:
                only = f"only {_shown(fixed.allowed[0])}" if fixed.allowed else "none"
                unsupported.append(
                    f"{source}: {name} is {_shown(value)}, but {table.command} takes {only}: {fixed.reason}."
                )
        elif name in table.ignored:
            ignored.append(f"{name} is ignored: {table.ignored[name]}.")
        else:
            unsupported.append(_unknown(name, table, source))
    missing = [name for name, key in table.used.items() if key.required and values[name] is None]
    if missing:
        raise InputError(f"{source}: the key {missing[0]} is missing; give it in the file or as {missing[0]}=VALUE.")
    return Recipe(source, values, tuple(ignored), tuple(unsupported))


def _unknown(name: str, table: KeyTable, source: str) -> str:
    near = get_close_matches(name, table.names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(table.used))}."
    return f"{source}: {table.command} does not know the key {name}; {hint}"


def _typed(key: Key, name: str, value: Any, source: str) -> Any:
    """The value in the key's type; InputError says what is allowed."""
    try:
        typed = _converted(key.type, value)
    except (TypeError, ValueError):
        raise InputError(f"{source}: {name} must be {KINDS[key.type]}, but is {_shown(value)}.") from None
    if key.choices and typed not in key.choices:
        raise InputError(f"{source}: {name} must be one of {', '.join(key.choices)}, but is {_shown(value)}.")
    if key.minimum is not None and typed < key.minimum:
        raise InputError(f"{source}: {name} must be at least {key.minimum}, but is {_shown(value)}.")
    if key.maximum is not None and typed > key.maximum:
        raise InputError(f"{source}: {name} must be at most {key.maximum}, but is {_shown(value)}.")
    return typed


KINDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a name or names separated by commas",
}


def _converted(kind: type, value: Any) -> Any:
    if kind is bool:
        if not isinstance(value, bool):
            raise TypeError
        return value
    if isinstance(value, bool | Mapping):
        raise TypeError
    if kind is list:
        words = value if isinstance(value, list) else str(value).split(",")
        return [str(word).strip() for word in words]
    if kind is str:
        if isinstance(value, list):
            raise TypeError
        return str(value)
    number = float(value)  # YAML 1.1 reads 1e-4 as a text
    if not math.isfinite(number):
        raise ValueError
    if kind is int:
        if number != int(number):
            raise ValueError
        return int(number)
    return number


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else "not given" if value is None else str(value)


# --- YAML ----------------------------------------------------------------------------------------------------------


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_loader())
    except FileNotFoundError:
        raise InputError(
            f"There is no recipe {path}; configs/train_lora and configs/merge_lora have one per model."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe {path} cannot be read ({error}).") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise InputError(f"{path} must hold lines of 'key: value', as LLaMA-Factory's recipes do.")
    return found


def _loader() -> Any:
    """YAML's safe loader, but a key that stands twice is an error: PyYAML would drop the first one silently."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            names = [key.value for key, _ in node.value]
            twice = next((name for name in names if names.count(name) > 1), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(None, None, f"the key {twice} stands twice", node.start_mark)
            return super().construct_mapping(node, deep)

    return Loader


def _parse_change(word: str) -> tuple[str, Any]:
    import yaml

    name, sign, text = word.partition("=")
    if not sign or not name.strip():
        raise InputError(f"{word!r} is not a change of the recipe; write key=value, for instance max_steps=10.")
    try:
        return name.strip(), yaml.safe_load(text)
    except yaml.YAMLError:
        return name.strip(), text
