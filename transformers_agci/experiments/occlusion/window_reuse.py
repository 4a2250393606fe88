"""Qwen2.5-VL's vision on masked copies: recompute only what a mask touches, while that is exact.

A patch is embedded by itself, and the first vision layers (up to the first with full attention) let no token see
beyond its window of 112 pixels. On a copy that differs from the original in a few patches, all other patches and
windows come out of these layers as on the original. Which patches differ is read off the pixels that reach the vision
tower, so any change is found, whatever made it.

Worked example: an image of 336 x 112 pixels is 24 x 8 patches of 14 pixels, which windows of 8 x 8 patches cut into
three. In the window order the tokens of a window lie together:

    places              0 ..... 63 | 64 .... 127 | 128 .... 191      windows W0, W1, W2
    cu_seqlens (stock)  0, 64, 128, 192                              attention within each window

A mask of 28 pixels at (294, 0) covers columns 21 and 22 of the patches in rows 0 and 1: four patches, all in W2. Of
this copy the embedding computes 4 rows and takes 188 from the original's. The leading layers see W2, and W0 because
attention needs some row even where nothing changed: 128 rows with cu_seqlens 0, 64, 128. Behind the last of them these
rows go back to places 0..63 and 128..191, and places 64..127 are the original's.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from transformers_agci.families import Family, find_vlm
from transformers_agci.inference.host_values import crossing
from transformers_agci.method.forward_call import on_host


@contextlib.contextmanager
def reused_windows(model: Any, family: Family, inputs: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within this block the vision tower may only see copies of the one image in `inputs`, on the model's device.

    Families without such layers run as ever.
    """
    tower: Any = find_vlm(model).visual if family.vision_windows else None
    leading = min(tower.fullatt_block_indexes, default=len(tower.blocks)) if tower is not None else 0
    if tower is None or not leading:
        yield
        return
    pixels = inputs["pixel_values"].to(tower.dtype)
    blocks = list(tower.blocks[:leading])
    with torch.inference_mode():
        order = _window_order(tower, blocks[0], pixels, inputs["image_grid_thw"])
        embedded = tower.patch_embed(pixels)
        original = _output_of(tower, blocks[-1], pixels, inputs["image_grid_thw"])
    reuse = _Reuse(pixels, order, embedded, original)
    hook = tower.register_forward_pre_hook(reuse.find_changed, with_kwargs=True)
    # accelerate's device maps and offloading put a forward on these instances, too, which is put back.
    found = {module: module.__dict__.get("forward") for module in (tower.patch_embed, *blocks)}
    try:
        reuse.take_over_embedding(tower.patch_embed)
        for block in blocks:
            reuse.take_over(block, first=block is blocks[0], last=block is blocks[-1])
        yield
    finally:
        hook.remove()
        for module, forward in found.items():
            if forward is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = forward


class _Touched(NamedTuple):
    """The rows of the touched windows, and what these windows are to the attention."""

    rows: torch.Tensor  # [m] of n * P, on the CPU
    cu_seqlens: torch.Tensor
    position_embeddings: tuple[torch.Tensor, ...]


class _Reuse:
    """Of the original image: pixels [P, C], their embedding [P, D], and [P, D] behind the layers, in window order.

    order  [P], which patch of the image stands at each place of the window order; on the CPU

    Which rows a copy changes is read back once per call; everything that follows from it is worked out on the CPU.
    """

    def __init__(
        self, pixels: torch.Tensor, order: torch.Tensor, embedded: torch.Tensor, original: torch.Tensor
    ) -> None:
        self.pixels, self.order, self.embedded, self.original = pixels, order, embedded, original
        self.changed = torch.zeros(0, 0, dtype=torch.bool)  # [n, P] in the image's order, of the call at hand; CPU
        self.touched: _Touched | None = None

    def find_changed(self, tower: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the changed patches of a call of the vision tower."""
        pixels = args[0] if args else kwargs["hidden_states"]  # [n * P, C]
        copies = pixels.view(-1, *self.pixels.shape)
        self.changed = (copies != self.pixels).any(dim=-1).cpu()

    def take_over_embedding(self, patch_embed: Any) -> None:
        """Let the patch embedding work on the changed patches."""
        stock = patch_embed.forward

        def forward(hidden_states: torch.Tensor) -> torch.Tensor:
            whole = self.embedded.repeat(len(self.changed), 1)
            rows = self.changed.flatten().nonzero()[:, 0]
            if len(rows):
                there = crossing(rows, whole.device)
                whole[there] = stock(hidden_states[there])
            return whole

        patch_embed.__dict__["forward"] = forward  # the instance, never the class

    def take_over(self, block: Any, first: bool, last: bool) -> None:
        """Let a block work on the touched windows; the first narrows the rows, the last puts them back."""
        stock = block.forward

        def forward(
            hidden_states: torch.Tensor,
            *,
            cu_seqlens: torch.Tensor,
            position_embeddings: tuple[torch.Tensor, ...],
            **kwargs: Any,
        ) -> torch.Tensor:
            if first:
                self.touched = self._touched(cu_seqlens, position_embeddings)
                hidden_states = hidden_states[crossing(self.touched.rows, hidden_states.device)]
            assert self.touched is not None
            output = stock(
                hidden_states,
                cu_seqlens=self.touched.cu_seqlens,
                position_embeddings=self.touched.position_embeddings,
                **kwargs,
            )
            if not last:
                return output
            whole = self.original.repeat(len(self.changed), 1)
            whole[crossing(self.touched.rows, whole.device)] = output
            return whole

        block.__dict__["forward"] = forward

    def _touched(self, cu_seqlens: torch.Tensor, position_embeddings: tuple[torch.Tensor, ...]) -> _Touched:
        lengths = on_host(cu_seqlens).cpu().long().diff()
        lengths = lengths[lengths > 0]
        window = torch.arange(len(lengths)).repeat_interleave(lengths)  # [n * P]
        touched = torch.zeros(len(lengths), dtype=torch.bool)
        touched[window[self.changed[:, self.order].flatten()]] = True
        touched[0] = True  # the original itself has none, and attention needs something to work on
        bounds = torch.cat([lengths.new_zeros(1), lengths[touched].cumsum(0)]).to(cu_seqlens.dtype)
        rows = touched[window].nonzero()[:, 0]
        angles = tuple(part[crossing(rows, part.device)] for part in position_embeddings)
        return _Touched(rows, crossing(bounds, cu_seqlens.device), angles)


class _Seen(Exception):
    """A block was reached, or left; carries its tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.tensor = tensor


def _window_order(tower: Any, first: Any, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Which row of the image stands at each place when the layers get it: numbered rows are sent through."""

    def numbered(_: Any, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
        numbers = torch.arange(len(output), dtype=torch.float32, device=output.device)
        return numbers[:, None].expand(output.shape).contiguous()

    def stop(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Seen(args[0] if args else kwargs["hidden_states"])

    hooks = [tower.patch_embed.register_forward_hook(numbered), first.register_forward_pre_hook(stop, with_kwargs=True)]
    return _run_into(tower, hooks, pixels, grid)[:, 0].cpu().long()


def _output_of(tower: Any, block: Any, pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    def stop(_: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
        raise _Seen(output)

    return _run_into(tower, [block.register_forward_hook(stop)], pixels, grid)


def _run_into(tower: Any, hooks: list[Any], pixels: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    try:
        tower(pixels, grid_thw=grid)
    except _Seen as seen:
        return seen.tensor
    finally:
        for hook in hooks:
            hook.remove()
    raise AssertionError("the vision tower did not reach its layers")
