"""The engine openai against a stub server: what it sends, what it reads, what ends the run, a row, or nothing."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from stub_server import Says, StubServer, completion, reasoned, stub_server

from transformers_agci.cli import main
from transformers_agci.errors import InputError
from transformers_agci.experiments.engines import EngineOptions, open_engine
from transformers_agci.experiments.position import evidence
from transformers_agci.experiments.position.results import read_results
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadOptions
from transformers_agci.inference.questions import BlankImage, Question, QuestionSet, up_to
from transformers_agci.inference.runner import RunOptions
from transformers_agci.inference.served import client, engine
from transformers_agci.inference.served.client import ServedOptions, checked_url
from transformers_agci.inference.served.reply import answer_start

KEY = "sk-a-key-that-nobody-may-see"
ROWS = 8


@pytest.fixture(autouse=True)
def quick_and_keyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(
    server: StubServer | str, path: Path, questions: list[Question] | None = None, block_rows: int = 2, **served: Any
) -> Any:
    asked = questions or [
        Question({"id": number}, f"x.json:{number + 1}", f"Is it {number}?", (BlankImage(8, 6, (number, 0, 0)),))
        for number in range(ROWS)
    ]
    url = server if isinstance(server, str) else server.url
    options = EngineOptions("openai", ServedOptions(url, **{"concurrency": 1, **served}))
    opened = open_engine(options, LoadOptions("stub"))
    try:
        run = RunOptions(progress=False)
        return answer_questions(
            opened, QuestionSet(asked), [0.0], [path], AnswerOptions(block_rows=block_rows, run=run)
        )
    finally:
        opened.close()


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def everything_written(folder: Path) -> str:
    return "".join(path.read_text("latin-1") for path in folder.rglob("*") if path.is_file())


# --- what is sent and read ---


def test_a_question_is_one_request_with_its_image_as_a_data_url(tmp_path: Path) -> None:
    with stub_server() as server:
        ask(server, tmp_path / "A.jsonl")
    body = server.bodies[3]
    image, text = body["messages"][0]["content"]
    assert text == {"type": "text", "text": "Is it 3?"}
    kind, data = image["image_url"]["url"].split(",")
    decoded = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (kind, decoded.size, decoded.getpixel((0, 0))) == ("data:image/png;base64", (8, 6), (3, 0, 0))
    del body["messages"]
    assert body == {"model": "stub", "max_tokens": 16, "temperature": 0, "logprobs": True, "top_logprobs": 20}
    assert server.keys == [f"Bearer {KEY}"] * ROWS


def test_log_probabilities_give_the_margin_and_tokens_the_cost(tmp_path: Path) -> None:
    with stub_server() as server:
        summary = ask(server, tmp_path / "A.jsonl", concurrency=3)
    assert [row["id"] for row in rows(tmp_path / "A.jsonl")] == list(range(ROWS))
    assert {
        (row["prediction"], row["yes_logit"], row["no_logit"], row["margin"]) for row in rows(tmp_path / "A.jsonl")
    } == {("Yes", -0.25, -1.5, 1.25)}
    assert f"{100 * ROWS} prompt tokens, {2 * ROWS} answer tokens" in summary.lines()[0]
    manifest = json.loads((tmp_path / "A.manifest.json").read_text())
    assert manifest["settings"]["engine"] == "openai"
    assert manifest["settings"]["lambda"] == "as served"
    run = manifest["runs"][0]
    assert (run["requests"], run["prompt_tokens"], run["builds"]) == (ROWS, 100 * ROWS, {"stub fp_1": ROWS})


def test_an_answer_ends_where_its_verdict_is_fixed(tmp_path: Path) -> None:
    top = [{"token": "No", "logprob": -0.1}, {"token": "Yes", "logprob": -2.0}]
    tokens = [{"token": token, "top_logprobs": top} for token in ("No", ",", " it", " is not")]
    reply = completion("No, it is not")
    reply["choices"][0]["logprobs"] = {"content": tokens}
    with stub_server(lambda number, body: Says(body=reply)) as server:
        ask(server, tmp_path / "A.jsonl")
    assert rows(tmp_path / "A.jsonl")[0]["prediction"] == "No"
    assert rows(tmp_path / "A.jsonl")[0]["margin"] == pytest.approx(-1.9)


def test_free_text_is_asked_without_log_probabilities_and_kept_whole(tmp_path: Path) -> None:
    question = Question({}, "x:1", "What is it?", (BlankImage(8, 8),), stop=up_to(50))
    with stub_server(lambda number, body: Says(body=completion("A cat, or no: a dog."))) as server:
        ask(server, tmp_path / "A.jsonl", [question])
    assert rows(tmp_path / "A.jsonl") == [{"prediction": "A cat, or no: a dog.", "qs": "What is it?"}]
    assert server.bodies[0]["max_tokens"] == 50
    assert "logprobs" not in server.bodies[0]


def test_a_server_without_log_probabilities_gives_words_alone(tmp_path: Path) -> None:
    with stub_server(lambda number, body: Says(body=completion(yes=None, no=None))) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    assert list(rows(tmp_path / "A.jsonl")[0]) == ["id", "prediction", "qs"]
    assert f"{ROWS} answers without a margin: the server gave no log-probabilities." in summary.lines()


def test_a_word_that_was_not_returned_leaves_the_margin_empty(tmp_path: Path) -> None:
    with stub_server(lambda number, body: Says(body=completion(no=None))) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    assert (
        rows(tmp_path / "A.jsonl")[0] | {"yes_logit": -0.25, "no_logit": None, "margin": None}
        == rows(tmp_path / "A.jsonl")[0]
    )
    assert any(line.startswith(f"{ROWS} answers without a margin: Yes or No was not among") for line in summary.lines())


@pytest.mark.parametrize(
    "reply",
    [
        reasoned(reasoning_content="Let me see"),
        reasoned(reasoning="Let me see", marks=False),
        reasoned(),  # the server leaves the reasoning out and does not say so
        reasoned(content="<think>Let me see</think>\n\nNo"),
        reasoned(content="Let me see</think>\n\nNo"),  # the prompt's end has opened it
        reasoned(content=[{"type": "thinking", "thinking": []}, {"type": "text", "text": "No"}]),
    ],
    ids=["reasoning_content", "reasoning", "left out", "in the text", "only its end in the text", "parts"],
)
def test_the_margin_of_a_model_that_reasons_is_that_of_its_answer(tmp_path: Path, reply: dict) -> None:
    with stub_server(lambda number, body: Says(body=reply)) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    assert {(row["prediction"], row["margin"]) for row in rows(tmp_path / "A.jsonl")} == {("No", -1.75)}
    assert summary.counts.words_not_placed == summary.counts.disagreements == 0


@pytest.mark.parametrize(
    ("reply", "prediction"),
    [
        (reasoned("No what <unk> ever", reasoning="No what?", content="Yes!"), "Yes!"),
        (reasoned(answer=None, reasoning_content="Let me see"), ""),
        (reasoned(answer=None, content="<think>Let me see"), ""),
        (reasoned(answer=None), ""),
    ],
    ids=["other tokens than its text", "no answer", "no answer in the text", "nothing is said"],
)
def test_a_reply_whose_answer_cannot_be_placed_has_no_margin(tmp_path: Path, reply: dict, prediction: str) -> None:
    with stub_server(lambda number, body: Says(body=reply)) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    assert [row["prediction"] for row in rows(tmp_path / "A.jsonl")] == [prediction] * ROWS
    assert {row.get("margin") for row in rows(tmp_path / "A.jsonl")} == {None}
    assert summary.counts.words_not_placed == ROWS
    assert any(line.startswith(f"{ROWS} answers without a margin: which of the") for line in summary.lines())


@pytest.mark.parametrize(
    ("text", "tokens", "start"),
    [
        ("Yes", ["Yes", "<|im_end|>"], 0),
        ("Yes", ["▁Yes", "</s>"], 0),
        ("Yes", ["Ċ", "ĠYes"], 0),  # as the other engines: of the first token, whatever it is
        ("Yes – there is", ["Yes", " ", "bytes:\\xe2\\x80", "bytes:\\x93", " there", " is"], 0),
        ("", ["<|im_end|>"], 0),
        ("", ["I", " cannot"], None),
        ("Yes", [], None),
        ("No", ["No", ",", "wait", "</think>", "No", "</s>"], 4),
    ],
)
def test_where_an_answer_begins(text: str, tokens: list[str], start: int | None) -> None:
    assert answer_start(text, tokens) == start


def test_answers_against_their_log_probabilities_are_counted(tmp_path: Path) -> None:
    against = completion("No", yes=-0.25, no=-1.5)
    with stub_server(lambda number, body: Says(body=against) if number < 3 else None) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    assert summary.counts.disagreements == 3
    assert "3 answers go against the order of the Yes and No log-probabilities." in summary.lines()


def test_replies_without_a_text_are_counted_by_the_servers_reason(tmp_path: Path) -> None:
    def script(number: int, body: dict) -> Says | None:
        if number > 2:
            return None
        reply = completion("")
        reply["choices"][0]["message"]["content"] = None
        reply["choices"][0]["finish_reason"] = "content_filter" if number else "length"
        return Says(body=reply)

    with stub_server(script) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    assert summary.counts.without_text == {"content_filter": 2, "length": 1}
    assert (
        "3 replies without a text, by the server's reason (content_filter: 2, length: 1): the empty answer, which "
        "counts as wrong." in summary.lines()
    )
    assert json.loads((tmp_path / "A.manifest.json").read_text())["runs"][0]["without_text"]["length"] == 1


@pytest.mark.parametrize("change", [{"system_fingerprint": "fp_2"}, {"model": "stub-2"}])
def test_another_build_that_goes_on_is_named(tmp_path: Path, change: dict) -> None:
    changed: dict[str, str] = {}

    def script(number: int, body: dict) -> Says:
        return Says(503) if number >= 5 and not changed else Says(body=completion(**changed))

    with stub_server(script) as server:
        with pytest.raises(InputError, match="Finished blocks are kept"):
            ask(server, tmp_path / "A.jsonl", retries=0)
        changed.update(change)
        lines = ask(server, tmp_path / "A.jsonl").lines()
    now = " ".join({"model": "stub", "system_fingerprint": "fp_1", **change}.values())
    assert (
        f"The server named several models or builds: {now} (4 answers), stub fp_1 (5 answers of earlier runs)." in lines
    )
    runs = json.loads((tmp_path / "A.manifest.json").read_text())["runs"]
    assert [run["builds"] for run in runs] == [{"stub fp_1": 5}, {now: 4}]


@pytest.mark.parametrize(("most", "expected"), [(5, 5), (0, None)])
def test_a_server_that_gives_fewer_log_probabilities_is_asked_for_fewer(
    tmp_path: Path, most: int, expected: int | None
) -> None:
    def script(number: int, body: dict) -> Any:
        if body.get("top_logprobs", 0) > most:
            return Says(400, {"error": {"message": f"top_logprobs must be at most {most}"}})
        return None

    with stub_server(script) as server:
        assert ask(server, tmp_path / "A.jsonl", concurrency=4).exit_code == 0
    assert server.bodies[-1].get("top_logprobs") == expected
    assert len(server.bodies) == ROWS + (1 if expected else 2)  # found out once, not for each question


def test_a_server_that_calls_the_limit_otherwise_is_asked_so(tmp_path: Path) -> None:
    def script(number: int, body: dict) -> Any:
        if "max_tokens" in body:
            return Says(400, {"error": {"message": "Unsupported parameter 'max_tokens'. Use 'max_completion_tokens'."}})
        return None

    with stub_server(script) as server:
        assert ask(server, tmp_path / "A.jsonl").exit_code == 0
    assert server.bodies[-1]["max_completion_tokens"] == 16


def test_extra_fields_go_with_every_request_and_into_the_settings(tmp_path: Path) -> None:
    with stub_server() as server:
        ask(server, tmp_path / "A.jsonl", extra_body={"temperature": None, "seed": 7})
        assert "temperature" not in server.bodies[0]
        assert server.bodies[0]["seed"] == 7
        with pytest.raises(InputError, match="extra_body"):
            ask(server, tmp_path / "A.jsonl")


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


# --- what passes by itself ---


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


# --- what ends the run, or a row ---


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


def test_the_key_does_not_follow_a_redirect(tmp_path: Path) -> None:
    with stub_server() as elsewhere:
        moved = Says(307, "", {"location": f"{elsewhere.url}/chat/completions"})
        with stub_server(lambda number, body: moved) as server, pytest.raises(InputError, match="redirects to"):
            ask(server, tmp_path / "A.jsonl")
        assert elsewhere.bodies == []


def test_a_key_that_the_server_repeats_is_in_no_file(tmp_path: Path) -> None:
    with stub_server(lambda number, body: Says(body=completion(f"Your key is {KEY}", model=KEY))) as server:
        ask(server, tmp_path / "A.jsonl")
    assert rows(tmp_path / "A.jsonl")[0]["prediction"] == "Your key is [key]"
    assert KEY not in everything_written(tmp_path)


def test_a_key_that_the_server_repeats_in_another_spelling_is_in_no_file(tmp_path: Path) -> None:
    """JSON may write any letter as an escape, also in the name of a field."""
    spelled = "".join(f"\\u{ord(sign):04x}" for sign in KEY)
    text = json.dumps(completion("Your key is STOLEN", model="STOLEN", system_fingerprint="STOLEN"))
    with stub_server(lambda number, body: Says(body=text.replace("STOLEN", spelled))) as server:
        ask(server, tmp_path / "A.jsonl")
    assert rows(tmp_path / "A.jsonl")[0]["prediction"] == "Your key is [key]"
    assert KEY not in everything_written(tmp_path)


def test_a_short_key_is_in_no_file_and_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is cut out where it stands as a word; where it is a word of an answer it cannot be told from it."""
    monkeypatch.setenv("OPENAI_API_KEY", "k3y")
    with stub_server(lambda number, body: Says(body=completion(model="m k3y", system_fingerprint="k3y"))) as server:
        ask(server, tmp_path / "A.jsonl")
    assert {row["prediction"] for row in rows(tmp_path / "A.jsonl")} == {"Yes"}
    assert '"m [key] [key]"' in (tmp_path / "A.manifest.json").read_text()
    said = []
    for number, says in enumerate(
        (
            Says(401, {"error": {"message": "wrong key: k3y"}}),
            Says(400, {"error": {"message": "k3y?"}}),
            Says(503, {"error": {"message": "k3y?"}}),
            Says(404, {"error": {"message": "k3y?"}}),
            Says(302, "", {"location": "http://k3y.example"}),
            Says(200, "<p>k3y"),
            Says(body=completion("the k3y")),
        )
    ):
        with stub_server(lambda number, body, says=says: says) as server, pytest.raises(InputError) as raised:
            ask(server, tmp_path / f"B{number}.jsonl", retries=0)
        said.append(str(raised.value))
    assert "too short to be told from words: take a key of at least 8 signs" in said[-1]
    out = capfd.readouterr()
    assert "k3y" not in "".join(said) + out.out + out.err + everything_written(tmp_path)


