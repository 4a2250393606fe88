"""The engine openai against a stub server: what ends the run, and what only a row."""

from pathlib import Path
from typing import Any

import pytest
import served_run
from served_run import KEY, ROWS, ask, everything_written, rows
from stub_server import Says, stub_server

from transformers_agci.errors import InputError
from transformers_agci.inference.served import client, engine

quick_and_keyed = served_run.quick_and_keyed  # fixture of every test


def test_a_server_that_stays_down_ends_the_run_and_the_run_goes_on_later(tmp_path: Path) -> None:
    with (
        stub_server(lambda number, body: Says(503, "down") if number >= 5 else None) as server,
        pytest.raises(InputError, match=r"does not answer after 3 tries \(HTTP 503: Service Unavailable\)"),
    ):
        ask(server, tmp_path / "A.jsonl", retries=2)
    assert "failed" not in everything_written(tmp_path).replace('"failed":[]', "").replace('"failed_rows": 0', "")


def test_a_run_goes_on_with_what_is_not_written(tmp_path: Path) -> None:
    down = [True]
    with stub_server(lambda number, body: Says(503) if down[0] and number >= 5 else None) as server:
        with pytest.raises(InputError, match="Finished blocks are kept"):
            ask(server, tmp_path / "A.jsonl", retries=0)
        down[0] = False
        summary = ask(server, tmp_path / "A.jsonl")
    assert (summary.counts.already_done, summary.counts.rows) == (4, 4)
    assert [row["id"] for row in rows(tmp_path / "A.jsonl")] == list(range(ROWS))


def test_a_question_that_the_server_cannot_take_is_skipped_and_named(tmp_path: Path) -> None:
    def script(number: int, body: dict) -> Any:
        text = body["messages"][0]["content"][1]["text"]
        if "2?" in text:
            return Says(400, {"error": {"message": "too long"}})
        return Says(500, "crash") if "5?" in text else None

    with stub_server(script) as server:
        summary = ask(server, tmp_path / "A.jsonl", retries=1, concurrency=2)
    assert [row.error for row in summary.counts.failed] == [
        "x.json:3: the server refuses it (HTTP 400: too long)",
        "x.json:6: the server fails on it, and answers others (HTTP 500: Internal Server Error)",
    ]
    assert [row["id"] for row in rows(tmp_path / "A.jsonl")] == [0, 1, 3, 4, 6, 7]


@pytest.mark.parametrize("bad", [0, 3, ROWS - 1])
@pytest.mark.parametrize(
    ("says", "said"),
    [
        (Says(500, "crash"), "HTTP 500: Internal Server Error"),
        (Says(502), "HTTP 502: Bad Gateway"),
        (Says(cut=True), "RemoteProtocolError: Server disconnected without sending a response."),
        (Says(200, {"choices": []}), "the server's reply has no message with a text ({'choices': []})"),
    ],
    ids=["500", "502", "cut", "no choices"],
)
def test_one_row_that_the_server_fails_on_is_named_and_the_run_goes_on(
    tmp_path: Path, bad: int, says: Says, said: str
) -> None:
    """One at a time: nothing else is answered meanwhile, and the first and the last row have no other beside them."""

    def script(number: int, body: dict) -> Says | None:
        return says if f"Is it {bad}?" in body["messages"][0]["content"][-1]["text"] else None

    with stub_server(script) as server:
        summary = ask(server, tmp_path / "A.jsonl", retries=2)
    assert [row.error for row in summary.counts.failed] == [
        f"x.json:{bad + 1}: the server fails on it, and answers others ({said})"
    ]
    assert [row["id"] for row in rows(tmp_path / "A.jsonl")] == [number for number in range(ROWS) if number != bad]
    assert (
        len(server.bodies) == ROWS - 1 + 3 + 1 + 1
    )  # three tries, a question that any server can answer, one more try


def test_a_row_that_is_put_off_at_last_ends_the_run(tmp_path: Path) -> None:
    """Too many requests: that passes by itself, so the row is not named."""
    tries = []

    def script(number: int, body: dict) -> Says | None:
        if "Is it 3?" not in body["messages"][0]["content"][-1]["text"]:
            return None
        tries.append(number)
        return Says(500) if len(tries) < 3 else Says(429)

    with stub_server(script) as server, pytest.raises(InputError, match=r"after 1 try \(HTTP 429"):
        ask(server, tmp_path / "A.jsonl", retries=1)
    assert not (tmp_path / "A.bad.jsonl").exists()


