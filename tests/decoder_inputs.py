"""What the contract tests look at: what the decoder receives, and what it should receive."""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import transformers
from packaging import version

from transformers_agci import attach
from transformers_agci.families import decoder_of, find_vlm

# What this transformers calls a model's cache, as an argument and in what it returns.
CACHE = "cache" if version.parse(transformers.__version__) >= version.parse("5.24") else "past_key_values"


@contextlib.contextmanager
def recorded_decoder_inputs(model: Any, before_injection: bool = False) -> Iterator[list[torch.Tensor]]:
    """The inputs_embeds [B, S, D] of every decoder call within the block, after (or before) AGCI's hook."""
    seen: list[torch.Tensor] = []
    hook = decoder_of(find_vlm(model)).register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["inputs_embeds"].detach().clone()),
        with_kwargs=True,
        prepend=before_injection,
    )
    try:
        yield seen
    finally:
        hook.remove()


def logits(model: Any, inputs: Mapping[str, Any]) -> torch.Tensor:
    """[B, S, V] without gradients."""
    with torch.no_grad():
        found: torch.Tensor = model(**inputs).logits
    return found


def training_gradients(
    model: Any, inputs: Mapping[str, Any], labels: torch.Tensor, lam: float, checkpointing: bool
) -> tuple[dict[str, torch.Tensor], int]:
    """The gradients of a training step of a copy of `model` at `lam`, by weight, and how many images were injected."""
    work = copy.deepcopy(model).train()
    for module in work.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.BatchNorm2d):
            module.eval()
    if checkpointing:
        enable = getattr(work, "activation_checkpointing_enable", None) or work.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    handle = attach(work, lam)
    torch.manual_seed(0)
    work(**inputs, labels=labels, use_cache=False).loss.backward()
    return {name: p.grad for name, p in work.named_parameters() if p.grad is not None}, handle.injections


def formula(tokens: torch.Tensor, lam: float, context: torch.Tensor | None = None) -> torch.Tensor:
    """AGCI in float64, written out: tokens [N, D] of one image."""
    v = tokens.double()
    g = v.mean(0) if context is None else context.double()
    cos = (v * g).sum(1) / (v.norm(dim=1).clamp_min(1e-8) * g.norm().clamp_min(1e-8))
    return v + lam * (1 - cos)[:, None] * g


def expected_embeds(
    before: torch.Tensor, images: Sequence[tuple[int, int, int]], lam: float, scope: str = "image"
) -> torch.Tensor:
    """`before` [B, S, D] with the formula applied in float64 to each (row, start, stop) of `images`."""
    result = before.double().clone()
    context = None
    if scope == "batch":
        context = torch.cat([before[row, start:stop].double() for row, start, stop in images]).mean(0)
    for row, start, stop in images:
        result[row, start:stop] = formula(before[row, start:stop], lam, context)
    return result


def images_of(input_ids: torch.Tensor, image_token_id: int, length: int) -> list[tuple[int, int, int]]:
    """The images (row, start, stop) of prompts whose images all have `length` tokens, found by walking every token."""
    found = []
    for row, ids in enumerate(input_ids.tolist()):
        position = 0
        while position < len(ids):
            if ids[position] == image_token_id:
                assert ids[position : position + length] == [image_token_id] * length
                found.append((row, position, position + length))
                position += length
            else:
                position += 1
    return found


def left_padded(samples: Sequence[Mapping[str, torch.Tensor]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """One batch of several samples (each one row), shorter prompts padded on the left."""
    width = max(sample["input_ids"].shape[1] for sample in samples)
    fill = {"input_ids": pad_token_id, "attention_mask": 0, "mm_token_type_ids": 0}
    batch = {}
    for name in samples[0]:
        parts = [sample[name] for sample in samples]
        if name in fill:
            parts = [torch.nn.functional.pad(p, (width - p.shape[1], 0), value=fill[name]) for p in parts]
        batch[name] = torch.cat(parts)
    return batch


def decoder_input(model: Any, inputs: dict[str, torch.Tensor], before: bool = False) -> torch.Tensor:
    with torch.no_grad(), recorded_decoder_inputs(model, before) as seen:
        model(**inputs)
    assert len(seen) == 1
    return seen[0]
