"""The figures of ScienceQA, CRPE, MMMU-Pro and TextVQA, on made-up rows whose score is known by hand."""

from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pytest
from benchmark_samples import refusal, score, write_json, write_rows


class TestScienceQA:
    def test_accuracy_over_all_and_over_prompts_with_a_image(self, tmp_path: Path) -> None:
        questions = write_json(tmp_path / "llava_test_CQM-A.json", samples.scienceqa_questions())
        answers = write_rows(
            tmp_path / "a.jsonl", samples.scienceqa_answers(["A", "B. two", "The answer is A.", "no idea"])
        )
        found = score(tmp_path, "scienceqa", "--questions", questions, "--answers", answers)
        assert (found["accuracy_pct"], found["correct"], found["count"], found["unparsed"]) == (50, 2, 4, 1)
        assert (found["image_accuracy_pct"], found["image_correct"], found["image_count"]) == (50, 1, 2)
        assert [item["parsed"] for item in found["items"]] == ["A", "B", "A", "FAILED"]
        assert [item["correct"] for item in found["items"]] == [True, True, False, False]

    def test_the_same_from_problems_and_splits(self, tmp_path: Path) -> None:
        problems = {
            row["id"]: {
                "choices": ["one", "two", "three"],
                "answer": "ABC".index(row["conversations"][1]["value"]),
                "image": row.get("image"),
            }
            for row in samples.scienceqa_questions()
        }
        files = [
            "--problems",
            write_json(tmp_path / "problems.json", problems),
            "--splits",
            write_json(tmp_path / "pid_splits.json", {"test": list(problems)}),
        ]
        answers = write_rows(tmp_path / "a.txt", samples.scienceqa_answers(["A", "B", "C", "A"]))  # any name will do
        assert score(tmp_path, "scienceqa", *files, "--answers", answers)["correct"] == 4

    def test_official_last_duplicate_wins_missing_is_wrong_unknown_is_ignored(self, tmp_path: Path) -> None:
        questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
        rows = samples.scienceqa_answers(["A", "B"])
        rows += [{**rows[0], "text": "C"}, {"question_id": "999", "prompt": "", "text": "A"}]
        answers = write_rows(tmp_path / "a.jsonl", rows)
        found = score(tmp_path, "scienceqa", "--official", "--questions", questions, "--answers", answers)
        assert (found["correct"], found["count"], found["image_correct"], found["image_count"]) == (1, 4, 0, 1)

    def test_no_prompt_with_a_image(self, tmp_path: Path) -> None:
        questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
        rows = [{**row, "prompt": "..."} for row in samples.scienceqa_answers(["A"] * 4)]
        found = score(
            tmp_path, "scienceqa", "--questions", questions, "--answers", write_rows(tmp_path / "a.jsonl", rows)
        )
        assert found["image_accuracy_pct"] is None

    def test_published_rows_hold_image_items_only_and_their_questions(self, tmp_path: Path) -> None:
        rows = [{**row, "prediction": "A"} for row in samples.scienceqa_questions() if "image" in row]
        answers = write_rows(tmp_path / "scienceqa_answers.json", rows)
        questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
        for given in ((), ("--questions", questions)):
            found = score(tmp_path, "scienceqa", *given, "--answers", answers)
            assert (found["correct"], found["count"], found["image_count"]) == (1, 2, 2)
            assert "image items only" in found["variant"]

    def test_a_letter_beyond_the_choices_is_wrong(self, tmp_path: Path) -> None:
        questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
        answers = write_rows(tmp_path / "a.jsonl", samples.scienceqa_answers(["E", "E", "E", "E"]))
        found = score(tmp_path, "scienceqa", "--questions", questions, "--answers", answers)
        assert (found["correct"], found["unparsed"]) == (0, 0)


