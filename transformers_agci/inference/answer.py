"""One way of answering: greedy `generate` with a stop rule per task."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from transformers_agci.errors import InputError, short
from transformers_agci.inference.prompt import answer_token_ids
from transformers_agci.inference.questions import ANSWER_WORDS, StopRule
from transformers_agci.method.rivals.handle import current_rival

# Generation settings that shape a greedy answer.
SHAPING = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "eos_token_id",
    "pad_token_id",
    "min_new_tokens",
    "encoder_repetition_penalty",
    "sequence_bias",
    "exponential_decay_length_penalty",
    "guidance_scale",
    "watermarking_config",
    "stop_strings",
)
LOGIT_DIGITS = 6  # behind the point: more than float32 has, and a fixed form in the file


@dataclass(frozen=True)
class Answer:
    """`text` is the answer without surrounding white space.

    The logits are raw, and None unless Yes/No was asked. An engine that gives log-probabilities gives those: the margin
    is the same, and where one of the words is not among the tokens that it returned, there is none.
    """

    text: str
    yes_logit: float | None = None
    no_logit: float | None = None
    not_a_number: bool = field(default=False, kw_only=True)  # some logit is none, or infinite: the text means nothing

    @property
    def fields(self) -> dict[str, Any]:
        """What a result row holds beside the input row."""
        if self.yes_logit is None and self.no_logit is None:
            return {"prediction": self.text}
        margin = None if self.yes_logit is None or self.no_logit is None else self.yes_logit - self.no_logit
        scores = {"yes_logit": self.yes_logit, "no_logit": self.no_logit, "margin": margin}
        rounded = {name: value if value is None else round(value, LOGIT_DIGITS) for name, value in scores.items()}
        return {"prediction": self.text, **rounded}

    @property
    def logits_disagree(self) -> bool:
        """The answer says one word and the raw logits order the words the other way (a repetition penalty can)."""
        if self.yes_logit is None or self.no_logit is None or not self.text.startswith(ANSWER_WORDS):
            return False
        return (self.yes_logit > self.no_logit) != self.text.startswith("Yes")


def verdict_is_fixed(text: str) -> bool:
    """Whether more text cannot change how a Yes/No answer is scored.

    The scoring rule: an answer that begins with Yes or No is that word; of any other the part before ", " counts, in
    lower case and without white space around it. So "Yes" and "Nothing" are fixed, "The" is (it can never be right),
    and "yes" is not yet.

    >>> [verdict_is_fixed(text) for text in ("", " Y", "Yes", "yes", "yes ,", "yes, it", "The")]
    [False, False, True, False, False, True, True]
    """
    text = text.lstrip()
    if text.startswith(ANSWER_WORDS):
        return True
    text = text.lower()
    for word in map(str.lower, ANSWER_WORDS):
        if word.startswith(text) or (text.startswith(word) and text[len(word) :].strip() in ("", ",")):
            return False
    return True


class _NanGuard(LogitsProcessor):
    """Leaves the scores as they are, and remembers on the device which rows held one that is not a number.

    A row whose attention mask hides every key gives such scores, and their argmax is a token like any other; float16
    gives infinite ones. Minus infinity is what a token that may not come is given.
    """

    def __init__(self) -> None:
        self._found: torch.Tensor | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        here = _no_numbers(scores)
        self._found = here if self._found is None else self._found | here
        return scores

    def rows(self) -> list[bool]:
        """For each row whether it held one."""
        assert self._found is not None
        return self._found.tolist()


def _no_numbers(scores: torch.Tensor) -> torch.Tensor:
    """Whether some score [..., V] is not a number, or infinite: the largest one is [...]."""
    largest = scores.amax(dim=-1)
    return largest.isnan() | largest.isposinf()


class _StopAtVerdict(StoppingCriteria):
    """Ends each row by itself as soon as its verdict is fixed."""

    def __init__(self, tokenizer: Any, prompt_length: int) -> None:
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:  # [B, S] -> [B]
        texts = self.tokenizer.batch_decode(input_ids[:, self.prompt_length :], skip_special_tokens=True)
        return torch.tensor([verdict_is_fixed(text) for text in texts], device=input_ids.device)


def generation_settings(model: Any, tokenizer: Any) -> Any:
    """The checkpoint's own generation settings, made greedy: sampling off, everything else kept."""
    config = copy.deepcopy(model.generation_config)
    penalty = config.repetition_penalty
    if penalty is not None and not (isinstance(penalty, int | float) and penalty > 0):
        raise InputError(
            f"generation_config.json: repetition_penalty must be a number above 0, but it is {short(penalty, 40)}."
        )
    config.do_sample, config.num_beams = False, 1
    config.temperature = config.top_p = config.top_k = None
    config.max_length = None
    if config.eos_token_id is None:
        config.eos_token_id = tokenizer.eos_token_id
    if config.pad_token_id is None:
        eos = config.eos_token_id
        config.pad_token_id = eos[0] if isinstance(eos, list) else eos
    config.return_dict_in_generate = True
    return config