@pytest.mark.parametrize(
    "given", [{"base_url": f"http://localhost:1/{KEY}/v1"}, {"extra_body": {"api_key": KEY}}], ids=["base_url", "body"]
)
def test_a_key_in_what_is_written_into_manifests_is_refused(tmp_path: Path, given: dict) -> None:
    options = ServedOptions(**{"base_url": "http://localhost:1/v1", **given})
    with pytest.raises(InputError, match=f"`{next(iter(given))}` holds the key of the environment variable") as raised:
        client.ServerClient(options)
    assert KEY not in str(raised.value)


def test_a_proxy_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://user:secret@localhost:1")
    with pytest.raises(InputError, match="A proxy of the environment") as raised:
        client.ServerClient(ServedOptions("http://localhost:1/v1"))
    assert "secret" not in str(raised.value)


def test_half_a_letter_in_an_answer_is_written_and_read_again(tmp_path: Path) -> None:
    text = json.dumps(completion("Yes HALF")).replace("HALF", "\\ud83d")
    question = Question({"id": 0}, "x.json:1", "What is it?", (), stop=up_to(8))
    with stub_server(lambda number, body: Says(body=text)) as server:
        ask(server, tmp_path / "A.jsonl", [question])
        summary = ask(server, tmp_path / "A.jsonl", [question])
    assert summary.counts.already_done == 1
    assert rows(tmp_path / "A.jsonl")[0]["prediction"].startswith("Yes ")


