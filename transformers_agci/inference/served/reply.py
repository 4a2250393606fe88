"""What a server's reply says: the text, the scores of Yes and No, the tokens that it cost.

A model that reasons writes its tokens of reasoning before those of the answer. Servers put them into a field of their
own, leave them in the text between marks, or drop them; the log-probabilities are of all tokens. So the answer's first
token is looked for by its text, and where it is not found the reply has no margin.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers_agci.errors import clipped, printable
from transformers_agci.inference.answer import Answer, verdict_is_fixed
from transformers_agci.inference.questions import ANSWER_WORDS
from transformers_agci.inference.served.faults import choice_of, text_of

LONGEST_NAME = 200  # of a model, a build, a reason, in letters
MOST_TOKENS = 10**9  # of one answer; more is no count
IMPOSSIBLE = -9000.0  # a log-probability that stands for minus infinity: vLLM writes -9999
ROUNDING = 1e-6  # by so much a log-probability may be above 0
REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")  # of a message
# Where reasoning begins and, as the second group, where it ends.
REASONING_MARKS = re.compile(
    r"(<think(?:ing)?>|\[THINK\]|◁think▷|<\|channel>)|(</think(?:ing)?>|\[/THINK\]|◁/think▷|<channel\|>)"
)
MARK_OF_AN_END = re.compile(r"(<[^<>]*>|\[/?[A-Z_]+\])?")  # of a turn, as a token: <|im_end|>, </s>
SPELLINGS = str.maketrans({"▁": " ", "Ġ": " ", "Ċ": "\n"})  # of white space in tokens, by what some servers say


class Reply(NamedTuple):
    """An answer, and what the server says beside it: tokens (None where it does not count), model, build."""

    answer: Answer
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str | None
    fingerprint: str | None
    has_scores: bool  # log-probabilities came with it, whether or not both words are among them
    is_placed: bool  # and the answer's first token is known
    ended: str  # why, as the server calls it


def read_reply(found: Mapping[str, Any], yes_no: bool) -> Reply:
    """The reply to one question, from an object in which no fault was found.

    A reply without text (a filter, a refusal, reasoning that used up the tokens) is the empty answer, which is
    unreadable and counted as such.
    """
    choice = choice_of(found)
    text, reasoned = _parted(choice["message"])
    tokens = _tokens(choice.get("logprobs")) if yes_no else []
    start = answer_start(text, [str(token.get("token", "")) for token in tokens], reasoned)
    scores: tuple[float | None, float | None] = (None, None)
    if start is not None:
        scores = word_scores(tokens[start].get("top_logprobs"), tokens[start].get("token"))
        text = _until_verdict(text, tokens[start:])
    return Reply(
        Answer(text.strip(), *scores),
        _count(found.get("usage"), "prompt_tokens"),
        _count(found.get("usage"), "completion_tokens"),
        _name(found.get("model")),
        _name(found.get("system_fingerprint")),
        bool(tokens),
        start is not None,
        _name(choice.get("finish_reason")) or "no reason given",
    )


def _parted(message: Mapping[str, Any]) -> tuple[str, bool]:
    """The answer's text, without reasoning, and whether the model is known to have reasoned before it."""
    text = text_of(message) or ""
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    reasoned = any(message.get(name) for name in REASONING_FIELDS) or any(part.get("type") != "text" for part in parts)
    marks = list(REASONING_MARKS.finditer(text))
    if not marks:
        return text, reasoned
    return (text[marks[-1].end() :] if marks[-1].group(2) else ""), True


def answer_start(text: str, tokens: Sequence[str], reasoned: bool = False) -> int | None:
    """Which of the tokens is the answer's first; None where that cannot be told.

    Without reasoning it is the first of all, as under the other engines, and the tokens must then spell the text.

    >>> answer_start("Yes.", ["Yes", ".", "<|im_end|>"]), answer_start("No", ["<think>", "Hm", "</think>", "\\n", "No"])
    (0, 4)
    >>> answer_start("No", ["Yes", ", or rather not"]), answer_start("", ["Let", " me", " see"], reasoned=True)
    (None, None)
    """
    spelled = [token.translate(SPELLINGS) for token in tokens]
    while spelled and MARK_OF_AN_END.fullmatch(spelled[-1].strip()):
        spelled.pop()
    if not reasoned and tokens and _spells(text.strip(), "".join(spelled).strip()):
        return 0
    rest, text = "", text.strip()
    for start in range(len(spelled) - 1, -1, -1):
        rest = (spelled[start] + rest).rstrip()
        if text and spelled[start].strip() and rest.strip() == text:
            return start
        if len(rest.strip()) > len(text):
            return None
    return None


def _spells(text: str, spelled: str) -> bool:
    """Whether this is the text; only up to the first sign outside ASCII, which may be several tokens."""
    plain = re.match(r"[\x00-\x7f]*", text)
    assert plain is not None
    return spelled == text if plain.group() == text else bool(plain.group()) and spelled.startswith(plain.group())


def word_scores(top: Any, chosen: Any = None) -> tuple[float | None, float | None]:
    """Log-probabilities of Yes and No among the most likely first tokens; None for a word that is not among them.

    Some tokenizers have a token with a space before the word and one without, and some servers spell both alike. Where
    the `chosen` token is a word with something before it, only this spelling counts, for both words. Otherwise the bare
    word counts if there is one, of several the likelier: it is the one that begins an answer.

    >>> word_scores([{"token": " No", "logprob": -0.1}, {"token": "No", "logprob": -2.5}])
    (None, -2.5)
    >>> word_scores([{"token": " No", "logprob": -0.1}, {"token": "No", "logprob": -2.5}], chosen=" No")
    (None, -0.1)
    """
    entries = [entry for entry in top if isinstance(entry, dict)] if isinstance(top, list) else []
    known = [(entry.get("token"), entry.get("logprob")) for entry in entries]
    word = _word(chosen)
    if word in ANSWER_WORDS and chosen != word:
        before = chosen[: chosen.index(word)]
        known = [(str(token).removeprefix(before), score) for token, score in known if str(token).startswith(before)]
    yes, no = (_score(word, known) for word in ANSWER_WORDS)
    return yes, no


def _score(word: str, known: Sequence[tuple[Any, Any]]) -> float | None:
    numbers = [(token, float(score)) for token, score in known if isinstance(token, str) and _is_number(score)]
    bare = [score for token, score in numbers if token == word]
    return max(bare or [score for token, score in numbers if _word(token) == word], default=None)


def _word(token: Any) -> str:
    """A token without the white space around it, however that is spelled."""
    return token.translate(SPELLINGS).strip() if isinstance(token, str) else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and IMPOSSIBLE < value <= ROUNDING


def _tokens(logprobs: Any) -> list[dict[str, Any]]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [token for token in content if isinstance(token, dict)] if isinstance(content, list) else []


def _until_verdict(text: str, tokens: Sequence[Mapping[str, Any]]) -> str:
    """The text up to the token that fixes the verdict, where the other engines stop; whole where tokens do not fit."""
    written, text = "", text.lstrip()
    for token in tokens:
        written = (written + str(token.get("token", "")).translate(SPELLINGS)).lstrip()
        if not text.startswith(written):  # a sign of several tokens, or a token that stands for nothing
            return text
        if verdict_is_fixed(written):
            return written
    return text


def _name(value: Any) -> str | None:
    return clipped(printable(value), LONGEST_NAME) if isinstance(value, str) else None


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None
