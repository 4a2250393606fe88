"""HTTP to one server: pace, retries, and which failures end the run, a row, or nothing.

    429, 408, 5xx, a cut connection, no answer in time   tried again: after ever longer pauses, or a longer Retry-After
    an answer that is cut off, drips, or is packed badly tried again, too; so is JSON without a reply
    400, 413, 415, 422, 451                              the row is refused: too long, an image that it cannot read
    other 4xx, a redirect, HTML, a flood                 InputError: the run ends, what is finished is kept
    no answer after the last try                         NoAnswer: the run ends, unless only this row fails (engine.py)

An error inside HTTP 200 counts as what it is: faults.py. A row that is refused is recorded as bad and not asked again,
so nothing that passes by itself may refuse one.
"""

import asyncio
import contextlib
import importlib
import json
import os
import random
import re
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from transformers_agci.errors import InputError, short
from transformers_agci.inference.event_loop import EventLoopThread
from transformers_agci.inference.served.address import checked_url, is_this_machine, place
from transformers_agci.inference.served.faults import (
    NO_ANSWER,
    Fault,
    NoAnswer,
    RequestRefused,
    fault_in,
    fault_of_status,
    retry_after,
)
from transformers_agci.inference.served.pace import Pace

LIBRARIES = ("httpx", "httpx2")  # of one kind; huggingface_hub brings the one or the other
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between two tries, doubled each time
LONGEST_WAIT = 600.0  # seconds of a Retry-After that is waited for
KEPT_APART = 8  # signs of a key from which on it is told from the words of an answer
LARGEST = 32 * 2**20  # bytes of an answer
DRIP = 5  # times `timeout`: for a whole exchange that keeps coming, from the connection to the last byte
MODELS_WAIT = 10.0  # seconds for the list of models, which only words a message
QUOTED = 300  # signs of a server's message
MOST_AT_ONCE = 1000  # requests, each of which has a thread
OF_THE_ROW = (400, 413, 415, 422, 451)  # statuses of what is wrong with one request
OURS = ("messages", "model", "n", "stream")  # of a request: another value would ask something else, or for more answers


@dataclass(frozen=True)
class ServedOptions:
    """Where the server is and how it is asked.

    base_url             up to where /chat/completions follows, for instance http://localhost:8000/v1
    api_key_env          the environment variable that holds the key; without it requests carry none
    concurrency          requests at a time
    requests_per_minute  at most; None: as fast as it answers
    retries              further tries of a request that failed for a passing reason
    timeout              seconds without a sign of the answer; a whole exchange may take five times as long
    extra_body           further fields of each request, over ours; null takes one out
    """

    base_url: str | None = None
    api_key_env: str = "OPENAI_API_KEY"
    concurrency: int = 8
    requests_per_minute: float | None = None
    retries: int = 6
    timeout: float = 120.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("concurrency", "requests_per_minute", "timeout"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"`{name}` must be above 0, but is {value:g}.")
        if self.concurrency > MOST_AT_ONCE:
            raise InputError(f"`concurrency` must be at most {MOST_AT_ONCE}, but is {self.concurrency}.")
        try:
            json.dumps(dict(self.extra_body), allow_nan=False, ensure_ascii=False).encode()
        except (ValueError, TypeError, RecursionError):
            raise InputError(
                f"`extra_body` must be what JSON can say, without NaN and halves of letters, but is "
                f"{short(dict(self.extra_body))}."
            ) from None
        for name in OURS:
            if self.extra_body.get(name) is not None:
                raise InputError(f"`extra_body` must not hold {name!r}: a request asks one question for one answer.")


class _Response(NamedTuple):
    """An answer, read to its end."""

    status: int
    phrase: str
    headers: Mapping[str, str]
    text: str


