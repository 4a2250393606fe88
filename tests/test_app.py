"""The live page: what it shows a model, what it says of the answers, and what a request may not do."""

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from transformers_agci.app.maps import difference_of, map_of
from transformers_agci.app.scene import Scene
from transformers_agci.app.session import BASELINE, METHODS_ON_PAGE, CellAnswer, Session, Setting
from transformers_agci.data.grid import Grid
from transformers_agci.embedded import embedded_model_path
from transformers_agci.embedded.probe_set import GRID
from transformers_agci.errors import InputError
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.method.attach import agci
from transformers_agci.method.handle import current_handle


@pytest.fixture(scope="module")
def session() -> Session:
    return Session(load(LoadOptions(str(embedded_model_path()), device="cpu")), embedded=True)


def a_photo(path: Path, size: tuple[int, int] = (60, 30)) -> Path:
    Image.new("RGB", size, "red").save(path)
    return path


# --- the scene ---


def test_a_scene_differs_in_the_target_s_cell_only() -> None:
    scene = Scene.draw("rose", 5, GRID)
    assert len(set(scene.composites)) == 9
    assert Scene.draw("rose", 5, GRID) == scene
    assert Scene.draw("rose", 6, GRID) != scene
    first, second = (scene.image(cell) for cell in (7, 8))
    assert first.size == (252, 252)
    above = (0, 0, 252, 84 * 2 - 16)  # JPEG blends the edge of a cell
    assert first.crop(above).tobytes() == second.crop(above).tobytes()


def test_an_own_image_stands_in_every_cell_of_a_published_grid(tmp_path: Path) -> None:
    scene = Scene.draw(a_photo(tmp_path / "photo.png"), 0, Grid())
    for cell, box in enumerate(Grid().boxes()):
        red, green, blue = scene.image(cell).getpixel(
            (round((box.left + box.right) / 2), round((box.top + box.bottom) / 2))
        )
        assert red > 230 and green < 30 and blue < 30


def test_what_is_no_image_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="the uploaded file"):
        Scene.draw(tmp_path / "photo.png", 0, GRID)
    with pytest.raises(InputError, match="no image 'no such thing'"):
        Scene.draw("no such thing", 0, GRID)
    with pytest.raises(InputError, match="pixels"):
        Scene.draw(a_photo(tmp_path / "large.png", (6000, 5000)), 0, GRID)


# --- asking ---


def test_both_settings_are_answered_as_by_a_model_of_their_own(session: Session) -> None:
    scene = Scene.draw("grinning face", 3, GRID)
    baseline, changed = session.ask(scene, "grinning face", [BASELINE, Setting(0.5)])
    assert current_handle(session.loaded.model) is None
    assert [len(baseline), len(changed)] == [9, 9]
    with agci(session.loaded.model, 0.5):
        (alone,) = session.ask(scene, "grinning face", [Setting(0.5)])
    assert [each.margin for each in alone] == pytest.approx([each.margin for each in changed], abs=1e-5)
    assert max(abs(one.margin - other.margin) for one, other in zip(baseline, changed)) > 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize("method", METHODS_ON_PAGE)
def test_every_method_of_the_page_answers_and_leaves_no_trace(method: str, session: Session) -> None:
    scene = Scene.draw("rose", 1, GRID)
    before, changed = session.ask(scene, "rose", [BASELINE, Setting(0.5, method)])
    assert session.ask(scene, "rose", [BASELINE])[0] == before
    assert changed != before
    assert current_handle(session.loaded.model) is None


@pytest.mark.slow
def test_two_users_at_once_get_the_answers_of_their_own_lambda(session: Session) -> None:
    scene = Scene.draw("rose", 1, GRID)
    wanted = {lam: session.ask(scene, "rose", [Setting(lam)])[0] for lam in (0.0, 0.5, 1.0)}
    got: list[tuple[float, list[CellAnswer]]] = []

    def user(lam: float) -> None:
        got.extend((lam, session.ask(scene, "rose", [Setting(lam)])[0]) for _ in range(2))

    users = [threading.Thread(target=user, args=(lam,)) for lam in wanted]
    for each in users:
        each.start()
    for each in users:
        each.join()
    assert len(got) == 6
    assert all(answers == wanted[lam] for lam, answers in got)


def test_an_empty_caption_is_refused_before_the_model_is_asked(session: Session) -> None:
    with pytest.raises(InputError, match="caption is empty"):
        session.ask(Scene.draw("rose", 1, GRID), "  ", [BASELINE])


@pytest.mark.slow
def test_attention_and_occlusion_are_drawn_over_the_chosen_composite(session: Session) -> None:
    scene = Scene.draw("rose", 1, GRID)
    assert min(session.attention(scene, "rose", 4, "1", Setting(0.5)).size) > 200
    shares: list[float] = []
    assert min(session.occlusion(scene, "rose", 4, Setting(0.5), shares.append).size) > 200
    assert shares == sorted(shares) and shares[-1] == 1
    with pytest.raises(InputError, match="layer"):
        session.attention(scene, "rose", 4, "99", Setting(0.5))


