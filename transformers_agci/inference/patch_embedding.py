"""The patch embedding of Qwen's vision towers as the matrix product that it is.

It is a three-dimensional convolution whose kernel covers each patch exactly once, so that every output is one dot
product. As a convolution it took a third of the embedded model's vision time on a CPU, and some GPUs are known to
spend seconds on it in bfloat16 (transformers issue 45750).
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn

from transformers_agci.families import find_vlm
from transformers_agci.inference.vision_attention import STOCK, TOLERANCE

PRODUCT = "matrix product"
PROBED_PATCHES = 7


@dataclass(frozen=True)
class PatchEmbedding:
    """What embeds the patches; `reason` says why it is stock."""

    backend: str
    reason: str | None = None
    remove: Callable[[], None] = lambda: None  # gives the tower its convolution back


def as_matrix_product(model: nn.Module) -> PatchEmbedding:
    """Replace the forward of the patch convolution, on the instance, where there is one and the two agree."""
    convolution = getattr(getattr(getattr(find_vlm(model), "visual", None), "patch_embed", None), "proj", None)
    if type(convolution) is not nn.Conv3d:
        return PatchEmbedding(STOCK, "this family's vision tower has no patch convolution in three dimensions")
    if convolution.kernel_size != convolution.stride or set(convolution.padding) != {0} or convolution.groups != 1:
        return PatchEmbedding(STOCK, "its patches overlap, are padded or divided into groups")
    if "forward" in convolution.__dict__ or convolution.weight.is_meta:
        return PatchEmbedding(STOCK, "something else runs it (accelerate's offloading)")
    reason = _disagreement(convolution)
    if reason is not None:
        return PatchEmbedding(STOCK, reason)
    return PatchEmbedding(PRODUCT, None, _put_on(convolution))


def _put_on(convolution: Any) -> Callable[[], None]:
    """Give this instance, and copies of it, another forward; returns what takes it off."""
    convolution.__dict__["forward"] = MethodType(_product, convolution)
    return lambda: convolution.__dict__.pop("forward", None)


def _product(convolution: Any, patches: torch.Tensor) -> torch.Tensor:  # [N, channels, *kernel] -> [N, D, 1, 1, 1]
    if patches.shape[2:] != convolution.kernel_size:
        return nn.Conv3d.forward(convolution, patches)
    made = nn.functional.linear(patches.flatten(1), convolution.weight.flatten(1), convolution.bias)
    return made[:, :, None, None, None]


def _disagreement(convolution: Any) -> str | None:
    """Why the product must not take the convolution's place, or None: both embed a few random patches."""
    weight = convolution.weight
    probe = torch.randn(PROBED_PATCHES, *weight.shape[1:], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.inference_mode():
        stock = convolution(probe).float()
        remove = _put_on(convolution)
        ours = convolution(probe).float()
        remove()
    apart = float((ours - stock).abs().max() / stock.abs().max())
    if not apart <= TOLERANCE[weight.dtype]:
        return f"it differs from the convolution by {apart:.1e} of the largest value"
    return None
