"""What a server's reply says: the text, the scores of Yes and No, the tokens that it cost."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers_agci.errors import InputError, short
from transformers_agci.inference.answer import Answer, verdict_is_fixed
from transformers_agci.inference.questions import ANSWER_WORDS

IMPOSSIBLE = -9000.0  # a log-probability that stands for minus infinity: vLLM writes -9999


class Reply(NamedTuple):
    """An answer, and what the server says beside it: tokens (None where it does not count), model, build."""

    answer: Answer
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str | None
    fingerprint: str | None
    has_scores: bool  # log-probabilities came with it, whether or not both words are among them


def read_reply(found: Mapping[str, Any], yes_no: bool) -> Reply:
    """The reply to one question; InputError where it is not one of this protocol.

    A reply without text (a filter, a refusal, thinking that used up the tokens) is the empty answer, which is
    unreadable and counted as such.
    """
    choices = found.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message")
    if not isinstance(message, dict) or not isinstance(message.get("content"), str | None):
        raise InputError(f"the server's reply has no message with a text ({short(found)})")
    text, tokens = message.get("content") or "", _tokens(choice.get("logprobs"))
    scores = word_scores(tokens[0].get("top_logprobs"), tokens[0].get("token")) if tokens and yes_no else (None, None)
    return Reply(
        Answer((_until_verdict(text, tokens) if yes_no else text).strip(), *scores),
        _count(found.get("usage"), "prompt_tokens"),
        _count(found.get("usage"), "completion_tokens"),
        _name(found.get("model")),
        _name(found.get("system_fingerprint")),
        bool(tokens) and yes_no,
    )


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
    word = chosen.strip("▁ ") if isinstance(chosen, str) else ""
    if word in ANSWER_WORDS and chosen != word:
        before = chosen[: chosen.index(word)]
        known = [(str(token).removeprefix(before), score) for token, score in known if str(token).startswith(before)]
    yes, no = (_score(word, known) for word in ANSWER_WORDS)
    return yes, no


def _score(word: str, known: Sequence[tuple[Any, Any]]) -> float | None:
    numbers = [(token, float(score)) for token, score in known if isinstance(token, str) and _is_number(score)]
    bare = [score for token, score in numbers if token == word]
    return max(bare or [score for token, score in numbers if token.strip("▁ ") == word], default=None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and IMPOSSIBLE < value <= 0


def _tokens(logprobs: Any) -> list[dict[str, Any]]:
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [token for token in content if isinstance(token, dict)] if isinstance(content, list) else []


def _until_verdict(text: str, tokens: Sequence[Mapping[str, Any]]) -> str:
    """The text up to the token that fixes the verdict, where the other engines stop; whole where no tokens came."""
    written = ""
    for token in tokens:
        written += str(token.get("token", ""))
        if not text.startswith(written):  # a sign of several tokens, or a token that stands for nothing
            return text
        if verdict_is_fixed(written):
            return written
    return text


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _count(usage: Any, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if type(value) is int and value >= 0 else None
