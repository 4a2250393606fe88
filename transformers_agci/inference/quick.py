"""The ways to do with less: what each of them is, and which are on.

`kernels` "auto" turns on what fits the model and agrees with stock on this machine, "stock" turns all off, and names
with a comma between them turn these on, and what they build on: `norms,rotary`. The manifest says of each run what ran.
The vision tower's attention and patch embedding have a switch of their own (`vision`, see vision_tower.py).
"""

from collections.abc import Iterable
from typing import Any

from transformers_agci.errors import InputError

WAYS = {
    "norms": "RMSNorm as PyTorch's one kernel instead of five",
    "rotary": "rotary embeddings of the vision tower turned in one compiled kernel (GPU)",
    "activation": "silu(gate) * up in one compiled kernel (GPU)",
    "padded_width": "the vision tower's MLP padded with zeros to rows of a multiple of 128 bytes (GPU)",
    "last_positions": "the decoder's last MLP on the positions whose logits are asked for",
    "host_values": "what follows from token ids and image grids is worked out on the CPU, without waiting for the GPU",
    "pinned": "pixels cross from pinned memory on a stream of their own, while the batch before is computed (GPU)",
    "first_token": "a Yes/No question is answered from one forward call, without generate",
    "tails": "many questions about the same images in one call, on keys and values that are there",
    "varying_lengths": "attention on keys that are there goes without cuDNN, which plans for every length (GPU)",
    "equal_lengths": "prompts of the same number of tokens are batched together",
    "padding_behind": "prompts are padded behind where nothing goes on from them, which needs no mask (GPU)",
    "painting": "images cross as bytes and are normalised where the model is (GPU); occlusion paints its masks there",
}
ALL = frozenset(WAYS)
# The keys and values that the first question about each image has left; the call that is made here, not by generate.
BUILDS_ON = {"tails": "first_token", "padding_behind": "first_token"}
# Elsewhere there is nothing to wait for, to pin or to plan, and a mask costs little.
ON_A_GPU = ("host_values", "pinned", "varying_lengths", "padding_behind")
OF_THE_MODEL = (
    "norms",
    "padded_width",
    "last_positions",
    "rotary",
    "activation",
)  # put on its layers when it is loaded: kernels.py


def chosen(text: str) -> frozenset[str]:
    """Which ways are on.

    >>> sorted(chosen("norms,tails")), len(chosen("stock")), chosen("auto") == ALL
    (['first_token', 'norms', 'tails'], 0, True)
    """
    if text in ("auto", "stock"):
        return ALL if text == "auto" else frozenset()
    names = frozenset(name.strip() for name in text.split(","))
    unknown = sorted(names - ALL)
    if unknown:
        raise InputError(
            f"`kernels` must be auto, stock or names with a comma between them, but there is {unknown[0]!r}; the names "
            f"are {', '.join(WAYS)}."
        )
    return names | {needed for name, needed in BUILDS_ON.items() if name in names}


def recorded(
    quick: frozenset[str], device_type: str, put_on: Iterable[str] = (), reasons: Iterable[tuple[str, str]] = ()
) -> dict[str, Any]:
    """For a manifest: the ways that run on such a device, and why others that are on in `quick` do not.

    `put_on` and `reasons` are what `use_kernels` says of those that are put on a model's layers.
    """
    idle = [name for name in ON_A_GPU if name in quick and device_type != "cuda"]
    off = dict.fromkeys(idle, f"it is for a GPU, and the model is on {device_type}")
    running = (quick - set(OF_THE_MODEL) - set(idle)) | set(put_on)
    return {"kernels": sorted(running), "kernels_off_because": {**off, **dict(reasons)}}
