"""VCD, visual contrastive decoding: what a noised image would say is subtracted. A control on the logits.

Source: "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding", arXiv
2311.16922; read in the authors' code (DAMO-NLP-SG/VCD, vcd_utils/); no code of it is here.

    logits    (1 + alpha) l(v) - alpha l(v'), where tokens with p(v) < beta max p(v) cannot be chosen; alpha is our
              strength
    v'        sqrt(a_t) v + sqrt(1 - a_t) e on the normalised pixels, a_t the product of 1 - beta_i up to step t, with
              beta_i = 1e-5 + sigmoid(x_i) (5e-3 - 1e-5), x_i from -6 to 6 in 1000 steps; t is `noise_step`
    e         Gaussian, drawn once per question, here from `seed` for every image (where transformers cuts images
              into tiles, for every tile), so that no answer depends on what stands beside it in a batch

The authors' scripts use alpha 1, beta 0.1 and step 500. In the version read the noised pass appears to go on from the
clean cache after its first token; here it has a cache of its own. Both passes need `generate` with
`logits_processor=handle.logits_processor(inputs)`; the package's own commands do that.

Evaluated by its authors on POPE and MME with LLaVA, InstructBLIP and Qwen-VL.
"""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from transformers_agci.families.declaration import ALL_PIXELS
from transformers_agci.method.rivals.declaration import ContrastRule, Option, Rival

if TYPE_CHECKING:
    import torch

STEPS = 1000


def kept_share(step: int) -> float:
    """a_t: the share of the image's variance that is left at a step.

    >>> kept_share(0) > 0.999, round(kept_share(999), 3)
    (True, 0.082)
    """
    kept = 1.0
    for number in range(step + 1):
        x = -6 + 12 * number / (STEPS - 1)
        kept *= 1 - (1e-5 + (5e-3 - 1e-5) / (1 + math.exp(-x)))
    return kept


def noised(
    inputs: "Mapping[str, torch.Tensor]", options: Mapping[str, Any], image_token: int
) -> "dict[str, torch.Tensor]":
    """The same prompts with noised pixels."""
    kept = kept_share(int(options["noise_step"]))
    found = dict(inputs)
    for name in ALL_PIXELS:
        pixels = inputs.get(name)
        if pixels is not None:
            found[name] = math.sqrt(kept) * pixels + math.sqrt(1 - kept) * noise_like(pixels, inputs, options["seed"])
    return found


def noise_like(pixels: "torch.Tensor", inputs: "Mapping[str, torch.Tensor]", seed: int) -> "torch.Tensor":
    """Gaussian noise for pixels of any layout; that of an image is the same wherever it stands, however it is padded.

    Rows of patches are drawn one after another: padding them with more rows changes none of the first.
    """
    import torch

    grids = next((inputs[name] for name in ("image_grid_thw", "image_grid_hw") if inputs.get(name) is not None), None)
    sizes, slices = inputs.get("image_sizes"), inputs.get("target_sizes")
    if grids is not None and len(pixels) == (counts := grids.prod(dim=-1)).sum():  # patches of all images in a row
        return torch.cat([_rows(int(count), pixels.shape[1:], seed) for count in counts]).to(pixels)
    if slices is not None and len(pixels) == 1:  # slices beside each other, as wide as their patches
        areas = slices.prod(dim=-1)
        side = pixels.shape[-1] // int(areas.sum())
        rows = [_rows(int(area) * side, pixels.shape[:-1], seed) for area in areas]
        return torch.cat(rows).movedim(0, -1).to(pixels)
    if pixels.dim() == 4 and sizes is not None and sizes.amax(dim=0).tolist() == list(pixels.shape[-2:]):
        noise = torch.zeros_like(pixels)  # images of several sizes, padded at the right and below
        for image, (high, wide) in zip(noise, sizes.tolist(), strict=True):
            image[:, :high, :wide] = _rows(1, (len(image), high, wide), seed)[0].to(pixels)
        return noise
    if pixels.dim() == 3:  # patches, padded below
        return _rows(pixels.shape[1], pixels.shape[2:], seed).expand(pixels.shape).to(pixels)
    unit = pixels.shape[-3:] if pixels.dim() > 3 else pixels.shape[1:]
    return _rows(1, unit, seed)[0].expand(pixels.shape).to(pixels)


def _rows(count: int, shape: Sequence[int], seed: int) -> "torch.Tensor":
    """[count, *shape], drawn row by row from `seed`."""
    import torch

    draw = torch.Generator("cpu").manual_seed(int(seed))
    return torch.stack([torch.randn(tuple(shape), generator=draw, device="cpu") for _ in range(count)])


def combine(
    logits: "torch.Tensor", second: "torch.Tensor", strength: float, options: Mapping[str, Any]
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Scores [B, V], up to a constant per row, and which tokens may be chosen."""
    logits, second = logits.float().log_softmax(dim=-1), second.float().log_softmax(dim=-1)  # for beams: one unit
    beta = float(options["beta"])
    least = logits.amax(dim=-1, keepdim=True) + (math.log(beta) if beta else -math.inf)
    return (1 + strength) * logits - strength * second, logits >= least


RIVAL = Rival(
    "vcd",
    "VCD",
    "https://arxiv.org/abs/2311.16922",
    "https://github.com/DAMO-NLP-SG/VCD",
    "logits: against those of a noised image (two passes)",
    "POPE and MME with LLaVA, InstructBLIP and Qwen-VL",
    on_off=False,
    options=MappingProxyType(
        {
            "beta": Option(0.1, "share of the largest probability below which no token is chosen", least=0, most=1),
            "noise_step": Option(500, "step of the noise", least=0, most=STEPS - 1, whole=True),
            "seed": Option(0, "seed of the noise", least=0, most=2**32 - 1, whole=True),
        }
    ),
    contrast=ContrastRule(noised, combine, other_images=True),
)
