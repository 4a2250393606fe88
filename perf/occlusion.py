"""Occlusion maps against the plain loop: seconds per masked copy, on one thread, and whether the maps agree.

The plain loop is the published procedure: draw the mask with Pillow, run the processor, generate two tokens, read the
first one's raw logit; one copy at a time. Both sides get the same pictures, masks and threads.

    python perf/occlusion.py [--model_path M] [--items 1] [--mask_size 28]    default: the embedded model
    python perf/occlusion.py --random_7b --mask_size 42                       on a GPU, 840x840 pixels

Processor seconds are printed beside wall seconds: on a busy machine only they mean something. --random_7b gives
Qwen2.5-VL-7B's shape random weights in bfloat16 and enlarges the pictures to 840x840, so that all 400 masks run; the
plain loop is left out there.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw

from transformers_agci.data.rows import ProbeRow
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.probes.occlusion import MaskOptions, OcclusionRun
from transformers_agci.probes.position import PROMPT
from transformers_agci.probes.position_data import embedded_data


class Timed(NamedTuple):
    """What came out, and the wall and processor seconds it took."""

    result: Any
    wall: float
    cpu: float


# Qwen2.5-VL-7B-Instruct
TEXT_7B = {"num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
           "intermediate_size": 18944, "vocab_size": 152064, "max_position_embeddings": 32768,
           "rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [16, 24, 24]}}
VISION_7B = {"depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "out_hidden_size": 3584,
             "fullatt_block_indexes": [7, 15, 23, 31], "window_size": 112, "patch_size": 14, "spatial_merge_size": 2}


def random_7b(text: dict[str, Any] = TEXT_7B, vision: dict[str, Any] = VISION_7B) -> LoadedModel:
    """The shape with random bfloat16 weights, behind the embedded model's processor."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    small = load(LoadOptions(str(embedded_model_path()), max_pixels=840 * 840))
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision,
                              **{name: getattr(small.model.config, name) for name in names})
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        model: Any = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16).eval()
    model.generation_config.eos_token_id = None
    return replace(small, model=model, device=device)


def timed(work: Callable[[], Any]) -> Timed:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return Timed(result, time.perf_counter() - wall, time.process_time() - cpu)


def plain_loop(loaded: LoadedModel, row: ProbeRow, image: Image.Image, mask: int) -> np.ndarray:
    """The map [rows, cols], one masked copy at a time."""
    text = PROMPT.format(caption=row.caption)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def first_logits(shown: Image.Image) -> torch.Tensor:
        inputs = loaded.processor(text=[prompt], images=[shown], return_tensors="pt").to(loaded.model.device)
        with torch.inference_mode():
            made = loaded.model.generate(**inputs, max_new_tokens=2, do_sample=False, output_logits=True,
                                         return_dict_in_generate=True)
        return made.logits[0][0].float()

    original = first_logits(image)
    token = int(original.argmax())
    values = np.zeros((image.height // mask, image.width // mask))
    for row_number, col in np.ndindex(values.shape):
        left, top = col * mask, row_number * mask
        masked = image.copy()
        ImageDraw.Draw(masked).rectangle((left, top, left + mask - 1, top + mask - 1), fill="white")
        values[row_number, col] = abs(float(first_logits(masked)[token] - original[token]))
    return values


def enlarge(files: list[Path]) -> None:
    """Make the pictures 840x840, the published set's size."""
    for file in files:
        Image.open(file).convert("RGB").resize((840, 840), Image.Resampling.BICUBIC).save(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", default=str(embedded_model_path()))
    parser.add_argument("--items", type=int, default=1)
    parser.add_argument("--pictures", type=int, default=3, help="of each item's nine")
    parser.add_argument("--mask_size", type=int, default=28)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--random_7b", action="store_true")
    args = parser.parse_args()
    loaded = random_7b() if args.random_7b else load(LoadOptions(args.model_path))
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = embedded_data(Path(folder) / "set", args.items, seed=1)
        rows = [row for rows in data.items.values() for row in rows[: args.pictures]]
        if args.random_7b:
            enlarge([data.img_path / row.image for row in rows])
        run = OcclusionRun(loaded, rows, data.img_path, MaskOptions(args.mask_size, args.mask_size), 0.0,
                           args.batch_size, max_new_tokens=1)
        run.occlude(rows[0])  # warm up
        ours, plain, copies, apart = [], [], 0, 0.0
        for row in rows:
            image = Image.open(data.img_path / row.image).convert("RGB")
            ours.append(timed(lambda row=row: run.occlude(row)))
            copies += sum(logits is not None for logits in ours[-1].result.masked)
            if not args.random_7b:
                plain.append(timed(lambda row=row, image=image: plain_loop(loaded, row, image, args.mask_size)))
                apart = max(apart, float(np.abs(ours[-1].result.differences - plain[-1].result).max()))
    print(f"{len(rows)} pictures, {copies} masked copies run, batches of up to {run.batch}, 1 thread, "
          f"{loaded.model.dtype}, {loaded.device.type}")
    for name, runs in (("plain loop", plain), ("batched", ours)):
        if not runs:
            continue
        wall, cpu = sum(run.wall for run in runs), sum(run.cpu for run in runs)
        print(f"{name:>10}: {1000 * wall / copies:7.1f} ms wall, {1000 * cpu / copies:7.1f} ms processor per copy")
    if not plain:
        return
    ratio = [sum(getattr(run, name) for run in plain) / sum(getattr(run, name) for run in ours)
             for name in ("wall", "cpu")]
    print(f"     ratio: {ratio[0]:.2f}x wall, {ratio[1]:.2f}x processor; the maps differ by {apart:.1e}")


if __name__ == "__main__":
    main()
