"""What is wrong with a server's answer, as an HTTP status, wherever it stands: in the status, or inside HTTP 200.

Servers and the proxies before them report errors in several forms, and some under HTTP 200:

    {"error": {"code": 429, "message": ...}}                         the status as a number
    {"error": {"code": "rate_limit_exceeded", "type": "requests"}}   as a word
    {"object": "error", "type": "BadRequestError", "code": 400}      vLLM's own
    {"choices": [{"finish_reason": "error", "error": ...}]}          a router, when what it routes to fails
    {"choices": [{"finish_reason": "abort", ...}]}                   vLLM, when it breaks the answer off
    {"choices": []}, {}                                              nothing at all

One rule for all of them: what says what is wrong with the request, the key or the purse is that, and everything else
may pass by itself.
"""

import email.utils
import json
import math
import re
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from transformers_agci.errors import InputError, counted, short

TOO_MANY, EMPTY_PURSE = 429, 402
AGAIN = {408, 409, 425, TOO_MANY}  # and everything from 500 on
BROKEN_OFF = ("error", "abort")  # what a reply ends with that is no answer, whatever text it has
NO_ANSWER = 0  # in the place of a status: cut off, too late, not to be unpacked, an error that says nothing more
# Of what a server calls an error, letters and digits alone, in lower case. The first that is found counts.
CALLED = {
    "insufficientquota": 402,
    "insufficientbalance": 402,
    "billing": 402,
    "ratelimit": 429,
    "resourceexhausted": 429,
    "toomanyrequests": 429,
    "apikey": 401,
    "authentication": 401,
    "permission": 403,
    "notfound": 404,
    "contextlength": 400,
    "contentpolicy": 400,
    "contentfilter": 400,
    "invalid": 400,
    "badrequest": 400,
    "unsupported": 400,
}


class Fault(NamedTuple):
    """Why there is no reply: a status (or `NO_ANSWER`), the server's words, seconds of its Retry-After."""

    status: int
    reason: str
    retry_after: float | None = None
    location: str = ""  # of a redirect

    def __str__(self) -> str:
        return f"HTTP {self.status}: {self.reason}" if self.status else self.reason

    @property
    def is_the_servers(self) -> bool:
        """It failed, or did not answer, and says nothing of the request."""
        return self.status == NO_ANSWER or self.status >= 500

    @property
    def may_pass(self) -> bool:
        """Whether another try may end otherwise."""
        return self.is_the_servers or self.status in AGAIN


class RequestRefused(Exception):
    """The server will not answer this request, whenever it is asked."""

    def __init__(self, fault: Fault) -> None:
        what = "fails on it, and answers others" if fault.is_the_servers else "refuses it"
        super().__init__(f"the server {what} ({fault})")
        self.message = fault.reason


class NoAnswer(InputError):
    """No try was answered. It ends the run, unless the server is found to answer other requests."""

    def __init__(self, base_url: str, tries: int, fault: Fault) -> None:
        tried = counted(tries, "try", "tries")
        super().__init__(
            f"The server at {base_url} does not answer after {tried} ({fault}). Finished blocks are kept; the same "
            "command goes on when it does."
        )
        self.fault = fault


def fault_of_status(status: int, phrase: str, text: str) -> Fault:
    """What is wrong by an HTTP status, with the words of the body, whose form is the server's own.

    An empty purse is one, whatever the status: OpenAI's is 429, as for what passes.

    >>> fault_of_status(401, "Unauthorized", '{"detail": "Not authenticated"}')[:2]
    (401, 'Not authenticated')
    >>> fault_of_status(429, "", '{"error": {"code": "insufficient_quota", "message": "You exceeded it."}}')[:2]
    (402, 'You exceeded it.')
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, list) and found:
        found = found[0]
    if isinstance(found, dict):
        error = found.get("error") or found
        if status == TOO_MANY and isinstance(error, dict) and _status(error) == EMPTY_PURSE:
            status = EMPTY_PURSE
        words = [error.get(name) for name in ("message", "detail")] if isinstance(error, dict) else [error]
        found = next(filter(None, words), None)
    return Fault(status, str(found or phrase or "no message"))


def fault_in(found: Mapping[str, Any]) -> Fault | None:
    """What is wrong with a JSON object that came under HTTP 200; None where it holds a reply.

    >>> fault_in({"error": {"code": "rate_limit_exceeded", "type": "tokens", "message": "slow down"}})[:2]
    (429, 'slow down')
    >>> fault_in({"choices": []})[:2]
    (0, "the server's reply has no message with a text ({'choices': []})")
    """
    choice = choice_of(found)
    error = choice.get("error") or found.get("error") or None
    broken_off = choice.get("finish_reason") in BROKEN_OFF
    if error is None and not broken_off and found.get("object") != "error":
        if text_of(choice.get("message")) is not None:
            return None
        return Fault(NO_ANSWER, f"the server's reply has no message with a text ({short(found)})")
    reported = error if isinstance(error, dict) else found
    without = f"the answer was broken off: {choice['finish_reason']}" if broken_off else "no message"
    return Fault(_status(reported), str(reported.get("message") or error or without))


def choice_of(found: Mapping[str, Any]) -> dict[str, Any]:
    """The reply: of several choices the first by its index, whatever their order; empty where there is none."""
    choices = found.get("choices")
    known = [each for each in choices if isinstance(each, dict)] if isinstance(choices, list) else []
    first = known[0] if known else {}
    return next((each for each in known if each.get("index") == 0), first)


def text_of(message: Any) -> str | None:
    """The text of a message, "" where it holds none; None where it is no message of this protocol.

    Some servers give a list of parts, of which those that are reasoning are left out.
    """
    content = message.get("content", 0) if isinstance(message, dict) else 0
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        return "".join(text for text in texts if isinstance(text, str))  # null would read as "None", which is a No
    return None


def _status(error: Mapping[str, Any]) -> int:
    """The status of an error by its number, else by what it is called."""
    for name in ("code", "status"):
        number = str(error.get(name))
        if number.isdecimal() and 400 <= int(number) < 600:
            return int(number)
    for name in ("code", "type", "status"):
        called = re.sub("[^a-z0-9]", "", str(error.get(name)).lower())
        for words, status in CALLED.items():
            if words in called:
                return status
    return NO_ANSWER


def retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which may be a date.

    >>> retry_after("2"), retry_after("soon"), retry_after(None), retry_after("Thu, 01 Jan 1970 00:00:00 GMT")
    (2.0, None, None, 0.0)
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
