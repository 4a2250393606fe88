"""Every measurement in perf/ still runs, at its smallest size, without the packages that a GPU machine may lack."""

import subprocess
import sys
from pathlib import Path

import pytest

PERF = Path(__file__).parents[1] / "perf"
ABSENT = ("datasets", "psutil", "statsmodels")

FIGURES = (" rows/s; ", " TFLOP/s, ", " % of the sustained matrix product", "; peak memory ")  # of every measurement

# command -> what it must have printed
COMMANDS = {
    "probe_speed.py --items 1 --rounds 1": (
        "| plain loop |",
        "36 answers: 9 images through the vision side in 1 calls",
        "+0.00 % from the formula",
        *FIGURES,
        "| | decode | preprocess | vision | decoder | write |",
    ),
    "probe_speed.py --small --items 1 --plain_rows 2 --rounds 1 --batch_sizes 3 --leave_out": (
        "+0.00 % from the formula",
        "| ours, 3 per call |",
        "| ours without norms |",
    ),
    "pope_speed.py --pictures 2 --plain_rows 2 --rounds 1": (
        "36 answers: 2 images through the vision side in 1 calls",
        "taken over",
        "+0.00 % from the formula",
        *FIGURES,
    ),
    "convert_llava.py --layers 1 --narrow 32": ("| 407 |",),
    "own_share.py --rows 4 --batch_sizes 1": ("| 1 | 4 |", "batch 1: ", *FIGURES),
    "similarity.py --images 4": ("4 images; ", *FIGURES),
    "memory.py --rows 1800 --run 400": ("1800 rows open", "growth after row 200"),
    "parity.py --items 1": ("36 answers", "| quick, float32 | sdpa by segment length |", "| quick, bfloat16 |"),
    "occlusion.py --pictures 1 --mask_size 84": ("the maps differ by", "| batched |", "TFLOP per row", *FIGURES),
    "occlusion.py --small --pictures 1 --mask_size 420 --plain_copies 2": ("the maps differ by", "over 2", *FIGURES),
    "devices.py --items 1 --only similarity": ("| similarity | cpu, bfloat16 | 54 |",),
    "primitives.py --small --times 2": ("| 3456 |", "| math | left padding |", "| torch varlen | not here"),
    "profiles.py --small --images 1": ("aten::addmm", "POPE's shape, 18 questions"),
    "scaling.py --quick --rounds 1 --figure {folder}/scaling.png": ("the model's constants", "| 64 |", *FIGURES),
}

# what needs no GPU machine, with everything installed
OTHERS = {
    "atlas_pope.py {folder} --items 1": ("--benchmark pope --benchmark_data",),
    "composites.py --items 10": ("| 10 | 90 |",),
    "evidence_speed.py --items 40 --results 2 --folder {folder}": ("metrics", "evidence"),
    "first_gpu.py {folder}/cpu.md --small --only Similarity": ("0 failed, 0 not taken",),
    "first_gpu.py {folder}/cpu.md --small --seconds 1": ("0 failed, 10 not taken",),
    "verdict_simulation.py --replicates 3 --items 30": ("bias .2 removed",),
}


def run(command: str, folder: Path, absent: tuple[str, ...]) -> str:
    script, *words = command.format(folder=folder).split()
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({absent!r})); sys.path.insert(0, {str(PERF)!r}); "
        f"sys.argv = {[script, *words]!r}; runpy.run_path({str(PERF / script)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_runs(command: str, tmp_path: Path) -> None:
    said = run(command, tmp_path, ABSENT)
    for words in COMMANDS[command]:
        assert words in said, words
    if "--figure" in command:
        assert (tmp_path / "scaling.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("command", OTHERS)
def test_runs_beside_the_model(command: str, tmp_path: Path) -> None:
    said = run(command, tmp_path, ())
    for words in OTHERS[command]:
        assert words in said, words


@pytest.mark.slow
def test_a_command_that_fails_is_named_and_the_next_one_goes_on(tmp_path: Path) -> None:
    """Also in the process that the commands share, which starts again where one takes it down."""
    code = (
        f"import sys; sys.path.insert(0, {str(PERF)!r}); import first_gpu; step = first_gpu.Step; "
        "first_gpu.STEPS = (step('Wrong', '', None, 'similarity.py --nothing'), "
        "step('Gone', '', None, 'not_there.py'), step('Alone', '', None, '-c pass', shared=False), "
        "step('Right', '', None, 'photographs.py')); sys.argv.append('--small'); sys.exit(first_gpu.main())"
    )
    made = tmp_path / "cpu.md"
    done = subprocess.run([sys.executable, "-c", code, str(made)], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr[-3000:]
    assert "2 failed, 0 not taken" in done.stdout
    page = made.read_text(encoding="utf-8")
    assert "Wrong" in page
    assert page.count("FAILED") == 2
    assert "unrecognized arguments: --nothing" in Path(f"{made}.log").read_text(encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cpu.md", "cpu.md.log"]


def test_every_script_is_run_here() -> None:
    scripts = {path.name for path in PERF.glob("*.py") if "__main__" in path.read_text()}
    run_here = {command.split()[0] for command in (*COMMANDS, *OTHERS)}
    gigabytes, needs_vllm = {"instruct_sample.py", "merge_lora.py"}, {"vllm_rows.py"}
    with_a_browser = {"report_opening.py"}  # test_report_browser.py runs it
    assert scripts - run_here == gigabytes | needs_vllm | with_a_browser


def test_its_page_lists_every_file() -> None:
    page = (PERF / "README.md").read_text(encoding="utf-8")
    for file in sorted(PERF.glob("*.py")):
        is_command = '__name__ == "__main__"' in file.read_text(encoding="utf-8")
        assert (f"`python perf/{file.name}`" if is_command else f"- `{file.name}`: ") in page, file.name
