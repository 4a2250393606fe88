"""Inputs of the six families' tiny models: random images, prompts through a processor, and batches made without one."""

import inspect
from typing import Any

import numpy as np
import torch
from PIL import Image


def random_image(seed: int = 0, width: int = 120, height: int = 90) -> Image.Image:
    """A random RGB image: coarse colour blocks, so that resizing leaves something to see."""
    blocks = np.random.default_rng(seed).integers(0, 256, (height // 15 + 1, width // 15 + 1, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(15, axis=0).repeat(15, axis=1)[:height, :width])


def prompt_inputs(processor: Any, text: str, *pictures: Image.Image) -> dict[str, torch.Tensor]:
    """One user turn, images first, through the processor and its chat template."""
    content = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return dict(processor(text=[prompt], images=list(pictures) or None, return_tensors="pt"))


def image_tokens(family: str) -> int:
    """How many image tokens one image of `make_inputs` has."""
    # llava_next: 16 of the whole image, 8x8 of the 2x2 tiles, and one newline for each of the 8 token rows
    return {"qwen2_5_vl": 6, "qwen3_vl": 6, "gemma3n": 16, "internvl": 4, "llava_next": 16 + 64 + 8, "llava": 16}[
        family
    ]


def make_pixels(family: str, model: Any, images: int = 1, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random pixel inputs of `images` images, in the form that the family's forward takes."""
    generator = torch.Generator().manual_seed(seed)
    if family in ("qwen2_5_vl", "qwen3_vl"):
        vision = model.config.vision_config
        patch = 3 * vision.temporal_patch_size * vision.patch_size**2
        return {
            "pixel_values": torch.randn(images * 4 * 6, patch, generator=generator),
            "image_grid_thw": torch.tensor([[1, 4, 6]] * images),
        }  # frames, rows, columns, in patches
    if family == "llava_next":
        return {
            "pixel_values": torch.randn(images, 5, 3, 56, 56, generator=generator),
            "image_sizes": torch.tensor([[112, 112]] * images),
        }
    side = 128 if family == "gemma3n" else 56
    return {"pixel_values": torch.randn(images, 3, side, side, generator=generator)}


def make_inputs(
    family: str, model: Any, batch: int = 1, n_text: int = 6, seed: int = 0, images: int = 1, gap: int = 1
) -> dict[str, torch.Tensor]:
    """Inputs for `model(**inputs)` made without a processor: `images` images in each row of random text.

    `gap` text tokens stand between two images of a row; 0 puts LLaVA's and LLaVA-NeXT's image tokens side by side
    (the other families keep their own start and end tokens between them where they have any).
    """
    config = model.config
    image_id = config.image_token_id
    generator = torch.Generator().manual_seed(seed)
    before, after = [], []
    if family in ("qwen2_5_vl", "qwen3_vl"):
        before, after = [config.vision_start_token_id], [config.vision_end_token_id]
    elif family == "gemma3n":
        before, after = [config.boi_token_id], [config.eoi_token_id]
    one = [*before, *[image_id] * image_tokens(family), *after]
    rows = []
    for _ in range(batch):
        words = torch.randint(20, 200, (n_text + gap * (images - 1),), generator=generator).tolist()
        row = words[: n_text // 2]
        for index in range(images):
            row += one
            if index < images - 1:
                row += [words.pop() for _ in range(gap)]
        rows.append(row + words[n_text // 2 :])
    ids = torch.tensor(rows)  # [B, S]
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        **make_pixels(family, model, batch * images, seed),
    }
    if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
        inputs["mm_token_type_ids"] = (ids == image_id).long()
    return inputs
