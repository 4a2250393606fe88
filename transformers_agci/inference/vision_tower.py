"""Quick vision towers: one attention call per layer where images and windows are packed into one sequence.

The towers of Qwen2.5-VL and Qwen3-VL lay the windows of an image, and all images of a batch, end to end; a token
attends within its own segment only. Under SDPA transformers loops over the segments: 1,792 attention calls for one
image of 840x840 in Qwen2.5-VL-7B. Here a hook on each attention layer hands over the whole sequence as if it were
one segment, with the true segments beside it, and an attention function known to transformers works on all at once:

    torch varlen               torch.nn.attention.varlen: one kernel (GPU, bfloat16 or float16)
    sdpa by segment length     one SDPA call per distinct length, equal segments stacked as a batch (anywhere)
    stock                      transformers' own loop, where neither fits or neither agrees with it

Only attention layers of the vision tower are touched, on the instance. The decoder keeps its own attention.

The patch embedding is a three-dimensional convolution whose kernel covers each patch exactly once, so that every
output is one dot product. As a convolution it took a third of the embedded model's vision time on a CPU, and some GPUs
are known to spend seconds on it in bfloat16 (transformers issue 45750): it runs as the matrix product that it is.
"""

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import accumulate
from types import MethodType
from typing import Any

import torch
from torch import nn

from transformers_agci.families import find_vlm
from transformers_agci.inference.host_values import crossing

NAME = "agci_segments"  # under which transformers finds our attention function
STOCK = "stock"

# Largest allowed difference to SDPA, as a share of the largest value: rounding, far below what a wrong segment makes.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
PRODUCT = "matrix product"
PROBED_PATCHES = 7
# Segments of the comparison with SDPA. The second list is a GPU's: its kernel is another one as soon as the longest
# segment has more than 128 tokens, and the layers with full attention see 3,600 patches of an image of 840x840.
PROBED_LENGTHS = ((5, 16, 16, 3), (200, 3600))


class Segments:
    """How a packed sequence of S tokens divides.

    bounds   [n + 1] int32, on the sequence's device: where the segments begin, and S
    longest  tokens of the longest segment
    groups   (length, rows): the rows [m * length] of the m segments of this length; rows is None if they are all
    inverse  [S]: where each token stands when the groups are laid end to end; None if in place
    """

    def __init__(self, cu_seqlens: torch.Tensor, device: torch.device | None = None) -> None:
        lengths = [length for length in cu_seqlens.diff().tolist() if length]
        device = device or cu_seqlens.device  # the sequence's; the bounds may lie on the host, where they are read
        starts = list(accumulate(lengths, initial=0))
        self.bounds = crossing(torch.tensor(starts, dtype=torch.int32), device)
        self.longest = max(lengths)
        self.groups: list[tuple[int, torch.Tensor | None]] = [(self.longest, None)]
        self.inverse: torch.Tensor | None = None
        if len(set(lengths)) > 1:
            members = {
                length: [start for start, own in zip(starts, lengths, strict=False) if own == length]
                for length in sorted(set(lengths))
            }
            rows = {
                length: (torch.tensor(first)[:, None] + torch.arange(length)).flatten()
                for length, first in members.items()
            }
            self.groups = [(length, crossing(of_length, device)) for length, of_length in rows.items()]
            self.inverse = crossing(torch.cat(list(rows.values())).argsort(), device)


# query, key, value [S, heads, D], segments, scaling -> [S, heads, D]
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Segments, float], torch.Tensor]


def varlen(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scaling: float
) -> torch.Tensor:
    """All segments in one kernel of torch's (CUDA, half precision, torch >= 2.10)."""
    from torch.nn.attention.varlen import varlen_attn

    own = 1 / math.sqrt(query.shape[-1])  # the scale that it takes by itself; it has no argument for one in 2.10
    if not math.isclose(scaling, own):
        query = query * (scaling / own)
    bounds, longest = segments.bounds.to(query.device), segments.longest
    made = varlen_attn(query, key, value, bounds, bounds, longest, longest)
    assert isinstance(made, torch.Tensor)  # a pair only for those who ask for more
    return made


def by_length(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scaling: float
) -> torch.Tensor:
    """One SDPA call per distinct length of a segment."""
    attended = []
    for length, rows in segments.groups:
        chosen = (part if rows is None else part[rows.to(part.device)] for part in (query, key, value))
        q, k, v = (part.unflatten(0, (-1, length)).transpose(1, 2) for part in chosen)  # [m, heads, length, D]
        made = nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)
        attended.append(made.transpose(1, 2).flatten(0, 1))
    whole = attended[0] if len(attended) == 1 else torch.cat(attended)
    return whole if segments.inverse is None else whole[segments.inverse.to(whole.device)]


KERNELS: dict[str, Kernel] = {"torch varlen": varlen, "sdpa by segment length": by_length}


