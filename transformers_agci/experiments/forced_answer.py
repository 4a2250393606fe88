"""A model's own greedy answer to one prompt, and the raw logits of its tokens on other images.

The answer is written into the prompt (teacher forcing), so that one forward call gives the logits of all its tokens.
For an answer of one token this is what generating again would give; for a longer one every step is asked with the
original beginning of the answer, where generating again would go on from its own.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from transformers_agci.errors import InputError
from transformers_agci.inference.answer import Answerer
from transformers_agci.inference.host_values import crossing
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import TEXT_KEYS, RawPixels, to_device
from transformers_agci.inference.prompt import chat_text, refusal_named, tokenize
from transformers_agci.inference.questions import Question


@dataclass(frozen=True)
class Answered:
    """The answer without its end token: `tokens` [T] and their text."""

    tokens: tuple[int, ...]
    text: str


class ForcedAnswer:
    """One question about images of one size; the images come as PIL images or uint8 tensors [3, H, W].

    With `raw`, pixels leave the processor as bytes and are normalised on the device.
    """

    def __init__(
        self, loaded: LoadedModel, question: Question, max_new_tokens: int, raw: RawPixels | None = None
    ) -> None:
        self.loaded, self.raw = loaded, raw
        self.where = question.where
        self.prompt = chat_text(loaded.processor, question)
        self.max_new_tokens = max_new_tokens

    def inputs(self, images: Sequence[Any]) -> dict[str, torch.Tensor]:
        """The processor's tensors for the prompt about each of these images, on the CPU."""
        processor = self.loaded.processor if self.raw is None else self.raw.processor
        with refusal_named(self.where):
            return tokenize(processor, [self.prompt] * len(images), [[image] for image in images])

    def on_device(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The inputs as the model takes them."""
        return to_device(self.loaded, inputs, self.raw)

    def answer(self, inputs: Mapping[str, torch.Tensor]) -> Answered:
        """The greedy answer to the prompt of a batch of one.

        Raises InputError if it ends before its first token.
        """
        answerer = Answerer(self.loaded.model, self.loaded.processor)
        settings = copy.copy(answerer.settings)
        settings.max_new_tokens = self.max_new_tokens
        with torch.inference_mode():
            made = self.loaded.model.generate(**self.on_device(inputs), generation_config=settings)
        tokens = made.sequences[0, inputs["input_ids"].shape[1] :].tolist()
        ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        if tokens and tokens[-1] in ends:
            tokens.pop()
        if not tokens:
            raise InputError(
                f"{self.where}: the model's answer has no token (it ends at once), so there is no logit to compare."
            )
        return Answered(tuple(tokens), answerer.tokenizer.decode(tokens, skip_special_tokens=True).strip())

    def logits(self, inputs: Mapping[str, torch.Tensor], answered: Answered) -> torch.Tensor:
        """The raw logits [B, T] float32 of the answer's tokens, each after the prompt and the tokens before it.

        The text is on the CPU; pixels may be where the model is.
        """
        tokens = torch.tensor(answered.tokens)
        forced = self.on_device(_with_answer(inputs, tokens[:-1]))
        with torch.inference_mode():
            # Only the needed positions' logits: the vocabulary is large. Nobody goes on from the keys and values.
            logits = self.loaded.model(**forced, logits_to_keep=len(tokens), use_cache=False).logits
        wanted = crossing(tokens, logits.device).expand(len(logits), -1)
        return logits[:, -len(tokens) :].gather(2, wanted[..., None])[..., 0].float().cpu()


def _with_answer(inputs: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> Mapping[str, torch.Tensor]:
    """The text tensors [B, S] lengthened by the answer's tokens [T - 1]; they are no image tokens."""
    if not len(tokens):
        return inputs
    rows = len(inputs["input_ids"])
    added = {"input_ids": tokens.expand(rows, -1), "attention_mask": torch.ones_like(tokens).expand(rows, -1)}
    none = torch.zeros_like(tokens).expand(rows, -1)
    longer = {
        name: torch.cat([inputs[name], added.get(name, none).to(inputs[name].dtype)], dim=1)
        for name in TEXT_KEYS & inputs.keys()
    }
    return {**inputs, **longer}
