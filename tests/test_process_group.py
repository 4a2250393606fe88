"""Who the main process is: read from torchrun's environment, without torch."""

import subprocess
import sys

import pytest

from transformers_agci.cli import main
from transformers_agci.errors import InputError
from transformers_agci.inference.process_group import (
    ProcessGroup,
    is_main_process,
    main_process_output,
    rank_and_size,
)
from transformers_agci.storage.result_file import Shard

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def put(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_a_process_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert (rank_and_size(), is_main_process()) == ((0, 1), True)
    with ProcessGroup() as group, main_process_output():
        print("heard")
        assert (group.is_main, group.shard, group.share(Shard(1, 2))) == (True, None, Shard(1, 2))
        assert (group.from_main(3), group.gather(4)) == (3, [4])
    assert capsys.readouterr().out == "heard\n"


def test_only_the_main_process_is_heard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    put(monkeypatch, {"RANK": "1", "WORLD_SIZE": "2"})
    assert (rank_and_size(), is_main_process()) == ((1, 2), False)
    with main_process_output():
        print("not heard")
    assert capsys.readouterr().out == ""


WRONG = {
    "word": ({"RANK": "abc", "WORLD_SIZE": "2"}, "RANK must be a whole number of at least 0"),
    "negative": ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK must be a whole number of at least 0"),
    "empty": ({"RANK": "", "WORLD_SIZE": "2"}, "RANK must be a whole number of at least 0"),
    "other digits": ({"RANK": "٣", "WORLD_SIZE": "4"}, "RANK must be a whole number of at least 0"),
    "number on the machine": ({"LOCAL_RANK": "x"}, "LOCAL_RANK must be a whole number of at least 0"),
    "no process": ({"RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number of at least 1"),
    "beyond": ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 but WORLD_SIZE is 2"),
    "rank alone": ({"RANK": "1"}, "RANK is 1 but WORLD_SIZE is not set"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_environment_that_no_torchrun_sets_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    environment, sentence = WRONG[kind]
    put(monkeypatch, environment)
    with pytest.raises(InputError, match=sentence):
        ProcessGroup()
    assert main(["similarity", "--eval_file", "nowhere.json", "--img_path", "."]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and sentence in said


def test_a_rank_without_an_address_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2"})
    with pytest.raises(InputError, match="WORLD_SIZE is 2, as torchrun sets it, but the processes cannot meet"):
        ProcessGroup()


def test_a_shard_within_a_group_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, {"RANK": "1", "WORLD_SIZE": "2"})
    monkeypatch.setattr(ProcessGroup, "_join", lambda self: None)
    group = ProcessGroup()
    assert group.share(None) == Shard(1, 2)
    with pytest.raises(InputError, match="Omit one of the two"):
        group.share(Shard(0, 3))


def test_asking_for_the_rank_imports_no_torch() -> None:
    program = (
        "import sys; from transformers_agci.inference.process_group import is_main_process, ProcessGroup; "
        "assert is_main_process(); ProcessGroup().close(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
