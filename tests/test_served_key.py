"""The key of a served model is in no file and no message, and goes to nobody else; addresses that are refused."""

import json
from pathlib import Path

import pytest
import served_run
from served_run import KEY, ask, everything_written, rows
from stub_server import Says, completion, stub_server

from transformers_agci.errors import InputError
from transformers_agci.experiments.engines import EngineOptions, open_engine
from transformers_agci.inference.answering import AnswerOptions
from transformers_agci.inference.load import LoadOptions
from transformers_agci.inference.questions import Question
from transformers_agci.inference.served import client
from transformers_agci.inference.served.address import checked_url
from transformers_agci.inference.served.client import ServedOptions

quick_and_keyed = served_run.quick_and_keyed  # fixture of every test


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
    "given",
    [{"base_url": f"http://localhost:1/{KEY}/v1"}, {"extra_body": {"api_key": KEY}}, {"model": KEY}],
    ids=["base_url", "body", "model"],
)
def test_a_key_in_what_is_written_into_manifests_is_refused(tmp_path: Path, given: dict) -> None:
    model = LoadOptions(given.get("model", "stub"))
    served = {name: value for name, value in given.items() if name != "model"}
    options = EngineOptions("openai", ServedOptions(**{"base_url": "http://localhost:1/v1", **served}))
    with pytest.raises(InputError, match=f"`{next(iter(given))}` holds the key of the environment variable") as raised:
        _ = open_engine(options, model).description
    assert KEY not in str(raised.value)


def test_a_proxy_that_cannot_be_used_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "gopher://user:secret@localhost:1")
    with pytest.raises(InputError, match="A proxy of the environment") as raised:
        client.ServerClient(ServedOptions("http://localhost:1/v1"))
    assert "secret" not in str(raised.value)


def test_certificates_that_cannot_be_read_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "no.pem").write_text("hello")
    for file in (tmp_path / "no.pem", tmp_path / "missing.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        with pytest.raises(InputError, match=r"certificates .* cannot be read .*SSL_CERT_FILE"):
            client.ServerClient(ServedOptions("https://localhost:1/v1"))


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
        (f"http://me:{KEY}@[::1/v1", "without user, password or query"),
        (f"http://me:{KEY}@host:port/v1", "without user, password or query"),
        (f"me:{KEY}@host/v1", "without user, password or query"),
        ("http://host:port/v1", "must be like"),
        ("http://host:99999/v1", "must be like"),
        ("http://host:0/v1", "must be like"),
        ("http://a host/v1", "must be like"),
        ("http://host\n/v1", "must be like"),
        ("http://host..example/v1", "must be like"),
        ("http:///v1", "must be like"),
    ],
)
def test_base_urls_that_are_refused(url: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said) as raised:
        checked_url(url)
    assert KEY not in str(raised.value)
    assert checked_url("http://host:1/v1/chat/completions/".rstrip("/")) == "http://host:1/v1"


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://models.example/v1", True),
        ("https://models.example/v1", False),
        ("http://localhost:1/v1", False),
        ("http://0.0.0.0:1/v1", False),
        ("http://[::ffff:127.0.0.1]:1/v1", False),
    ],
)
def test_a_key_that_would_go_unencrypted_to_another_machine_is_warned_of(
    url: str, warned: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_engine(EngineOptions("openai", ServedOptions(url)), LoadOptions("stub"))
    opened.answering([Question({}, "x:1", "Is it?")], [0.0], AnswerOptions())
    said = capsys.readouterr().err
    assert ("the key in OPENAI_API_KEY goes to http://models.example/v1 unencrypted" in said) == warned
    assert KEY not in said
