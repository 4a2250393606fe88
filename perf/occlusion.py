"""Occlusion maps against the plain loop: seconds per masked copy, on one thread, and whether the maps agree.

The plain loop is the published procedure: draw the mask with Pillow, run the processor, generate two tokens, read the
first one's raw logit; one copy at a time. Both sides get the same images, masks and threads.

    python perf/occlusion.py [--items 1] [--mask_size 28]     the embedded model
    python perf/occlusion.py --random_7b --mask_size 42       a GPU: Qwen2.5-VL-7B's shape, bfloat16
    python perf/occlusion.py --small --mask_size 210          the same with a small shape, on any machine

Processor seconds are printed beside wall seconds: on a busy machine only they mean something. With random weights the
images are enlarged to 840x840, so that all 400 masks run, and the plain loop masks the first `--plain_copies` only.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flops import counter, figures
from machine import announce, say
from models import add_model_arguments, chosen_model, quick_vision
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
    """What came out, and the wall and processor seconds it took."""

    result: Any
    wall: float
    cpu: float


def timed(work: Callable[[], Any]) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return Timed(result, time.perf_counter() - wall, time.process_time() - cpu)


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


def arithmetic(run: OcclusionRun, rows: list[ProbeRow], rate: float) -> str:
    """Operations per masked copy by torch's counter, and their share of the device's matrix product."""
    with counter() as counted:
        copies = sum(copies_of(run.occlude(row)) for row in rows)
    done = rate * counted.get_total_flops() / copies
    each = counted.get_total_flops() / copies
    line = figures(run.loaded, copies, copies * each / done, copies * each, "copies")
    return f"{each / 1e12:.4g} TFLOP per copy by torch's counter; {line}"


def copies_of(occluded: Occluded) -> int:
    """Masked copies that were run."""
    return sum(logits is not None for logits in occluded.masked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_model_arguments(parser)
    parser.add_argument("--items", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=3, help="of each item's nine")
    parser.add_argument("--mask_size", type=int, default=28)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--plain_copies", type=int, default=20, help="of the plain loop, random weights (default 20)")
    args = parser.parse_args()
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
        plain = []
        if random:
            image = Image.open(data.img_path / rows[0].image).convert("RGB")
            alone = timed(lambda: plain_loop(loaded, rows[0], image, args.mask_size, args.plain_copies))
            say(f"plain loop: {1000 * alone.wall / args.plain_copies:.1f} ms wall a copy, over {args.plain_copies}")
        for row in [] if random else rows:
            image = Image.open(data.img_path / row.image).convert("RGB")
            plain.append(timed(lambda row=row, image=image: plain_loop(loaded, row, image, args.mask_size)))
        say(f"vision tower: {stack.enter_context(quick_vision(loaded.model))}")
        run.occlude(rows[0])  # warm up
        ours = [timed(lambda row=row: run.occlude(row)) for row in rows]
        copies = sum(copies_of(each.result) for each in ours)
        say(f"{len(rows)} images, {copies} masked copies run, batches of up to {run.batch}, {loaded.model.dtype}")
        for name, runs in (("plain loop", plain), ("batched", ours)):
            wall, cpu = sum(each.wall for each in runs), sum(each.cpu for each in runs)
            if runs:
                say(f"{name:>10}: {1000 * wall / copies:7.1f} ms wall, {1000 * cpu / copies:7.1f} ms processor a copy")
        if plain:
            ratio = [
                sum(getattr(each, name) for each in plain) / sum(getattr(each, name) for each in ours)
                for name in ("wall", "cpu")
            ]
            apart = max(
                float(np.abs(one.result.differences - other.result).max())
                for one, other in zip(ours, plain, strict=True)
            )
            say(f"     ratio: {ratio[0]:.2f}x wall, {ratio[1]:.2f}x processor; the maps differ by {apart:.1e}")
        made_by = [(ForcedAnswer, "inputs", "preprocess"), (Painter, "copies", "preprocess")]
        with Split(loaded, made_by) as split:
            for row in rows:
                run.occlude(row)
        say(f"{heading(loaded.device).replace('answer', 'masked copy')}\n{split.row(copies, 'batched')}")
        clock = sum(each.wall if loaded.device.type == "cuda" else each.cpu for each in ours)
        say(f"\n{arithmetic(run, rows, copies / clock)}")


if __name__ == "__main__":
    main()