def test_a_server_that_answers_nothing_but_the_control_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "MOST_FAILING", 3)

    def script(number: int, body: dict) -> Says | None:
        return Says(500) if "Is it" in body["messages"][0]["content"][-1]["text"] else None

    with stub_server(script) as server, pytest.raises(InputError, match="does not answer"):
        ask(server, tmp_path / "A.jsonl", retries=1, block_rows=4)
    assert len(server.bodies) == 3 * (2 + 1 + 1)


def test_a_server_that_fails_on_every_image_ends_the_run(tmp_path: Path) -> None:
    broken = [False]

    def script(number: int, body: dict) -> Says | None:
        broken[0] |= number == 4
        return Says(500) if broken[0] and len(body["messages"][0]["content"]) > 1 else None

    with stub_server(script) as server, pytest.raises(InputError, match="does not answer after 2 tries"):
        ask(server, tmp_path / "A.jsonl", retries=1)
    assert not (tmp_path / "A.bad.jsonl").exists()


@pytest.mark.parametrize(
    ("says", "said"),
    [
        (Says(404, {"error": {"message": "The model `stub` does not exist."}}), "does not exist. It serves: stub."),
        (
            Says(401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}),
            r"provided: \[key\]\) with the key in",
        ),
        (Says(403, ""), "refuses access"),
        (Says(401, {"detail": "Not authenticated"}), "HTTP 401: Not authenticated"),
        (Says(404, {"error": "model gone"}), r"model gone\. It serves: stub\."),
        (
            Says(429, {"error": {"code": "insufficient_quota", "message": "You exceeded it."}}),
            r"wants to be paid \(You exc",
        ),
        (Says(200, "<!doctype html><title>Log in</title>"), "answers with HTML in place of a JSON object"),
        (Says(200, "[1, 2"), "answers with something else in place of a JSON object"),
        (
            Says(302, "", {"location": f"http://elsewhere.example/?key={KEY}"}),
            "redirects to http://elsewhere.example, wh",
        ),
        (Says(307, "", {"location": "http://[::1"}), "redirects to another address, wh"),
        (Says(429, "", {"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}), r"asks to come back in \d+ s"),
        (Says(body=" " * (client.LARGEST + 1)), "answers with more than 32 MB"),
        (Says(body='{"choices": ' + 900 * "[" + 900 * "]" + "}"), "answers with something else"),
        (Says(body=100_000 * "["), "answers with something else"),
        (
            Says(400, {"error": {"message": "no"}}),
            r"x.json:3: the server refuses it \(HTTP 400: no\), like the questions",
        ),
    ],
    ids=[
        "model",
        "key",
        "rights",
        "a framework's own form",
        "model, otherwise",
        "purse",
        "html",
        "no json",
        "redirect",
        "redirect to nowhere",
        "for a century",
        "flood",
        "deep",
        "no bottom",
        "refuses all",
    ],
)
def test_what_no_further_try_mends_ends_the_run(
    tmp_path: Path, says: Says, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with stub_server(lambda number, body: says) as server, pytest.raises(InputError, match=said) as raised:
        ask(server, tmp_path / "A.jsonl", block_rows=4)
    assert len(server.bodies) <= 9  # three questions in three forms, at most
    assert (tmp_path / "A.jsonl").read_text() == ""
    assert not (tmp_path / "A.bad.jsonl").exists()
    out = capfd.readouterr()
    assert KEY not in str(raised.value) + out.out + out.err + everything_written(tmp_path)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ({"code": "insufficient_quota", "type": "insufficient_quota"}, "wants to be paid"),
        ({"code": "invalid_api_key", "type": "invalid_request_error"}, "refuses access"),
        ({"code": "model_not_found", "type": "invalid_request_error"}, "It serves: stub"),
    ],
)
def test_an_error_of_the_key_the_purse_or_the_model_inside_an_answer_ends_the_run(
    tmp_path: Path, error: dict, said: str
) -> None:
    with stub_server(lambda number, body: Says(200, {"error": error})) as server, pytest.raises(InputError, match=said):
        ask(server, tmp_path / "A.jsonl")


def test_an_empty_purse_ends_the_run_and_skips_no_row(tmp_path: Path) -> None:
    with (
        stub_server(lambda number, body: Says(402, {"error": {"message": "Insufficient Balance"}})) as server,
        pytest.raises(InputError, match="wants to be paid"),
    ):
        ask(server, tmp_path / "A.jsonl")
