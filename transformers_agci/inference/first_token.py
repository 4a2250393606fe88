"""Yes/No answers read off one forward call: what `generate` would do, without what it does around it.

A Yes/No row is answered as soon as its first token is a verdict, which it is for every model that answers such a
question. The first token of greedy decoding is the largest of the last logits, after the repetition penalty where the
checkpoint has one. Calling the model for these logits instead of `generate` saves a dozen waits for a GPU, and lets
many questions about the same images share one call (`tails`): the decoder then sees the questions' own tokens only.

On a GPU a prompt of Qwen's that nothing goes on from is padded behind instead of in front (`_padded_behind`): what
comes after a token means nothing to it, so that no mask is needed, with which attention takes several times as long.

    padded in front, with a mask     . . s s i i i t        padded behind      s s i i i t . .
                                     s s i i i t t t                           s s i i i t t t

Where some row of a batch has no verdict yet, or the checkpoint's settings shape the answer in another way, None is
returned and `generate` answers; padded in front both give the same bits for the same batch. A model that often answers
in other words pays for each such call twice: once calls without a verdict are more than one in eight, no further one is
tried.
"""

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
import transformers
from transformers import DynamicCache
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

from transformers_agci.inference.answer import Answer, Answerer, recorded_settings, verdict_is_fixed
from transformers_agci.inference.host_values import crossing
from transformers_agci.inference.prefix_replay import Tail
from transformers_agci.method.forward_call import cache_name, keep_on_host, on_host
from transformers_agci.method.lost_images import note_images_in_cache
from transformers_agci.method.rivals.handle import current_rival

# Settings that leave the first token alone, or that are followed here.
FOLLOWED = {"decoding", "repetition_penalty", "eos_token_id", "pad_token_id"}
NEUTRAL = {"no_repeat_ngram_size": 0, "encoder_repetition_penalty": 1.0}  # as transformers 4.57 fills them in
GIVEN = {"position_ids", "attention_mask", "logits_to_keep"}  # and a cache
ANSWERED_PER_MISS = 8  # calls with a verdict for each one without, beyond the first
MASKLESS_SINCE = (5, 6)  # 4.57 takes image tokens, whose places in time do not count up, for texts of their own
MOST_PADDING = 32  # tokens: the output matrix is applied to one position more in each row
TEXT = {"input_ids", "attention_mask", "mm_token_type_ids"}