@torch.compiler.disable
def _attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    segments: Segments,
    kernel: Kernel,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls: query, key, value [1, heads, S, D] -> [1, S, heads, D]."""
    q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))
    return kernel(q, k, v, segments, scaling)[None], None


class _OneSegment:
    """Stands in for the bounds of segments: one, of this length. transformers takes the differences of the bounds and
    reads them back; of a tensor a compiler would make a kernel of the CPU for that, with a C++ compiler.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __getitem__(self, _: slice) -> "_OneSegment":  # bounds[1:] - bounds[:-1]
        return self

    def __sub__(self, _: "_OneSegment") -> "_OneSegment":
        return self

    def tolist(self) -> list[int]:
        return [self.length]


class _Hook:
    """Before an attention layer: the sequence becomes one segment, and the true ones travel beside it."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._known: tuple[tuple[torch.Tensor, Segments], ...] = ()

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]  # [S, D]
        segments = self._segments(kwargs["cu_seqlens"], hidden.device)
        whole = _OneSegment(len(hidden))
        return args, {**kwargs, "cu_seqlens": whole, "segments": segments, "kernel": self.kernel}

    def _segments(self, cu_seqlens: torch.Tensor, device: torch.device) -> Segments:
        """Read once per tensor: the layers of one call share two, windows and images."""
        for tensor, segments in self._known:
            if tensor is cu_seqlens and segments.bounds.device == device:
                return segments
        segments = Segments(cu_seqlens, device)
        self._known = (*self._known[-3:], (cu_seqlens, segments))  # a tower over two devices reads both on both
        return segments


@dataclass(frozen=True)
class VisionAttention:
    """What the vision tower attends with; `reason` says why it is stock, or why a faster kernel is not used."""

    backend: str
    reason: str | None = None
    remove: Callable[[], None] = lambda: None  # gives the tower transformers' own attention back


def use_segments(model: nn.Module) -> VisionAttention:
    """Give the vision tower the first kernel that fits and agrees with stock; without one it stays as it was."""
    layers = packed_layers(model)
    if not layers:
        return VisionAttention(STOCK, "this family's vision tower has no packed segments to loop over")
    config: Any = layers[0].config
    if config._attn_implementation != "sdpa":
        return VisionAttention(STOCK, f"the vision tower was loaded with {config._attn_implementation}, not sdpa")
    refusals: list[str] = []
    for backend, kernel in KERNELS.items():
        reason = _unfit(backend, layers[0]) or _disagreement_at_any_length(layers[0], kernel)
        if reason is None:
            return VisionAttention(backend, "; ".join(refusals) or None, _put_on(layers, kernel))
        refusals.append(f"{backend}: {reason}")
    return VisionAttention(STOCK, "; ".join(refusals))


def packed_layers(model: nn.Module) -> list[Any]:
    """The attention layers of the vision tower, where they work on packed segments."""
    blocks = getattr(getattr(find_vlm(model), "visual", None), "blocks", ())
    return [block.attn for block in blocks if hasattr(block, "attn")]


def _unfit(backend: str, layer: Any) -> str | None:
    """Why the kernel cannot run here, before trying it."""
    if KERNELS[backend] is not varlen:
        return None
    weight = layer.proj.weight
    if weight.device.type != "cuda":
        return f"it needs a GPU, and the vision tower is on {weight.device.type}"
    if _dtype(layer) not in (torch.float16, torch.bfloat16):
        return f"it needs bfloat16 or float16, not {str(_dtype(layer)).removeprefix('torch.')}"
    if find_spec("torch.nn.attention.varlen") is None:
        return f"it needs torch 2.10 or newer, and this is {torch.__version__}"
    return None


def _dtype(layer: Any) -> torch.dtype:
    """What the layer computes in; a quantized layer's weight has another dtype, and GLM-4V's has no bias."""
    weight, bias = layer.proj.weight, layer.proj.bias
    return computed_in((weight if bias is None else bias).dtype)


def computed_in(stored: torch.dtype) -> torch.dtype:
    """The dtype of what goes through a matrix stored in this one: bfloat16 where it is quantized (integers, float8)."""
    return stored if stored in TOLERANCE else torch.bfloat16


def _disagreement_at_any_length(layer: Any, kernel: Kernel) -> str | None:
    """The first disagreement, over short segments and on a GPU over long ones."""
    lists = PROBED_LENGTHS if layer.proj.weight.device.type == "cuda" else PROBED_LENGTHS[:1]
    return next((reason for lengths in lists if (reason := _disagreement(layer, kernel, lengths))), None)


def _disagreement(layer: Any, kernel: Kernel, lengths: tuple[int, ...] = PROBED_LENGTHS[0]) -> str | None:
    """Why the kernel must not be used, or None: it has to get the segments, and to agree with SDPA on random values.

    Random queries, keys and values take the place of the layer's own, whose weights could hide a wrong segment.
    """
    generator = torch.Generator().manual_seed(0)
    compared: list[tuple[torch.Tensor, torch.Tensor]] = []

    def on_random_values(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, scaling: float
    ) -> torch.Tensor:
        q, k, v = (torch.randn(part.shape, generator=generator).to(part) for part in (query, key, value))
        compared.append((kernel(q, k, v, segments, scaling), _one_by_one(q, k, v, lengths, scaling)))
        return query

    total, width = sum(lengths), layer.dim // layer.num_heads
    device = layer.proj.weight.device
    tokens = torch.zeros(total, layer.dim, dtype=_dtype(layer), device=device)
    angles = torch.zeros(total, width, device=device)
    bounds = torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device)
    remove = _put_on([layer], on_random_values)
    try:
        with torch.inference_mode():
            layer(tokens, cu_seqlens=bounds, position_embeddings=(angles.cos(), angles.sin()))
    except Exception as error:  # whatever a kernel raises on a machine that it does not like
        return f"it raises {type(error).__name__} ({' '.join(str(error).split())[:200]})"
    finally:
        remove()
    if len(compared) != 1:
        return f"this transformers makes {len(compared)} attention calls where 1 is expected"
    ours, stock = (made.float() for made in compared[0])
    apart = float((ours - stock).abs().max() / stock.abs().max())
    if not apart <= TOLERANCE[_dtype(layer)]:
        return f"it differs from SDPA by {apart:.1e} of the largest value, more than {TOLERANCE[_dtype(layer)]:.0e}"
    return None


def differs_from_itself(layer: Any, put_on: Callable[[], Callable[[], None]]) -> str | None:
    """Why what `put_on` puts on an attention layer must stay off, or None: both run on the same random segments."""
    lengths = PROBED_LENGTHS[0]
    total, width = sum(lengths), layer.dim // layer.num_heads
    device, dtype = layer.proj.weight.device, _dtype(layer)
    with torch.inference_mode():  # what is given is made here, as in a run: other tensors are compiled for once more
        made = torch.randn(total, layer.dim + width, generator=torch.Generator().manual_seed(0))
        tokens, angles = made[:, : layer.dim].to(device, dtype, copy=True), made[:, layer.dim :].to(device)
        bounds = torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32)
        given = {"cu_seqlens": bounds, "position_embeddings": (angles.cos(), angles.sin())}
        with contextlib.ExitStack() as put_off:
            try:
                stock = layer(tokens, **given).float()
                put_off.callback(put_on())
                ours = layer(tokens, **given).float()
            except Exception as error:  # whatever a compiler raises on a machine that it does not like
                return f"it raises {type(error).__name__} ({' '.join(str(error).split())[:200]})"
    apart = float((ours - stock).abs().max() / stock.abs().max())
    return None if apart <= TOLERANCE[dtype] else f"it differs from stock by {apart:.1e} of the largest value"


def _one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: tuple[int, ...], scaling: float
) -> torch.Tensor:
    """SDPA over one probed segment after the other, as stock does it: [S, heads, D]."""
    attended = []
    for parts in zip(*(part.split(lengths) for part in (query, key, value)), strict=True):
        q, k, v = (part.transpose(0, 1)[None] for part in parts)
        attended.append(nn.functional.scaled_dot_product_attention(q, k, v, scale=scaling)[0].transpose(0, 1))
    return torch.cat(attended)


def _put_on(layers: list[Any], kernel: Kernel) -> Callable[[], None]:
    """Hook the layers and name our function in the tower's config; returns what undoes both."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    config = layers[0].config  # one object for the whole tower; the decoder has its own
    found, hook = config._attn_implementation, _Hook(kernel)
    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    config._attn_implementation = NAME

    def remove() -> None:
        for handle in handles:
            handle.remove()
        config._attn_implementation = found

    return remove


