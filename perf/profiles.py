"""Where a batch's time goes, kernel by kernel: a batch of the probe, and the follow-up questions of POPE.

    python perf/profiles.py                     the embedded model, any machine
    python perf/profiles.py --random_7b         a GPU: Qwen2.5-VL-7B's shape, bfloat16
    python perf/profiles.py --small             the same with a small shape, on any machine

torch's own profiler over one run of the engine that has been warmed up; the operations that take longest by themselves.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from engine import engine
from machine import announce, say
from models import chosen_model, model_parser, quick_layers
from rows import pope_questions, probe_questions
from torch.profiler import ProfilerActivity, profile

from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.questions import Question


def table(loaded: LoadedModel, asked: Sequence[Question], operations: int) -> str:
    """The operations with the most time of their own, most first."""
    on_gpu = loaded.device.type == "cuda"
    engine(loaded, asked, [0.5], workers=0)  # warm up
    with profile(activities=[ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])) as seen:
        engine(loaded, asked, [0.5], workers=0)
        if on_gpu:
            torch.cuda.synchronize(loaded.device)
    order = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return str(seen.key_averages().table(sort_by=order, row_limit=operations, max_name_column_width=60))


def main() -> None:
    parser = model_parser(__doc__)
    parser.add_argument("--images", type=int, default=18, help="default 18, one batch on a GPU")
    parser.add_argument("--operations", type=int, default=25, help="lines of each table (default 25)")
    args = parser.parse_args()
    announce()
    loaded = chosen_model(args)
    random = args.random_7b or args.small
    side, (width, height) = (840, (640, 480)) if random else (252, (252, 252))
    with tempfile.TemporaryDirectory() as name, quick_layers(loaded.model) as how:
        say(f"{how}; {loaded.model.dtype}")
        probe = probe_questions(Path(name), args.images, side, side)
        say(f"\nthe probe, {args.images} images with one question each\n\n{table(loaded, probe, args.operations)}")
        pope = pope_questions(Path(name), args.images, width, height)
        say(f"\nPOPE's shape, {len(pope)} questions\n\n{table(loaded, pope, args.operations)}")


if __name__ == "__main__":
    main()
