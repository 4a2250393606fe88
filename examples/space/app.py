"""The live page on a Space: all that `agci app` does, on the address that a Space expects."""

import os

from transformers_agci.cli import main

raise SystemExit(main(["app", "--model_path", os.environ.get("MODEL", "embedded"), "--host", "0.0.0.0"]))
