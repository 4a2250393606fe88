"""The ids of special tokens that a model's config does not say, read from the tokenizer files of its checkpoint.

A live model has no processor, but where it was loaded from is written in its config. With the ids of the marks around
an image, whatever stands between runs of image tokens can be held against them; a model that was made from a config
alone, or saved without its tokenizer, has no such files, and then place and structure have to tell.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_FILES = ("tokenizer_config.json", "tokenizer.json")


def token_ids(config: Any, texts: Sequence[str]) -> tuple[int, ...]:
    """The ids of these special tokens in the checkpoint that `config` came from; empty unless all of them are there."""
    if not texts:
        return ()
    ids = _special_tokens(str(getattr(config, "_name_or_path", "") or ""), getattr(config, "_commit_hash", None))
    found = [ids[text] for text in texts if text in ids]
    return tuple(found) if len(found) == len(texts) else ()


@functools.lru_cache(maxsize=8)
def _special_tokens(checkpoint: str, revision: str | None) -> Mapping[str, int]:
    ids: dict[str, int] = {}
    for name in _FILES if checkpoint else ():
        path = _local_file(checkpoint, name, revision)
        if path is None:
            continue
        try:
            said = json.loads(path.read_text(encoding="utf-8"))
            ids |= {token["content"]: int(number) for number, token in said.get("added_tokens_decoder", {}).items()}
            ids |= {token["content"]: int(token["id"]) for token in said.get("added_tokens", ())}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):  # not a tokenizer's: as if it were not there
            continue
    return ids


def _local_file(checkpoint: str, name: str, revision: str | None) -> Path | None:
    """A file of a checkpoint's folder, or of the hub's cache on this machine; nothing is downloaded."""
    if Path(checkpoint).is_dir():
        path = Path(checkpoint) / name
        return path if path.is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(checkpoint, name, revision=revision)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None
