"""A check that cannot fail proves nothing: with a decoder hook that does nothing the whole contract must fail."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

# These test arguments and errors, which the hook has no part in.
ABOUT_ARGUMENTS = {
    "test_attach_twice_is_an_error",
    "test_bad_lambda",
    "test_bad_scope_and_method",
    "test_unsupported_model_lists_the_supported_ones",
    "test_embeddings_of_inputs_without_an_image",
}

CONTRACT = ("test_hooks.py", "test_hooks_of_live_models.py", "test_reference_outputs.py")

RUN = """
import json, sys, pytest
from transformers_agci.method.handle import Handle
Handle.inject = lambda self, embeds, images: embeds
outcomes = {}
class Record:
    def pytest_runtest_logreport(self, report):
        if report.when == "call":
            outcomes[report.nodeid] = report.outcome
pytest.main([*sys.argv[1:], "--tb=no", "-p", "no:cacheprovider"], plugins=[Record()])
print("OUTCOMES" + json.dumps(outcomes))
"""


@pytest.mark.slow
def test_contract_fails_without_the_hook() -> None:
    files = [str(TESTS / name) for name in CONTRACT]
    # Three families suffice here: runs, known lengths, and equal shares.
    chosen = ["-k", "not gemma3n and not qwen3_vl and not internvl and not image_embeddings_equal"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *files, *chosen], cwd=TESTS.parent, capture_output=True, text=True, check=False
    )
    outcomes = json.loads(done.stdout.rpartition("OUTCOMES")[2])
    assert len(outcomes) > 60
    passed = {node for node, outcome in outcomes.items() if outcome == "passed"}
    passed_tests = {node.rpartition("::")[2].partition("[")[0] for node in passed}
    assert passed_tests == ABOUT_ARGUMENTS
