"""`agci` itself: the table of commands, what loads torch, and how mistakes end."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from transformers_agci import cli
from transformers_agci.cli import COMMANDS, command_parser, find_command, main
from transformers_agci.commands.parser import with_flags


def python(code: str) -> "subprocess.CompletedProcess[str]":
    """A fresh interpreter's run of the code, which must succeed."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_every_command_has_its_file_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert len({command.words for command in COMMANDS}) == len(COMMANDS)
    for command in COMMANDS:
        assert len(command.load().description.splitlines()[0]) > 20
        with pytest.raises(SystemExit) as stopped:
            main([*command.words.split(), "--help"])
        assert stopped.value.code == 0
        assert "usage: agci" in capsys.readouterr().out


def test_help_and_static_tables_load_nothing_large() -> None:
    for argument in ("--help", "--version", "probe --help", "score --help", "families"):
        code = (
            "import sys; from transformers_agci.cli import main\n"
            f"try: main({argument.split()!r})\n"
            "except SystemExit: pass\n"
            "large = {'torch', 'transformers', 'numpy', 'PIL', 'matplotlib', 'scipy', 'pyarrow'}\n"
            "print(sorted(large & sys.modules.keys()), file=sys.stderr)"
        )
        done = python(code)
        assert done.stderr.strip() == "[]", argument
        assert done.stdout.strip(), argument


@pytest.mark.slow
def test_probe_metrics_and_demo_need_no_scipy_stats() -> None:
    """Half a second in each process; `agci plan` alone needs its noncentral distributions."""
    code = (
        "import sys, transformers_agci.api.probe, transformers_agci.api.demo, transformers_agci.experiments.tracking\n"
        "from transformers_agci.statistics.intervals import t_quantile\n"
        "assert t_quantile(5) > 2 and 'scipy.stats' not in sys.modules\n"
    )
    python(code)


def test_what_reads_results_loads_no_torch() -> None:
    code = (
        "import sys; from transformers_agci.experiments.report_page import make\n"
        "from transformers_agci.experiments.position import metrics, evidence_report, sweep\n"
        "from transformers_agci.experiments.occlusion import maps\n"
        "from transformers_agci.experiments.similarity import report\n"
        "assert 'torch' not in sys.modules"
    )
    python(code)


def test_the_list_of_commands_loads_no_command() -> None:
    code = (
        "import sys; from transformers_agci.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted(name for name in sys.modules if name.startswith('transformers_agci.')), file=sys.stderr)\n"
        "print(*{'inspect', 'json', 'logging', 'pathlib'} & sys.modules.keys(), file=sys.stderr)"
    )
    done = python(code)
    ours, standard = done.stderr.splitlines()
    assert ours.split() == ["transformers_agci.cli", "transformers_agci.errors"]
    assert standard == ""  # each takes longer to import than the list to print


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


