"""What the device itself can do: matrix products, copies, widths that are not aligned, attention kernels.

    python perf/primitives.py                   a GPU: Qwen2.5-VL-7B's shapes, bfloat16
    python perf/primitives.py --small           small shapes, any machine

What a kernel makes is compared with the same in float32; a kernel that a machine lacks is named with its reason.
"""

import argparse
from collections.abc import Callable
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from flops import matmul_rate
from machine import announce, say, timed
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import linear, scaled_dot_product_attention

from transformers_agci.inference.vision_tower import KERNELS, Segments

WIDTHS = (3420, 3424, 3456)  # the tower's MLP: as it is, a multiple of 16 bytes, and of 128
TOWER = 1280  # the tower's width
MEBIBYTES = 76  # pixels of 18 images of 840x840, as bytes
BACKENDS = ("CUDNN_ATTENTION", "FLASH_ATTENTION", "EFFICIENT_ATTENTION", "MATH")
WINDOW = 8  # patches of a window's side


def milliseconds(device: torch.device, work: Callable[[], Any], times: int) -> float:
    work()
    return 1000 * timed(device, lambda: [work() for _ in range(times)])[1] / times


def rates(device: torch.device, dtype: torch.dtype, size: int, times: int) -> None:
    """The matrix product, sustained, and copies from the host and to it."""
    say(f"sustained matrix product, {dtype}: {matmul_rate(device, dtype) / 1e12:.4g} TFLOP/s\n")
    host = torch.zeros(size * 2**20, dtype=torch.uint8)
    there = host.to(device)
    say("| copy | GB/s |\n|---|---|")
    kinds = {"from the host, pageable": (there, host), "to the host, pageable": (host, there)}
    if device.type == "cuda":
        pinned = host.pin_memory()
        kinds |= {"from the host, pinned": (there, pinned), "to the host, pinned": (pinned, there)}
    for name, (target, source) in kinds.items():
        took = milliseconds(device, lambda to=target, of=source: to.copy_(of, non_blocking=True), times)
        say(f"| {name} | {host.numel() / took / 1e6:.3g} |")


def widths(device: torch.device, dtype: torch.dtype, rows: int, times: int) -> None:
    """The products of a gated MLP (gate, up, down) at each width."""
    say("\n| width of the tower's MLP | ms | TFLOP/s |\n|---|---|---|")
    given = torch.randn(rows, TOWER, device=device).to(dtype)
    for width in WIDTHS:
        gate, up = torch.randn(2, width, TOWER, device=device).to(dtype)
        down = torch.randn(TOWER, width, device=device).to(dtype)
        took = milliseconds(device, lambda g=gate, u=up, d=down: linear(linear(given, g) + linear(given, u), d), times)
        say(f"| {width} | {took:.3f} | {6 * rows * TOWER * width / took / 1e9:.4g} |")


def attention(device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int], times: int) -> None:
    """SDPA of the decoder, causal and with the mask of left padding, which hides everything from its first rows."""
    rows, _, tokens, _ = shape
    query, key, value = torch.randn(3, *shape, device=device).to(dtype)
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril().expand(rows, 1, -1, -1).clone()
    padding = tokens // 8
    seen[0, :, :, :padding] = False
    say(f"\nattention of {shape}; {padding} tokens of padding on the left of the first row\n")
    say("| kernel | mask | ms | differs from float32 by | NaN |\n|---|---|---|---|---|")
    for mask in (None, seen):
        given: dict[str, Any] = {"is_causal": True} if mask is None else {"attn_mask": mask}
        with sdpa_kernel(SDPBackend.MATH):
            exact = scaled_dot_product_attention(query[:1].float(), key[:1].float(), value[:1].float(), **_first(given))
        for name in BACKENDS:
            cells = f"| {name.lower()} | {'causal' if mask is None else 'left padding'} |"
            try:
                with sdpa_kernel(getattr(SDPBackend, name)):
                    took = milliseconds(
                        device, lambda g=given: scaled_dot_product_attention(query, key, value, **g), times
                    )
                    made = scaled_dot_product_attention(query, key, value, **given)
            except (RuntimeError, AttributeError) as error:
                say(f"{cells} {_told(error)} | | |")
                continue
            apart = (made[0].float() - exact[0])[:, padding:].abs().max()
            say(f"{cells} {took:.3f} | {float(apart):.1e} | {int(made.isnan().sum())} |")


def _first(given: dict[str, Any]) -> dict[str, Any]:
    return {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in given.items()}


def segments(device: torch.device, dtype: torch.dtype, side: int, shape: tuple[int, int, int], times: int) -> None:
    """The vision tower's attention over whole images of side x side patches, and over their windows; `shape`: images,
    heads, width of a head.
    """
    images, *heads = shape
    cuts = [min(WINDOW, side - start) for start in range(0, side, WINDOW)]
    say("\n| vision attention | kernel | ms | differs from float32 by |\n|---|---|---|---|")
    for lengths in ([side * side] * images, [high * wide for _ in range(images) for high in cuts for wide in cuts]):
        query, key, value = torch.randn(3, sum(lengths), *heads, device=device).to(dtype)
        divided = Segments(torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32), device)
        given = {"segments": divided, "scaling": heads[1] ** -0.5}
        exact = KERNELS["sdpa by segment length"](query.float(), key.float(), value.float(), **given)
        for name, kernel in KERNELS.items():
            cells = f"| {len(lengths)} segments of up to {max(lengths)} | {name} |"
            call = partial(kernel, query, key, value, **given)
            try:
                took, made = milliseconds(device, call, times), call()
            except Exception as error:  # whatever a kernel raises on a machine that it does not like
                say(f"{cells} {_told(error)} | |")
                continue
            say(f"{cells} {took:.3f} | {float((made.float() - exact).abs().max()):.1e} |")


def _told(error: Exception) -> str:
    return f"not here: {type(error).__name__} ({' '.join(str(error).split())[:80].replace('|', '/')})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="small shapes: any machine")
    parser.add_argument("--times", type=int, default=20, help="calls of each kernel (default 20)")
    args = parser.parse_args()
    announce()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with torch.inference_mode():
        rates(device, dtype, 1 if args.small else MEBIBYTES, args.times)
        widths(device, dtype, 16 if args.small else 3600, args.times)
        attention(device, dtype, (2, 2, 64, 32) if args.small else (18, 28, 925, 128), args.times)
        segments(device, dtype, *((20, (2, 2, 16)) if args.small else (60, (18, 16, 80))), args.times)


if __name__ == "__main__":
    main()
