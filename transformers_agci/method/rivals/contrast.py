"""Logits of a prompt held against those of a second pass (VCD, PAI), as a processor for `generate`.

The second pass has a cache of its own and goes on token by token with the first one; where the rows of the first one
are reordered (beams), it starts over. The rival does nothing in it.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from transformers_agci.errors import CannotServe
from transformers_agci.families import find_vlm, image_token_id
from transformers_agci.method.forward_call import cache_name, cache_of_output
from transformers_agci.method.rivals.call_state import state

if TYPE_CHECKING:
    from transformers_agci.method.rivals.handle import RivalHandle


class ContrastProcessor:
    """A logits processor of one `generate` call.

    Attributes:
        first: [B, V] what became of the logits before the first new token, before any token was cut.
    """

    def __init__(self, handle: "RivalHandle", model: Any, inputs: Mapping[str, torch.Tensor]) -> None:
        assert handle.rival.contrast is not None
        self.handle, self.model, self.rule = handle, model, handle.rival.contrast
        token = image_token_id(find_vlm(model).config)
        self.second = self.rule.second(inputs, handle.options, token)
        self.prompt = inputs["input_ids"].shape[1]
        self.first: torch.Tensor | None = None
        self._cache: Any = None
        self._done: torch.Tensor | None = None  # the ids of the calls before

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [B, V] for the tokens behind `input_ids` [B, S]."""
        with state.second_pass(), torch.no_grad():
            second = self._second_logits(input_ids).to(scores.device)
        combined, allowed = self.rule.combine(scores, second, self.handle.strength, self.handle.options)
        if self.first is None:
            self.first = combined
            if not combined[allowed].isfinite().all():
                raise CannotServe(f"The logits of {self.handle!r} are no numbers: give a smaller strength or option.")
        return combined.masked_fill(~allowed, -torch.inf).to(scores.dtype)

    def _second_logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] of the second pass behind the same new tokens."""
        new = ids[:, self.prompt :]
        goes_on = self._done is not None and torch.equal(self._done, ids[:, :-1])
        self._done = ids
        rows = len(ids) // len(self.second["input_ids"])
        if not goes_on or self._cache is None:
            given = {name: self._repeated(value, rows) for name, value in self.second.items()}
            output = self._call(given, new)
        else:
            output = self._step(new)
        self._cache = cache_of_output(output)
        found: torch.Tensor = output.logits[:, -1].float()
        return found

    def _repeated(self, value: torch.Tensor, rows: int) -> torch.Tensor:
        """A tensor of the second prompt for `rows` beams of each row."""
        if rows == 1:
            return value
        if value.shape[:1] == self.second["input_ids"].shape[:1]:
            return value.repeat_interleave(rows, dim=0)
        batch = len(self.second["input_ids"])
        parts = torch.split(value, len(value) // batch)
        return torch.cat([part for part in parts for _ in range(rows)])

    def _call(self, given: dict[str, torch.Tensor], new: torch.Tensor) -> Any:
        """The whole second prompt and the tokens behind it, on an empty cache."""
        ids = torch.cat([given["input_ids"], new], dim=1)
        mask = torch.cat([given["attention_mask"], torch.ones_like(new)], dim=1)
        for name in ("mm_token_type_ids", "token_type_ids"):
            if name in given:
                given[name] = torch.cat([given[name], torch.zeros_like(new)], dim=1)
        vlm: Any = find_vlm(self.model)
        kept = getattr(vlm, "rope_deltas", None)
        given |= {"input_ids": ids, "attention_mask": mask}
        if hasattr(vlm, "rope_deltas"):
            vlm.rope_deltas = None
        else:
            given["position_ids"] = (mask.cumsum(dim=-1) - 1).clamp_min(0)
        state.positions = None
        output = self.model(**given, use_cache=True)
        # Not by rope_deltas, which count a row's padding or do not, by version and by whether there is an image.
        seen = state.positions
        self._next = torch.full_like(ids[:, -1:], ids.shape[1]) if seen is None else seen[..., -1:] + 1
        self._mask = mask
        if hasattr(vlm, "rope_deltas"):
            vlm.rope_deltas = kept
        return output

    def _step(self, new: torch.Tensor) -> Any:
        """One token more on the second pass's cache."""
        self._mask = torch.cat([self._mask, torch.ones_like(new[:, -1:])], dim=1)
        position, self._next = self._next, self._next + 1
        return self.model(
            input_ids=new[:, -1:],
            attention_mask=self._mask,
            position_ids=position,
            use_cache=True,
            **{cache_name(self.model): self._cache},
        )