@pytest.mark.parametrize("words", ["metrics --results_file R", "evidence R", "report R", "sweep R"])
def test_both_spellings_of_the_negatives(words: str) -> None:
    command = find_command(words.split())
    assert command is not None
    for spelling in ("--negatives_file", "--negatives_files"):
        assert command_parser(command).parse_args([*words.split(), spelling, "N"]).negatives_file == [Path("N")]


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: object) -> int:
        raise ModuleNotFoundError("No module named 'matplotlib.pyplot'", name="matplotlib.pyplot")

    monkeypatch.setattr("transformers_agci.commands.metrics.run", run)
    assert main(["metrics", "--results_file", "R"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "needs the package 'matplotlib'" in said
    assert said.endswith("comes with: pip install '.[eval]' in a clone of transformers-agci\n")


@pytest.mark.parametrize(("words", "code"), [(["--version"], 0), (["prob"], 2)])
def test_a_process_of_torchrun_ends_with_the_commands_code(words: list[str], code: int) -> None:
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


def test_a_reader_that_leaves_does_not_stop_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pipe is closed before the first line is written; every row is there all the same."""
    answers = tmp_path / "A.jsonl"
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", buffering=1) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        words = ["--items", "1", "--quiet", "--global_context_lambda", "0", "--answer_file", str(answers)]
        assert main(["probe", *words]) == 0
    assert not capsys.readouterr().err
    assert len(answers.read_text().splitlines()) == 18


def test_quantities_are_spelled_as_the_commands_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Messages from below commands/ name the quantity; what is no option of the command stays as it is."""
    command = find_command(["data", "check"])
    assert command is not None
    parser = command_parser(command)
    said = "give `img_path` or `file`, not `overwrite`"
    assert with_flags(said, parser) == "give --img_path or FILE, not `overwrite`"
    assert main(["flow", "--img_path", str(tmp_path), "--device", "cpu", "--output_dir", str(tmp_path / "o")]) == 2
    assert capsys.readouterr().err.startswith("agci: --img_path belongs to --eval_file")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["probe", "--items", "0"], "--items must be at least 1, but is 0."),
        (["probe", "--items", "0x10"], "--items must be a whole number, but is '0x10'."),
        (["probe", "--workers", "-999"], "--workers must be at least 0, but is -999."),
        (["probe", "--seed", "9" * 5000], "--seed must be a whole number, but is '999"),
        (["probe", "--planted_bias", "nan"], "--planted_bias must be a finite number, but is 'nan'."),
        (["probe", "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["probe", "--nothing"], "unrecognized arguments: --nothing."),
        (["probe", "--shard", ""], "--shard must be i/n with 0 <= i < n"),
        (["metrics", "--result_file", "a", "--results_file", "b"], "--results_file: given twice: put all its values"),
        (["benchmark", "pope"], "the following arguments are required: --model_path"),
    ],
)
def test_a_wrong_option_is_one_sentence(words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"agci: {sentence}") and said.err.count("\n") == 1
    assert not said.out


def test_flags_are_named_in_commands_only() -> None:
    """Below commands/ a message names the quantity (`overwrite`); a flag stands there only as a word of a command."""
    flags = {
        word
        for command in COMMANDS
        for action in command_parser(command)._actions
        for word in action.option_strings
        if word.startswith("--")
    }
    package = Path(cli.__file__).parent
    named = []
    for file in sorted(package.rglob("*.py")):
        if file.is_relative_to(package / "commands") or file.name == "cli.py":
            continue
        if file.is_relative_to(package / "integrations"):  # they name the flags of other programs
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found = flags & set(re.findall(r"--[a-z_0-9]+", node.value))
                if "agci self-check --experimental" in node.value:  # a whole command that the user is told to type
                    continue
                if found and not re.fullmatch(r"--\w+=?", node.value):
                    named.append(f"{file.relative_to(package)}:{node.lineno} {sorted(found)}")
    assert not named


def test_json_to_the_standard_output_is_json_alone(tmp_path: Path) -> None:
    row = {"question": "Q", "options": "['a', 'b']", "answer": "B", "response": "B", "subject": "Art"}
    answers = tmp_path / "a.jsonl"
    answers.write_text("".join(json.dumps(row | {"id": f"test_Art_{n}"}) + "\n" for n in "12"))
    words = ["score", "mmmu_pro", "--answers", str(answers), "--json", "-"]
    command = [sys.executable, "-m", "transformers_agci.cli", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert json.loads(done.stdout)["accuracy"] == 1
    assert "MMMU-Pro" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]


def test_json_to_a_standard_output_that_is_a_file_follows_what_stands_there(tmp_path: Path) -> None:
    """`(echo first; agci ... --json -) > log 2>&1`: the file is one place for both streams, and is not cut."""
    log = tmp_path / "log"
    with log.open("wb") as file:
        file.write(b"first\n")
        file.flush()
        program = (
            "import sys; from pathlib import Path; from transformers_agci.storage.json_file import write_report;"
            "print('table', file=sys.stderr); write_report(Path('/dev/stdout'), [1]); print('last', file=sys.stderr)"
        )
        subprocess.run([sys.executable, "-c", program], stdout=file, stderr=file, check=True)
    assert log.read_text() == "first\ntable\n[\n 1\n]\nlast\n"


def test_json_to_a_reader_that_has_gone_is_no_error(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = "from pathlib import Path; import transformers_agci.storage.json_file as j;"
    program += f"j.write_report(Path('/dev/fd/{writing}'), ['x' * 100000])"
    try:
        subprocess.run([sys.executable, "-c", program], pass_fds=[writing], check=True)
    finally:
        os.close(writing)


def test_a_positional_may_stand_behind_options() -> None:
    words = ["self-check", "--engine", "vllm", "models/mine", "--dtype", "float32"]
    command = cli.find_command(words)
    assert command is not None
    args = command_parser(command).parse_args(words)
    assert (args.checkpoint, args.engine, args.dtype) == ("models/mine", "vllm", "float32")
