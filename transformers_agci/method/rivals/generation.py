"""What a rival inside the attention cannot serve: one sentence each, before it answers with other numbers.

AdaptVis, PAI and UAC look at the last token of a call. In the prefill that is the prompt's last token and afterwards
the newest one, as long as each call has only what is new: with a cache, one token at a time. Where `generate` works
otherwise the last token is another one, and the numbers would be those of another method. A loop of one's own around
`forward` has to keep to the same: this cannot be seen from here.
"""

from typing import Any

import torch

from transformers_agci.errors import CannotServe
from transformers_agci.method.hooks import in_backward
from transformers_agci.method.rivals.call_state import state
from transformers_agci.method.rivals.declaration import Rival
from transformers_agci.method.thread_state import stack


def check_generation(rival: Rival) -> None:
    """CannotServe where a `generate` is running whose settings the rival cannot serve."""
    if rival.scores is None and rival.bias is None:
        return
    frames = [frame for frame in stack() if frame.f_code.co_name in _LOOPS]
    config = next((c for frame in frames if (c := frame.f_locals.get("generation_config")) is not None), None)
    if config is None:
        return
    first_token = rival.bias is not None or (rival.scores is not None and rival.scores.weigh is not None)
    if first_token and (getattr(config, "num_beams", None) or 1) > 1:
        reason = (
            "decides by the confidence of the first token, which beam search does not choose"
            if rival.bias is None
            else "calibrates each prompt once by a blank image, which beam search repeats with the prompt"
        )
        raise CannotServe(f"{rival.name} {reason}: generate with num_beams=1.")
    if config.use_cache is False:
        raise CannotServe(
            f"{rival.name} acts on the last token of each step, but without a cache every step computes all tokens "
            "again: generate with use_cache=True."
        )
    if any(frame.f_code.co_name == "_assisted_decoding" for frame in frames):
        raise CannotServe(
            f"{rival.name} acts on the last token of each step, but assisted decoding takes several tokens in one: "
            "generate without an assistant and without prompt_lookup_num_tokens."
        )
    if getattr(config, "prefill_chunk_size", None) is not None:
        raise CannotServe(
            f"{rival.name} acts on the last token of a prompt, which prefill_chunk_size cuts into several calls: "
            "generate without it."
        )


def check_checkpointing(rival: Rival, decoder: Any) -> None:
    """CannotServe where training would call the layers again, when the plan of their call is gone."""
    if torch.is_grad_enabled() and decoder.training and getattr(decoder, "gradient_checkpointing", False):
        raise _recomputed(rival)


def check_not_recomputed(rival: Rival) -> None:
    """The same of a layer that is called now, where a wrapper around it or around the decoder calls it again."""
    if torch.is_grad_enabled() and state.vlm is None and in_backward():
        raise _recomputed(rival)


def _recomputed(rival: Rival) -> CannotServe:
    return CannotServe(
        f"{rival.name} acts inside attention layers, which gradient checkpointing calls again later: train without it, "
        "or with a method on positions (bapa, flat, cca_positions)."
    )


_LOOPS = {"generate", "_sample", "_beam_search", "_assisted_decoding"}  # of transformers
