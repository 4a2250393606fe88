"""What lies in a model folder, looked at before anything of it is loaded: only data, never code.

Refused with the remedy: a checkpoint that asks for its own Python code, weights that are pickles (.bin, .pt), a
folder without weights or with a shard missing, a model type that AGCI does not serve, and the layout of the original
LLaVA repositories.
"""

import contextlib
import hashlib
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from transformers_agci.errors import InputError, short
from transformers_agci.families import (
    SUPPORTED_FAMILIES,
    family_called,
    remote_code_twin,
    todays_model_type,
    unsupported_config,
)
from transformers_agci.families.llava import is_original_llava, twin_of_original
from transformers_agci.method.lam import LAMBDA_KEY, validate_lambda
from transformers_agci.storage.json_file import read_json_object
from transformers_agci.storage.reading import path_text, read_json

if TYPE_CHECKING:
    from transformers_agci.inference.load import LoadOptions

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
ADAPTER = "adapter_config.json"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

# Only these are fetched from the hub: no code, no pickles.
HUB_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt")
# And for `agci convert-llava`, whose sources are older than safetensors.
ORIGINAL_FILES = (*HUB_FILES, "pytorch_model*.bin")


class Checkpoint(NamedTuple):
    """A model folder that was looked at: its model type, and the lambda in its config.json."""

    folder: Path
    model_type: str
    lam: float | None


def checked_checkpoint(options: "LoadOptions", weights: bool) -> Checkpoint:
    """The folder that the options name, fetched where it is on the hub; InputError for what is wrong with its files."""
    folder = model_folder(options.model, options.revision)
    config = read_config(folder)
    _check_family(options, config["model_type"])
    lam = config.get(LAMBDA_KEY)
    if lam is not None:
        lam = validate_lambda(lam, f"{LAMBDA_KEY} of {folder / CONFIG}")
    if weights:
        check_weights(folder)
    return Checkpoint(folder, config["model_type"], lam)


def _check_family(options: "LoadOptions", found: str) -> None:
    """InputError where `family` asks for another one than the checkpoint's."""
    if options.family is None:
        return
    wanted = family_called(options.family)
    if wanted is None:
        raise InputError(f"Unknown family {options.family!r}. Available: {', '.join(SUPPORTED_FAMILIES)}.")
    if wanted.model_type == found:
        return
    is_of = SUPPORTED_FAMILIES[found].name
    raise InputError(
        f"{options.model} is a {is_of} checkpoint (model_type {found!r}), but this command is for {wanted.name} "
        f"({wanted.model_type!r}); use the one of {is_of}."
    )


def model_folder(model: str, revision: str | None, files: tuple[str, ...] = HUB_FILES) -> Path:
    """The folder of a checkpoint: a local one as it is, a hub id through the local cache or a download of `files`."""
    folder = Path(model)
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"`revision` {revision} belongs to a hub id, but {model} is a folder.")
        return folder
    if folder.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise InputError(
            f"There is no model folder {model}; give a folder with config.json and *.safetensors, or a "
            "hub id such as Qwen/Qwen2.5-VL-7B-Instruct."
        )
    if not _hub_answers():  # its client would try again for half a minute, twice
        return _cached_folder(model, revision)
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        if files is HUB_FILES:  # before gigabytes go by
            with contextlib.suppress(EntryNotFoundError):  # an adapter has no config.json
                check_not_original_llava(
                    model, read_json_object(Path(hf_hub_download(model, CONFIG, revision=revision)))
                )
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(files)))
    except InputError:
        raise
    except Exception as error:  # the hub's client has many: offline, not found, gated, not an id
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{model} is neither a folder here nor a checkpoint that the hub gave us ({reason})."
        ) from error


