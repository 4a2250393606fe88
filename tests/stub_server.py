"""A server of chat completions that does what real ones do rarely: a script says how each request is answered."""

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[int, dict], "Says | None"]  # number of the request (from 0) and its body; None: the usual answer


@dataclass
class Says:
    """What is sent instead of the usual answer.

    `cut` closes the connection without a word, `broken_off` behind so many bytes of the body, and `drip` sends the
    body byte by byte with so many seconds between; with `drip_head`, headers without end.
    """

    status: int = 200
    body: str | dict | bytes = ""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    seconds: float = 0.0
    broken_off: int | None = None
    drip: float = 0.0
    drip_head: bool = False


def reasoned(thought: str = "Let me see", answer: str | None = "No", *, marks: bool = True, **message: Any) -> dict:
    """A reply whose tokens reason first: Yes is likelier at the first of them, No at the answer's."""
    before = [*(("<think>",) if marks else ()), *thought.split(), *(("</think>", "\n\n") if marks else ())]
    tokens = [
        {"token": token, "top_logprobs": [{"token": word, "logprob": score} for word, score in scores]}
        for token, scores in (
            *((token, (("Yes", -0.5), ("No", -3.0))) for token in before),
            *((token, (("Yes", -2.0), ("No", -0.25))) for token in ((answer,) if answer else ())),
        )
    ]
    reply = completion()
    message = {"role": "assistant", "content": answer, **message}
    reply["choices"] = [{"index": 0, "message": message, "logprobs": {"content": tokens}, "finish_reason": "stop"}]
    return reply


def completion(text: str = "Yes", yes: float | None = -0.25, no: float | None = -1.5, **changes: Any) -> dict:
    """A reply; `yes` and `no` None: the word is not among the likeliest tokens; both None: no log-probabilities."""
    top = [{"token": token, "logprob": value} for token, value in (("Yes", yes), ("No", no)) if value is not None]
    logprobs = {"content": [{"token": text, "logprob": -0.25, "top_logprobs": top}]} if top else None
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "logprobs": logprobs}
    return {
        "model": "stub",
        "choices": [choice],
        "usage": {"prompt_tokens": 100, "completion_tokens": 2},
        "system_fingerprint": "fp_1",
        **changes,
    }


def _text(body: str | dict) -> str:
    return body if isinstance(body, str) else json.dumps(body)


def _parts(data: bytes, drip: float) -> Iterator[bytes]:
    if not drip:
        yield data
        return
    for number in range(len(data)):
        time.sleep(drip)
        yield data[number : number + 1]


class StubServer:
    """Answers POST /v1/chat/completions by the script, GET /v1/models with one model; keeps what it was sent."""

    def __init__(self, script: Script, models: Says | None = None) -> None:
        self._models = models or Says(body={"data": [{"id": "stub"}]})
        self.script, self.bodies, self.keys, self.times = script, [], [], []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # or the body waits 40 ms for the headers to be acknowledged

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self._send(stub._models if self.path == "/v1/models" else Says(body={}))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with stub._lock:
                    number = len(stub.bodies)
                    stub.bodies.append(body)
                    stub.keys.append(self.headers.get("authorization"))
                    stub.times.append(time.monotonic())
                    stub._at_once += 1
                    stub.most_at_once = max(stub.most_at_once, stub._at_once)
                says = stub.script(number, body) if self.path == "/v1/chat/completions" else Says(404, {})
                says = says or Says(body=completion())
                time.sleep(says.seconds)
                with stub._lock:
                    stub._at_once -= 1
                self._send(says)

            def _send(self, says: Says) -> None:
                if says.cut:
                    self.close_connection = True
                    return
                data = says.body if isinstance(says.body, bytes) else _text(says.body).encode()
                with contextlib.suppress(OSError):
                    self.send_response(says.status)
                    if says.drip_head:
                        self.flush_headers()
                        self.close_connection = True
                        for part in _parts(b"x-drip: " + 10_000 * b"d", says.drip):
                            self.wfile.write(part)
                        return
                    for name, value in {"content-length": str(len(data)), **says.headers}.items():
                        self.send_header(name, value)
                    self.end_headers()
                    if says.broken_off is not None:
                        self.close_connection = True
                    for part in _parts(data[: says.broken_off], says.drip):
                        self.wfile.write(part)
                        self.wfile.flush()

        return Handler

    def __enter__(self) -> "StubServer":
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def stub_server(script: Script = lambda number, body: None, models: Says | None = None) -> Iterator[StubServer]:
    with StubServer(script, models) as server:
        yield server
