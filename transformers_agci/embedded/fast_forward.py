"""The stock model's forward for one fixed canvas, written for speed on one CPU thread; used in training only.

Every weight is the stock model's own, and a test holds the results against the stock forward. The gain comes from
what is fixed here: the canvas, so that windows and rotary angles are known beforehand; the two equal frames, so that
the patch convolution is one matrix product; and plain matrix products for attention, whose bfloat16 backward is
several times faster at this size than the fused kernel's.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from transformers_agci.embedded import architecture as shape

Angles = tuple[Tensor, Tensor]  # cosines and sines


def _norm(x: Tensor, layer: Any) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), layer.weight.to(x.dtype), shape.NORM_EPS)


def _turn(x: Tensor, angles: Angles) -> Tensor:
    """Rotary position embedding, halves layout."""
    cos, sin = angles
    first, second = x.chunk(2, -1)
    return x * cos.to(x.dtype) + torch.cat((-second, first), -1) * sin.to(x.dtype)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores + mask
    return torch.softmax(scores, -1).to(v.dtype) @ v


@dataclass(frozen=True)
class Windows:
    """Equal windows that lie one after the other in the patch order: `count` windows of `size` patches."""

    start: int
    count: int
    size: int


class Canvas:
    """The order of patches on a square canvas of `side` image tokens, sorted by window size and window.

    A merge unit (4 patches, one image token) stays together.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        per_window = shape.WINDOW // shape.PATCH // shape.MERGE  # image tokens along a window's side
        members: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for row in range(side):
            for column in range(side):
                members.setdefault((row // per_window, column // per_window), []).append((row, column))
        in_order = sorted(members.values(), key=len, reverse=True)
        tokens = [token for window in in_order for token in window]
        self.windows: list[Windows] = []
        start = 0
        for window in in_order:
            size = len(window) * shape.MERGE**2
            last = self.windows[-1] if self.windows else None
            if last is not None and last.size == size:
                self.windows[-1] = Windows(last.start, last.count + 1, size)
            else:
                self.windows.append(Windows(start, 1, size))
            start += size
        self.raster = torch.tensor([tokens.index((r, c)) for r in range(side) for c in range(side)])
        merge = range(shape.MERGE)
        self.rows = torch.tensor([shape.MERGE * r + i for r, _ in tokens for i in merge for _ in merge])
        self.columns = torch.tensor([shape.MERGE * c + j for _, c in tokens for _ in merge for j in merge])

    def patches(self, images: Tensor) -> Tensor:
        """Images [B, H, W, 3], uint8, as normalised patches in this canvas's order: [B, patches, 3 * 14 * 14]."""
        count = self.side * shape.MERGE
        grid = images.unflatten(2, (count, shape.PATCH)).unflatten(1, (count, shape.PATCH))  # [B, r, y, c, x, 3]
        ordered = grid.permute(0, 1, 3, 5, 2, 4)[:, self.rows, self.columns]  # [B, patches, 3, y, x]
        mean, deviation = (255 * torch.tensor(v).view(3, 1, 1) for v in (shape.IMAGE_MEAN, shape.IMAGE_STD))
        return ((ordered.float() - mean) / deviation).flatten(2)


class FastVision:
    """model.visual for images of one canvas: patches [B, patches, 588] -> row-major image tokens [B, tokens, 192]."""

    def __init__(self, model: Any, side: int = shape.GRID) -> None:
        self.visual = model.model.visual
        self.canvas = Canvas(side)
        self.heads = shape.VISION["num_heads"]
        self.width = shape.VISION["hidden_size"]
        head = self.width // self.heads
        speeds = shape.ROPE_THETA ** -(torch.arange(0, head // 2, 2).float() / (head // 2))
        turns = torch.cat([self.canvas.rows[:, None] * speeds, self.canvas.columns[:, None] * speeds], 1).repeat(1, 2)
        self.angles = (turns.cos(), turns.sin())  # [patches, head]

    def __call__(self, patches: Tensor) -> Tensor:
        convolution = self.visual.patch_embed.proj.weight  # [width, 3, 2 frames, 14, 14]
        x = patches @ convolution.sum(2).reshape(self.width, -1).t()
        for number, block in enumerate(self.visual.blocks):
            whole = number in shape.VISION["fullatt_block_indexes"]
            x = x + block.attn.proj(self._attention(block.attn, _norm(x, block.norm1), whole))
            h = _norm(x, block.norm2)
            x = x + block.mlp.down_proj(F.silu(block.mlp.gate_proj(h)) * block.mlp.up_proj(h))
        merger = self.visual.merger
        merged = _norm(x, merger.ln_q).reshape(len(x), -1, shape.MERGE**2 * self.width)
        return merger.mlp(merged)[:, self.canvas.raster]

    def _attention(self, attention: Any, x: Tensor, whole: bool) -> Tensor:
        batch, patches, width = x.shape
        q, k, v = attention.qkv(x).view(batch, patches, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k = _turn(q, self.angles), _turn(k, self.angles)
        if whole:
            out = _attend(q, k, v)  # [B, heads, patches, head]
        else:
            out = torch.cat([self._in_windows(q, k, v, group) for group in self.canvas.windows], 2)
        return out.transpose(1, 2).reshape(batch, patches, width)

    @staticmethod
    def _in_windows(q: Tensor, k: Tensor, v: Tensor, group: Windows) -> Tensor:
        part = slice(group.start, group.start + group.count * group.size)
        split = (group.count, group.size)
        return _attend(*(z[:, :, part].unflatten(2, split) for z in (q, k, v))).flatten(2, 3)


class FastDecoder:
    """model.language_model on ready-made embeddings, for any position ids [3, T] and additive mask [T, T]."""

    def __init__(self, model: Any, positions: Tensor, mask: Tensor) -> None:
        self.decoder = model.model.language_model
        self.heads = shape.TEXT["num_attention_heads"]
        head = shape.TEXT["hidden_size"] // self.heads
        speeds = shape.ROPE_THETA ** -(torch.arange(0, head, 2).float() / head)
        axis = torch.tensor([a for a, count in enumerate(shape.MROPE_SECTION) for _ in range(count)])
        turns = (positions[axis].t() * speeds).repeat(1, 2)  # [T, head]
        self.angles = (turns.cos(), turns.sin())
        self.mask = mask

    def __call__(self, x: Tensor) -> Tensor:
        """Embeddings [B, T, 192] -> last hidden states [B, T, 192]."""
        batch, length, width = x.shape
        for layer in self.decoder.layers:
            h = _norm(x, layer.input_layernorm)
            attention = layer.self_attn
            projections = (attention.q_proj, attention.k_proj, attention.v_proj)
            q, k, v = (p(h).view(batch, length, self.heads, -1).transpose(1, 2) for p in projections)
            out = _attend(_turn(q, self.angles), _turn(k, self.angles), v, self.mask)
            x = x + attention.o_proj(out.transpose(1, 2).reshape(batch, length, width))
            h = _norm(x, layer.post_attention_layernorm)
            x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(h)) * layer.mlp.up_proj(h))
        return _norm(x, self.decoder.norm)
