"""A Ctrl-C that is swallowed on the way, or becomes another error, still ends a run; what is finished is kept."""

import contextlib
import json
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from transformers_agci.inference.runner import BlockResult, Job, Output, Reporter, Results, RunOptions, Task, run

ROWS = [{"id": number} for number in range(12)]
SIZES = [3, 3, 3, 3]


def swallow() -> None:
    with contextlib.suppress(BaseException):
        signal.raise_signal(signal.SIGINT)


def replace() -> None:
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        raise RuntimeError("could not determine the shape of object type 'torch.storage.UntypedStorage'") from None


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("lose", [swallow, replace])
def test_a_lost_interruption_ends_the_run(lose: object, tmp_path: Path) -> None:
    assert callable(lose)
    asked = []

    def work(tasks: Sequence[Task], reporter: Reporter) -> Results:
        for task in tasks:
            rows = ROWS[3 * task.block : 3 * task.block + 3]
            for row in rows:
                asked.append(row["id"])
                if row["id"] == 7 and len(asked) == 8:
                    lose()
                reporter.advance(1)
            yield BlockResult([[{**row, "prediction": "Yes"} for row in rows]])

    def job() -> Job:
        return Job(work, ROWS, SIZES, [Output(tmp_path / "a.jsonl", {"experiment": "lost"})])

    with pytest.raises(KeyboardInterrupt):
        run(job(), RunOptions(progress=False))
    assert asked == list(range(8)), "no row is asked after the interruption"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    run(job(), RunOptions(progress=False))
    assert asked[8:] == [6, 7, 8, 9, 10, 11], "the two finished blocks are kept"
    assert [json.loads(line)["id"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == list(range(12))
