"""`agci` itself: the table of commands, what loads torch, and how mistakes end."""

import os
import subprocess
import sys

import pytest

from transformers_agci.cli import COMMANDS, main


def test_every_command_has_its_file_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({command.words for command in COMMANDS}) == len(COMMANDS)
    for command in COMMANDS:
        assert len(command.load().description.splitlines()[0]) > 20
        with pytest.raises(SystemExit) as stopped:
            main([*command.words.split(), "--help"])
        assert stopped.value.code == 0
        assert "usage: agci" in capsys.readouterr().out


def test_help_and_version_load_no_torch() -> None:
    for argument in ("--help", "--version", "probe --help", "score --help"):
        code = (
            "import sys; from transformers_agci.cli import main\n"
            f"try: main({argument.split()!r})\n"
            "except SystemExit: pass\n"
            "print('torch' in sys.modules, file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stderr.strip() == "False", argument
    assert "agci" in done.stdout


def test_unknown_commands_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for words, hint in ((["prob"], "Did you mean: probe?"), (["data", "chek"], "Did you mean: data check?")):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"agci: Unknown command '{' '.join(words)}'.")
        assert hint in said


def test_no_command_prints_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    said = capsys.readouterr().out
    assert all(command.words in said for command in COMMANDS)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: object) -> int:
        raise ModuleNotFoundError("No module named 'matplotlib.pyplot'", name="matplotlib.pyplot")

    monkeypatch.setattr("transformers_agci.commands.metrics.run", run)
    assert main(["metrics", "--results_file", "R"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs the package 'matplotlib'" in said
    assert "transformers-agci[eval]" in said


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["prob"], 2)])
def test_a_process_of_torchrun_ends_with_the_commands_code(words, code) -> None:
    """It leaves without Python's shutdown, so that what it printed must be out by then."""
    done = subprocess.run(
        [sys.executable, "-m", "transformers_agci.cli", *words],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TORCHELASTIC_RUN_ID": "one"},
    )
    assert done.returncode == code
    assert "transformers-agci" in done.stdout if code == 0 else "Did you mean: probe?" in done.stderr
