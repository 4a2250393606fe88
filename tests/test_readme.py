"""README.md and the pages that it sends to: what they show runs, their links and files exist."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from tiny_checkpoints import Checkpoints

from transformers_agci import cli

ROOT = Path(__file__).resolve().parents[1]


PUBLISHED = "probe_datasets/AGCI_Probe_Dataset"  # where agci data fetch puts the probe's set


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


README = page("README.md")
DOCUMENTS = (
    "README.md",
    "CONTRIBUTING.md",
    "RESULTS.md",
    "REPRODUCE.md",
    "LOG.md",
    "CHANGELOG.md",
    *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))),
)


def commands(text: str) -> list[list[str]]:
    blocks = "".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in blocks.splitlines() if re.match(r"agci |python ", line)]


@pytest.mark.slow
def test_commands_run(
    tiny_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The quick start's probe on a tiny checkpoint and the shipped sample, its map, and the other maps."""
    samples = ROOT / "probe_datasets"
    stands_for = {
        "Qwen/Qwen2.5-VL-7B-Instruct": str(tiny_checkpoint("qwen2_5_vl")),
        f"{PUBLISHED}/laion_bias_test_easy_10k_840_840.json": str(samples / "sample_noto_840_840.json"),
        f"{PUBLISHED}/images": str(samples / "images"),
    }
    found = commands(README) + commands(page("docs/experiments.md"))
    shown = ["data", "probe", "metrics", "evidence", "report", "flow", "similarity", "metrics-similarity"]
    assert [words[1] for words in found] == shown
    monkeypatch.chdir(tmp_path)
    assert found[0] == ["agci", "data", "fetch", "probe"]  # needs the network; tests/test_data_check_fetch.py
    for words in found[1:]:
        given = [stands_for.get(word, word).replace("results/", f"{tmp_path}/") for word in words]
        given = [str(ROOT / word) if word.startswith("probe_datasets/") else word for word in given]
        assert cli.main(given[1:]) == 0, (words, capsys.readouterr().err)
    assert (tmp_path / "qwen.html").stat().st_size > 10_000
    for name in ("qwen", "curve", "flow", "flow_answer", "similarity"):
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    assert len((tmp_path / "qwen.lam0.5.jsonl").read_text().splitlines()) == 36


def test_one_question_answers_as_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, shown = re.search(
        r"```python\n(.*?)```\n\n```text\n(.*?)```", page("docs/tutorial.md"), flags=re.DOTALL
    ).groups()
    monkeypatch.chdir(ROOT)
    exec(compile(code, "tutorial.md", "exec"), {})
    assert capsys.readouterr().out == shown


def test_fine_tuning_commands_can_be_typed() -> None:
    """tests/test_llama_factory.py trains; here: each command is one that we have, on recipes that go together."""
    section = page("docs/fine_tuning.md")
    typed = [part for line in commands(section) for part in " ".join(line).split(" && ")]
    assert [line.split()[1] for line in typed if line.startswith("agci")] == [
        "set-lambda",
        "check-recipe",
        "check-recipe",
        "probe",
        "set-lambda",
    ]
    for line in typed:
        program, *words = line.split()
        if program == "agci":
            command = cli.find_command(words)
            assert command is not None, line
            parser = cli.command_parser(command)
            parser.parse_args(words)
        for word in words:
            assert (ROOT / word).is_file() or not word.startswith("configs/"), word
    merged = yaml.safe_load((ROOT / "configs/merge_lora/qwen2_5_vl.yaml").read_text())
    assert f"--model {merged['export_dir']} " in section
    assert f"--local-dir {merged['model_name_or_path']}\n" in section


def test_links_and_files_exist() -> None:
    for name in DOCUMENTS:
        text = (ROOT / name).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
            assert (ROOT / name).parent.joinpath(target).exists(), f"{name} links to {target}"
    tree = page("CONTRIBUTING.md").split("## Files")[1]
    for line in tree.splitlines():
        first = re.match(r"    (?:  )?((?:[\w./-]+,? )*[\w./<>-]+)  ", line)
        for path in re.split(r"[, ]+", first[1]) if first else []:
            before = path.partition("<")[0]
            places = [ROOT / before, ROOT / "transformers_agci" / before]
            assert any(place.exists() for place in places), f"the file tree names {path}"


def test_published_words_are_in_the_table() -> None:
    table = page("docs/published_commands.md")
    for word in (
        "eval_laion_bias_data.py",
        "qwen_laion_bias_prob.py",
        "similarity.py",
        "eval_downstream.sh",
        "metrics.py",
        "prob_results_position.py",
        "metrics_similarity.py",
        "infer_qwen2.5vl.py",
        "llamafactory-cli",
    ):
        assert word in table, word
