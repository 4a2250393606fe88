"""Write lambda into a local checkpoint's config.json, where every program of this environment finds it.

The file is replaced as a whole, what it was before stays beside it as config.json.bak, and the change is shown. With
--output the checkpoint stays as it is and a second folder gets the other lambda; the weights lie on disk once.
"""

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from transformers_agci.errors import InputError

CONFIG = "config.json"
LOCK_SECONDS = 30  # that another program may take for its own change


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="folder with config.json")
    parser.add_argument("lam", metavar="LAMBDA", nargs="?", help="a number >= 0; 0 is the unmodified model")
    parser.add_argument("--remove", action="store_true", help="take the key out instead")
    parser.add_argument(
        "--output", metavar="FOLDER", help="leave CHECKPOINT as it is and make this folder: hard links to its weights"
    )


def run(args: argparse.Namespace) -> int:
    """Change the file and say how."""
    from pathlib import Path

    from transformers_agci.errors import InputError
    from transformers_agci.method.lam import parse_lambda

    if args.remove == (args.lam is not None):
        raise InputError("Give a lambda (agci set-lambda CHECKPOINT 0.5) or --remove, one of the two.")
    lam = None if args.remove else parse_lambda(args.lam, "LAMBDA")
    if args.output is None:
        lines = set_lambda(Path(args.checkpoint), lam)
    else:
        lines = set_lambda_beside(Path(args.checkpoint), Path(args.output), lam)
    print("\n".join(lines))
    return 0


def set_lambda_beside(source: "Path", target: "Path", lam: float | None) -> list[str]:
    """Make the folder `target` from the checkpoint in `source`, with the key set or taken out there only.

    Raises:
        InputError: as `set_lambda`, or `target` exists or cannot be written.
    """
    from transformers_agci.commands.checkpoint_copy import copy_beside

    source = source.parent if source.name == CONFIG else source
    path = source / CONFIG
    if not path.is_file():
        raise _no_config(path)
    _parsed(path, path.read_text(encoding="utf-8"))
    linked, copied = copy_beside(source, target)
    lines = set_lambda(target, lam)[:1]
    target.joinpath(f"{CONFIG}.bak").unlink(missing_ok=True)
    return [
        *lines,
        f"{target}: weight files: {linked} linked to those of {source}, {copied} copied. Do not write into "
        "either folder; train and merge into others.",
    ]


def set_lambda(folder: "Path", lam: float | None) -> list[str]:
    """Set the key of the checkpoint in `folder`, or take it out where `lam` is None; returns what to tell the user.

    Raises:
        InputError: no config.json, not JSON, not a supported family, not writable, or held by another program.
    """
    from filelock import FileLock, Timeout

    from transformers_agci.errors import InputError

    path = folder if folder.name == CONFIG else folder / CONFIG
    if not path.is_file():
        raise _no_config(path)
    try:
        with FileLock(path.with_name(f".{CONFIG}.lock"), timeout=LOCK_SECONDS):
            return _change(path, lam)
    except Timeout as error:
        raise InputError(f"Another program has been changing {path} for {LOCK_SECONDS} s; try again later.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be changed ({error.strerror or error}).") from error


def _change(path: "Path", lam: float | None) -> list[str]:
    import json
    import os

    from transformers_agci.errors import InputError
    from transformers_agci.method.lam import LAMBDA_KEY

    text = path.read_text(encoding="utf-8")
    config = _parsed(path, text)
    found = json.dumps(config[LAMBDA_KEY]) if LAMBDA_KEY in config else "absent"
    _without_key(config)
    if lam is not None:
        config[LAMBDA_KEY] = lam
    wanted = json.dumps(config, indent=_indent(text), ensure_ascii=False) + "\n"
    if json.loads(text) == config:
        return [f"{path}: {LAMBDA_KEY} is {found} already; nothing was changed."]
    if not os.access(path, os.W_OK):
        raise InputError(f"{path} is write-protected; copy the checkpoint or change its permissions.")
    backup = path.with_name(f"{CONFIG}.bak")
    _replace(backup, text, path)
    _replace(path, wanted, path)
    now = "absent" if lam is None else json.dumps(lam)
    return [f"{path}: {LAMBDA_KEY}: {found} -> {now}", f"before: {backup}"]


def _no_config(path: "Path") -> "InputError":
    from transformers_agci.errors import InputError

    return InputError(f"There is no {path}; give the folder of a checkpoint on this machine.")


def _parsed(path: "Path", text: str) -> dict[str, Any]:
    """The config of a supported family."""
    import json

    from transformers_agci.errors import InputError
    from transformers_agci.families import SUPPORTED_FAMILIES, unsupported_config
    from transformers_agci.inference.checkpoint_files import refuse_original_llava

    try:
        config = json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}).") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no JSON object; it is not a model's config.")
    refuse_original_llava(path.parent, config)
    if config.get("model_type") not in SUPPORTED_FAMILIES:
        raise unsupported_config(path, config.get("model_type"))
    return config


def _without_key(config: dict[str, Any]) -> None:
    """Take the key out, also of the text part, where some versions of transformers put a copy and then prefer it."""
    from transformers_agci.method.lam import LAMBDA_KEY

    config.pop(LAMBDA_KEY, None)
    if isinstance(config.get("text_config"), dict):
        config["text_config"].pop(LAMBDA_KEY, None)


def _indent(text: str) -> int | None:
    """The file's own indentation, so that a diff shows one line; None for a file in one line."""
    lines = text.splitlines()[1:2]
    return len(lines[0]) - len(lines[0].lstrip()) if lines else None


def _replace(path: "Path", text: str, like: "Path") -> None:
    """Write `path` as a whole or not at all, with the permissions of `like`."""
    import os
    import shutil
    import tempfile
    from pathlib import Path

    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        shutil.copymode(like, name)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
