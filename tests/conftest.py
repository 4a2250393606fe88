"""What every test runs under, and the tiny checkpoints, saved once per test process."""

import os
from collections.abc import Callable
from pathlib import Path

# Before torch is imported: more threads are slower on a busy machine, and no test may reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> folder of its tiny checkpoint (it answers Yes or No); tests must not write there."""
    from tiny_checkpoints import checkpoint

    saved: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in saved:
            saved[family] = checkpoint(family, tmp_path_factory.mktemp("tiny") / family)
        return saved[family]

    return folder