class FirstToken:
    """Answers batches by their first token; `reason` says why it cannot, or is None.

    padding_behind  prompts that nothing goes on from are padded behind, where the family's tokens have three places:
                    these decoders let no token see what comes after it
    """

    def __init__(self, answerer: Answerer, padding_behind: bool = False) -> None:
        self.answerer, self.model, self.padding_behind = answerer, answerer.model, padding_behind
        penalty = answerer.settings.repetition_penalty
        self._processor = None if penalty in (None, 1.0) else RepetitionPenaltyLogitsProcessor(float(penalty))
        self.reason = self._why_not()
        self._answered = self._missed = 0  # calls
        self._masked = tuple(map(int, transformers.__version__.split(".")[:2])) < MASKLESS_SINCE

    def _why_not(self) -> str | None:
        shaping = recorded_settings(self.answerer.settings)
        others = {name for name, value in shaping.items() if NEUTRAL.get(name) != value} - FOLLOWED
        if others:
            return f"the checkpoint's generation settings include {', '.join(sorted(others))}"
        missing = (GIVEN | {cache_name(self.model)}) - inspect.signature(self.model.forward).parameters.keys()
        if missing or self.model.config.is_encoder_decoder:
            return f"{type(self.model).__name__} takes no {', '.join(sorted(missing)) or 'prompt of a decoder'}"
        return None

    def serves(self, text: dict[str, torch.Tensor]) -> bool:
        """Whether prompts with these tensors can be answered here, and are likely to be."""
        worth_it = ANSWERED_PER_MISS * (self._missed - 1) <= self._answered
        return self.reason is None and worth_it and text.keys() <= TEXT

    def whole(
        self, inputs: dict[str, torch.Tensor], positions: torch.Tensor, padding: int, cache: bool
    ) -> list[Answer] | None:
        """Answers to whole prompts [B, S], padded in front, the shortest by `padding` tokens.

        `cache`: their keys and values are wanted, or another prompt's are there.
        """
        given: dict[str, Any] = {**inputs, "position_ids": positions}
        last, keep = None, 1
        if self._may_pad_behind(positions, padding, cache):
            last, keep, padding = _padded_behind(given, padding), 1 + padding, 0
        if positions.dim() > 2:  # token types are there for the positions; Gemma 4 shapes its attention mask by them
            given.pop("mm_token_type_ids", None)
        if not padding and not (self._masked and positions.dim() > 2):
            del given["attention_mask"]  # an explicit mask costs the attention its quickest kernel
            if positions.dim() == 2:
                del given["position_ids"]  # what the model counts by itself; given, they are searched for a second text
        given[cache_name(self.model)] = DynamicCache(config=self.model.config.get_text_config()) if cache else None
        with torch.inference_mode():
            made = self.model(**given, use_cache=cache, logits_to_keep=keep).logits
            if last is not None:
                made = made.gather(1, last.to(made.device)[:, None, None].expand(-1, 1, made.shape[-1]))
            return self._answers(made, inputs["input_ids"])

    def _may_pad_behind(self, positions: torch.Tensor, padding: int, cache: bool) -> bool:
        asked = self.padding_behind and 0 < padding <= MOST_PADDING and not cache
        return asked and positions.dim() > 2 and not self._masked and current_rival(self.model) is None

    def tails(self, tail: Tail, whole_ids: torch.Tensor) -> list[Answer] | None:
        """Answers to prompts whose beginnings lie in the tail's cache; `whole_ids` [B, S], padded on the left."""
        note_images_in_cache(tail.cache)
        with torch.inference_mode():
            made = self.model(
                input_ids=tail.ids,
                attention_mask=tail.mask,
                position_ids=tail.positions,
                use_cache=True,
                logits_to_keep=1,
                **{cache_name(self.model): tail.cache},
            ).logits
            return self._answers(made, whole_ids)

    def _answers(self, logits: torch.Tensor, ids: torch.Tensor) -> list[Answer] | None:
        """From the logits [B, 1, V] of the last token; one read-back from the device for all of them."""
        raw = logits[:, -1].float()
        scores = raw if self._processor is None else self._processor(ids.to(raw.device), raw)
        words = torch.stack([raw[:, word] for word in self.answerer.answer_ids], dim=1)  # a list of them would cross
        top, token = scores.max(dim=-1)  # the largest is not a number where any is none
        read = torch.cat([words.double(), top[:, None].double(), token[:, None].double()], dim=1).tolist()  # [B, 4]
        tokens = [int(token) for *_, token in read]
        texts = self.answerer.tokenizer.batch_decode([[token] for token in tokens], skip_special_tokens=True)
        bad = [not all(map(math.isfinite, scores)) for *scores, _ in read]  # of Yes, No and the largest
        fixed = (
            verdict_is_fixed(text) and token not in self.answerer.ends
            for text, token in zip(texts, tokens, strict=True)
        )
        if not all(is_fixed or nan for is_fixed, nan in zip(fixed, bad, strict=True)):
            self._missed += 1
            return None
        self._answered += 1
        return [
            Answer(text.strip(), yes, no, not_a_number=nan)
            for text, (yes, no, *_), nan in zip(texts, read, bad, strict=True)
        ]


def _padded_behind(given: dict[str, Any], padding: int) -> torch.Tensor:
    """Move the padding of ids [B, S] and places [3, B, S] behind the tokens; where each row's last token stands among
    the last `padding` + 1 positions [B].

    Worked out on the host, where ids and mask came from, so that it waits for nothing.
    """
    ids, mask = given["input_ids"], on_host(given["attention_mask"]).cpu()
    width, pads = mask.shape[1], (mask == 0).sum(dim=1)
    order = (torch.arange(width) + pads[:, None]) % width
    there = crossing(order, ids.device)
    given["input_ids"] = ids.gather(1, there)
    if given["input_ids"].device.type != "cpu":
        keep_on_host(given["input_ids"], on_host(ids).cpu().gather(1, order))
    given["position_ids"] = given["position_ids"].gather(-1, there.expand_as(given["position_ids"]))
    return crossing(padding - pads, ids.device)


def positions_of(vlm: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The place of each token in its prompt, on the CPU: the numbers that `generate` would make on the device.

    [3, B, S] from the model's own rule where it has one (time, height and width of image tokens), else [B, S].
    """
    rule = getattr(vlm, "get_rope_index", None)
    mask = inputs["attention_mask"]
    if rule is None:
        return (mask.long().cumsum(dim=-1) - 1).masked_fill(mask == 0, 1)
    names = inspect.signature(rule).parameters
    positions: torch.Tensor = rule(**{name: value for name, value in inputs.items() if name in names})[0]
    return positions


def joined_ids(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Prompts [B, S] of several widths, padded on the left, below one another."""
    width = max(ids.shape[1] for ids in batches)
    return torch.cat([torch.nn.functional.pad(ids, (width - ids.shape[1], 0)) for ids in batches])
