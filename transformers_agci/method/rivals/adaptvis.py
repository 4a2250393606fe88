"""AdaptVis: attention on the image is sharpened or smoothed, depending on how sure the model is of its first token.

Source: "Why Is Spatial Reasoning Hard for VLMs? An Attention Mechanism Perspective on Focus Areas", arXiv 2503.01773;
read in the authors' code (shiqichen17/AdaptVis: modeling_llama_add_attn.py, llava15.py); no code of it is here.

    confidence   c = largest softmax probability of the first token, in a first pass of stock
    weight       w = w_low where c is below the threshold, w_high otherwise
    scores       of the prompt's last token on image keys, times w, before mask and softmax; all heads and layers;
                 in the prefill only

A weight above 1 lowers negative scores: the formula is the authors'. Their example for one data set is 0.5, 1.5 and
0.4; their README takes w_low from 0.5, 0.8 and w_high from 1.2, 1.5, 2.0: choose on development items. Our strength s
scales both: 1 + s (w - 1), so that 0 is stock and 1 the authors'. Beam search has no first token to be sure of: it is
an error.

Evaluated by its authors on WhatsUp and VSR with LLaVA.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from transformers_agci.errors import CannotServe
from transformers_agci.method.rivals.declaration import Option, Rival, ScoreCall, ScoreRule

if TYPE_CHECKING:
    import torch


def weigh(logits: "torch.Tensor", strength: float, options: Mapping[str, Any]) -> "torch.Tensor":
    """The weight of each prompt [B], from the first pass's logits [B, V]."""
    import torch

    confidence = logits.float().softmax(dim=-1).amax(dim=-1)
    low, high = (1 + strength * (options[name] - 1) for name in ("w_low", "w_high"))
    largest = torch.finfo(confidence.dtype).max
    if max(abs(low), abs(high)) > largest:
        raise CannotServe(
            f"The weights of adaptvis are {low:g} and {high:g}, more than {largest:g}: give smaller ones."
        )
    below = confidence < options["threshold"]
    return torch.where(below, torch.full_like(confidence, low), torch.full_like(confidence, high))


def rescore(scores: "torch.Tensor", image: "torch.Tensor", call: ScoreCall) -> "torch.Tensor":
    """Scores [B, H, 1, K] on image keys times the prompt's weight."""
    if call.weights is None:
        return scores
    return scores.where(~image, scores * call.weights.to(scores)[:, None, None, None])


RIVAL = Rival(
    "adaptvis",
    "AdaptVis",
    "https://arxiv.org/abs/2503.01773",
    "https://github.com/shiqichen17/AdaptVis",
    "attention scores of the prompt's last token on the image, by the first token's confidence (two passes)",
    "WhatsUp and VSR with LLaVA",
    on_off=False,
    options=MappingProxyType(
        {
            "w_low": Option(0.5, "weight below the threshold", least=0),
            "w_high": Option(1.5, "weight from the threshold on", least=0),
            "threshold": Option(0.4, "confidence that divides the two", least=0, most=1),
        }
    ),
    scores=ScoreRule(rescore, decoding=False, weigh=weigh),
)
