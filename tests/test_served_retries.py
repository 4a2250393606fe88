"""The engine openai against a stub server: failures that pass by themselves are tried again."""

import json
import threading
from pathlib import Path

import pytest
import served_run
from served_run import ROWS, ask
from stub_server import Says, completion, stub_server

from transformers_agci.errors import InputError
from transformers_agci.inference.served import client, pace

quick_and_keyed = served_run.quick_and_keyed  # fixture of every test


@pytest.mark.slow
def test_no_more_at_once_than_concurrency_and_no_faster_than_the_rate(tmp_path: Path) -> None:
    with stub_server(
        lambda number, body: Says(body=completion(), seconds=0.3)
    ) as server:  # so that three meet on a busy machine, too
        ask(server, tmp_path / "A.jsonl", concurrency=3)
        assert server.most_at_once == 3
    with stub_server() as server:
        ask(server, tmp_path / "B.jsonl", concurrency=4, requests_per_minute=3000)
        gaps = [after - before for before, after in zip(server.times, server.times[1:])]
        assert sum(gaps) >= (ROWS - 2) * 0.02


@pytest.mark.parametrize(
    "says",
    [
        Says(429, {"error": {"message": "slow down"}}, {"retry-after": "0"}),
        Says(500, "<html>oops</html>"),
        Says(503, ""),
        Says(cut=True),
        Says(200, {"error": {"code": 502, "message": "no provider"}}),
        Says(429, "", {"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}),
        Says(429, "", {"retry-after": "Mon, 01 Jan 0001 00:00:00 -0000"}),
        Says(body=completion(), broken_off=40),
        Says(body=json.dumps(completion())[:60]),
        Says(body='{"choices": ' + 100_000 * "["),
        Says(body=b"not packed at all", headers={"content-encoding": "gzip"}),
        Says(500, b"not packed at all", headers={"content-encoding": "gzip"}),
        pytest.param(Says(body=completion(), drip=0.2), marks=pytest.mark.slow),
        pytest.param(Says(body=completion(), drip=0.2, drip_head=True), marks=pytest.mark.slow),
        Says(200, {"error": {"code": "rate_limit_exceeded", "type": "tokens", "message": "slow down"}}),
        Says(200, {"error": {"type": "server_error", "message": "oops"}}),
        Says(200, {"error": {"message": "oops"}}),
        Says(200, {"choices": []}),
        Says(200, ""),
    ],
    ids=[
        "429",
        "500",
        "503",
        "cut",
        "error in 200",
        "a date that is past",
        "a date of the year 1",
        "cut within the body",
        "JSON that breaks off",
        "JSON without bottom",
        "broken gzip",
        "500 in broken gzip",
        "drips",
        "headers drip",
        "a word for the status",
        "a type that is the server's",
        "an error of no kind",
        "no choices",
        "nothing",
    ],
)
def test_a_passing_failure_is_tried_again(tmp_path: Path, says: Says) -> None:
    with stub_server(lambda number, body: says if number in (0, 3, 4) else None) as server:
        summary = ask(server, tmp_path / "A.jsonl", timeout=0.4 if says.drip else 20.0)
    assert (summary.exit_code, summary.counts.rows, summary.counts.retries) == (0, ROWS, 3)
    assert len(server.bodies) == ROWS + 3
    assert "3 retries" in summary.lines()[0]


def test_a_server_that_is_slower_than_the_timeout_is_asked_again(tmp_path: Path) -> None:
    slow = Says(body=completion(), seconds=0.6)
    with stub_server(lambda number, body: slow if number == 1 else None) as server:
        summary = ask(server, tmp_path / "A.jsonl", timeout=0.3)
    assert (summary.counts.rows, summary.counts.retries) == (ROWS, 1)


def test_a_retry_after_of_nothing_does_not_shorten_the_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.3)
    busy = Says(429, "", {"retry-after": "0"})
    with stub_server(lambda number, body: busy if number == 0 else None) as server:
        ask(server, tmp_path / "A.jsonl")
    assert server.times[1] - server.times[0] >= 0.15


def test_a_list_of_models_that_drips_does_not_hold_a_message_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MODELS_WAIT", 0.3)
    unknown, dripping = Says(404, {"error": {"message": "no such model"}}), Says(body={"data": []}, drip=0.1)
    with (
        stub_server(lambda number, body: unknown, dripping) as server,
        pytest.raises(InputError, match="no such model"),
    ):
        ask(server, tmp_path / "A.jsonl")


@pytest.mark.slow
def test_retry_after_holds_all_requests(tmp_path: Path) -> None:
    busy = Says(429, "", {"retry-after": "1"})
    with stub_server(lambda number, body: busy if number == 0 else None) as server:
        ask(server, tmp_path / "A.jsonl", concurrency=4)
    assert server.times[1] - server.times[0] >= 1.0
    with (
        stub_server(lambda number, body: Says(429, "", {"retry-after": "7200"})) as server,
        pytest.raises(InputError, match=r"asks to come back in 7200 s\. Finished blocks are kept"),
    ):
        ask(server, tmp_path / "B.jsonl")


def test_a_retry_after_holds_what_waits_for_its_turn_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """One request a second; a pause of 30 s is asked for while the third waits, and goes after it."""
    clock = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: clock[0])

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            clock[0] += timeout or 0.0
            if clock[0] == 102.0:
                paced.hold(30.0)
            return False

    paced = pace.Pace(60.0, Stopped())
    went = []
    for _ in range(4):
        paced.wait()
        went.append(clock[0])
    assert went == [100.0, 101.0, 132.0, 133.0]


