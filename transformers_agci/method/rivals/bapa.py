"""BaPA: all tokens of an image share one position id.

Source: "From Bias to Balance", arXiv 2509.21984 version 1 (AGCI is from its version 2). With s the position of an
image's first token, every token of the image has position s, and the text behind it s + 1, s + 2, ...; with M-RoPE all
axes are equal, for image and text. Read in the authors' code (AAAndy-Zhu/BaPA, modeling_qwen2_5_vl.py,
modeling_llama.py); no code of it is here.

Theirs takes the end of the image from the batch's first row, treats every call of several tokens as a fresh prompt, and
falls back to fixed positions. Here each row and each image has its own, and a cache goes on where it ended.

Evaluated by its authors on the position probe without training, and on general benchmarks with light fine-tuning.
"""

from collections.abc import Sequence

from transformers_agci.method.rivals.declaration import Grid, PositionRule, Rival


def share_one(tokens: int, grid: Grid | None) -> Sequence[int]:
    """Offset 0 for every token."""
    return [0] * tokens


RIVAL = Rival(
    "bapa",
    "BaPA",
    "https://arxiv.org/abs/2509.21984v1",
    "https://github.com/AAAndy-Zhu/BaPA",
    "position ids: an image's tokens share one, the text goes on behind it",
    "the position probe; general benchmarks after light fine-tuning",
    positions=PositionRule(share_one),
)