class ServerClient:
    """Posts JSON to a server, from several threads."""

    def __init__(self, options: ServedOptions) -> None:
        self.base_url = checked_url(options.base_url)
        self._options, self._http = options, _http_library()
        self._key = _key(options.api_key_env)
        self._told_apart = self._key is None or len(self._key) >= KEPT_APART
        key = re.escape(self._key or "")
        # A short key is cut out where it stands as a word: "EMPTY", not each "a" of a sentence.
        self._key_in_text = re.compile(key if self._told_apart else rf"(?<![A-Za-z0-9]){key}(?![A-Za-z0-9])")
        self.check_no_key_in("base_url", self.base_url)
        self.check_no_key_in("extra_body", json.dumps(dict(options.extra_body)))
        self._stopped = threading.Event()
        self._pace = Pace(options.requests_per_minute, self._stopped)
        self.retries, self._lock = 0, threading.Lock()
        self._client = self._opened(options)
        self._loop: EventLoopThread | None = None  # from the first request on

    def _opened(self, options: ServedOptions) -> Any:
        headers = {"Accept-Encoding": "gzip"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        limits = self._http.Limits(max_connections=options.concurrency)
        host = urlsplit(self.base_url).hostname or ""
        # What is on this machine is not asked for by way of a proxy, which may not see the key, either.
        direct = {f"all://[{host}]" if ":" in host else f"all://{host}": None} if is_this_machine(host) else {}
        # A redirect is never followed: the key is for the server that was named.
        try:
            return self._http.AsyncClient(
                headers=headers, timeout=options.timeout, limits=limits, follow_redirects=False, mounts=direct
            )
        except (ValueError, ImportError, self._http.InvalidURL):  # its words may hold the proxy's password
            raise InputError(
                "A proxy of the environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) cannot be used: it must be like "
                "http://host:3128; socks5:// needs the package socksio."
            ) from None
        except OSError as error:
            raise InputError(
                f"The certificates with which servers are checked cannot be read ({error.strerror or error}); the "
                "environment variables SSL_CERT_FILE, SSL_CERT_DIR and SSLKEYLOGFILE name files for that: unset or "
                "mend them."
            ) from None

    @property
    def exposes_the_key(self) -> bool:
        """Whether the key goes over a network as it is: by http to another machine."""
        parts = urlsplit(self.base_url)
        return self._key is not None and parts.scheme == "http" and not is_this_machine(parts.hostname or "")

    def close(self) -> None:
        """End all waiting and all connections."""
        self._stopped.set()
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            loop.close(self._client.aclose())

    def post(self, path: str, body: Mapping[str, Any], tries: int | None = None) -> dict[str, Any]:
        """The JSON object that the server answers with; RequestRefused or InputError as the module's docstring says."""
        tries = tries or self._options.retries + 1
        tried = 0
        while True:
            tried += 1
            self._pace.wait()
            if self._stopped.is_set():
                raise InputError("The run was ended.")
            found = self._try(path, body)
            if not isinstance(found, Fault):
                return found
            self._refuse(found)
            if tried == tries:
                raise NoAnswer(self.base_url, tries, found)
            with self._lock:
                self.retries += 1
            self._pause(tried, found.retry_after)

    def _try(self, path: str, body: Mapping[str, Any]) -> dict[str, Any] | Fault:
        """One request: what it was answered with, or why not."""
        try:
            response = self._exchange("POST", path, DRIP * self._options.timeout, json=dict(body))
        except self._http.RequestError as error:  # cut off, too late, or not to be unpacked
            return Fault(NO_ANSWER, f"{type(error).__name__}: {self._without_key(str(error))}")
        headers = response.headers
        if not 200 <= response.status < 300:
            fault: Fault | None = fault_of_status(response.status, response.phrase, response.text)
        else:
            found = self._object(response.text)
            fault = Fault(NO_ANSWER, "an answer whose JSON breaks off") if found is None else fault_in(found)
            if found is not None and fault is None:
                return found
        assert fault is not None
        return fault._replace(
            reason=self._quoted(fault.reason),
            retry_after=retry_after(headers.get("retry-after")),
            location=headers.get("location", ""),
        )

    def _exchange(self, method: str, path: str, within: float, **content: Any) -> _Response:
        """One request and the whole answer; RequestError of the library where none comes, InputError for a flood."""
        request = self._client.build_request(method, f"{self.base_url}{path}", **content)
        with self._lock:
            if self._loop is None and not self._stopped.is_set():
                self._loop = EventLoopThread("requests")
            loop = self._loop
        if loop is None:
            raise InputError("The run was ended.")
        return loop.wait(self._whole_answer(request, within))

    async def _whole_answer(self, request: Any, within: float) -> _Response:
        """The library's own time limits are for each piece that comes; this one holds for all of them together."""
        content = bytearray()
        try:
            async with asyncio.timeout(within):
                response = await self._client.send(request, stream=True)
                async with contextlib.aclosing(response):
                    async for part in response.aiter_raw():
                        content += part
                        self._check_size(content)
        except TimeoutError:
            raise self._http.ReadTimeout(f"no whole answer in {within:g} s", request=request) from None
        try:
            unpacked = _unpacked(content, response.headers.get("content-encoding", ""))
        except (ValueError, zlib.error) as error:
            if response.status_code == 200:
                raise self._http.DecodingError(str(error), request=request) from None
            unpacked = b""  # the status says what is wrong
        self._check_size(unpacked)
        text = unpacked.decode("utf-8-sig", "replace")  # some servers write a mark before it
        return _Response(response.status_code, response.reason_phrase, response.headers, text)

    def _check_size(self, content: bytes | bytearray) -> None:
        if len(content) > LARGEST:
            raise InputError(
                f"The server at {self.base_url} answers with more than {LARGEST // 2**20} MB, which is no answer to a "
                "question."
            )

    def models(self) -> list[str]:
        """The names of the models that the server says it has; empty where it does not say."""
        try:
            found = json.loads(self._exchange("GET", "/models", min(MODELS_WAIT, self._options.timeout)).text)
            return [self._quoted(model["id"]) for model in found["data"]]
        except (self._http.HTTPError, InputError, ValueError, TypeError, KeyError, RecursionError):
            return []

    def _refuse(self, fault: Fault) -> None:
        """Raise where another try would end the same way."""
        status, reason = fault.status, fault.reason
        if fault.may_pass:
            return
        if 300 <= status < 400:
            elsewhere = place(self._without_key(fault.location))
            raise InputError(
                f"The server at {self.base_url} redirects to {elsewhere}, which is not followed: the key is for the "
                "server that was named. If you trust the other one, give it as `base_url`."
            )
        if status in (401, 403):
            name = self._options.api_key_env
            key = f"with the key in the environment variable {name}" if self._key else f"and no key is set in {name}"
            raise InputError(f"The server at {self.base_url} refuses access (HTTP {status}: {reason}) {key}.")
        if status == 402:
            raise InputError(f"The server at {self.base_url} wants to be paid ({reason}).")
        if status == 404:
            raise InputError(self._not_found(reason))
        if status not in OF_THE_ROW:
            raise InputError(f"The server at {self.base_url} takes no such request (HTTP {status}: {reason}).")
        raise RequestRefused(fault)

    def _not_found(self, reason: str) -> str:
        models = self.models()
        if models:
            more = f" and {len(models) - 20} more" if len(models) > 20 else ""
            served = ", ".join(models[:20])
            return f"The server at {self.base_url} says: {reason.rstrip('.')}. It serves: {served}{more}."
        lacks = f"The server at {self.base_url} has no /chat/completions (HTTP 404: {reason})"
        return f"{lacks}; `base_url` often ends in /v1."

    def _object(self, text: str) -> dict[str, Any] | None:
        """The JSON object of an answer, the key cut out of all that it says; None where it breaks off."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            if text.lstrip()[:1] in ("{", ""):
                return None
            found = None
        if isinstance(found, dict):
            with contextlib.suppress(RecursionError):
                return {
                    self._without_key(name): self._cleaned(value, name == "choices") for name, value in found.items()
                }
        kind = "HTML" if text.lstrip()[:1] == "<" else "something else"
        raise InputError(
            f"The server at {self.base_url} answers with {kind} in place of a JSON object "
            f"({short(self._without_key(text))}); `base_url` is that of a page or a proxy: it often ends in /v1."
        )

    def _cleaned(self, found: Any, answer: bool = False) -> Any:
        """What the server says without the key; InputError where a short one is among the words of an answer."""
        if self._key is None:
            return found
        if isinstance(found, str):
            if answer and not self._told_apart and self._key_in_text.search(found):
                name = self._options.api_key_env
                raise InputError(
                    f"The server at {self.base_url} repeats the key in the environment variable {name}, which is too "
                    f"short to be told from words: take a key of at least {KEPT_APART} signs, or none."
                )
            return self._without_key(found)
        if isinstance(found, list):
            return [self._cleaned(each, answer) for each in found]
        if isinstance(found, dict):
            return {self._without_key(name): self._cleaned(value, answer) for name, value in found.items()}
        return found

    def _quoted(self, message: object) -> str:
        text = " ".join(self._without_key(str(message)).split())
        return text if len(text) <= QUOTED else f"{text[:QUOTED]}..."

    def _without_key(self, text: str) -> str:
        """What the server says, without the key that it may repeat."""
        return text if self._key is None else self._key_in_text.sub("[key]", text)

    def check_no_key_in(self, option: str, text: str) -> None:
        """InputError where what is written into manifests holds the key."""
        if self._key is not None and self._told_apart and self._key in text:
            raise InputError(
                f"`{option}` holds the key of the environment variable {self._options.api_key_env}, but it is written "
                "into manifests: omit it there."
            )

    def _pause(self, tried: int, asked_for: float | None) -> None:
        """Wait before the next try: our own pause, or the server's Retry-After where that is longer, for everyone."""
        if asked_for is not None:
            if asked_for > LONGEST_WAIT:
                raise InputError(
                    f"The server at {self.base_url} asks to come back in {asked_for:.0f} s. Finished blocks are "
                    "kept; the same command goes on then."
                )
            self._pace.hold(asked_for)
        self._stopped.wait(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tried - 1)) * random.uniform(0.5, 1.0))


def _unpacked(content: bytearray, encoding: str) -> bytes | bytearray:
    """The body as it was before it was packed, of what is too large no more than a byte too many.

    The library would unpack as often as the header says, a little into a lot. ValueError or zlib.error where the body
    is packed otherwise than we ask for, or breaks off.
    """
    if not content or encoding.strip().lower() in ("", "identity"):
        return content
    if encoding.strip().lower() != "gzip":
        raise ValueError(f"an answer packed as {short(encoding)}, where gzip alone was asked for")
    unpacking = zlib.decompressobj(zlib.MAX_WBITS | 16)
    unpacked = unpacking.decompress(content, LARGEST + 1)
    if len(unpacked) <= LARGEST and not unpacking.eof:
        raise ValueError("a packed answer that breaks off")
    return unpacked


def _key(name: str) -> str | None:
    """The key of the environment; InputError, which does not repeat it, where it cannot stand in a header."""
    key = os.environ.get(name, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"The environment variable {name} does not hold a key: it has signs that no key has.")
    return key or None


def _http_library() -> Any:
    for name in LIBRARIES:
        if find_spec(name) is not None:
            return importlib.import_module(name)
    raise InputError("The engine openai needs the package httpx: pip install httpx.")
