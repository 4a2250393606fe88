"""The update of one call: the formula on the image tokens of a decoder's input, the text around them as it was."""

import logging
import weakref
from typing import Any, NamedTuple

import torch

from transformers_agci.errors import CannotServe
from transformers_agci.method.image_positions import ImagePositions
from transformers_agci.method.injection import global_context, injection_of
from transformers_agci.method.thread_state import Images

# Below this lambda no image token leaves the range of bfloat16 and float32; asking makes the device wait.
_SURELY_FINITE = 1e4
# Below this lambda a decoder's own arithmetic holds what it holds without AGCI (Gemma 3n's squares in float16 do not
# at a few hundred).
_SURELY_HELD = 10.0

_log = logging.getLogger("transformers_agci")


def check_output_finite(output: Any, images: Images) -> None:
    """CannotServe where a large lambda made the decoder's own arithmetic overflow: its answers would be NaN.

    Asked of the output [B, S, D] at image tokens, which is never that of padding.
    """
    hidden = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
    if images.lam <= _SURELY_HELD or not isinstance(hidden, torch.Tensor) or hidden.shape[:2] != images.mask.shape:
        return
    if not bool(torch.isfinite(hidden[images.mask.to(hidden.device)]).all()):
        raise CannotServe(
            f"lambda {images.lam:g} is too large for this model in {hidden.dtype}: its decoder's output at the image "
            "tokens is infinite or no number."
        )


class Recomputations:
    """Updates within torch.utils.checkpoint whose backward pass, which runs the model once more, is still to come.

    That run reads lambda or the strength again: after a change its gradients are those of another model than the loss.
    Layers that are checkpointed one by one lie behind the update and are not counted.
    """

    def __init__(self) -> None:
        self._waiting: weakref.WeakSet[Any] = weakref.WeakSet()  # functions of torch, which go with the backward pass

    def note(self) -> None:
        """An update is made now; note it where it will be made again."""
        top: Any = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)  # private: it may go
        hooks = top(False) if top is not None else None
        if hooks is not None and getattr(hooks[1], "__module__", "") == "torch.utils.checkpoint":
            self._waiting.add(hooks[1])

    def are_waiting(self) -> bool:
        """Whether a backward pass is still to come, or running."""
        return len(self._waiting) > 0

    def warn(self, event: str) -> None:
        """Warn where some are still to come, since `event` makes them different; once for each."""
        waiting = self.are_waiting()
        self._waiting.clear()
        if waiting:
            _log.warning(
                "%s before the backward pass of a call within torch.utils.checkpoint, which runs the model again "
                "as it is then: its gradients will be wrong. Call backward() first.",
                event,
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
            raise CannotServe(f"lambda {self.lam:g} is too large for {after[0].dtype}: image tokens become infinite.")