def recorded_settings(config: Any) -> dict[str, Any]:
    """What of the generation settings shapes a greedy answer, for the manifest."""
    found = {name: getattr(config, name, None) for name in SHAPING}
    return {"decoding": "greedy", **{name: value for name, value in found.items() if value is not None}}


class Answerer:
    """Answers batches on one model."""

    def __init__(self, model: Any, processor: Any) -> None:
        self.model = model
        self.tokenizer = processor.tokenizer
        self.processor = processor
        self.settings = generation_settings(model, self.tokenizer)
        eos = self.settings.eos_token_id
        self.ends = frozenset(eos if isinstance(eos, list) else [eos])
        self._answer_ids: tuple[int, int] | None = None
        # Janus's generate() does not hand logits processors on.
        self._drops_guard = type(model).generate is not GenerationMixin.generate

    @property
    def answer_ids(self) -> tuple[int, int]:
        """The tokens of Yes and No."""
        if self._answer_ids is None:
            self._answer_ids = answer_token_ids(self.processor)
        return self._answer_ids

    def answer(self, inputs: dict[str, torch.Tensor], stop: StopRule) -> list[Answer]:
        """Greedy answers to a batch of prompts [B, S], one per row."""
        settings = copy.copy(self.settings)
        settings.max_new_tokens = stop.max_new_tokens
        settings.output_logits = stop.yes_no or self._drops_guard
        length = inputs["input_ids"].shape[1]
        criteria = StoppingCriteriaList([_StopAtVerdict(self.tokenizer, length)] if stop.yes_no else [])
        guard = _NanGuard()
        rival = current_rival(self.model)
        contrast = None if rival is None else rival.logits_processor(inputs, self.model)
        with torch.inference_mode():
            made = self.model.generate(
                **inputs,
                generation_config=settings,
                stopping_criteria=criteria,
                logits_processor=LogitsProcessorList([guard] if contrast is None else [guard, contrast]),
            )
        texts = [
            text.strip() for text in self.tokenizer.batch_decode(made.sequences[:, length:], skip_special_tokens=True)
        ]
        bad = _no_numbers(torch.stack(made.logits)).any(0).tolist() if self._drops_guard else guard.rows()
        if not stop.yes_no:
            return [Answer(text, not_a_number=nan) for text, nan in zip(texts, bad, strict=True)]
        # Of two passes the margin is that before any token is cut: a cut one has no logit.
        words = self._word_logits(made.logits if contrast is None or contrast.first is None else [contrast.first])
        return [
            Answer(text, yes, no, not_a_number=nan or not (math.isfinite(yes) and math.isfinite(no)))
            for text, (yes, no), nan in zip(texts, words, bad, strict=True)
        ]

    def _word_logits(self, logits: Sequence[torch.Tensor]) -> list[list[float]]:
        """The Yes and No logits of each row before the first answer token, as the model gave them."""
        return logits[0][:, list(self.answer_ids)].float().tolist()  # [B, 2]