def _hub_answers() -> bool:
    """Whether its client is worth asking: the hub's name resolves, or a proxy does that; offline it says no at once."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy"):
        return True
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        return False
    return True


def _cached_folder(model: str, revision: str | None) -> Path:
    """What an earlier download left in the hub's cache."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except Exception as error:  # not there, not an id
        raise InputError(
            f"{model} is neither a folder here nor a checkpoint in the hub's cache, and the hub cannot be reached."
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a supported, code-free checkpoint."""
    path = folder / CONFIG
    if (folder / ADAPTER).exists():
        raise InputError(
            f"{folder} holds a LoRA adapter ({ADAPTER}); merge it into its model first, for instance with "
            "llamafactory-cli export and the files in configs/merge_lora, and name the merged folder."
        )
    if not path.exists():
        raise InputError(f"{folder} holds no {CONFIG}, so it is not a model folder.")
    for file in sorted(folder.glob("*.json")):
        if file.name != INDEX and file.stat().st_size < 1 << 20:
            _check_no_remote_code(file)
    _check_generation_config(folder / GENERATION_CONFIG)
    config = read_json_object(path)
    check_not_original_llava(folder, config)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or todays_model_type(model_type) not in SUPPORTED_FAMILIES:
        raise unsupported_config(path, model_type)
    config["model_type"] = todays_model_type(model_type)
    return config


def check_not_original_llava(checkpoint: Path | str, config: dict[str, Any]) -> None:
    """Raise InputError with the command to run where the checkpoint is in the original LLaVA repository's layout."""
    if not is_original_llava(config):
        return
    raise InputError(
        f"{checkpoint} has the layout of the original LLaVA repository (model_type "
        f"{config['model_type']!r}), which transformers cannot load; convert it once with "
        f"'agci convert-llava {checkpoint} {Path(checkpoint).name}-hf' and name the new folder, or take "
        f"the llava-hf checkpoint of the same model; that of the 7B is {twin_of_original(config).hub_id}."
    )


def _check_generation_config(path: Path) -> None:
    """InputError for token ids that generate() would stumble over."""
    if not path.exists():
        return
    found = read_json_object(path)
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):
        value = found.get(key)
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(number, int) and not isinstance(number, bool) for number in ids):
            raise InputError(f"{path}: {key} must be a token id or a list of them, but is {short(value)}.")


def _check_no_remote_code(file: Path) -> None:
    content = read_json(file, nan=True)
    if isinstance(content, dict) and "auto_map" in content:
        twin = remote_code_twin(content.get("model_type"))
        own = f" (of {twin.name}: {twin.hub_id})" if twin is not None else ""
        raise InputError(
            f"{file} asks for Python code of its own (auto_map), which would run on this machine and is never loaded; "
            f"use a checkpoint in transformers' own format{own}, or take auto_map out if the model class is one of "
            "transformers'."
        )


def indexed_files(index: Path) -> list[Path]:
    """The weight files that an index names, all of them beside it; InputError if one is missing or elsewhere."""
    folder = index.parent
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no weight_map.")
    absurd = [name for name in weight_map.values() if not isinstance(name, str) or not name]
    if absurd:
        raise InputError(f"{index}: weight_map gives {absurd[0]!r} as the name of a weight file.")
    names = sorted(set(weight_map.values()))
    outside = [name for name in names if Path(name).name != name or name == ".."]
    if outside:
        raise InputError(f"{index} names weights outside its folder: {short(outside[0], 100)}.")
    missing = [name for name in names if not _is_file(folder / name)]
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files, the first is {path_text(missing[0])}; "
            "copy or download it again."
        )
    return [folder / name for name in names]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system takes
        return False


def check_weights(folder: Path) -> list[Path]:
    """The safetensors files of the model; InputError with the remedy if they are not all there."""
    index = folder / INDEX
    if index.exists():
        return indexed_files(index)
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    pickles = [file.name for pattern in PICKLES for file in folder.glob(pattern)]
    if pickles:
        raise InputError(
            f"{folder} has its weights as pickles ({sorted(pickles)[0]}), which can run code when they are opened; "
            "convert them once on a machine you trust (model.save_pretrained(folder) writes safetensors) or download "
            "the safetensors revision."
        )
    raise InputError(f"{folder} holds no weights: model.safetensors or {INDEX} is expected.")


WHOLE = 64 << 20  # bytes; larger files are sampled
SAMPLE = 1 << 16  # bytes
SAMPLES = 256  # pieces, the first and the last among them


def fingerprint(folder: Path) -> str:
    """A hash of config.json and the weights: whole files up to 64 MiB, 256 evenly spread pieces of larger ones."""
    digest = hashlib.sha256((folder / CONFIG).read_bytes())
    for file in check_weights(folder):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as data:
            if size <= WHOLE:
                while piece := data.read(1 << 20):
                    digest.update(piece)
            else:
                for number in range(SAMPLES):
                    data.seek((size - SAMPLE) * number // (SAMPLES - 1), os.SEEK_SET)
                    digest.update(data.read(SAMPLE))
    return digest.hexdigest()
