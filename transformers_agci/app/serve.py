"""The live page as a server: on this machine only unless told otherwise, and without a word to any other."""

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.errors import InputError
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.progress import Say

if TYPE_CHECKING:
    from fastapi import FastAPI

MOST_BYTES = 10 * 2**20  # of an upload
REPORT = "/report.html"


@dataclass(frozen=True)
class AppOptions:
    """The model, the report of the second tab, and where the page is served."""

    model: LoadOptions
    methods: tuple[str, ...]
    report: Path | None = None
    host: str = "127.0.0.1"
    port: int = 7860


def serve(options: AppOptions, say: Say) -> None:
    """Load the model and answer until interrupted."""
    import uvicorn

    with _listening(options) as listening, tempfile.TemporaryDirectory(prefix="agci_app_") as uploads:
        server = uvicorn.Server(uvicorn.Config(make_app(options, Path(uploads)), log_level="warning"))
        say(f"http://{options.host}:{options.port} (Ctrl-C ends it)")
        server.run(sockets=[listening])


def _listening(options: AppOptions) -> socket.socket:
    """The port, taken before the model is loaded."""
    try:
        return socket.create_server((options.host, options.port))
    except OSError as error:
        raise InputError(
            f"`port`: {options.host}:{options.port} cannot be listened on ({error.strerror or error}); choose another "
            "`port` or `host`."
        ) from error


def make_app(options: AppOptions, uploads: Path) -> "FastAPI":
    """The application. `uploads` is the one folder whose files it hands out: what users and the page itself put there.

    Raises InputError where the report cannot be read, or gradio is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    os.environ["GRADIO_TEMP_DIR"] = str(uploads)
    page_bytes = _read_report(options.report)
    import gradio as gr
    from fastapi import FastAPI, Response

    from transformers_agci.app.maps import CSS
    from transformers_agci.app.page import build, theme
    from transformers_agci.app.session import Session

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    if page_bytes is not None:

        @app.get(REPORT)
        def report() -> Any:
            return Response(page_bytes, media_type="text/html")

    embedded = Path(options.model.model).resolve() == embedded_model_path().resolve()
    session = Session(load(options.model), embedded)
    page = build(
        session, "embedded" if embedded else options.model.model, options.methods, REPORT if page_bytes else None
    )
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        allowed_paths=[],
        show_error=False,
        max_file_size=MOST_BYTES,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        theme=theme(),
        css=CSS,
    )


def _read_report(path: Path | None) -> bytes | None:
    try:
        return None if path is None else path.read_bytes()
    except OSError as error:
        raise InputError(f"`report`: {path} cannot be read ({error.strerror}); make one with agci report.") from error
