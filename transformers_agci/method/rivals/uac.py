"""UAC, uniform attention calibration: a reconstruction. Attention that a blank image would get is evened out.

Source: "Mitigating Object Hallucination via Attention Calibration", arXiv 2502.01969, of which the abstract was read;
neither its equations nor its code: everything below is a reconstruction, and every output says so. (The paper's other
method, DAC, is fine-tuning and not here.) As the abstract has it, one meaningless image shows the bias, and attention
is calibrated by it. Here:

    b_i   attention of the prompt's last token on token i of a blank image (all pixel inputs 0, the same token grid),
          mean over heads, per layer, divided by its sum over the image; at least 1e-6
    W_i   mean(b) / b_i
    a'    proportional to a W: log W_i times our strength is added to the scores of text on token i, before the softmax,
          in every layer, in the prefill and when decoding

The blank image is shown in the place of the prompt's own, once for every prefill: no answer then depends on what was
asked before. Strength 1 is the calibration as reconstructed, 0 stock.
"""

from typing import TYPE_CHECKING

from transformers_agci.method.rivals.declaration import BiasRule, Rival

if TYPE_CHECKING:
    import torch

LEAST = 1e-6  # of the attention on one image; below, its logarithm would be noise


def log_weights(blank: "torch.Tensor", strength: float) -> "torch.Tensor":
    """strength * log(mean(b) / b) for attention b [N]."""
    b = blank.float().clamp_min(LEAST)
    return strength * (b.mean() / b).log()


RIVAL = Rival(
    "uac",
    "UAC (reconstruction)",
    "https://arxiv.org/abs/2502.01969",
    "",
    "attention scores of text on the image: the log of what a blank image lacks is added",
    "POPE and others, by its abstract",
    note="a reconstruction from the abstract: neither its equations nor its code could be read",
    on_off=False,
    bias=BiasRule(log_weights),
)
