"""CCA's positions without its mask. An ablation of ours: the authors use both together, and train with them.

Position ids as in cca.py; attention among the image tokens stays as the model has it. Needs no attention backend.
"""

from transformers_agci.method.rivals.cca import OFF_LABEL, ring_offsets
from transformers_agci.method.rivals.declaration import PositionRule, Rival

RIVAL = Rival(
    "cca_positions",
    "CCA's positions",
    "https://arxiv.org/abs/2410.15926",
    "https://github.com/xing0047/cca-llava",
    "position ids: they follow the image's rings from the border inwards",
    "nothing: an ablation of CCA made here",
    note=f"an ablation of CCA made here; {OFF_LABEL}",
    positions=PositionRule(ring_offsets, needs_grid=True),
)
