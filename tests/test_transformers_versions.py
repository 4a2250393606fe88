"""What differs between versions of transformers, and the versions that are served."""

import logging
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from decoder_inputs import CACHE
from tiny_checkpoints import build_model, make_inputs
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPast
from transformers.utils import generic

from transformers_agci import attach
from transformers_agci.method.forward_call import cache_name, cache_of_call, cache_of_output, forward_call, with_cache
from transformers_agci.method.lost_images import images_went_into
from transformers_agci.method.tested_versions import BEYOND, LOWEST, warn_of_untested_transformers


class _Until523(nn.Module):
    def forward(self, input_ids: Any = None, past_key_values: Any = None, **kwargs: Any) -> None: ...


class _From524(nn.Module):
    def forward(self, input_ids: Any = None, cache: Any = None, **kwargs: Any) -> None: ...


class _Wrapper(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside(*args, **kwargs)


BOTH = pytest.mark.parametrize(("module", "name"), [(_Until523, "past_key_values"), (_From524, "cache")])


@BOTH
def test_the_name_of_the_cache_is_what_the_forward_takes(module: Any, name: str) -> None:
    assert cache_name(module()) == cache_name(_Wrapper(_Wrapper(module()))) == name
    given = {"past_key_values": 1, "cache": 2, "use_cache": True}
    assert with_cache(module(), given, 3) == {name: 3, "use_cache": True}


@BOTH
@pytest.mark.parametrize("given", ["by position", "past_key_values", "cache"])
def test_the_cache_of_a_call_under_either_name(module: Any, name: str, given: str) -> None:
    cache = transformers.DynamicCache()
    args, kwargs = ((None, cache), {}) if given == "by position" else ((), {given: cache})
    assert forward_call(module(), args, kwargs).cache is cache
    assert cache_of_call({"past_key_values": None, "cache": None}) is None


def test_the_cache_of_an_output_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers 5.24 warns, once in a process, of a look at the old name, which is a property there."""
    said: list[str] = []
    monkeypatch.setattr(generic.logger, "warning_once", said.append, raising=False)
    hidden, cache = torch.zeros(1), transformers.DynamicCache()
    held = BaseModelOutputWithPast(last_hidden_state=hidden, **{CACHE: cache})
    assert cache_of_output(held) is images_went_into(held) is images_went_into((hidden, cache)) is cache
    for without in (BaseModelOutputWithPast(hidden), BaseModelOutput(hidden), hidden):
        assert cache_of_output(without) is images_went_into(without) is None
    assert not said


@pytest.mark.parametrize("name", sorted({CACHE, "past_key_values"}))  # from 5.24 on stock takes the old one, too
def test_a_vlm_called_with_either_name_notes_its_images(name: str) -> None:
    model = build_model("llava")
    inputs = make_inputs("llava", model)
    handle = attach(model, 0.5)
    later = torch.tensor([[20, *[model.config.image_token_id] * 2]])  # prompt lookup proposes pieces of the prompt
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        for called in (model, model.model):
            cache = transformers.DynamicCache(config=model.config.get_text_config())
            called(**inputs, **{name: cache})
            called(input_ids=later, **{name: cache})
    assert handle.injections == 2


@pytest.fixture
def _as_in_a_new_process() -> Iterator[None]:
    warn_of_untested_transformers.cache_clear()
    yield
    warn_of_untested_transformers.cache_clear()


@pytest.mark.usefixtures("_as_in_a_new_process")
@pytest.mark.parametrize(
    ("version", "warned"),
    [("4.56.2", 1), ("4.57.0", 1), ("4.57.1", 0), ("5.24.0", 0), ("5.24.3.dev0", 0), ("5.25.0.dev0", 1), ("6.0.0", 1)],
)
def test_an_untested_version_is_warned_of_once(
    version: str, warned: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model("llava")
    monkeypatch.setattr(sys.modules["transformers"], "__version__", version)  # `transformers` may be an earlier object
    caplog.set_level(logging.WARNING, "transformers_agci")
    for method in ("agci", "bapa", "agci"):
        attach(model, **({"lam": 0.5} if method == "agci" else {"method": method})).detach()
    found = [record.getMessage() for record in caplog.records if "tested with transformers" in record.getMessage()]
    assert len(found) == warned
    assert all(f"4.57.1 to 5.24, but this is {version}: " in message for message in found)


def test_the_tested_versions_are_those_that_pip_keeps_to() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    low, beyond = ".".join(map(str, LOWEST)), ".".join(map(str, BEYOND))
    assert f"transformers>={low},<{beyond}" in project["dependencies"]
