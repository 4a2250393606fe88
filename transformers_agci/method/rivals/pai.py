"""PAI, paying more attention to the image: attention scores on the image are raised, language priors subtracted.

Source: "Paying More Attention to Image", arXiv 2407.21771; read in the authors' code (LALBJ/PAI: attention.py, CFG.py);
no code of it is here.

    scores   s + alpha |s| of the last token on image keys, before the softmax; layers first_layer to last_layer, all
             heads, in the prefill and every decoding step; alpha is our strength
    logits   gamma (log p - log p_text) + log p_text, p_text from the prompt without its image and without the raised
             scores; tokens with log p < log 0.1 + max log p cannot be chosen

The authors' scripts use alpha 0.2, layers 2 to 31 and gamma 1.1; gamma 1 has no second pass and no cut. The second pass
needs `generate` with `logits_processor=handle.logits_processor(inputs)`; the package's own commands do that.

Evaluated by its authors on POPE, CHAIR and others with LLaVA, MiniGPT-4 and Shikra.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from transformers_agci.method.rivals.declaration import ContrastRule, Option, Rival, ScoreCall, ScoreRule

if TYPE_CHECKING:
    import torch

CUT = 0.1  # of the largest probability


def rescore(scores: "torch.Tensor", image: "torch.Tensor", call: ScoreCall) -> "torch.Tensor":
    """Scores [B, H, 1, K] on image keys raised by strength times their size."""
    return scores.where(~image, scores + call.strength * scores.abs())


def in_layers(options: Mapping[str, Any], layer: int) -> bool:
    """Whether the scores of this layer are raised."""
    return bool(options["first_layer"] <= layer <= options["last_layer"])


def without_image(
    inputs: "Mapping[str, torch.Tensor]", options: Mapping[str, Any], image_token: int
) -> "dict[str, torch.Tensor]":
    """The prompts [B, S] without their image tokens, padded on the left with what was there."""
    import torch

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    kept = (mask != 0) & (ids != image_token)
    order = kept.long().argsort(dim=1, stable=True)  # what is left stands at the right end, in its order
    longest = max(1, int(kept.sum(dim=1).max()))
    chosen = order[:, -longest:]
    text = torch.gather(kept.long(), 1, chosen)
    return {"input_ids": torch.gather(ids, 1, chosen).where(text != 0, ids[:, :1]), "attention_mask": text}


def combine(
    logits: "torch.Tensor", second: "torch.Tensor", strength: float, options: Mapping[str, Any]
) -> "tuple[torch.Tensor, torch.Tensor]":
    """Scores [B, V] and which tokens may be chosen."""
    own, text = logits.float().log_softmax(dim=-1), second.float().log_softmax(dim=-1)
    allowed = own >= math.log(CUT) + own.amax(dim=-1, keepdim=True)
    return options["gamma"] * (own - text) + text, allowed


def has_second(strength: float, options: Mapping[str, Any]) -> bool:
    """Whether there is a second pass."""
    return strength != 0 and bool(options["gamma"] != 1)


RIVAL = Rival(
    "pai",
    "PAI",
    "https://arxiv.org/abs/2407.21771",
    "https://github.com/LALBJ/PAI",
    "attention scores of the last token on the image; logits, against those without the image",
    "POPE, CHAIR and others with LLaVA, MiniGPT-4 and Shikra",
    on_off=False,
    published=0.2,
    options=MappingProxyType(
        {
            "gamma": Option(1.1, "weight of the contrast; 1 has none", least=0),
            "first_layer": Option(2, "first layer whose scores are raised", least=0, whole=True),
            "last_layer": Option(31, "last layer whose scores are raised", least=0, whole=True),
        }
    ),
    scores=ScoreRule(rescore, layers=in_layers),
    contrast=ContrastRule(without_image, combine, has_second),
)
