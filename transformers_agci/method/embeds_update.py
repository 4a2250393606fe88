"""The update of one call: the formula on the image tokens of a decoder's input, the text around them as it was."""

from typing import Any, NamedTuple

import torch

from transformers_agci.errors import InputError
from transformers_agci.method.image_positions import ImagePositions
from transformers_agci.method.injection import global_context, injection_of
from transformers_agci.method.thread_state import Images

# Below this lambda no image token leaves the range of bfloat16 and float32; asking makes the device wait.
_SURELY_FINITE = 1e4
# Below this lambda a decoder's own arithmetic holds what it holds without AGCI (Gemma 3n's squares in float16 do not
# at a few hundred).
_SURELY_HELD = 10.0


def check_output_finite(output: Any, images: Images) -> None:
    """InputError where a large lambda made the decoder's own arithmetic overflow: its answers would be NaN.

    Asked of the output [B, S, D] at image tokens, which is never that of padding.
    """
    hidden = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    if images.lam <= _SURELY_HELD or not isinstance(hidden, torch.Tensor) or hidden.shape[:2] != images.mask.shape:
        return
    if not bool(torch.isfinite(hidden[images.mask.to(hidden.device)]).all()):
        raise InputError(
            f"lambda {images.lam:g} is too large for this model in {hidden.dtype}: its decoder's output at the image "
            "tokens is infinite or no number."
        )


class EmbedsUpdate(NamedTuple):
    """How the embeddings of one call are updated; kept for a second call of the decoder with the same tensor."""

    images: list[ImagePositions]
    lam: float
    scope: str
    method: str
    context: torch.Tensor | None = None  # [D], g of all images where it is not the mean of their own tokens

    def apply(self, embeds: torch.Tensor) -> torch.Tensor:
        """A copy of the decoder's input [B, S, D] with every image's tokens updated."""
        if not self.images:
            return embeds
        inject = injection_of(self.method)
        assert inject is not None  # `attach` has checked the name
        tokens = [image.take(embeds) for image in self.images]  # each [N_i, D]
        context = self.context
        if context is None and self.scope == "batch":
            context = global_context(torch.cat(tokens))
        # Only the image rows are widened to float32: a whole batch of long sequences would take gigabytes.
        updated = embeds.clone()
        changed = [inject(own, self.lam, context) for own in tokens]
        for image, own in zip(self.images, changed, strict=True):
            image.put(updated, own)
        if embeds.dtype == torch.float16 or self.lam > _SURELY_FINITE:
            self._check_finite(tokens, changed)
        return updated

    def _check_finite(self, before: list[torch.Tensor], after: list[torch.Tensor]) -> None:
        if not bool(torch.isfinite(torch.cat(after)).all()) and bool(torch.isfinite(torch.cat(before)).all()):
            raise InputError(f"lambda {self.lam:g} is too large for {after[0].dtype}: image tokens become infinite.")
