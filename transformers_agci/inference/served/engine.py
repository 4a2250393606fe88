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
from typing import Any, ClassVar, NamedTuple, Self

from transformers_agci.errors import InputError, counted, short
from transformers_agci.inference.answering import AnswerOptions
from transformers_agci.inference.engine import Answering, Answers, Numbered, QueuedAnswering
from transformers_agci.inference.progress import Counts, tell
from transformers_agci.inference.prompt import chat_content, check_text
from transformers_agci.inference.questions import BlankImage, Question
from transformers_agci.inference.served.client import ServedOptions, ServerClient
from transformers_agci.inference.served.faults import NoAnswer, RequestRefused
from transformers_agci.inference.served.reply import Reply, read_reply

YES_NO_TOKENS = 16  # asked for a Yes/No answer: enough for "Yes", a mark and the end, and for a line break before it
MOST_REFUSED = 3  # questions refused before any was answered: then it is not the questions
MOST_BUILDS, BUILDS_SHOWN = 100, 5  # that are told apart, and that a line names
MOST_FAILING = 50  # questions in a row on which a server fails that answers others: then it is not the questions either
CONTROL = 64  # pixels of a side: the image of a question that any server can answer


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
    words_not_placed: int = 0  # Yes/No answers with them, but which of the tokens is the answer's cannot be told
    words_not_returned: int = 0  # Yes/No answers in which Yes or No was not among the likeliest tokens
    disagreements: int = 0  # Yes/No answers whose log-probabilities order the words against the answer
    without_text: Counter[str] = field(default_factory=Counter)  # empty answers, by why the server ended them
    builds: Counter[str] = field(default_factory=Counter)  # answers of each model and build that the server names
    builds_before: Counter[str] = field(default_factory=Counter)  # the same, of the runs that this one goes on from

    def earlier(self, runs: Sequence[Mapping[str, Any]]) -> None:
        """Which models and builds have answered the rows that are there."""
        for run in runs:
            found = run.get("builds")
            self.builds_before.update(found if isinstance(found, dict) else {})

    def add(self, reply: Reply, yes_no: bool) -> None:
        """Count one answer."""
        self.requests += 1
        self.prompt_tokens += reply.prompt_tokens or 0
        self.completion_tokens += reply.completion_tokens or 0
        self.uncounted += reply.prompt_tokens is None
        build = " ".join(filter(None, (reply.model, reply.fingerprint))) or "unnamed"
        self.builds[build if build in self.builds or len(self.builds) < MOST_BUILDS else "others"] += 1
        if not reply.answer.text:
            self.without_text[reply.ended] += 1
        if yes_no:
            self.words_alone += not reply.has_scores
            self.words_not_placed += reply.has_scores and not reply.is_placed
            lacking = reply.answer.yes_logit is None or reply.answer.no_logit is None
            self.words_not_returned += reply.is_placed and lacking
            self.disagreements += reply.answer.logits_disagree

    def plus(self, other: Self) -> Self:
        """The counts of two processes, which go on from the same runs."""
        return replace(super().plus(other), builds_before=self.builds_before)

    def record(self, seconds: float) -> dict[str, Any]:
        """What the manifest keeps of this run."""
        return {name: value for name, value in super().record(seconds).items() if name != "builds_before"}

    def details(self) -> list[str]:
        """Tokens and retries."""
        uncounted = f" ({self.uncounted} answers not counted by the server)" if self.uncounted else ""
        said = [f"{self.prompt_tokens} prompt tokens, {self.completion_tokens} answer tokens{uncounted}"]
        return said + ([counted(self.retries, "retry", "retries")] if self.retries else [])

    def remarks(self) -> list[str]:
        """Answers without margins or text, and a server that changed while it was asked."""
        reasons = (
            (self.words_alone, "the server gave no log-probabilities"),
            (
                self.words_not_placed,
                "which of the tokens is the answer's first cannot be told (it has no text, or the model reasons first)",
            ),
            (
                self.words_not_returned,
                "Yes or No was not among the tokens whose log-probabilities the server gave",
            ),
        )
        said = [f"{counted(number, 'answer')} without a margin: {reason}." for number, reason in reasons if number]
        if self.disagreements:
            go = "answer goes" if self.disagreements == 1 else "answers go"
            said.append(f"{self.disagreements} {go} against the order of the Yes and No log-probabilities.")
        if self.without_text:
            each = ", ".join(f"{reason}: {number}" for reason, number in self.without_text.most_common())
            said.append(
                f"{counted(self.without_text.total(), 'reply', 'replies')} without a text, by the server's reason "
                f"({each}): the empty answer, which counts as wrong."
            )
        return said + self._changes()

    def _changes(self) -> list[str]:
        """A line where several models or builds have answered, now or before."""
        if len(self.builds | self.builds_before) < 2 or not self.builds:
            return []
        each = [f"{build} ({counted(number, 'answer')})" for build, number in self.builds.most_common(BUILDS_SHOWN)]
        earlier = self.builds_before.most_common(BUILDS_SHOWN)
        each += [f"{build} ({counted(number, 'answer')} of earlier runs)" for build, number in earlier]
        hidden = sum(max(len(found) - BUILDS_SHOWN, 0) for found in (self.builds, self.builds_before))
        more = f" and {hidden} more, which stand in the manifest" if hidden else ""
        return [f"The server named several models or builds: {', '.join(each)}{more}."]


