"""The update of one call: the formula on the image tokens of a decoder's input, the text around them as it was."""

from typing import NamedTuple

import torch

from transformers_agci.errors import InputError
from transformers_agci.method.image_positions import ImagePositions
from transformers_agci.method.injection import global_context, injection_of

# Below this lambda no image token leaves the range of bfloat16 and float32; asking makes the device wait.
_SURELY_FINITE = 1e4


class EmbedsUpdate(NamedTuple):
    """How the embeddings of one call are updated; kept for a second call of the decoder with the same tensor."""

    images: list[ImagePositions]
    lam: float
    scope: str
    method: str

    def apply(self, embeds: torch.Tensor) -> torch.Tensor:
        """A copy of the decoder's input [B, S, D] with every image's tokens updated."""
        if not self.images:
            return embeds
        inject = injection_of(self.method)
        assert inject is not None  # `attach` has checked the name
        tokens = [image.take(embeds) for image in self.images]  # each [N_i, D]
        context = global_context(torch.cat(tokens)) if self.scope == "batch" else None
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
