"""Replies of the engine openai that nobody expects: what is in them is read as it is meant, or not at all."""

import gzip
import json
from typing import Any

import pytest
from stub_server import Says, completion, stub_server

from transformers_agci.errors import InputError
from transformers_agci.inference.served import client
from transformers_agci.inference.served.client import ServedOptions, ServerClient
from transformers_agci.inference.served.faults import fault_in
from transformers_agci.inference.served.reply import answer_start, read_reply


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.001)


def reply(*tokens: tuple[str, dict[str, float]], content: Any = None, **choice: Any) -> dict[str, Any]:
    """A reply by its tokens, each with the scores of the likeliest words there."""
    logprobs = [
        {"token": token, "logprob": -0.1, "top_logprobs": [{"token": word, "logprob": scores[word]} for word in scores]}
        for token, scores in tokens
    ]
    text = "".join(token for token, _ in tokens) if content is None else content
    return {"choices": [{"message": {"content": text}, "logprobs": {"content": logprobs}, **choice}]}


def post(says: Says) -> dict[str, Any]:
    with stub_server(lambda number, body: says) as server:
        asking = ServerClient(ServedOptions(server.url, retries=0))
        try:
            return asking.post("/chat/completions", {"messages": []})
        finally:
            asking.close()


def test_a_part_without_text_is_no_word() -> None:
    """null would be written as None, which begins like a No."""
    found = reply(content=[{"type": "text", "text": None}, {"type": "text"}, {"type": "text", "text": "Yes"}])
    assert read_reply(found, True).answer.text == "Yes"
    assert read_reply(reply(content=[{"type": "text", "text": None}], finish_reason="length"), True).answer.text == ""


def test_of_several_choices_the_first_by_its_index_is_read() -> None:
    choices = [{"index": 1, "message": {"content": "No"}}, {"index": 0, "message": {"content": "Yes"}}]
    assert read_reply({"choices": choices}, True).answer.text == "Yes"
    assert read_reply({"choices": [{"message": {"content": "No"}}, *choices[:1]]}, True).answer.text == "No"


@pytest.mark.parametrize("error", [{"code": 502, "message": "the model crashed"}, "the model crashed"])
def test_an_error_beside_a_choice_is_one(error: Any) -> None:
    fault = fault_in({**completion("Y"), "error": error})
    assert fault is not None and fault.reason == "the model crashed"
    for nothing in (None, "", {}, False):
        assert fault_in({**completion(), "error": nothing}) is None


@pytest.mark.parametrize("name", ["messages", "model", "n", "stream"])
def test_what_a_request_asks_is_not_changed_by_extra_fields(name: str) -> None:
    with pytest.raises(InputError, match=f"`extra_body` must not hold '{name}'"):
        ServedOptions("http://localhost:1/v1", extra_body={name: 2})
    ServedOptions("http://localhost:1/v1", extra_body={name: None, "seed": 7})


@pytest.mark.parametrize(
    ("tokens", "text", "scores"),
    [
        ([("Yes", {"No": -2.0, "Yes": -0.5})], "Yes", (-0.5, -2.0)),  # in any order
        ([(" Yes", {" No": -2.0, " Yes": -0.5, "No": -9.0})], "Yes", (-0.5, -2.0)),
        ([("yes", {"yes": -0.1, "Yes": -2.0, "No": -3.0})], "yes", (-2.0, -3.0)),  # as the other engines
        ([("ĠYes", {"ĠNo": -2.0, "ĠYes": -0.5, "No": -9.0})], "Yes", (-0.5, -2.0)),
        ([("▁Yes", {"▁No": -2.0, "▁Yes": -0.5, "Yes": -9.0})], "Yes", (-0.5, -2.0)),
        ([("\n\nYes", {"\n\nNo": -2.0, "\n\nYes": -0.5})], "Yes", (-0.5, -2.0)),
        ([("Yes", {"Yes": 1.2e-07, "No": -15.9})], "Yes", (1.2e-07, -15.9)),  # rounded to above 0
        ([("No", {"No": -0.1, "Nope": -2.0})], "No", (None, -0.1)),
        ([("Maybe", {"Maybe": -0.1})], "Maybe", (None, None)),
        ([("Yes", {"Yes": float("nan"), "No": -2.0})], "Yes", (None, -2.0)),
        ([("Yes", {"Yes": 0.9, "No": 0.1})], "Yes", (None, None)),  # probabilities in their place
        ([("<s>", {"Yes": -9.0, "No": -9.0}), ("Yes", {"Yes": -0.1, "No": -3.0})], "Yes", (-0.1, -3.0)),
    ],
)
def test_scores_are_those_of_the_words(tokens: Any, text: str, scores: Any) -> None:
    answer = read_reply(reply(*tokens, content=text), True).answer
    assert (answer.text, (answer.yes_logit, answer.no_logit)) == (text, scores)


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        [],
        {},
        {"content": None},
        {"content": [None, 3, "Yes"]},
        {"content": {"token": "Yes"}},
        {"tokens": ["Yes"], "token_logprobs": [-0.1], "top_logprobs": [{"Yes": -0.1}]},
    ],
)
def test_log_probabilities_in_another_form_are_none(logprobs: Any) -> None:
    found = read_reply({"choices": [{"message": {"content": "Yes"}, "logprobs": logprobs}]}, True)
    assert (found.answer.text, found.has_scores, found.answer.yes_logit) == ("Yes", False, None)


