"""CCA, concentric causal attention: positions and visibility follow the rings of the image, from the border inwards.

Source: "Mitigating Object Hallucination via Concentric Causal Attention", arXiv 2410.15926; read in the authors' code
(xing0047/cca-llava, llava/cca_utils/cca.py); no code of it is here. The ring of a token is its distance from the
border: 0 there, ceil(min(rows, cols) / 2) - 1 in the middle. With s the position of the image's first token:

    position of a token    s + ring
    position of the text   s + largest ring + 1, and on (a 24 x 24 grid: s + 12)
    mask                   a token sees the tokens of its image whose ring is at most its own, later ones too;
                           everything else stays causal

On 4 x 4 tokens the rings are 0 0 0 0 / 0 1 1 0 / 0 1 1 0 / 0 0 0 0. Grids that are odd or not square are an extension
made here. The authors pretrain with it (LLaVA-1.5; POPE, CHAIR, MME and others): using it without training is
off-label.
"""

from collections.abc import Sequence

from transformers_agci.method.rivals.declaration import Grid, MaskRule, PositionRule, Rival

OFF_LABEL = "its authors train with it; used here without training, which is off-label"


def rings(grid: Grid) -> list[int]:
    """The ring of each token, row by row.

    >>> rings(Grid(3, 4))
    [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    """
    rows, cols = grid
    return [min(r, c, rows - 1 - r, cols - 1 - c) for r in range(rows) for c in range(cols)]


def ring_offsets(tokens: int, grid: Grid | None) -> Sequence[int]:
    """Each token's ring."""
    assert grid is not None
    return rings(grid)


RIVAL = Rival(
    "cca",
    "CCA",
    "https://arxiv.org/abs/2410.15926",
    "https://github.com/xing0047/cca-llava",
    "position ids and mask: both follow the image's rings from the border inwards",
    "LLaVA-1.5 trained with it: POPE, CHAIR, MME, general benchmarks",
    note=OFF_LABEL,
    positions=PositionRule(ring_offsets, needs_grid=True),
    mask=MaskRule(rings),
)
