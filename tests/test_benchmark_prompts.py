"""Every prompt, fixed as text, for both protocols; which rows are asked; which images go with them."""

import argparse
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pytest
from benchmark_rows import EVERY
from benchmark_samples import write_json, write_rows

from transformers_agci.errors import InputError
from transformers_agci.experiments.benchmarks import all_benchmarks, benchmark

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."


def ask(name: str, row: dict[str, Any], protocol: str = "official", mode: str = "direct") -> Any:
    return benchmark(name).rows.prompt(row, protocol, mode)


@pytest.mark.parametrize("protocol", ["official", "paper"])
def test_scienceqa(protocol: str) -> None:
    asked = ask("scienceqa", samples.scienceqa_questions()[0], protocol)
    assert asked.text == f"Context: made up.\nWhich of 11?\nA. one\nB. two\nlines\nC. three\n{LETTER}"
    assert asked.images == ("11/image.png",)


def test_scienceqa_population_and_tokens() -> None:
    without = samples.scienceqa_questions()[1]
    assert ask("scienceqa", without).images == ()
    assert ask("scienceqa", without, "paper") is None
    assert ask("scienceqa", samples.scienceqa_questions()[0]).max_new_tokens == 1024
    assert ask("scienceqa", samples.scienceqa_questions()[0], "paper").max_new_tokens == 128


@pytest.mark.parametrize("protocol", ["official", "paper"])
def test_pope(protocol: str) -> None:
    text = f"Is there a dog in the image?\n{SHORT}"
    llava = ask("pope", samples.pope_questions()[0], protocol)
    hub = ask(
        "pope",
        {
            "question": "Is there a dog in the image?",
            "image": {"bytes": b"jpeg", "path": None},
            "image_source": "COCO_0",
            "category": "random",
        },
        protocol,
    )
    assert (llava.text, llava.images, llava.group, llava.max_new_tokens) == (
        text,
        ("COCO_0.jpg",),
        "COCO_0",
        128,
    )
    assert (hub.text, hub.images, hub.group, hub.max_new_tokens) == (text, (b"jpeg",), "COCO_0", 128)


@pytest.mark.parametrize("protocol", ["official", "paper"])
def test_textvqa(protocol: str) -> None:
    asked = ask("textvqa", samples.textvqa_questions()[0], protocol)
    assert asked.text == f"What colour?\nReference OCR token: A, B\n{SHORT}"
    assert (asked.images, asked.max_new_tokens) == (("00aa00aa00aa00aa.jpg",), 128)


@pytest.mark.parametrize("protocol", ["official", "paper"])
def test_crpe(protocol: str) -> None:
    asked = ask("crpe", samples.crpe_questions()[0], protocol)
    assert asked.text == "Which?\nA. a\nB. b\nC. c\nD. d\nQuestion 0."
    assert (asked.images, asked.max_new_tokens) == (("coco/val2017/0.jpg",), 128)


def test_hallusionbench() -> None:
    with_image, without = samples.hallusionbench_questions()[0], samples.hallusionbench_questions()[2]
    assert ask("hallusionbench", with_image).text == "Is it so in VD 0?"
    assert ask("hallusionbench", without).images == ()
    paper = ask("hallusionbench", with_image, "paper")
    assert paper.text == "Is it so in VD 0?\nThe answer should only contain 'Yes' or 'No', without reasoning process."
    assert (paper.images, paper.max_new_tokens) == (("./VD/illusion/0_0.png",), 128)
    assert ask("hallusionbench", without, "paper") is None
    assert benchmark("hallusionbench").protocol == "paper"


LAST_LINE = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER "
    "is one of options."
)
DIRECT = "Answer with the option letter from the given choices directly."
STEPS = "Think step by step before answering."
INSTRUCTIONS = {
    ("standard", "direct"): DIRECT,
    ("vision", "direct"): f"{DIRECT} {LAST_LINE}",
    ("standard", "cot"): f"Answer the preceding multiple choice question. {LAST_LINE} {STEPS}",
    (
        "vision",
        "cot",
    ): f"Write out the multiple-choice question in the image and then solve it. {LAST_LINE} {STEPS}",
}


