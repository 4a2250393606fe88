"""The scorers on real published answers, where they are at hand: AGCI_SCORER_DATA, or ../shared/scorer_data.

The data are their owners' and not part of this repository; without them these tests are skipped.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from transformers_agci.experiments.benchmarks import benchmark, mmmu_pro, textvqa
from transformers_agci.experiments.benchmarks.declaration import Inputs, Score
from transformers_agci.experiments.benchmarks.joining import read_scored
from transformers_agci.storage.reading import read_json

DATA = Path(os.environ.get("AGCI_SCORER_DATA", Path(__file__).parents[2] / "shared" / "scorer_data"))

pytestmark = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"the published answers are not at hand ({DATA}); set AGCI_SCORER_DATA"
)


def scored(name: str, answers: Path, **inputs: Any) -> Score:
    return benchmark(name).scoring.score(Inputs((answers,), **inputs))


def test_scienceqa_of_llava() -> None:
    folder = DATA / "scienceqa" / "full_llava15_13b"
    for official in (False, True):
        figures = scored(
            "scienceqa",
            folder / "answers.jsonl",
            problems=folder / "problems.json",
            splits=folder / "pid_splits.json",
            official=official,
        ).figures
        assert (figures["correct"], figures["count"]) == (3155, 4241)
        assert (round(figures["accuracy_pct"], 4), round(figures["image_accuracy_pct"], 2)) == (74.3928, 71.64)


def test_pope_of_llava() -> None:
    folder = DATA / "pope" / "full_llava15_13b"
    for official in (False, True):
        found = scored(
            "pope",
            folder / "answers.jsonl",
            annotations=folder / "coco",
            questions=(folder / "questions.jsonl",),
            official=official,
        )
        assert round(found.figures["mean_f1"], 4) == 0.8595
        assert found.variant.startswith("8910 questions")


def test_textvqa_normalisation_cases() -> None:
    cases = [read.row for read in read_scored(DATA / "textvqa" / "normalization_cases.jsonl")]
    assert {c["input"]: textvqa.normalise(c["input"]) for c in cases} == {c["input"]: c["output"] for c in cases}


def test_textvqa_soft_scores() -> None:
    for read in read_scored(DATA / "textvqa" / "soft_accuracy_cases.jsonl"):
        row = read.row
        assert textvqa.soft_score(row["prediction"], row["answers"]) == pytest.approx(row["score"], abs=1e-12), read


def test_textvqa_answers_of_every_prompt_form() -> None:
    folder = DATA / "textvqa"
    full = scored("textvqa", folder / "answers.jsonl", annotations=folder / "annotations_val.json")
    assert full.figures["count"] == 626
    partial = scored(
        "textvqa", folder / "answers_partial.jsonl", annotations=folder / "annotations_val.json", official=True
    )
    assert partial.figures["count"] == 400
    assert [item.score for item in partial.items] == [item.score for item in full.items[:400]]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("chat_template_prompt", "no question"),
        ("newline_in_ocr", "no question"),
        ("one_line_prompt", "no question"),
        ("unknown_question", "unknown questions"),
    ],
)
def test_textvqa_hazards(name: str, wanted: str) -> None:
    folder = DATA / "textvqa"
    with pytest.raises(ValueError, match=wanted):
        scored("textvqa", folder / f"hazard_{name}.jsonl", annotations=folder / "annotations_val.json", official=True)


def test_textvqa_upper_case_question_is_found() -> None:
    folder = DATA / "textvqa"
    found = scored(
        "textvqa",
        folder / "hazard_upper_case_question.jsonl",
        annotations=folder / "annotations_val.json",
        official=True,
    )
    assert found.figures["count"] == 1


@pytest.mark.parametrize(
    ("path", "count", "judge"),
    [
        ("codes_full/codes.json", 1129, "codes"),
        ("image_only_yesno/predictions.json", 951, "yes/no rule"),
        ("judged_full/predictions_with_judge_replies.json", 1129, "yes/no rule"),
    ],
)
def test_hallusionbench_populations(path: str, count: int, judge: str) -> None:
    folder = DATA / "hallusionbench"
    found = scored("hallusionbench", folder / path, questions=(folder / "HallusionBench.json",))
    assert (found.figures["count"], found.figures["judge"]) == (count, judge)
    assert str(count) in found.variant


def test_hallusionbench_denominators() -> None:
    """All right: every figure is 100 %, over 1129 questions, 455 pairs (430 hard ones) and 346 figures."""
    from transformers_agci.experiments.benchmarks import hallusionbench

    rows = [
        {**row, "gpt4v_output_gpt_check": "1"} for row in read_json(DATA / "hallusionbench" / "HallusionBench.json")
    ]
    sourced = [hallusionbench.SourcedRow("row", row) for row in rows]
    judged = [hallusionbench._verdict(row, row, "codes") for row in sourced]
    assert len(judged) == 1129
    assert len({row.pair for row in judged}) == 455
    assert len({row.pair for row in judged if row.visual_input == "2"}) == 430
    assert len({row.figure for row in judged if not (row.key[0] == "VS" and row.is_original)}) == 346


@pytest.mark.parametrize("setting", ["standard10_direct", "standard4_cot", "vision_direct"])
def test_mmmu_pro_edges(setting: str) -> None:
    """The file with fallbacks is the other one and the answers that the official parser guesses."""
    folder = DATA / "mmmu_pro" / "edge"
    decided = scored("mmmu_pro", folder / f"{setting}.jsonl").figures
    both = scored("mmmu_pro", folder / f"{setting}_with_fallback.jsonl").figures
    assert decided["undecided"] == 0
    assert (both["decided"], both["decided_correct"]) == (decided["decided"], decided["decided_correct"])
    assert both["undecided"] == both["count"] - decided["count"]


def test_mmmu_pro_hazard_of_an_empty_option() -> None:
    wanted = json.loads((DATA / "mmmu_pro" / "hazards.json").read_text())["empty_option_text"]
    assert mmmu_pro.read_answer("a response of more than five words", ["something else", "", "more"]) == wanted


@pytest.mark.parametrize(("setting", "undecided"), [("standard10_direct", 7), ("vision_direct", 48)])
def test_mmmu_pro_of_gpt4o(setting: str, undecided: int) -> None:
    folder = DATA / "mmmu_pro" / "full_gpt4o"
    figures = scored("mmmu_pro", folder / f"responses_{setting}.jsonl", questions=(folder / "questions.jsonl",)).figures
    assert (figures["count"], figures["undecided"]) == (1730, undecided)
