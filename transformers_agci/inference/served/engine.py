"""The engine openai: requests made of questions, several at a time, answers as they come."""

import base64
import contextlib
import functools
import io
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from transformers_agci.errors import InputError
from transformers_agci.inference.answering import AnswerOptions
from transformers_agci.inference.engine import Answering, Answers, Numbered, QueuedAnswering
from transformers_agci.inference.progress import Counts, counted
from transformers_agci.inference.prompt import chat_content
from transformers_agci.inference.questions import Question
from transformers_agci.inference.served.client import RequestRefused, ServedOptions, ServerClient
from transformers_agci.inference.served.reply import Reply, read_reply

YES_NO_TOKENS = 16  # asked for a Yes/No answer: enough for "Yes", a mark and the end, and for a line break before it
MOST_REFUSED = 3  # questions refused before any was answered: then it is not the questions


@dataclass(frozen=True)
class RequestForm:
    """What servers differ in: how many log-probabilities they give, and what they call the longest answer."""

    top_logprobs: int | None = 20
    limit: str = "max_tokens"

    def after(self, refusal: str, scored: bool) -> "RequestForm | None":
        """The form to try when this one is refused with these words; None: it is not the form."""
        if "max_completion_tokens" in refusal and self.limit == "max_tokens":
            return replace(self, limit="max_completion_tokens")
        if self.top_logprobs is None or not scored:
            return None
        return replace(self, top_logprobs=5 if self.top_logprobs > 5 else None)


@dataclass
class ServedCounts(Counts):
    """What asking a server took."""

    requests: int = 0  # that were answered
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    uncounted: int = 0  # answers whose tokens the server did not count
    words_alone: int = 0  # Yes/No answers without log-probabilities
    words_not_returned: int = 0  # Yes/No answers with them, in which Yes or No was not among the likeliest tokens
    builds: Counter[str] = field(default_factory=Counter)  # answers of each model and build that the server names

    def add(self, reply: Reply, yes_no: bool) -> None:
        """Count one answer."""
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0
        self.uncounted += reply.prompt_tokens is None
        self.builds[" ".join(filter(None, (reply.model, reply.fingerprint))) or "unnamed"] += 1
        if yes_no:
            self.words_alone += not reply.has_scores
            lacking = reply.answer.yes_logit is None or reply.answer.no_logit is None
            self.words_not_returned += reply.has_scores and lacking

    def details(self) -> list[str]:
        """Tokens and retries."""
        uncounted = f" ({self.uncounted} answers not counted by the server)" if self.uncounted else ""
        said = [f"{self.prompt_tokens} prompt tokens, {self.completion_tokens} answer tokens{uncounted}"]
        return said + ([counted(self.retries, "retry", "retries")] if self.retries else [])

    def remarks(self) -> list[str]:
        """Answers without margins, and a server that changed while it was asked."""
        said = []
        if self.words_alone:
            said.append(
                f"{counted(self.words_alone, 'answer')} without a margin: the server gave no log-probabilities."
            )
        if self.words_not_returned:
            said.append(
                f"{counted(self.words_not_returned, 'answer')} without a margin: Yes or No was not among the tokens "
                "whose log-probabilities the server gave."
            )
        if len(self.builds) > 1:
            each = (f"{build} ({counted(number, 'answer')})" for build, number in self.builds.most_common())
            said.append(f"The server named several models or builds: {', '.join(each)}.")
        return said


@dataclass(frozen=True)
class ServedEngine:
    """A model by its name on a server. Lambda is what it serves."""

    model: str
    options: ServedOptions
    name: ClassVar[str] = "openai"
    lam: ClassVar[None] = None
    sets_lambda: ClassVar[bool] = False
    lambdas_together: ClassVar[bool] = False

    @functools.cached_property
    def _client(self) -> ServerClient:
        return ServerClient(self.options)

    @property
    def description(self) -> str:
        """The model and the server."""
        return f"model {self.model} at {self._client.base_url}"

    @property
    def identity(self) -> Mapping[str, Any]:
        """The name, the server, what requests carry beside the question."""
        extra = {"extra_body": dict(self.options.extra_body)} if self.options.extra_body else {}
        return {"served_as": self.model, "base_url": self._client.base_url, "yes_no_tokens": YES_NO_TOKENS, **extra}

    @property
    def notes(self) -> Mapping[str, Any]:
        """How it was asked; never with what key."""
        return {"model": self.model, "concurrency": self.options.concurrency}

    def answering(self, questions: Sequence[Question], lambdas: Sequence[float], options: AnswerOptions) -> Answering:
        """The work of one run; InputError where a method or scope is given, which the server decides."""
        asked_for = [
            ("method", options.method, "agci"),
            ("scope", options.scope, "image"),
            ("workers", options.workers, None),
        ]
        for name, given, default in asked_for:
            if given != default:
                raise InputError(f"`{name}` {given} cannot be set on a server; omit it.")
        counts = ServedCounts()
        return QueuedAnswering(self, questions, options, functools.partial(self._answers, counts=counts), counts)

    def describe(
        self, questions: Sequence[Question], lambdas: Sequence[float], outputs: Sequence[Path], options: AnswerOptions
    ) -> list[str]:
        """The first question and the number of requests; the server is not asked."""
        first = questions[0]
        return [
            f"model: {self.description}",
            f"first prompt ({first.where}), with {counted(len(first.images), 'image')}:",
            *(f"    {line}" for line in first.text.splitlines()),
            f"plan: {counted(len(questions), 'request')}, {self.options.concurrency} at a time",
            *(f"would write: {path}" for path in outputs),
        ]

    def close(self) -> None:
        """End waiting and connections."""
        self._client.close()

    def _answers(self, numbered: Numbered, counts: ServedCounts) -> Answers:
        """Answers as they come, `concurrency` at a time; one by one until the form of a request is known."""
        asking, questions, retries = (
            _Asking(self.model, self._client, self.options),
            iter(numbered),
            self._client.retries,
        )
        with contextlib.closing(_Threads(asking.ask, self.options.concurrency)) as threads:
            while True:
                for number, question in islice(questions, (threads.number if asking.settled else 1) - threads.waiting):
                    threads.put(number, question)
                if not threads.waiting:
                    return
                number, question, reply = threads.get()
                counts.retries = self._client.retries - retries
                if isinstance(reply, InputError):
                    yield number, reply
                else:
                    counts.add(reply, question.stop.yes_no)
                    yield number, reply.answer