@pytest.mark.parametrize(
    "message",
    [
        {"content": None, "tool_calls": [{"function": {"name": "look", "arguments": '{"answer": "Yes"}'}}]},
        {"content": "", "refusal": "No."},
        {"content": [{"type": "refusal", "refusal": "No."}]},
        {"content": [{"type": "image_url", "image_url": {"url": "No"}}]},
        {"content": "", "reasoning_content": "Yes"},
    ],
)
def test_what_is_no_text_is_no_answer(message: dict) -> None:
    found = read_reply({"choices": [{"message": message, "finish_reason": "tool_calls"}]}, True)
    assert (found.answer.text, found.ended) == ("", "tool_calls")


@pytest.mark.parametrize("usage", [None, [], "many", {}, {"prompt_tokens": -1}, {"prompt_tokens": True}])
def test_tokens_that_are_not_counted_are_not_guessed(usage: Any) -> None:
    found = read_reply({**completion(), "usage": usage}, True)
    assert found.prompt_tokens is None and found.completion_tokens is None


def test_a_token_of_many_spaces_is_no_answers_end() -> None:
    """A pattern that tries every way to share the spaces out would take hours."""
    assert answer_start("Yes", ["Yes", " " * 1_000_000 + "x"]) is None


def test_letters_cut_in_half_do_not_change_a_word() -> None:
    whole = json.dumps(completion("Yes é"), ensure_ascii=False).encode()
    found = post(Says(body=whole.replace("é".encode(), "é".encode()[:1])))
    assert read_reply(found, True).answer.text.startswith("Yes")


def test_a_packed_answer_is_unpacked() -> None:
    packed = gzip.compress(json.dumps(completion()).encode())
    assert post(Says(body=packed, headers={"content-encoding": "GZIP"}))["model"] == "stub"


@pytest.mark.parametrize(
    ("body", "encoding", "said"),
    [
        (gzip.compress(bytes(client.LARGEST + 2)), "gzip", "answers with more than 32 MB"),
        (gzip.compress(gzip.compress(bytes(100))), "gzip, gzip", "packed as 'gzip, gzip', where gzip alone was asked"),
        (b"packed", "br", "packed as 'br'"),
        (gzip.compress(json.dumps(completion()).encode())[:-12], "gzip", "a packed answer that breaks off"),
    ],
    ids=["a little of a lot", "twice", "otherwise", "broken off"],
)
def test_what_is_packed_otherwise_is_not_unpacked(body: bytes, encoding: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        post(Says(body=body, headers={"content-encoding": encoding}))


@pytest.mark.parametrize(
    ("status", "body", "encoding", "said"),
    [
        (401, b"packed", "br", r"refuses access \(HTTP 401: Unauthorized\)"),
        (401, b"", "gzip", r"refuses access \(HTTP 401: Unauthorized\)"),
        (401, gzip.compress(b"{}", mtime=0)[:-4], "gzip", r"refuses access \(HTTP 401: Unauthorized\)"),
        (308, b"", "gzip", "redirects to https://elsewhere.example"),
        (503, b"not packed", "gzip", "HTTP 503: Service Unavailable"),
        (200, b"", "gzip", "an answer whose JSON breaks off"),
    ],
)
def test_a_status_counts_however_its_body_is_packed(status: int, body: bytes, encoding: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        post(Says(status, body, {"content-encoding": encoding, "location": "https://elsewhere.example"}))


def test_after_an_answer_that_was_cut_the_next_is_its_own() -> None:
    """Half an answer that stays in a connection would be the beginning of the next one."""

    def script(number: int, body: dict) -> Says:
        text = body["messages"][0]["content"]
        found = json.dumps(completion(text))
        if number == 1:  # what is behind the length that is said
            return Says(body=found + json.dumps(completion("No")), headers={"content-length": str(len(found) - 5)})
        return Says(body=found)

    with stub_server(script) as server:
        asking = ServerClient(ServedOptions(server.url, retries=3))
        for text in ("Yes 1", "Yes 2", "Yes 3"):
            found = asking.post("/chat/completions", {"messages": [{"role": "user", "content": text}]})
            assert read_reply(found, True).answer.text == text
        asking.close()
