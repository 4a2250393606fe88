"""Margins of the embedded model under every arm of the ruler, item by item, through the stock forward.

What comes before the question (system turn and image) is computed once per item and arm of the encoder side; no text
token in it sees an image, so it is the same for every planted size. Each question then continues that cache, once per
planted size. A rival that looks at a prompt's last token, or at a second prompt, gets the whole prompt every time. The
embedded model's own position probe computes the same numbers, row by row (a test compares them).
"""

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from transformers_agci.data.probe_rows import PROMPT
from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.embedded.probe_set import RenderedItem
from transformers_agci.experiments.planted_bias import PlantedBias, planted_bias, vision_windows
from transformers_agci.experiments.ruler.conditions import CELLS, CUTTING_WINDOW, Condition
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.prompt import answer_token_ids
from transformers_agci.method.attach import agci
from transformers_agci.method.forward_call import cache_of_output, with_cache
from transformers_agci.method.rivals import RIVALS

if TYPE_CHECKING:
    from transformers_agci.method.handle import Handle
    from transformers_agci.method.rivals.handle import RivalHandle


class RulerModel:
    """The embedded model, ready to answer under any condition; `lam` is the strength of every method."""

    def __init__(self, lam: float, loaded: LoadedModel | None = None) -> None:
        self.loaded = loaded or load(LoadOptions(str(embedded_model_path()), device="cpu"))
        self.lam = lam
        self.names = Atlas().names
        self._yes_no = list(answer_token_ids(self.loaded.processor))

    @torch.inference_mode()
    def margins(self, rendered: RenderedItem, conditions: Sequence[Condition]) -> dict[str, np.ndarray]:
        """Yes minus No logit by condition: [2, cells], the question for the target first, then for the absent image."""
        images = [Image.open(io.BytesIO(rendered.composite(cell))).convert("RGB") for cell in range(CELLS)]
        texts = [self._prompt(self.names[image]) for image in (rendered.item.target, rendered.item.absent)]
        inputs = dict(self.loaded.processor(text=[texts[0]] * CELLS, images=images, return_tensors="pt"))
        mark = self.loaded.processor.image_token
        tokenizer = self.loaded.processor.tokenizer
        tails = [tokenizer(text.rsplit(mark, 1)[1], add_special_tokens=False).input_ids for text in texts]
        found: dict[str, np.ndarray] = {}
        for (cutting, method), group in _by_prefix(conditions).items():
            with self._encoder_side(cutting, method) as handle, self._plants() as (bias, repair):
                prompts = (_Whole if group[0].needs_whole_prompts else _Prefix)(self.loaded.model, inputs, handle)
                for condition in group:
                    bias.beta, repair.beta = condition.planted
                    logits = [prompts.next_logits(tail)[:, self._yes_no] for tail in tails]
                    found[condition.name] = torch.stack([pair[:, 0] - pair[:, 1] for pair in logits]).numpy()
        return found

    def _prompt(self, name: str) -> str:
        content = [{"type": "image"}, {"type": "text", "text": PROMPT.format(caption=name)}]
        messages = [{"role": "user", "content": content}]
        return str(self.loaded.processor.apply_chat_template(messages, add_generation_prompt=True))

    @contextlib.contextmanager
    def _encoder_side(self, cutting: bool, method: str | None) -> "Iterator[Handle | RivalHandle | None]":
        """What happens before the decoder, vision windows and the method, whose handle it gives."""
        with contextlib.ExitStack() as stack:
            if cutting:
                stack.enter_context(vision_windows(self.loaded.model, CUTTING_WINDOW))
            if method is None:
                yield None
                return
            name, _, strength = method.partition(":")
            given: dict[str, Any] = {"strength": float(strength)} if strength else {}
            yield stack.enter_context(
                agci(self.loaded.model, method=name, **given)
                if name in RIVALS
                else agci(self.loaded.model, float(strength or self.lam), method=name)
            )

    @contextlib.contextmanager
    def _plants(self) -> Iterator[tuple[PlantedBias, PlantedBias]]:
        with planted_bias(self.loaded.model, 0.0) as bias, planted_bias(self.loaded.model, 0.0) as repair:
            yield bias, repair


def _by_prefix(conditions: Sequence[Condition]) -> Mapping[tuple[bool, str | None], list[Condition]]:
    """Conditions that share the keys and values of the image."""
    groups: dict[tuple[bool, str | None], list[Condition]] = {}
    for condition in conditions:
        groups.setdefault((condition.beta is None, condition.method), []).append(condition)
    return groups


class _Whole:
    """Whole prompts, one forward call each; behind it the second pass of a rival that has one."""

    def __init__(self, model: Any, inputs: Mapping[str, torch.Tensor], handle: Any) -> None:
        self.model, self.inputs, self.handle = model, inputs, handle
        self.length = _through_the_image(model, inputs)

    def next_logits(self, tail: Sequence[int]) -> torch.Tensor:
        """Logits [cells, vocabulary] after the tokens of `tail`, before a rival cuts any of them."""
        behind = {"input_ids": torch.tensor([tail]), "attention_mask": torch.ones(1, len(tail))}
        given = dict(self.inputs)
        for name, value in self.inputs.items():
            if value.shape == self.inputs["input_ids"].shape:  # one number per token
                more = behind.get(name, torch.zeros(1, len(tail))).to(value).expand(CELLS, -1)
                given[name] = torch.cat([value[:, : self.length], more], dim=1)
        logits: torch.Tensor = self.model(**given, logits_to_keep=1).logits[:, -1].float()
        second = self.handle.logits_processor(given, self.model)
        if second is None:
            return logits
        second(given["input_ids"], logits)
        found: torch.Tensor = second.first
        return found


def _through_the_image(model: Any, inputs: Mapping[str, torch.Tensor]) -> int:
    """The number of tokens up to the last image token."""
    return int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[-1]) + 1


class _Prefix:
    """The prompt up to the last image token, in a cache that every question continues."""

    def __init__(self, model: Any, inputs: Mapping[str, torch.Tensor], handle: Any) -> None:
        self.model = model
        ids = inputs["input_ids"]
        self.length = _through_the_image(model, inputs)
        cut = {name: value[:, : self.length] if value.shape == ids.shape else value for name, value in inputs.items()}
        self.cache = cache_of_output(model.model(**cut, use_cache=True))
        self.next_position = self.length + int(model.model.rope_deltas[0])

    def next_logits(self, tail: Sequence[int]) -> torch.Tensor:
        """Logits [cells, vocabulary] after the tokens of `tail`; the cache is left as it was."""
        ids = torch.tensor([tail]).expand(CELLS, -1)
        positions = torch.arange(self.next_position, self.next_position + len(tail)).expand(3, CELLS, -1)
        mask = torch.ones(CELLS, self.length + len(tail), dtype=torch.long)
        tokens = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        output = self.model(**with_cache(self.model, tokens, self.cache), logits_to_keep=1)
        self.cache.crop(-len(tail))
        return output.logits[:, -1].float()
