"""The engine openai against a stub server: what it sends and reads."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
import served_run
from PIL import Image
from served_run import KEY, ROWS, ask, rows
from stub_server import Says, completion, reasoned, stub_server

from transformers_agci.errors import InputError
from transformers_agci.inference.questions import BlankImage, Question, up_to
from transformers_agci.inference.served.reply import answer_start

quick_and_keyed = served_run.quick_and_keyed  # fixture of every test


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


def test_questions_that_want_no_scores_do_not_settle_the_form_of_those_that_do(tmp_path: Path) -> None:
    def script(number: int, body: dict) -> Says | None:
        most = body.get("top_logprobs", 0)
        return Says(400, {"error": {"message": "top_logprobs must be at most 5"}}) if most > 5 else None

    image = (BlankImage(8, 8),)
    asked = [Question({"id": 0}, "x:1", "What is it?", image, stop=up_to(50))]
    asked += [Question({"id": number}, f"x:{number + 1}", f"Is it {number}?", image) for number in range(1, ROWS)]
    with stub_server(script) as server:
        summary = ask(server, tmp_path / "A.jsonl", asked)
    assert summary.counts.failed == []
    assert [row.get("margin") for row in rows(tmp_path / "A.jsonl")] == [None] + [1.25] * (ROWS - 1)


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


def test_half_a_letter_in_an_answer_is_written_and_read_again(tmp_path: Path) -> None:
    text = json.dumps(completion("Yes HALF")).replace("HALF", "\\ud83d")
    question = Question({"id": 0}, "x.json:1", "What is it?", (), stop=up_to(8))
    with stub_server(lambda number, body: Says(body=text)) as server:
        ask(server, tmp_path / "A.jsonl", [question])
        summary = ask(server, tmp_path / "A.jsonl", [question])
    assert summary.counts.already_done == 1
    assert rows(tmp_path / "A.jsonl")[0]["prediction"].startswith("Yes ")