@dataclass(frozen=True)
class ServedEngine:
    """A model by its name on a server. Lambda is what it serves."""

    model: str
    options: ServedOptions
    name: ClassVar[str] = "openai"
    lam: ClassVar[None] = None
    sets_lambda: ClassVar[bool] = False
    lambdas_together: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not self.model.isprintable() or not self.model.strip():
            raise InputError(f"`model` must be the name by which the server knows it, but is {short(self.model)}.")

    @functools.cached_property
    def _client(self) -> ServerClient:
        client = ServerClient(self.options)
        client.check_no_key_in("model", self.model)
        return client

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
        if self._client.exposes_the_key:
            tell(
                f"agci: the key in {self.options.api_key_env} goes to {self._client.base_url} unencrypted: whoever is "
                "on the way can read it. Take https, or unset the variable if the server needs no key."
            )
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
            _Requester(self.model, self._client, self.options),
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


class _Requester:
    """Asks one question at a time, from any thread; finds out which form of request the server takes."""

    def __init__(self, model: str, client: ServerClient, options: ServedOptions) -> None:
        self.model, self.client, self.options = model, client, options
        self.form, self.refused = RequestForm(), 0
        self.settled: set[bool] = set()  # for questions without scores, with scores: whether the form is known
        self.failing = 0  # questions in a row
        self.refused_since = 0  # questions that were refused since one was answered
        self.answered: tuple[list[dict[str, Any]], Question] | None = None  # the last that was

    def ask(self, question: Question) -> Reply | InputError:
        """The reply, or why this question gets none; InputError is raised where the run cannot go on."""
        try:
            check_text(question.text, question.where)
            content = _content(question)
        except InputError as error:
            return error
        try:
            try:
                found = self._post(content, question)
            except NoAnswer as silence:
                found = self._post_once_more(content, question, silence)
        except RequestRefused as refusal:
            self._check_others_are_answered(question, refusal)
            return InputError(f"{question.where}: {refusal}")
        self.failing = self.refused_since = 0
        self.answered = content, question
        return read_reply(found, question.stop.yes_no)

    def _check_others_are_answered(self, question: Question, refusal: RequestRefused) -> None:
        """InputError where questions in a row are refused, and one that was answered before is now, too.

        Then it is not the questions: none of them shall be left behind as bad.
        """
        self.refused_since += 1
        if self.answered is None or self.refused_since < MOST_REFUSED:
            return
        try:
            self._post(*self.answered)
        except RequestRefused:
            raise InputError(
                f"{question.where}: {refusal}, and now refuses what it answered before. Finished blocks are kept; the "
                "same command goes on."
            ) from None
        self.refused_since = 0

    def _post_once_more(self, content: list[dict[str, Any]], question: Question, silence: NoAnswer) -> dict[str, Any]:
        """The reply after all; RequestRefused where the server answers another question, and fails on this one again.

        An image that breaks the server would otherwise end each run that comes to it, and a server that is down would
        leave its rows behind as bad.
        """
        if not silence.fault.is_the_servers:
            raise silence
        images = (BlankImage(CONTROL, CONTROL),) if question.images else ()
        control = Question({}, question.where, "Is this image blank? Answer Yes or No.", images)
        try:
            self._post(_content(control), control)
        except (RequestRefused, InputError):
            raise silence from None
        try:
            return self.client.post("/chat/completions", self._body(self.form, content, question), tries=1)
        except NoAnswer as again:
            self.failing += 1
            if not again.fault.is_the_servers or self.failing == MOST_FAILING:
                raise
            raise RequestRefused(again.fault) from None

    def _post(self, content: list[dict[str, Any]], question: Question) -> dict[str, Any]:
        """The reply; until one came, a refused request is tried in the other forms."""
        first: RequestRefused | None = None
        form: RequestForm | None = self.form
        scored = question.stop.yes_no
        while form is not None:
            try:
                found = self.client.post("/chat/completions", self._body(form, content, question))
            except RequestRefused as refusal:
                first = first or refusal
                form = None if scored in self.settled else form.after(refusal.message, scored)
            else:
                self.form = form if scored else replace(self.form, limit=form.limit)
                self.settled.add(scored)
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
