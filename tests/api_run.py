"""A run of the probe through the Python API, for the tests of it: the embedded model and four items."""

import functools
from typing import Any

import pytest
import torch
from PIL import Image

import transformers_agci
from transformers_agci.api.probe import ProbeRun
from transformers_agci.cli import main
from transformers_agci.experiments.position.data import ProbeData
from transformers_agci.inference.engine import Engine

QUIET = {"progress": False}


# Once per process, for all files of tests.
_loaded = functools.cache(transformers_agci.load)
_data = functools.cache(lambda: transformers_agci.probe_data(items=4))


@functools.cache
def _run() -> ProbeRun:
    return transformers_agci.probe(_loaded(), _data(), [0, 0.5], controls=["text_only"], **QUIET)


@pytest.fixture(scope="module")
def model() -> Engine:
    return _loaded()


@pytest.fixture(scope="module")
def data() -> ProbeData:
    return _data()


@pytest.fixture(scope="module")
def run() -> ProbeRun:
    return _run()


def live(model: Engine) -> tuple[Any, Any]:
    """The embedded model's module and processor, as a user holds them."""
    return model.loaded.model, model.loaded.processor  # type: ignore[attr-defined]


def coloured(number: int) -> Image.Image:
    """A photograph's size, noise that is another one for each number."""
    generator = torch.Generator().manual_seed(number)
    small = torch.randint(0, 256, (5, 6, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(small.numpy()).resize((240, 200))


def lines_of(words: list[str], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert main([str(word) for word in words]) == code
    return capsys.readouterr().out
