"""The engine openai where a server or a user goes beyond all measure: one sentence, or nothing; never a traceback."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import served_run
from served_run import ROWS, ask, rows
from stub_server import Says, completion, stub_server

from transformers_agci.commands.options.engine import json_object
from transformers_agci.errors import InputError
from transformers_agci.experiments.engines import EngineOptions, open_engine
from transformers_agci.inference.load import LoadOptions
from transformers_agci.inference.questions import BlankImage, Question
from transformers_agci.inference.served.client import ServedOptions
from transformers_agci.inference.served.reply import read_reply

quick_and_keyed = served_run.quick_and_keyed  # fixture of every test


def test_names_that_a_server_gives_are_shown_as_text(tmp_path: Path) -> None:
    """Not as what a terminal obeys or no file can hold, and not at any length."""
    models = ["m\x1b[2J", "m\ud800", "m" * 100_000, "\u202em"]
    with stub_server(
        lambda number, body: Says(200, json.dumps(completion(model=models[number % 4], system_fingerprint=None)))
    ) as server:
        said = " ".join(ask(server, tmp_path / "A.jsonl").lines())
    assert said.isprintable() and len(said) < 1000
    for name in ("m\\x1b[2J (2 answers)", "m\\ud800 (2 answers)", "\\u202em (2 answers)", "mmm… (2 answers)"):
        assert name in said
    assert len((tmp_path / "A.manifest.json").read_bytes()) < 10_000


def test_a_build_for_each_answer_does_not_fill_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers_agci.inference.served.engine.MOST_BUILDS", 6)
    with stub_server(lambda number, body: Says(body=completion(system_fingerprint=f"fp_{number}"))) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    (said,) = [line for line in summary.lines() if "several models or builds" in line]
    assert said.count("stub fp_") == 4 and said.endswith(" and 2 more, which stand in the manifest.")
    (run,) = json.loads((tmp_path / "A.manifest.json").read_text())["runs"]
    assert run["builds"] == {f"stub fp_{number}": 1 for number in range(6)} | {"others": ROWS - 6}


@pytest.mark.parametrize("tokens", [10**9 + 1, 10**4298, -1, 1.5, True, "7"])
def test_numbers_of_tokens_that_are_none_are_not_added(tokens: Any) -> None:
    found = read_reply(completion(usage={"prompt_tokens": tokens, "completion_tokens": tokens}), True)
    assert (found.prompt_tokens, found.completion_tokens) == (None, None)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("says", [Says(204), Says(202, {"status": "queued"})])
def test_a_success_without_a_reply_is_asked_again(tmp_path: Path, says: Says) -> None:
    with stub_server(lambda number, body: says if number == 3 else None) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    assert (summary.exit_code, summary.counts.retries, len(rows(tmp_path / "A.jsonl"))) == (0, 1, ROWS)


def test_a_reply_is_one_under_any_success_and_behind_a_mark_of_its_encoding(tmp_path: Path) -> None:
    for name, says in (("A", Says(201, completion())), ("B", Says(body="\ufeff" + json.dumps(completion())))):
        with stub_server(lambda number, body, says=says: says) as server:
            assert ask(server, tmp_path / f"{name}.jsonl", retries=0).exit_code == 0
    assert rows(tmp_path / "A.jsonl") == rows(tmp_path / "B.jsonl")


@pytest.mark.sampled(5)
@pytest.mark.parametrize("status", [405, 407, 410, 421, 431])
def test_what_is_wrong_with_every_request_leaves_no_row_behind(tmp_path: Path, status: int) -> None:
    changed = [True]
    with stub_server(lambda number, body: Says(status) if changed[0] and number >= 5 else None) as server:
        with pytest.raises(InputError, match=f"takes no such request \\(HTTP {status}: "):
            ask(server, tmp_path / "A.jsonl")
        changed[0] = False
        assert ask(server, tmp_path / "A.jsonl").counts.already_done == 4
    assert [row["id"] for row in rows(tmp_path / "A.jsonl")] == list(range(ROWS))


def test_a_server_that_refuses_what_it_answered_before_ends_the_run(tmp_path: Path) -> None:
    expired = [True]
    with stub_server(
        lambda number, body: Says(400, {"error": "session expired"}) if expired[0] and number >= 4 else None
    ) as server:
        with pytest.raises(InputError, match=r"x\.json:7: .*expired\), and now refuses what it answered before"):
            ask(server, tmp_path / "A.jsonl", block_rows=4)
        expired[0] = False
        assert ask(server, tmp_path / "A.jsonl", block_rows=4).counts.already_done == 4
    assert [row["id"] for row in rows(tmp_path / "A.jsonl")] == list(range(ROWS))


def test_rows_in_a_row_that_a_server_refuses_are_skipped(tmp_path: Path) -> None:
    def script(number: int, body: dict) -> Says | None:
        text = body["messages"][0]["content"][1]["text"]
        return Says(400, {"error": "too long"}) if any(f"{row}?" in text for row in range(2, 7)) else None

    with stub_server(script) as server:
        summary = ask(server, tmp_path / "A.jsonl")
    assert [row["id"] for row in rows(tmp_path / "A.jsonl")] == [0, 1, 7]
    assert len(summary.counts.failed) == 5
    assert len(server.bodies) == ROWS + 1  # one that was answered, once more


def test_half_a_surrogate_pair_in_a_question_is_a_bad_row(tmp_path: Path) -> None:
    asked = [Question({"id": id}, f"x.json:{id + 1}", text, (BlankImage(8, 6),)) for id, text in enumerate("a\ud800é")]
    with stub_server(lambda number, body: None) as server:
        summary = ask(server, tmp_path / "A.jsonl", asked)
    assert [row.error for row in summary.counts.failed] == [
        "x.json:2: the text holds half a surrogate pair (\\ud800 to \\udfff), which is no character."
    ]
    assert [row["id"] for row in rows(tmp_path / "A.jsonl")] == [0, 2]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"concurrency": 100_000}, "`concurrency` must be at most 1000, but is 100000"),
        ({"extra_body": {"seed": float("nan")}}, "`extra_body` must be what JSON can say"),
        ({"extra_body": {"seed": "\ud800"}}, "`extra_body` must be what JSON can say"),
        ({"extra_body": {"seed": {1, 2}}}, "`extra_body` must be what JSON can say"),
    ],
)
def test_options_that_no_request_can_carry(given: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ServedOptions("http://localhost:1/v1", **given)


@pytest.mark.parametrize("text", ['{"a": NaN}', '{"a": [1e999]}', "[1]", "null", '{"a": ' + "[" * 9999, ""])
def test_what_is_no_json_object_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="must be a JSON object"):
        json_object(text)
    assert json_object('{"a": [1e9, null]}') == {"a": [1e9, None]}


@pytest.mark.parametrize("name", ["x\udcff", "", "  ", "a\nb"])
def test_a_name_of_a_model_that_no_request_can_carry(name: str) -> None:
    with pytest.raises(InputError, match="must be the name by which the server knows it"):
        open_engine(EngineOptions("openai", ServedOptions("http://localhost:1/v1")), LoadOptions(name))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("given", [{"timeout": 1e300}, {"requests_per_minute": 1e300}, {"retries": 10**9}])
def test_numbers_beyond_all_measure_work(tmp_path: Path, given: dict) -> None:
    with stub_server(lambda number, body: None) as server:
        assert ask(server, tmp_path / "A.jsonl", **given).exit_code == 0


@pytest.mark.slow
def test_a_server_on_this_machine_is_not_asked_by_way_of_a_proxy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which would see the key, and seldom knows this machine by its name."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with stub_server(lambda number, body: None) as server:
        assert ask(server, tmp_path / "A.jsonl", retries=0).exit_code == 0
        assert ask(server.url.replace("127.0.0.1", "localhost"), tmp_path / "B.jsonl", retries=0).exit_code == 0
