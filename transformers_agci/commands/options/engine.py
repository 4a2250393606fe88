"""--engine and what belongs to an engine, of the commands that ask questions."""

import argparse
import json
from typing import Any

from transformers_agci.commands.options.types import add_count, number, whole
from transformers_agci.embedded.location import EMBEDDED
from transformers_agci.errors import InputError, short
from transformers_agci.experiments.engines import EngineOptions
from transformers_agci.inference.served.client import ServedOptions


def add_engine_options(parser: argparse.ArgumentParser) -> None:
    """What `EngineOptions` holds."""
    group = parser.add_argument_group("engine")
    add_engine_option(group)
    _add_served_options(group)
    group.add_argument("--tensor_parallel_size", type=whole(1), metavar="N", help="vllm: GPUs that share each layer")
    group.add_argument("--data_parallel_size", type=whole(1), metavar="N", help="vllm: copies of the model")
    group.add_argument(
        "--gpu_memory_utilization", type=number, metavar="SHARE", help="vllm: share of a GPU's memory that it takes"
    )
    group.add_argument("--engine_args", type=json_object, metavar="JSON", help="vllm: further arguments of its LLM")


def _add_served_options(group: "argparse._ArgumentGroup") -> None:
    """What `ServedOptions` holds."""
    group.add_argument(
        "--base_url", metavar="URL", help="openai: the server up to /chat/completions: http://host:8000/v1"
    )
    group.add_argument(
        "--api_key_env",
        default=ServedOptions.api_key_env,
        metavar="NAME",
        help="openai: the environment variable that holds the key (default %(default)s)",
    )
    add_count(group, "--concurrency", ServedOptions.concurrency, "openai: requests at a time")
    group.add_argument("--requests_per_minute", type=number, metavar="N", help="openai: no more than so many")
    add_count(group, "--retries", ServedOptions.retries, "openai: further tries of a request", least=0)
    group.add_argument(
        "--timeout",
        type=number,
        default=ServedOptions.timeout,
        metavar="S",
        help="openai: seconds to wait for an answer",
    )
    group.add_argument(
        "--extra_body", type=json_object, metavar="JSON", help="openai: further fields of each request; null omits one"
    )


def add_engine_option(group: "argparse._ArgumentGroup") -> None:
    """--engine alone."""
    group.add_argument(
        "--engine",
        default=EngineOptions.name,
        metavar="NAME",
        help="what answers: transformers (in this process; default), vllm, or openai (a server of chat completions)",
    )


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """What `add_engine_options` parsed."""
    from transformers_agci.vllm.options import VllmOptions

    if args.engine == "openai" and args.model == EMBEDDED:
        raise InputError("--model is needed with --engine openai: the name by which the server knows the model.")
    served = ServedOptions(
        args.base_url,
        args.api_key_env,
        args.concurrency,
        args.requests_per_minute,
        args.retries,
        args.timeout,
        args.extra_body or {},
    )
    vllm = VllmOptions(
        args.tensor_parallel_size, args.data_parallel_size, args.gpu_memory_utilization, args.engine_args or {}
    )
    return EngineOptions(args.engine, served, vllm)


def check_engine_is_transformers(engine: str, command: str) -> None:
    """InputError where a command that looks into the model is given another engine than transformers."""
    from transformers_agci.experiments.engines import NEEDS_THE_MODEL

    if EngineOptions(engine).name != "transformers":
        raise InputError(f"--engine {engine}: {command} {NEEDS_THE_MODEL}. Omit --engine.")


def json_object(text: str) -> dict[str, Any]:
    """The type of an option that is a JSON object."""
    try:
        value = json.loads(text)
        json.dumps(value, allow_nan=False)  # no manifest could hold NaN or 1e999
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'must be a JSON object, such as {{"seed": 1}}, but is {short(text)}')
    return value
