"""Flat positions: BaPA's image without BaPA's shift of the text. An ablation of ours.

Every token of an image has the position id of its first token, on all axes; the text stays where stock puts it. Beside
BaPA it tells apart what equal positions do from what the shorter distance between text and image does.
"""

from transformers_agci.method.rivals.bapa import share_one
from transformers_agci.method.rivals.declaration import PositionRule, Rival

RIVAL = Rival(
    "flat",
    "flat positions",
    "https://arxiv.org/abs/2509.21984v1",
    "https://github.com/AAAndy-Zhu/BaPA",
    "position ids: an image's tokens share one, the text stays where it was",
    "nothing: an ablation of BaPA made here",
    note="an ablation of BaPA made here, not a published method",
    positions=PositionRule(share_one, text_follows=False),
)
