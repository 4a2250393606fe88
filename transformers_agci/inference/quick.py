"""The ways to do with less: what each of them is, and which are on.

`kernels` "auto" turns on what fits the model and agrees with stock on this machine, "stock" turns all off, and names
with a comma between them turn these on: `norms,rotary`. What runs stands in the manifest's notes. The vision tower's
attention and patch embedding have a switch of their own (`vision`, see vision_tower.py).
"""

from transformers_agci.errors import InputError

WAYS = {
    "norms": "RMSNorm as PyTorch's one kernel instead of five",
    "rotary": "rotary embeddings of the vision tower turned in one compiled kernel (GPU)",
    "activation": "silu(gate) * up in one compiled kernel (GPU)",
    "padded_width": "the vision tower's MLP padded with zeros to rows of a multiple of 128 bytes (GPU)",
    "host_values": "what follows from token ids and image grids is worked out on the CPU, without waiting for the GPU",
    "pinned": "pixels cross from pinned memory on a stream of their own, while the batch before is computed (GPU)",
    "first_token": "a Yes/No question is answered from one forward call, without generate",
    "tails": "many questions about the same images in one call, on keys and values that are there",
    "varying_lengths": "attention on keys that are there goes without cuDNN, which plans for every length (GPU)",
    "equal_lengths": "prompts of the same number of tokens are batched together",
    "painting": "images cross as bytes and are normalised where the model is (GPU); occlusion paints its masks there",
}
ALL = frozenset(WAYS)
OF_THE_MODEL = ("norms", "padded_width", "rotary", "activation")  # put on its layers when it is loaded: kernels.py


def chosen(text: str) -> frozenset[str]:
    """Which ways are on.

    >>> sorted(chosen("norms,tails")), len(chosen("stock")), chosen("auto") == ALL
    (['norms', 'tails'], 0, True)
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
    return names