@pytest.mark.parametrize("reply", [{}, {"choices": []}, {"choices": [{"message": {"content": 5}}]}, {"choices": [7]}])
def test_a_reply_of_another_form_is_asked_again_and_then_a_bad_row(tmp_path: Path, reply: dict) -> None:
    def script(number: int, body: dict) -> Says | None:
        return Says(body=reply) if "Is it 1?" in body["messages"][0]["content"][-1]["text"] or number == 5 else None

    with stub_server(script) as server:
        summary = ask(server, tmp_path / "A.jsonl", retries=1)
    assert [row.where for row in summary.counts.failed] == ["x.json:2"]
    assert "reply has no message with a text" in summary.counts.failed[0].error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ({"code": "context_length_exceeded", "type": "invalid_request_error"}, "HTTP 400"),
        ({"code": None, "type": "BadRequestError"}, "HTTP 400"),
        ({"code": "422"}, "HTTP 422"),
        ({"code": 400, "status": "INVALID_ARGUMENT"}, "HTTP 400"),
    ],
)
def test_an_error_of_the_request_inside_an_answer_is_not_asked_again(tmp_path: Path, error: dict, status: str) -> None:
    def script(number: int, body: dict) -> Says | None:
        return Says(200, {"error": {**error, "message": "no"}}) if number == 3 else None

    with stub_server(script) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    assert [row.error for row in summary.counts.failed] == [f"x.json:4: the server refuses it ({status}: no)"]
    assert len(server.bodies) == ROWS


@pytest.mark.parametrize(
    "passing",
    [
        {"choices": [{"finish_reason": "error", "error": {"code": 502}, "message": {"content": ""}}]},
        {"choices": [{"finish_reason": "error", "message": {"content": ""}}]},
        {"choices": [{"finish_reason": "abort", "message": {"content": "Yes, there is"}}]},
        {"error": "overloaded, try again"},
        {"object": "error", "code": 503, "message": "busy"},
    ],
)
def test_an_error_inside_an_answer_that_passes_is_asked_again(tmp_path: Path, passing: dict) -> None:
    with stub_server(lambda number, body: Says(body=passing) if number == 1 else None) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "A.jsonl").read_text().splitlines()]
    assert summary.counts.failed == [] and [row["prediction"] for row in rows] == ["Yes"] * ROWS
    assert len(server.bodies) == ROWS + 1
