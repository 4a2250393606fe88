"""The live page: an image in nine places, what the model answers in each, and what lambda does to it.

`agci app` serves it for the embedded model at http://127.0.0.1:7860, for this machine only; --host 0.0.0.0 serves it to
others, who then can use the model and nothing else. Needs: pip install '.[app]' in a clone of transformers-agci.
"""

import argparse
from pathlib import Path

from transformers_agci.app.serve import AppOptions
from transformers_agci.commands.options.model import add_model_options, model_options
from transformers_agci.commands.options.types import path, whole
from transformers_agci.commands.parser import teller
from transformers_agci.embedded.location import EMBEDDED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_model_options(parser, default=EMBEDDED)
    page = parser.add_argument_group("page")
    page.add_argument("--report", type=path, metavar="R", help="an HTML page of agci report for the second tab")
    page.add_argument(
        "--host", default=AppOptions.host, help=f"address to serve on (default {AppOptions.host}: this machine only)"
    )
    page.add_argument(
        "--port", type=whole(1, 65535), default=AppOptions.port, metavar="N", help=f"port (default {AppOptions.port})"
    )


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted."""
    from transformers_agci.app.serve import AppOptions, serve
    from transformers_agci.app.session import METHODS_ON_PAGE

    report: Path | None = args.report
    serve(AppOptions(model_options(args), METHODS_ON_PAGE, report, args.host, args.port), teller(add_arguments))
    return 0
