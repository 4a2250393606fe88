"""Occlusion maps against the plain loop: seconds per masked copy, on one thread, and whether the maps agree.

The plain loop is the published procedure: draw the mask with Pillow, run the processor, generate two tokens, read the
first one's raw logit; one copy at a time. Both sides get the same images, masks and threads.

    python perf/occlusion.py [--items 1] [--mask_size 28]     the embedded model
    python perf/occlusion.py --random_7b --mask_size 42       a GPU: Qwen2.5-VL-7B's shape, bfloat16
    python perf/occlusion.py --small --mask_size 210          the same with a small shape, on any machine

The core's own seconds are printed beside the clock's (on a GPU those between two of its events): on a busy machine only
they mean something. With random weights the
images are enlarged to 840x840, so that all 400 masks run, and the plain loop masks the first `--plain_copies` only.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import machine
import numpy as np
import torch
from flops import counter, figures
from machine import announce, clock_name, say
from models import chosen_model, model_parser, quick_layers
from PIL import Image, ImageDraw
from split import Split, heading

from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.experiments.forced_answer import ForcedAnswer
from transformers_agci.experiments.occlusion.files import Occluded
from transformers_agci.experiments.occlusion.occlude import MaskOptions, OcclusionRun
from transformers_agci.experiments.occlusion.painting import Painter
from transformers_agci.experiments.position.data import embedded_data
from transformers_agci.experiments.position.questions import PROMPT
from transformers_agci.inference.load import LoadedModel


class Timed(NamedTuple):
    """What came out, the wall seconds it took, and the device's own: between two events of a GPU, or of the core."""

    result: Any
    wall: float
    own: float


def timed(device: torch.device, work: Callable[[], Any]) -> Timed:
    wall = time.perf_counter()
    result, own = machine.timed(device, work)
    return Timed(result, time.perf_counter() - wall, own)


def plain_loop(
    loaded: LoadedModel, row: ProbeRow, image: Image.Image, mask: int, at_most: int | None = None
) -> np.ndarray:
    """The map [rows, cols], one masked copy at a time, the first `at_most` of them."""
    text = PROMPT.format(caption=row.caption)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def first_logits(shown: Image.Image) -> torch.Tensor:
        inputs = loaded.processor(text=[prompt], images=[shown], return_tensors="pt").to(loaded.model.device)
        with torch.inference_mode():
            made = loaded.model.generate(
                **inputs, max_new_tokens=2, do_sample=False, output_logits=True, return_dict_in_generate=True
            )
        return made.logits[0][0].float()

    original = first_logits(image)
    token = int(original.argmax())
    values = np.zeros((image.height // mask, image.width // mask))
    for row_number, col in islice(np.ndindex(values.shape), at_most):
        left, top = col * mask, row_number * mask
        masked = image.copy()
        ImageDraw.Draw(masked).rectangle((left, top, left + mask - 1, top + mask - 1), fill="white")
        values[row_number, col] = abs(float(first_logits(masked)[token] - original[token]))
    return values


def enlarge(files: list[Path]) -> None:
    """Make the images 840x840, the published set's size."""
    for file in files:
        Image.open(file).convert("RGB").resize((840, 840), Image.Resampling.BICUBIC).save(file)


def arithmetic(run: OcclusionRun, rows: list[ProbeRow], took: float) -> str:
    """Operations per masked copy by torch's counter, and what the device does with them in the seconds they `took`."""
    with counter() as counted:
        copies = sum(copies_of(run.occlude(row)) for row in rows)
    total = counted.get_total_flops()
    line = figures(run.loaded, copies, took, total)
    return f"{total / copies / 1e12:.4g} TFLOP per row (copy) by torch's counter\n{line}"


def copies_of(occluded: Occluded) -> int:
    """Masked copies that were run."""
    return sum(logits is not None for logits in occluded.masked)


def opened(data: Any, row: ProbeRow) -> Image.Image:
    return Image.open(data.img_path / row.image).convert("RGB")


def beside(
    device: torch.device, plain: Sequence[Timed], ours: Sequence[Timed], at_most: int | None, copies: int
) -> None:
    """Both sides' time per copy, and how far their maps lie apart where both have masked a copy."""
    each = {}
    unit = clock_name(device).removeprefix("second of ")
    for name, runs, count in (("plain loop", plain, at_most or copies), ("batched", ours, copies)):
        each[name] = [sum(getattr(one, kind) for one in runs) / count for kind in ("wall", "own")]
        wall, own = (1000 * took for took in each[name])
        say(f"{name:>10}: {wall:7.1f} ms wall, {own:7.1f} ms of {unit} a copy, over {count}")
    wall, own = (one / other for one, other in zip(each["plain loop"], each["batched"], strict=True))
    apart = max(
        float(np.abs(one.result.differences - other.result).flat[:at_most].max())
        for one, other in zip(ours, plain, strict=False)
    )
    say(f"     ratio: {wall:.2f}x wall, {own:.2f}x of {unit}; the maps differ by {apart:.1e}")


def arguments() -> argparse.Namespace:
    parser = model_parser(__doc__)
    parser.add_argument("--items", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=3, help="of each item's nine")
    parser.add_argument("--mask_size", type=int, default=28)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--plain_copies", type=int, default=20, help="of the plain loop, random weights (default 20)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    announce()
    loaded, random = chosen_model(args), args.random_7b or args.small
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        data = embedded_data(Path(folder) / "set", args.items, seed=1)
        rows = [row for of_item in data.items.values() for row in of_item[: args.pictures]]
        if random:
            enlarge([data.img_path / row.image for row in rows])
        run = OcclusionRun(
            loaded,
            rows,
            data.img_path,
            MaskOptions(args.mask_size, args.mask_size),
            0.0,
            args.batch_size,
            max_new_tokens=1,
        )
        at_most = args.plain_copies if random else None
        plain = [
            timed(loaded.device, lambda row=row: plain_loop(loaded, row, opened(data, row), args.mask_size, at_most))
            for row in rows[: 1 if random else None]
        ]
        say(f"vision tower: {stack.enter_context(quick_layers(loaded.model))}")
        run.occlude(rows[0])  # warm up
        ours = [timed(loaded.device, lambda row=row: run.occlude(row)) for row in rows]
        copies = sum(copies_of(each.result) for each in ours)
        say(f"{len(rows)} images, {copies} masked copies run, batches of up to {run.batch}, {loaded.model.dtype}")
        beside(loaded.device, plain, ours, at_most, copies)
        made_by = [(ForcedAnswer, "inputs", "preprocess"), (Painter, "copies", "preprocess")]
        with Split(loaded, made_by) as split:
            for row in rows:
                run.occlude(row)
        say(f"{heading(loaded.device).replace('per row', 'per masked copy')}\n{split.row(copies, 'batched')}")
        say(f"\n{arithmetic(run, rows, sum(each.own for each in ours))}")


if __name__ == "__main__":
    main()