@pytest.mark.parametrize(("mode", "tokens"), [("direct", 128), ("cot", 2048)])
@pytest.mark.parametrize("protocol", ["official", "paper"])
def test_mmmu_pro(mode: str, tokens: int, protocol: str) -> None:
    row = {**samples.mmmu_rows([""])[0], "image_1": {"bytes": b"png"}}
    asked = ask("mmmu_pro", row, protocol, mode)
    assert asked.text == f"Which of 0 is <image>?\nA. red\nB. green\nC. blue\nD. it\n{INSTRUCTIONS['standard', mode]}"
    assert (asked.images, asked.max_new_tokens) == ((b"png",), tokens)
    vision = ask(
        "mmmu_pro",
        {"id": "test_Art_1", "image": {"bytes": b"shot"}, "options": "['a']", "answer": "A"},
        protocol,
        mode,
    )
    assert (vision.text, vision.images) == (INSTRUCTIONS["vision", mode], (b"shot",))


def test_mmmu_pro_asks_with_every_image_in_the_order_of_its_marks() -> None:
    row = {
        **samples.mmmu_rows([""])[0],
        "question": "Is <image 2> after <image 1>?",
        "options": "['<image 1>', 'no']",
        "image_1": {"bytes": b"1"},
        "image_2": {"bytes": b"2"},
    }
    asked = ask("mmmu_pro", row)
    assert asked.images == (b"2", b"1", b"1")
    assert asked.text.startswith("Is <image> after <image>?\nA. <image>\nB. no\n")
    assert ask("mmmu_pro", row, "paper") is None


def test_mmmu_pro_image_missing() -> None:
    with pytest.raises(InputError, match="there is no image in 'image_1'"):
        ask("mmmu_pro", samples.mmmu_rows([""])[0])


def test_scienceqa_rows_from_its_own_files(tmp_path: Path) -> None:
    problems = {
        row["id"]: {
            "question": f"Which of {row['id']}?",
            "choices": ["one", "two\nlines", "three"],
            "hint": "made up.",
            "answer": "ABC".index(row["conversations"][1]["value"]),
            "image": "image.png" if "image" in row else None,
        }
        for row in samples.scienceqa_questions()
    }
    write_json(tmp_path / "problems.json", problems)
    write_json(tmp_path / "pid_splits.json", {"test": list(problems)})
    assert [read.row for read in benchmark("scienceqa").rows.read(tmp_path, None)] == samples.scienceqa_questions()


def test_pope_rows_from_its_label_files(tmp_path: Path) -> None:
    rows = [read.row for read in benchmark("pope").rows.read(samples.pope_label_files(tmp_path), None)]
    assert len(rows) == 12
    assert ask("pope", rows[0]).text == f"Is there a dog in the imange?\n{SHORT}"


def test_crpe_rows_from_their_folder(tmp_path: Path) -> None:
    write_rows(tmp_path / "crpe_exist.jsonl", samples.crpe_questions(("exist",)))
    write_rows(tmp_path / "crpe_relation.jsonl", samples.crpe_questions())
    assert len(benchmark("crpe").rows.read(tmp_path, None)) == 32


def test_a_benchmark_is_a_file() -> None:
    """Each declaration is complete, its default protocol is one that exists, and its score is tested by hand."""
    from transformers_agci.experiments.benchmarks.declaration import PROTOCOLS

    assert set(all_benchmarks()) == set(EVERY)
    assert len(EVERY) >= 6
    for name, declared in all_benchmarks().items():
        assert declared.name == name
        assert declared.protocol in PROTOCOLS
        assert (declared.scoring.score.__doc__ or "").strip()


def test_another_needs_its_file_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the folder that declares a BENCHMARK is found, scored and named beside the others, in the help too."""
    (tmp_path / "yes_no.py").write_text(
        "from dataclasses import replace\n"
        "from transformers_agci.experiments.benchmarks.hallusionbench import BENCHMARK as LIKE_THIS\n"
        "BENCHMARK = replace(LIKE_THIS, name='yes_no', title='Yes/No')\n"
    )
    from transformers_agci.commands import benchmark as ask_command
    from transformers_agci.commands import score as score_command
    from transformers_agci.experiments import benchmarks

    before = set(all_benchmarks())
    monkeypatch.setattr(benchmarks, "__path__", [*benchmarks.__path__, str(tmp_path)])
    assert set(all_benchmarks()) == before | {"yes_no"}
    for command in (ask_command, score_command):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        assert ", yes_no" in parser.format_help()
    assert benchmark("yes_no").title == "Yes/No"
    with pytest.raises(InputError, match=r"Did you mean: yes_no\? Available: .*, yes_no\."):
        benchmark("yes-noo")
