"""A conversation as token ids and labels: only what the assistant says is learned."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple

from transformers_agci.data.instruct import IMAGE_TOKEN
from transformers_agci.data.sharegpt import Conversation, Turn
from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES, Family, Lacks, require
from transformers_agci.families.training_support import Template

IGNORED = -100  # a label that the loss passes over


class Encoded(NamedTuple):
    """Token ids and labels of one conversation, equally long; `cut` says whether some of it is left out."""

    ids: list[int]
    labels: list[int]
    cut: bool = False


@dataclass(frozen=True)
class Encoder:
    """Encodes conversations in one format, cut at `cutoff` tokens."""

    template: Template
    tokenizer: Any
    cutoff: int
    thinking: bool | None = True  # the recipe's enable_thinking

    def __post_init__(self) -> None:
        for word in (*self.template.words, self.template.image_token):
            if len(self._ids(word)) != 1:
                raise InputError(
                    f"The template {self.template.name!r} needs {word!r} as one token, which the "
                    "checkpoint's tokenizer does not have; the template or the checkpoint is another one."
                )

    def encode(self, conversation: Conversation, tokens: Sequence[int]) -> Encoded:
        """Ids and labels; `tokens` is the number of image tokens of each image, in order.

        Raises InputError where the cut at `cutoff` would fall into an image or before it: the model takes all of an
        image's tokens or none.
        """
        ids: list[int] = []
        labels: list[int] = []
        cut = False
        for prompt, answer in self._turns(conversation, tokens):
            room = self.cutoff - len(ids)
            if room <= 0:
                cut = True
                break
            prompt_kept, answer_kept = kept_lengths(len(prompt), len(answer), room)
            cut = cut or (prompt_kept, answer_kept) != (len(prompt), len(answer))
            ids += prompt[:prompt_kept] + answer[:answer_kept]
            labels += [IGNORED] * prompt_kept + answer[:answer_kept]
        (mark,) = self._ids(self.template.image_token)
        if ids.count(mark) != sum(tokens):
            raise InputError(
                f"{conversation.where}: cutoff_len {self.cutoff} cuts off image tokens (the images have "
                f"{sum(tokens)}, {ids.count(mark)} would be left); raise cutoff_len, lower "
                "image_max_pixels, or take the row out."
            )
        return Encoded(ids, labels, cut)

    def _turns(self, conversation: Conversation, tokens: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
        """Ids of question and answer, turn by turn; what stands before the first question belongs to it."""
        template = self.template
        system = conversation.system or template.default_system
        framed = template.system.replace("{content}", system) if system else ""
        images = iter(tokens)
        for number, (question, answer) in enumerate(conversation.pairs):
            asked = self._with_images(question, images)
            prompt: list[int] = []
            if number == 0:
                if template.begins_with_bos and self.tokenizer.bos_token_id is not None:
                    prompt.append(self.tokenizer.bos_token_id)
                if template.system_in_user:
                    asked = framed + asked
                elif framed:
                    prompt += self._ids(framed)
            prompt += self._ids(template.user.replace("{content}", asked))
            said = self._with_images(answer, images)
            learned: list[int] = []
            if template.thought:
                prompt, said, learned = self._with_thought(prompt, said)
            learned += self._ids(template.assistant.replace("{content}", said))
            if template.ends_with_eos and self.tokenizer.eos_token_id is not None:
                learned.append(self.tokenizer.eos_token_id)
            yield prompt, learned

    def _with_thought(self, prompt: list[int], said: str) -> tuple[list[int], str, list[int]]:
        """Prompt, answer and the answer's first ids after the recipe's wish about thoughts."""
        before, after = (word.strip() for word in self.template.thought.split("\n\n", 1))
        if self.thinking is False:
            said = _without_thoughts(said, self.template.thought)
        if before in said or after in said:
            return prompt, said, []
        empty = self._ids(self.template.thought)
        return (prompt, said, empty) if self.thinking else (prompt + empty, said, [])

    def _with_images(self, turn: Turn, tokens: Iterator[int]) -> str:
        parts = turn.text.split(IMAGE_TOKEN)
        text = parts[0]
        for part in parts[1:]:
            run = self.template.image_token * next(tokens)
            text += self.template.image.replace("{tokens}", run) + part
        return text

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []


def kept_lengths(prompt: int, answer: int, room: int) -> tuple[int, int]:
    """How much of a prompt and an answer is kept where both have to share `room` tokens.

    A short answer (less than half of the room) is kept whole at the prompt's cost, otherwise a short prompt at the
    answer's; where neither is short both are cut in proportion.
    """
    if 2 * answer < room:
        answer_room = room
    elif 2 * prompt < room:
        answer_room = room - prompt
    else:
        answer_room = int(room * (answer / (prompt + answer)))
    answer_kept = min(answer, answer_room)
    return min(prompt, max(room - answer_kept, 0)), answer_kept


def _without_thoughts(text: str, thought: str) -> str:
    """The text without what stands between the marks of a thought, and without the line breaks before the rest."""
    begin, end = thought.split("\n\n", 1)
    begin, end = f"{begin}\n", f"\n{end}"
    while (start := text.find(begin)) >= 0 and (stop := text.find(end, start + len(begin))) >= 0:
        text = text[:start] + text[stop + len(end) :]
    return text.lstrip("\n")


# --- prompt formats --------------------------------------------------------------------------------------------------


def _templates_of(family: Family) -> tuple[Template, ...]:
    return () if isinstance(family.training, Lacks) else family.training.templates


TEMPLATES: Mapping[str, Template] = MappingProxyType(
    {template.name: template for family in SUPPORTED_FAMILIES.values() for template in _templates_of(family)}
)


def families_of(template: str) -> tuple[Family, ...]:
    """The families whose checkpoints speak a template."""
    return tuple(
        family for family in SUPPORTED_FAMILIES.values() if any(own.name == template for own in _templates_of(family))
    )


def template_for(name: str, model_type: str) -> Template:
    """The template of this name, if it belongs to the family; InputError names the family's own otherwise."""
    family = SUPPORTED_FAMILIES[model_type]
    own = {template.name: template for template in require(family, "training", family.training).templates}
    if name in own:
        return own[name]
    names = " or ".join(own)
    if name not in TEMPLATES:
        near = get_close_matches(name, TEMPLATES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(f"The template {name!r} is not known; {hint}{family.name} ({model_type}) takes {names}.")
    others = " and ".join(other.name for other in families_of(name))
    raise InputError(
        f"The template {name!r} belongs to {others}, but the checkpoint is a {family.name} ({model_type}); "
        f"take {names}."
    )
