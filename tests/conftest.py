"""What every test runs under, and the tiny checkpoints, saved once per test process."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch is imported: more threads are slower on a busy machine, and no test may reach for the network.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

from transformers_agci.families import paper_families

# The same examples in every run, and no limit of time for one: a test that fails at random tells nobody what to mend.
# To look for new ones: pytest --hypothesis-profile default
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
settings.load_profile("repeatable")


@pytest.fixture(params=paper_families())
def family(request: pytest.FixtureRequest) -> str:
    """Each of the paper's families in turn."""
    return str(request.param)


@pytest.fixture
def model(family: str) -> Any:
    """Its tiny model."""
    from tiny_checkpoints import build_model

    return build_model(family)


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


def pytest_configure(config: pytest.Config) -> None:
    """The tests see no GPU, also where there is one: `pytest -m gpu` runs those that need one."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no GPU; with one: pytest -m gpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--share N`: of every slow test with many parameters each N-th, so that all of them together stay quick."""
    parser.addoption("--share", type=int, default=1, metavar="N", help="run every N-th parameter of long slow tests")


MANY = 6  # parameters from which on a slow test is thinned out


@pytest.hookimpl(tryfirst=True)  # before pytest reads `-m`
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Make the most of a sampled test slow, then thin the slow tests out, evenly over each function's parameters.

    What is left out is reported as deselected.
    """
    for group in _by_function(items):
        sampled = group[0].get_closest_marker("sampled")
        for item in _others(group, sampled.args[0]) if sampled else []:
            item.add_marker(pytest.mark.slow)
    share = config.getoption("--share")
    if share <= 1:
        return
    slow = _by_function([item for item in items if item.get_closest_marker("slow")])
    left_out = {id(item) for group in slow if len(group) >= MANY for item in _others(group, share)}
    items[:], dropped = (
        [item for item in items if id(item) not in left_out],
        [item for item in items if id(item) in left_out],
    )
    config.hook.pytest_deselected(items=dropped)


INPUTS = "hostile inputs"  # the property that carries their number from a test to pytest's summary


@pytest.fixture
def count_inputs(record_property: Callable[[str, object], None]) -> Callable[[int], None]:
    """To be called with how many damaged files or odd options a test has tried."""
    return lambda number: record_property(INPUTS, number)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how many damaged files and odd options the tests tried, as the tests themselves counted them."""
    reports = [report for group in ("passed", "failed") for report in terminalreporter.stats.get(group, [])]
    tried = [count for report in reports for name, count in report.user_properties if name == INPUTS]
    if tried:
        terminalreporter.write_line(f"{sum(tried)} {INPUTS} in {len(tried)} tests")


def _by_function(items: list[pytest.Item]) -> list[list[pytest.Item]]:
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        groups.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return list(groups.values())


def _others(group: list[pytest.Item], share: int) -> list[pytest.Item]:
    """All but every `share`-th; where they begin depends on the name, so that not all tests leave out the same ones."""
    first = sum(group[0].nodeid.encode()) % share
    return [item for number, item in enumerate(group) if number % share != first]


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Python's own handler of Ctrl-C: a process that a shell started in the background ignores the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