class TestTextVQA:
    def test_mean_soft_score(self, tmp_path: Path) -> None:
        annotations = write_json(tmp_path / "val.json", samples.textvqa_annotations())
        found = score(
            tmp_path,
            "textvqa",
            "--annotations",
            annotations,
            "--answers",
            write_rows(tmp_path / "a", samples.textvqa_answers()),
        )
        assert found["accuracy"] == pytest.approx((0.9 + 1 + 1) / 3)
        assert [item["score"] for item in found["items"]] == pytest.approx([0.9, 1, 1])
        assert found["count"] == 3

    def test_question_rows_with_a_prediction(self, tmp_path: Path) -> None:
        annotations = write_json(tmp_path / "val.json", samples.textvqa_annotations())
        rows = [
            {**row, "prediction": text}
            for row, text in zip(samples.textvqa_questions(), samples.TEXTVQA_TEXTS, strict=True)
        ]
        found = score(tmp_path, "textvqa", "--annotations", annotations, "--answers", write_rows(tmp_path / "a", rows))
        assert found["accuracy"] == pytest.approx(2.9 / 3)

    def test_missing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        annotations = write_json(tmp_path / "val.json", samples.textvqa_annotations())
        arguments = [
            "textvqa",
            "--annotations",
            annotations,
            "--answers",
            write_rows(tmp_path / "a", samples.textvqa_answers()[1:]),
        ]
        assert "1 missing (('00aa00aa00aa00aa', 'what colour?'))" in refusal(capsys, *arguments)
        assert score(tmp_path, *arguments, "--official")["accuracy"] == 1

    def test_a_prompt_that_hides_its_question(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        annotations = write_json(tmp_path / "val.json", samples.textvqa_annotations())
        rows = [{**row, "prompt": "one line"} for row in samples.textvqa_answers()]
        message = refusal(
            capsys,
            "textvqa",
            "--official",
            "--annotations",
            annotations,
            "--answers",
            write_rows(tmp_path / "a.jsonl", rows),
        )
        assert "a.jsonl:1: no question can be read from the prompt 'one line'" in message


class TestCrpe:
    def answers(self, wrong: set[int], field: str = "text") -> list[dict[str, Any]]:
        return [
            {
                "question_id": row["question_id"],
                field: "wrong" if row["question_id"] in wrong else row["correct_option"],
            }
            for row in samples.crpe_questions()
        ]

    def test_a_question_counts_with_all_four_rotations(self, tmp_path: Path) -> None:
        questions = write_rows(tmp_path / "q.jsonl", samples.crpe_questions())
        answers = write_rows(tmp_path / "a.jsonl", self.answers({3, 8, 12}))  # one subject, both predicates
        found = score(tmp_path, "crpe", "--questions", questions, "--answers", answers)
        assert {name: c["accuracy"] for name, c in found["categories"].items()} == {
            "subject": 0.5,
            "predicate": 0,
            "object": 1,
        }
        assert found["categories"]["subject"]["questions"] == 2
        assert found["overall"] == 0.5

    def test_order_matters_with_official_only(self, tmp_path: Path) -> None:
        questions = write_rows(tmp_path / "q.jsonl", samples.crpe_questions())
        rows = self.answers({3})
        rows[3], rows[4] = rows[4], rows[3]
        answers = write_rows(tmp_path / "a.jsonl", rows)
        assert (
            score(tmp_path, "crpe", "--questions", questions, "--answers", answers)["categories"]["subject"]["accuracy"]
            == 0.5
        )
        found = score(tmp_path, "crpe", "--official", "--questions", questions, "--answers", answers)
        assert found["categories"]["subject"]["accuracy"] == 0.5
        assert [item["id"] for item in found["items"]][:5] == [0, 1, 2, 4, 3]

    def test_pairs_of_files(self, tmp_path: Path) -> None:
        arguments: list[Any] = ["crpe"]
        for name, categories in (("exist", ("exist",)), ("relation", ("subject", "predicate", "object"))):
            rows = samples.crpe_questions(categories)
            arguments += ["--questions", write_rows(tmp_path / f"{name}.jsonl", rows)]
            arguments += [
                "--answers",
                write_rows(
                    tmp_path / f"{name}_answers.jsonl",
                    [{"question_id": row["question_id"], "text": row["correct_option"]} for row in rows],
                ),
            ]
        found = score(tmp_path, *arguments)
        assert list(found["categories"]) == ["exist", "subject", "predicate", "object"]
        assert found["overall"] == 1

    def test_no_overall_without_its_categories(self, tmp_path: Path) -> None:
        rows = [{**row, "prediction": row["correct_option"]} for row in samples.crpe_questions(("exist",))]
        found = score(tmp_path, "crpe", "--answers", write_rows(tmp_path / "published.json", rows))
        assert "overall" not in found
        assert found["categories"]["exist"]["accuracy"] == 1

    def test_questions_without_predictions(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        questions = write_rows(tmp_path / "q.jsonl", samples.crpe_questions())
        assert "without a 'prediction'" in refusal(capsys, "crpe", "--answers", questions)

    def test_meta_files(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        meta = write_rows(
            tmp_path / "crpe_exist_meta.jsonl",
            [{"question_id": 0, "question": "?", "choices": ["a"], "correct_option": "A", "category": "exist"}],
        )
        assert "not for evaluation" in refusal(capsys, "crpe", "--questions", meta, "--answers", meta)

    def test_incomplete_groups(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        questions = write_rows(tmp_path / "q.jsonl", samples.crpe_questions())
        answers = write_rows(tmp_path / "a.jsonl", self.answers(set())[:-1])
        assert "1 missing (23)" in refusal(capsys, "crpe", "--questions", questions, "--answers", answers)
        assert "not whole groups of 4" in refusal(
            capsys, "crpe", "--official", "--questions", questions, "--answers", answers
        )


class TestMmmuPro:
    def test_undecided_answers_count_their_expectation(self, tmp_path: Path) -> None:
        rows = samples.mmmu_rows(["Answer: B", "Answer: A", "purple", {"error": "timeout"}, "(B)"])
        answers = write_rows(tmp_path / "model_standard (10 options)_direct.jsonl", rows)
        found = score(tmp_path, "mmmu_pro", "--answers", answers)
        assert (found["accuracy"], found["decided_correct"], found["decided"], found["undecided"]) == (
            0.5,
            2,
            3,
            2,
        )
        assert found["by_subject"]["Art"]["accuracy"] == 0.5
        assert found["variant"].startswith("standard (10 options), direct")
        assert [item["parsed"] for item in found["items"]] == ["B", "A", None, None, "B"]
        assert [item["score"] for item in found["items"]] == [1, 0, 0.25, 0.25, 1]

    def test_empty_rows_of_the_published_scripts(self, tmp_path: Path) -> None:
        found = score(
            tmp_path,
            "mmmu_pro",
            "--answers",
            write_rows(tmp_path / "m.jsonl", ["", *samples.mmmu_rows(["B", "B"])]),
        )
        assert (found["count"], found["skipped"], found["accuracy"]) == (2, 1, 1)
        assert "setting unknown" in found["variant"]

    @pytest.mark.parametrize(
        ("name", "variant"),
        [
            ("m_vision_cot.jsonl", "vision, cot"),
            ("m-4opt_standard_direct.jsonl", "standard (4 options), direct"),
            ("m_standard_cot.jsonl", "standard (4 options), cot"),
            ("m_standard (4 options)_cot.jsonl", "standard (4 options), cot"),
        ],
    )
    def test_the_variant_is_named(self, tmp_path: Path, name: str, variant: str) -> None:
        found = score(tmp_path, "mmmu_pro", "--answers", write_rows(tmp_path / name, samples.mmmu_rows(["B"])))
        assert found["variant"].startswith(variant)

    def test_input_row_with_prediction(self, tmp_path: Path) -> None:
        rows = [
            {("prediction" if k == "response" else k): v for k, v in row.items()} for row in samples.mmmu_rows(["B"])
        ]
        assert score(tmp_path, "mmmu_pro", "--answers", write_rows(tmp_path / "m.jsonl", rows))["accuracy"] == 1

    def test_a_gold_letter_that_no_option_has_is_never_right(self, tmp_path: Path) -> None:
        row = {**samples.mmmu_rows([""])[0], "options": "[['nested', 'list']]"}
        found = score(tmp_path, "mmmu_pro", "--answers", write_rows(tmp_path / "m.jsonl", [row]))
        assert (found["accuracy"], found["undecided"]) == (0, 1)

    def test_null_response(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        answers = write_rows(tmp_path / "m.jsonl", samples.mmmu_rows([None]))
        assert "m.jsonl:1: the response must be text, but is None" in refusal(capsys, "mmmu_pro", "--answers", answers)

    def test_responses_apart_from_their_questions(self, tmp_path: Path) -> None:
        rows = samples.mmmu_rows(["B", "A"])
        questions = write_rows(
            tmp_path / "q.jsonl", [{k: v for k, v in row.items() if k != "response"} for row in rows]
        )
        answers = write_rows(
            tmp_path / "a.jsonl", [{"id": row["id"], "response": row["response"]} for row in reversed(rows)]
        )
        assert score(tmp_path, "mmmu_pro", "--questions", questions, "--answers", answers)["accuracy"] == 0.5
