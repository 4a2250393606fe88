"""Attention of new tokens on keys and values that are there, without a new plan for every length.

From torch 2.11 on the first choice of SDPA on Hopper GPUs is cuDNN, which builds a plan for each new shape (rows, new
tokens, keys): tens of milliseconds of the host's time. A prompt's shape comes back batch after batch. That of follow-up
questions does not, and in free text each token has a shape of its own, since the keys grow by one. Within
`VaryingLengths` the decoder's calls on a cache that holds something leave cuDNN out, and all others keep it:

    call of the decoder      new tokens   keys   cuDNN
    a batch of prompts              900    900   as found
    the next token                    1    901   left out
    follow-up questions              25    925   left out
"""

import contextlib
import functools
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.method.forward_call import cache_of_call


def varying_lengths(loaded: Any) -> contextlib.AbstractContextManager[Any]:
    """What is entered for a loaded model: nothing without a GPU, or where it is off."""
    wanted = loaded.device.type == "cuda" and "varying_lengths" in loaded.quick
    return VaryingLengths(loaded.model) if wanted else contextlib.nullcontext()


class VaryingLengths:
    """While entered; torch's switch is put back as it was found after each call. Enter it before a `PrefixReplay`,
    which fills an empty cache on the way to the decoder.
    """

    def __init__(self, model: nn.Module) -> None:
        self._decoder: Any = decoder_of(find_vlm(model))

    def __enter__(self) -> "VaryingLengths":
        # The instance, never the class. accelerate's offloading puts a forward there, too, which is put back.
        self._found = vars(self._decoder).get("forward")
        original = self._decoder.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            cache = cache_of_call(kwargs)
            if not isinstance(cache, DynamicCache) or not cache.get_seq_length():
                return original(*args, **kwargs)
            switch = torch.backends.cuda.cudnn_sdp_enabled()
            torch.backends.cuda.enable_cudnn_sdp(False)
            try:
                return original(*args, **kwargs)
            finally:
                torch.backends.cuda.enable_cudnn_sdp(switch)

        vars(self._decoder)["forward"] = forward
        return self

    def __exit__(self, *_: object) -> None:
        if self._found is None:
            vars(self._decoder).pop("forward", None)
        else:
            vars(self._decoder)["forward"] = self._found