@pytest.mark.parametrize("key", ["sk-with space", "sk-line\nbreak", "schlüssel"])
def test_a_key_that_cannot_be_sent_is_refused_without_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(InputError, match="MY_KEY does not hold a key") as raised:
        ask("http://127.0.0.1:1/v1", tmp_path / "A.jsonl", api_key_env="MY_KEY")
    assert key not in str(raised.value)


def test_without_a_key_no_header_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with stub_server() as server:
        ask(server, tmp_path / "A.jsonl")
    assert set(server.keys) == {None}
    with (
        stub_server(lambda number, body: Says(401, "")) as server,
        pytest.raises(InputError, match="and no key is set in OPENAI_API_KEY"),
    ):
        ask(server, tmp_path / "B.jsonl")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        (None, "`base_url` is needed"),
        ("localhost:8000", "must be like http://localhost:8000/v1"),
        ("ftp://host/v1", "must be like"),
        (f"https://me:{KEY}@host/v1", "without user, password or query"),
        (f"https://host/v1?key={KEY}", "without user, password or query"),
        ("http://[::1/v1", "must be like"),
    ],
)
def test_base_urls_that_are_refused(url: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        checked_url(url)
    assert KEY not in str(raised.value)
    assert checked_url("http://host:1/v1/chat/completions/".rstrip("/")) == "http://host:1/v1"


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


@pytest.mark.parametrize(
    ("url", "warned"),
    [("http://models.example/v1", True), ("https://models.example/v1", False), ("http://localhost:1/v1", False)],
)
def test_a_key_that_would_go_unencrypted_to_another_machine_is_warned_of(
    url: str, warned: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_engine(EngineOptions("openai", ServedOptions(url)), LoadOptions("stub"))
    opened.answering([Question({}, "x:1", "Is it?")], [0.0], AnswerOptions())
    said = capsys.readouterr().err
    assert ("the key in OPENAI_API_KEY goes to http://models.example/v1 unencrypted" in said) == warned
    assert KEY not in said


# --- the command ---

WORDS = ["probe", "--engine", "openai", "--model", "stub", "--items", "2", "--quiet", "--api_key_env", "MY_KEY"]


def by_caption(number: int, body: dict) -> Says:
    """Yes for captions of an even length; a pure function of the question, as a model at temperature 0."""
    text = body["messages"][0]["content"][-1]["text"]
    return Says(body=completion(*(("Yes", -0.1, -2.0) if len(text) % 2 else ("No", -2.0, -0.1))))


def test_the_probe_of_a_served_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    with stub_server(by_caption) as server:
        words = [*WORDS, "--base_url", server.url, "--answer_file", str(tmp_path / "A.jsonl"), "--text_only"]
        assert main(words) == 0
        out = capsys.readouterr().out
        assert f"lambda as served (from the server); model stub at {server.url}" in out
        assert "3600 prompt tokens, 72 answer tokens" in out
        assert len(server.bodies) == 36 + 4
        assert len(server.bodies[-1]["messages"][0]["content"]) == 1  # text alone
        result = read_results(tmp_path / "A.jsonl")
        assert result.yes is not None and result.yes.has_margins and result.yes.rows == 18
        assert result.label == "A, as served by openai"
        assert main([*words, "--global_context_lambda", "0.5"]) == 2
        assert "--global_context_lambda 0.5 cannot be set on a server" in capsys.readouterr().err
    assert KEY not in everything_written(tmp_path)


def test_the_evidence_names_the_builds_that_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    def script(number: int, body: dict) -> Says:
        says = by_caption(number, body)
        assert isinstance(says.body, dict)
        says.body["system_fingerprint"] = "fp_2" if number > 20 else "fp_1"
        return says

    with stub_server(script) as server:
        assert main([*WORDS, "--base_url", server.url, "--answer_file", str(tmp_path / "A.jsonl")]) == 0
    result = read_results(tmp_path / "A.jsonl")
    assert result.builds == result.select(result.items).builds == ("stub fp_1", "stub fp_2")
    said = "A, as served by openai was answered by several models or builds of its server: stub fp_1, stub fp_2."
    assert said in evidence._notes([result], [], None)
    (tmp_path / "A.manifest.json").unlink()
    assert read_results(tmp_path / "A.jsonl").builds == ()


def test_a_benchmark_of_a_served_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "1.jpg")
    rows = [
        {"question_id": str(n), "image": "1.jpg", "image_source": "1", "category": "random", "answer": answer}
        | {"question": f"Is there a {word} in the image?"}
        for n, (word, answer) in enumerate([("cat", "yes"), ("dog", "no")], 1)
    ]
    (tmp_path / "pope.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with stub_server(lambda number, body: Says(body=completion("Yes"))) as server:
        words = ["--engine", "openai", "--base_url", server.url, "--model", "stub", "--resamples", "0", "--quiet"]
        data = ["--data", str(tmp_path / "pope.jsonl"), "--answer_file", str(tmp_path / "A.jsonl")]
        assert main(["benchmark", "pope", *words, *data]) == 0
    assert "lambda as served, protocol official" in capsys.readouterr().out
    score = json.loads((tmp_path / "A.score.json").read_text())
    assert (score["lambda"], score["categories"]["random"]["accuracy"]) == ("as served", 0.5)


def test_mistakes_of_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--engine", "openai"], "--model is needed with --engine openai"),
        (["--engine", "openai", "--model", "m"], "--base_url is needed"),
        (
            ["--engine", "openai", "--model", "m", "--base_url", "http://h/v1", "--dtype", "float32"],
            "--dtype is for the",
        ),
        (
            ["--engine", "openai", "--model", "m", "--base_url", "http://h/v1", "--method", "random"],
            "--method random ca",
        ),
        (["--base_url", "http://h/v1"], "--base_url is for the engine openai, but the engine is transformers"),
    ):
        assert main(["probe", *words, "--items", "1", "--answer_file", str(tmp_path / "A.jsonl")]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_probe_goes_on_and_its_bytes_are_those_of_an_unbroken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)

    def slow(number: int, body: dict) -> Says:
        says = by_caption(number, body)
        says.seconds = 0.02
        return says

    with stub_server(slow) as server:
        words = [*WORDS, "--items", "6", "--base_url", server.url, "--concurrency", "2"]
        killed = subprocess.Popen(
            [sys.executable, "-m", "transformers_agci.cli", *words, "--answer_file", str(tmp_path / "A.jsonl")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while len(server.bodies) < 60 and time.monotonic() < deadline:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        before = len(server.bodies)
        assert 60 <= before < 108
        assert main([*words, "--answer_file", str(tmp_path / "A.jsonl")]) == 0
        assert len(server.bodies) <= before + 108 - 36  # the first block was kept
        assert main([*words, "--answer_file", str(tmp_path / "B.jsonl")]) == 0
    assert (tmp_path / "A.jsonl").read_bytes() == (tmp_path / "B.jsonl").read_bytes()
    assert KEY not in everything_written(tmp_path)


@pytest.mark.parametrize(
    "passing",
    [
        {"choices": [{"finish_reason": "error", "error": {"code": 502}, "message": {"content": ""}}]},
        {"choices": [{"finish_reason": "error", "message": {"content": ""}}]},
        {"error": "overloaded, try again"},
        {"object": "error", "code": 503, "message": "busy"},
    ],
)
def test_an_error_inside_an_answer_that_passes_is_asked_again(tmp_path: Path, passing: dict) -> None:
    with stub_server(lambda number, body: Says(body=passing) if number == 1 else None) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "A.jsonl").read_text().splitlines()]
    assert summary.counts.failed == [] and all(row["prediction"] for row in rows)


def test_an_empty_purse_ends_the_run_and_skips_no_row(tmp_path: Path) -> None:
    with (
        stub_server(lambda number, body: Says(402, {"error": {"message": "Insufficient Balance"}})) as server,
        pytest.raises(InputError, match="wants to be paid"),
    ):
        ask(server, tmp_path / "A.jsonl")