# --- the patch embedding ---


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
    reason = _product_disagreement(convolution)
    if reason is not None:
        return PatchEmbedding(STOCK, reason)
    return PatchEmbedding(PRODUCT, None, _put_product_on(convolution))


def _put_product_on(convolution: Any) -> Callable[[], None]:
    """Give this instance, and copies of it, another forward; returns what takes it off."""
    convolution.__dict__["forward"] = MethodType(_product, convolution)
    return lambda: convolution.__dict__.pop("forward", None)


def _product(convolution: Any, patches: torch.Tensor) -> torch.Tensor:  # [N, channels, *kernel] -> [N, D, 1, 1, 1]
    if patches.shape[2:] != convolution.kernel_size:
        return nn.Conv3d.forward(convolution, patches)
    made = nn.functional.linear(patches.flatten(1), convolution.weight.flatten(1), convolution.bias)
    return made[:, :, None, None, None]


def _product_disagreement(convolution: Any) -> str | None:
    """Why the product must not take the convolution's place, or None: both embed a few random patches."""
    weight = convolution.weight
    if weight.dtype not in TOLERANCE:
        return f"its weights are in {str(weight.dtype).removeprefix('torch.')}"
    probe = torch.randn(PROBED_PATCHES, *weight.shape[1:], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.inference_mode(), contextlib.ExitStack() as put_off:
        with torch.backends.cudnn.flags(enabled=False):  # which rounds float32 to 10 bits by default
            stock = convolution(probe).float()
        put_off.callback(_put_product_on(convolution))
        ours = convolution(probe).float()
    apart = float((ours - stock).abs().max() / stock.abs().max())
    if not apart <= TOLERANCE[weight.dtype]:
        return f"it differs from the convolution by {apart:.1e} of the largest value"
    return None