def test_a_cancelled_occlusion_ends_and_leaves_the_model_free(session: Session) -> None:
    scene, told = Scene.draw("rose", 1, GRID), []

    def cancel(share: float) -> None:
        told.append(share)
        raise InputError("Cancelled.")

    with pytest.raises(InputError, match="Cancelled"):
        session.occlusion(scene, "rose", 0, Setting(0.5), cancel)
    assert len(told) == 1
    assert current_handle(session.loaded.model) is None
    assert len(session.ask(scene, "rose", [BASELINE])[0]) == 9


# --- the maps ---


def test_a_map_names_place_probability_and_margin() -> None:
    answers = [CellAnswer("Yes", 0.0), *[CellAnswer("No", -1.0)] * 8]
    shown = map_of(answers, "a <b>title</b>", 3)
    assert 'aria-label="top left: 50\N{NO-BREAK SPACE}%, +0.00"' in shown
    assert shown.count("<button") == 9 and shown.count('aria-pressed="true"') == 1
    assert "Yes in 1 of 9 places; margins \N{MINUS SIGN}1.00 to +0.00" in shown
    assert "a &lt;b&gt;title&lt;/b&gt;" in shown


def test_a_shift_of_all_places_alike_has_no_colour() -> None:
    before = [CellAnswer("No", -1.0 + k / 10) for k in range(9)]
    after = [CellAnswer("Yes", each.margin + 2) for each in before]
    shown = difference_of(before, after, 0)
    assert shown.count("<b>+0.00</b>") == 9
    assert "mean +2.00: what all places share" in shown


# --- the server: needs gradio ---


@pytest.fixture(scope="module")
def client(session: Session, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from fastapi.testclient import TestClient

    from transformers_agci.app import serve

    folder = tmp_path_factory.mktemp("app")
    (folder / "report.html").write_text("<p>a report</p>")
    options = serve.AppOptions(LoadOptions(str(embedded_model_path()), device="cpu"), ("agci",), folder / "report.html")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serve, "load", lambda _: session.loaded)
        for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
            patch.setenv(name, "")
        with TestClient(serve.make_app(options, folder / "uploads")) as client:
            yield client


@pytest.mark.app
def test_the_page_names_no_other_host_and_asks_for_no_font(client: Any) -> None:
    page = client.get("/").text
    assert "fonts.googleapis" not in page and "cdnjs" not in page
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["api_prefix"]
    assert client.get("/report.html").text == "<p>a report</p>"


@pytest.mark.app
@pytest.mark.parametrize(
    "path", ["/etc/passwd", str(Path(__file__)), str(embedded_model_path() / "config.json"), "../x"]
)
def test_no_file_of_the_server_is_handed_out(path: str, client: Any) -> None:
    got = client.get(f"/gradio_api/file={path}")
    assert got.status_code in (403, 404)


@pytest.mark.app
def test_an_upload_beyond_ten_megabytes_is_refused(client: Any) -> None:
    small = client.post("/gradio_api/upload", files={"files": ("a.png", b"x" * 1000)})
    assert small.status_code == 200
    large = client.post("/gradio_api/upload", files={"files": ("a.png", b"x" * (11 * 2**20))})
    assert large.status_code == 413


@pytest.mark.app
def test_what_a_request_says_is_checked(client: Any, session: Session) -> None:
    from transformers_agci.app.page import _Live

    live = _Live(session, ("agci",))
    said = {
        live.name: "rose",
        live.upload: None,
        live.caption: "rose",
        live.lam: 0.5,
        live.method: "agci",
        live.seed: 1,
        live.place: "center",
        live.layer: 1,
    }
    html, image = live.ask(said)
    assert html.count("<figure") == 3 and image.size == (252, 252)
    assert live.ask({**said, live.lam: 0.0})[0].count("<figure") == 1
    for wrong, message in [
        ({live.method: "../agci"}, "no method"),
        ({live.place: "nowhere"}, "no place"),
        ({live.lam: float("nan")}, "lambda"),
        ({live.lam: -1.0}, "lambda"),
        ({live.caption: None}, "caption is empty"),
    ]:
        with pytest.raises(InputError, match=message):
            live.ask({**said, **wrong})
    live.cancel(SimpleNamespace(session_hash="a"))
    assert live.cancelled == {"a"}


def test_a_taken_port_and_a_missing_report_are_one_sentence(tmp_path: Path) -> None:
    import socket

    from transformers_agci.app.serve import AppOptions, _listening, _read_report

    with socket.create_server(("127.0.0.1", 0)) as taken:
        options = AppOptions(LoadOptions("embedded"), ("agci",), port=taken.getsockname()[1])
        with pytest.raises(InputError, match="`port`"):
            _listening(options)
    with pytest.raises(InputError, match="`report`"):
        _read_report(tmp_path / "report.html")