class _Threads:
    """Threads that ask. They hold nothing that needs saving, so a program that ends does not wait for them."""

    def __init__(self, ask: Callable[[Question], Reply | InputError], number: int) -> None:
        self.number, self.waiting = number, 0
        self._ask = ask
        self._asked: queue.SimpleQueue[tuple[int, Question] | None] = queue.SimpleQueue()
        self._answered: queue.SimpleQueue[tuple[int, Question, Any]] = queue.SimpleQueue()
        for _ in range(number):
            threading.Thread(target=self._work, daemon=True).start()

    def put(self, number: int, question: Question) -> None:
        """Let the next free thread ask."""
        self.waiting += 1
        self._asked.put((number, question))

    def get(self) -> tuple[int, Question, Reply | InputError]:
        """The next that is answered; what a thread raised is raised here."""
        number, question, found = self._answered.get()
        self.waiting -= 1
        if isinstance(found, _Raised):
            raise found.error
        return number, question, found

    def close(self) -> None:
        """Let the threads end, each after what it is at."""
        for _ in range(self.number):
            self._asked.put(None)

    def _work(self) -> None:
        while (each := self._asked.get()) is not None:
            try:
                found: Any = self._ask(each[1])
            except BaseException as error:
                found = _Raised(error)
            self._answered.put((*each, found))


class _Raised(NamedTuple):
    """What ends the run."""

    error: BaseException


class _Asking:
    """Asks one question at a time, from any thread; finds out which form of request the server takes."""

    def __init__(self, model: str, client: ServerClient, options: ServedOptions) -> None:
        self.model, self.client, self.options = model, client, options
        self.form, self.settled, self.refused = RequestForm(), False, 0

    def ask(self, question: Question) -> Reply | InputError:
        """The reply, or why this question gets none; InputError is raised where the run cannot go on."""
        try:
            content = _content(question)
        except InputError as error:
            return error
        try:
            found = self._post(content, question)
        except RequestRefused as refusal:
            return InputError(f"{question.where}: {refusal}")
        try:
            return read_reply(found, question.stop.yes_no)
        except InputError as error:
            return InputError(f"{question.where}: {error}")

    def _post(self, content: list[dict[str, Any]], question: Question) -> dict[str, Any]:
        """The reply; until one came, a refused request is tried in the other forms."""
        first: RequestRefused | None = None
        form: RequestForm | None = self.form
        while form is not None:
            try:
                found = self.client.post("/chat/completions", self._body(form, content, question))
            except RequestRefused as refusal:
                first = first or refusal
                form = None if self.settled else form.after(refusal.message, question.stop.yes_no)
            else:
                self.form, self.settled = form, True
                return found
        assert first is not None
        if not self.settled:
            self.refused += 1
        if self.refused == MOST_REFUSED:
            raise InputError(f"{question.where}: {first}, like the questions before; none was answered.")
        raise first

    def _body(self, form: RequestForm, content: list[dict[str, Any]], question: Question) -> dict[str, Any]:
        stop = question.stop
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            form.limit: min(YES_NO_TOKENS, stop.max_new_tokens) if stop.yes_no else stop.max_new_tokens,
            "temperature": 0,
        }
        if stop.yes_no and form.top_logprobs:
            body |= {"logprobs": True, "top_logprobs": form.top_logprobs}
        body |= self.options.extra_body
        return {name: value for name, value in body.items() if value is not None}


def _content(question: Question) -> list[dict[str, Any]]:
    """The user turn in the protocol's form, its images as data URLs."""
    images = iter(question.images)
    return [
        {"type": "image_url", "image_url": {"url": _data_url(next(images).open())}} if part["type"] == "image" else part
        for part in chat_content(question)
    ]


def _data_url(image: Any) -> str:
    """PNG: what the server decodes are the pixels that the other engines see."""
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=1)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
