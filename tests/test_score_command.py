"""`agci score`: the figures, files and errors of the contract, on made-up rows whose score is known by hand."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pytest
from benchmark_samples import write_json, write_rows

from transformers_agci.cli import main


def score(tmp_path: Path, *arguments: Any) -> dict[str, Any]:
    """Run the command; the result file with the items as `items`."""
    out, items = tmp_path / "out.json", tmp_path / "items.jsonl"
    assert main(["score", *map(str, arguments), "--json", str(out), "--items", str(items)]) == 0
    return {**json.loads(out.read_text()), "items": [json.loads(line) for line in items.read_text().splitlines()]}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one sentence on stderr of a command that must fail."""
    assert main(["score", *map(str, arguments)]) == 2
    return capsys.readouterr().err


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


class TestPope:
    def arguments(self, tmp_path: Path, keyed: bool = True) -> list[Any]:
        return [
            "pope",
            "--annotations",
            samples.pope_label_files(tmp_path / "coco"),
            "--questions",
            write_rows(tmp_path / "q.jsonl", samples.pope_questions(keyed)),
        ]

    def answers(self, tmp_path: Path, texts: list[str], name: str = "a.jsonl") -> Path:
        rows = [
            {"question_id": row["question_id"], "text": text}
            for row, text in zip(samples.pope_questions(), texts, strict=False)
        ]
        return write_rows(tmp_path / name, rows)

    @pytest.mark.parametrize("keyed", [True, False])
    def test_figures_per_category(self, tmp_path: Path, keyed: bool) -> None:
        texts = ["Yes", "No", "No", "No, there is not.", "Yes", "no\n", "Yes", "No", "Yes", "No", "Yes", "No"]
        found = score(tmp_path, *self.arguments(tmp_path, keyed), "--answers", self.answers(tmp_path, texts))
        first = found["categories"]["adversarial"]
        assert (first["tp"], first["fp"], first["tn"], first["fn"]) == (1, 0, 2, 1)
        assert (first["precision"], first["recall"], first["accuracy"], first["yes_ratio"]) == (1, 0.5, 0.75, 0.25)
        assert found["categories"]["random"]["fp"] == 1  # "no\n" is not the word no
        assert found["mean_f1"] == pytest.approx((2 / 3 + 0.8 + 1) / 3)
        assert [item["parsed"] for item in found["items"]][:4] == ["yes", "no", "no", "no"]

    @pytest.mark.parametrize("keyed", [True, False])
    def test_the_order_of_the_answers_does_not_matter(self, tmp_path: Path, keyed: bool) -> None:
        answers = self.answers(tmp_path, ["Yes", "No"] * 6)
        lines = answers.read_text().splitlines()
        turned = tmp_path / "turned.jsonl"
        turned.write_text("\n".join(reversed(lines)) + "\n")
        arguments = self.arguments(tmp_path, keyed)
        assert score(tmp_path, *arguments, "--answers", turned)["mean_f1"] == 1
        assert (
            score(tmp_path, *arguments, "--official", "--answers", turned)["mean_f1"] == 0
        )  # by position, as officially

    def test_no_predicted_positive_is_zero_not_a_crash(self, tmp_path: Path) -> None:
        found = score(tmp_path, *self.arguments(tmp_path), "--answers", self.answers(tmp_path, ["No"] * 12))
        assert found["mean_f1"] == 0 == found["categories"]["random"]["precision"]

    def test_lengths_are_checked_where_position_decides(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = self.arguments(tmp_path, keyed=False)
        label_file = tmp_path / "coco" / "coco_pope_random.json"
        label_file.write_text("".join(label_file.read_text().splitlines(keepends=True)[:3]))
        answers = self.answers(tmp_path, ["Yes"] * 12)
        assert "has 4 answers, but its label file has 3 lines" in refusal(capsys, *arguments, "--answers", answers)
        found = score(tmp_path, *arguments, "--official", "--answers", answers)
        assert found["categories"]["random"]["yes_ratio"] == 1

    def published(self, **changed: Any) -> list[dict[str, Any]]:
        return [
            {
                "question_id": "1",
                "question": f"Is there a {thing} in the image?",
                "image_source": f"COCO_{n // 2}",
                "answer": label,
                "prediction": "Yes",
                "prompt": "...",
                "category": category,
                **changed,
            }
            for category, labels in samples.POPE_LABELS.items()
            for n, (thing, label) in enumerate(zip(samples.POPE_OBJECTS, labels, strict=True))
        ]

    def test_published_rows_carry_their_labels(self, tmp_path: Path) -> None:
        found = score(tmp_path, "pope", "--answers", write_rows(tmp_path / "pope_answers.json", self.published()))
        assert found["categories"]["popular"]["recall"] == 1
        assert found["mean_f1"] == pytest.approx(2 / 3)
        assert found["count"] == 12

    def test_repeated_published_row(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = self.published()
        message = refusal(capsys, "pope", "--answers", write_rows(tmp_path / "a.jsonl", [*rows, rows[0]]))
        assert "1 duplicate (('random', 'COCO_0', 'Is there a dog in the image?') in a.jsonl:13)" in message

    def test_a_label_is_yes_or_no(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """The official program takes "No", like everything but "no", for yes."""
        rows = self.published()
        rows[2]["answer"] = "No"
        answers = write_rows(tmp_path / "a.jsonl", rows)
        assert "a.jsonl:3: the label must be yes or no, but is 'No'" in refusal(capsys, "pope", "--answers", answers)
        assert score(tmp_path, "pope", "--official", "--answers", answers)["count"] == 12

    def test_question_rows_with_a_prediction(self, tmp_path: Path) -> None:
        rows = [{**row, "prediction": "Yes"} for row in samples.pope_questions()]
        found = score(
            tmp_path,
            "pope",
            "--annotations",
            samples.pope_label_files(tmp_path / "coco"),
            "--answers",
            write_rows(tmp_path / "a.jsonl", rows),
        )
        assert found["categories"]["random"]["tp"] == 2

    def test_three_sets_are_named_by_their_size(self) -> None:
        from transformers_agci.experiments.benchmarks.pope import KNOWN_SIZES

        assert set(KNOWN_SIZES) == {8910, 9000}


class TestFaultsNameTheirRow:
    def test_repeated_questions(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for name, made in (("pope", samples.pope_questions()), ("crpe", samples.crpe_questions())):
            questions = write_rows(tmp_path / "q.jsonl", [*made, made[0]])
            answers = write_rows(tmp_path / "a.jsonl", [{"question_id": r["question_id"], "text": "A"} for r in made])
            more = ["--annotations", samples.pope_label_files(tmp_path / "coco")] if name == "pope" else []
            message = refusal(capsys, name, "--questions", questions, "--answers", answers, *more)
            assert f"q.jsonl:{len(made) + 1}: the question" in message
            assert "is that of q.jsonl:1 already" in message

    def test_crpe_names_the_answer_that_is_one_too_many(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = [{**row, "prediction": "A"} for row in samples.crpe_questions()][:7]
        answers = write_rows(tmp_path / "a.jsonl", rows)
        assert "a.jsonl:7: with this last one, category" in refusal(capsys, "crpe", "--answers", answers)

    def test_mmmu_pro_blames_the_questions_for_their_options(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        rows = samples.mmmu_rows(["A", "B"])
        questions = write_rows(tmp_path / "q.jsonl", [rows[0], {**rows[1], "options": "no list"}])
        answers = write_rows(tmp_path / "a.jsonl", [{"id": row["id"], "response": "A"} for row in rows])
        message = refusal(capsys, "mmmu_pro", "--questions", questions, "--answers", answers)
        assert "q.jsonl:2: 'options' must be the text of a Python list" in message


class TestTextVQA:
    TEXTS = ("Red.", "2", "Hershey's")

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"question_id": row["question_id"], "prompt": row["text"], "text": text}
            for row, text in zip(samples.textvqa_questions(), self.TEXTS, strict=True)
        ]

    def test_mean_soft_score(self, tmp_path: Path) -> None:
        annotations = write_json(tmp_path / "val.json", samples.textvqa_annotations())
        found = score(
            tmp_path, "textvqa", "--annotations", annotations, "--answers", write_rows(tmp_path / "a", self.rows())
        )
        assert found["accuracy"] == pytest.approx((0.9 + 1 + 1) / 3)
        assert [item["score"] for item in found["items"]] == pytest.approx([0.9, 1, 1])
        assert found["count"] == 3

    def test_question_rows_with_a_prediction(self, tmp_path: Path) -> None:
        annotations = write_json(tmp_path / "val.json", samples.textvqa_annotations())
        rows = [{**row, "prediction": text} for row, text in zip(samples.textvqa_questions(), self.TEXTS, strict=True)]
        found = score(tmp_path, "textvqa", "--annotations", annotations, "--answers", write_rows(tmp_path / "a", rows))
        assert found["accuracy"] == pytest.approx(2.9 / 3)

    def test_missing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        annotations = write_json(tmp_path / "val.json", samples.textvqa_annotations())
        arguments = [
            "textvqa",
            "--annotations",
            annotations,
            "--answers",
            write_rows(tmp_path / "a", self.rows()[1:]),
        ]
        assert "1 missing (('00aa00aa00aa00aa', 'what colour?'))" in refusal(capsys, *arguments)
        assert score(tmp_path, *arguments, "--official")["accuracy"] == 1

    def test_a_prompt_that_hides_its_question(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        annotations = write_json(tmp_path / "val.json", samples.textvqa_annotations())
        rows = [{**row, "prompt": "one line"} for row in self.rows()]
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


class TestHallusionBench:
    def files(self, tmp_path: Path, rows: list[dict[str, Any]]) -> list[Any]:
        return [
            "hallusionbench",
            "--questions",
            write_json(tmp_path / "HallusionBench.json", samples.hallusionbench_questions()),
            "--answers",
            write_json(tmp_path / "a.json", rows),
        ]

    def answered(self, texts: list[str], field: str = "prediction") -> list[dict[str, Any]]:
        return [{**row, field: text} for row, text in zip(samples.hallusionbench_questions(), texts, strict=True)]

    @pytest.mark.parametrize("fault", [{"gt_answer": "maybe"}, {"visual_input": None}])
    def test_a_fault_in_the_questions_is_named_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: dict[str, Any]
    ) -> None:
        files = self.files(tmp_path, self.answered(["Yes"] * 5))
        questions = samples.hallusionbench_questions()
        questions[2] = {key: v for key, v in {**questions[2], **fault}.items() if v is not None}
        write_rows(files[2], questions)
        message = refusal(capsys, *files)
        assert "HallusionBench.json:3: " in message
        assert "a.json" not in message

    @pytest.mark.parametrize("field", ["prediction", "model_prediction"])
    def test_yes_no_rule(self, tmp_path: Path, field: str) -> None:
        # right, wrong, honest "don't know" without an image, right, right
        found = score(
            tmp_path, *self.files(tmp_path, self.answered(["Yes", "yes.", "I cannot see", "**Yes**", "No"], field))
        )
        assert (found["aAcc_pct"], found["qAcc_pct"], found["unclear"], found["count"]) == (80, 50, 1, 5)
        assert (found["fAcc_pct"], found["easy_pct"], found["hard_pct"]) == (75, 100, 50)
        assert found["judge"] == "yes/no rule"
        assert found["items"][1] == {
            "id": "VD_made_0_1_0",
            "parsed": "yes",
            "gold": "no",
            "correct": False,
            "code": "0",
            "visual_input": "2",
        }

    def test_codes(self, tmp_path: Path) -> None:
        rows = [
            {**row, "gpt4v_output_gpt_check": code, "same": "1"}
            for row, code in zip(samples.hallusionbench_questions(), "10001", strict=True)
        ]
        found = score(tmp_path, *self.files(tmp_path, rows))
        assert (found["aAcc_pct"], found["judge"]) == (40, "codes")
        assert found["blame"] == {
            "LH_pct": pytest.approx(200 / 3),
            "VI_pct": 0,
            "Mixed_pct": pytest.approx(100 / 3),
        }

    def test_recorded_replies(self, tmp_path: Path) -> None:
        rows = [{**row, "prediction": "?", "judge_reply": "Correct."} for row in samples.hallusionbench_questions()]
        assert score(tmp_path, *self.files(tmp_path, rows))["aAcc_pct"] == 20  # the Yes/No rule: only the honest one
        assert score(tmp_path, *self.files(tmp_path, rows), "--judge", "replies")["aAcc_pct"] == 100

    def test_the_rows_with_an_image_are_a_population(self, tmp_path: Path) -> None:
        rows = [row for row in self.answered(["Yes"] * 5) if row["visual_input"] != "0"]
        assert score(tmp_path, *self.files(tmp_path, rows))["count"] == 4

    def test_codes_on_some_rows_only(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = self.answered(["Yes"] * 5)
        rows[0]["gpt4v_output_gpt_check"] = "1"
        assert "1 of 5 rows carry 'gpt4v_output_gpt_check'" in refusal(capsys, *self.files(tmp_path, rows))


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


class TestJoins:
    @pytest.mark.parametrize(
        ("change", "wanted"),
        [
            (lambda rows: rows[:-1], "1 missing ('14')"),
            (lambda rows: [*rows, rows[0]], "1 duplicate ('11' in a.jsonl:5)"),
            (lambda rows: [*rows, {**rows[0], "question_id": "77"}], "1 unknown ('77' in a.jsonl:5)"),
            (
                lambda rows: [{**row, "question_id": f"x{n}"} for n in range(9) for row in rows[:1]],
                "9 unknown ('x0' in a.jsonl:1, 'x1' in a.jsonl:2, 'x2' in a.jsonl:3, 'x3' in a.jsonl:4, "
                "'x4' in a.jsonl:5, ...)",
            ),
        ],
    )
    def test_the_first_keys_are_listed(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Any, wanted: str
    ) -> None:
        questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
        answers = write_rows(tmp_path / "a.jsonl", change(samples.scienceqa_answers(["A"] * 4)))
        assert wanted in refusal(capsys, "scienceqa", "--questions", questions, "--answers", answers)


class TestWrongFiles:
    def files(self, tmp_path: Path) -> dict[str, tuple[str, list[Any]]]:
        """title -> a file of that benchmark's answers, and the other options of its own score command."""
        return {
            "ScienceQA": ("scienceqa", [{**row, "prediction": "A"} for row in samples.scienceqa_questions()]),
            "POPE": (
                "pope",
                [{"question_id": row["question_id"], "text": "Yes"} for row in samples.pope_questions()],
            ),
            "TextVQA": ("textvqa", TestTextVQA().rows()),
            "HallusionBench": ("hallusionbench", TestHallusionBench().answered(["Yes"] * 5)),
            "CRPE": ("crpe", [{**row, "prediction": "A"} for row in samples.crpe_questions()]),
            "MMMU-Pro": ("mmmu_pro", samples.mmmu_rows(["B"] * 5)),
        }

    def test_an_error_names_what_the_file_looks_like(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        own = {
            "scienceqa": ["--questions", write_json(tmp_path / "sqa.json", samples.scienceqa_questions())],
            "pope": [
                "--annotations",
                samples.pope_label_files(tmp_path / "coco"),
                "--questions",
                write_rows(tmp_path / "pope.jsonl", samples.pope_questions()),
            ],
            "textvqa": ["--annotations", write_json(tmp_path / "textvqa.json", samples.textvqa_annotations())],
            "hallusionbench": [
                "--questions",
                write_json(tmp_path / "hb.json", samples.hallusionbench_questions()),
            ],
            "crpe": ["--questions", write_rows(tmp_path / "crpe.jsonl", samples.crpe_questions())],
            "mmmu_pro": [],
        }
        for title, (name, rows) in self.files(tmp_path).items():
            answers = write_rows(tmp_path / "given.jsonl", rows)
            for other in own.keys() - {name}:
                message = refusal(capsys, other, *own[other], "--answers", answers)
                assert f"given.jsonl looks like a file of {title}" in message, (title, other, message)

    @pytest.mark.parametrize(
        ("content", "wanted"),
        [
            (b"", "holds no rows"),
            (b"{\n", "not valid JSON"),
            (b"[{]", "malformed or cut off"),
            (b"\xff\xfe\n", "not UTF-8"),
            (b"[1, 2]", "must be a JSON object"),
            (b"PAR1 and then nothing", "parquet"),
            (b"[" * 100_000, "malformed"),
            (b'{"a": ' * 100_000, "not valid JSON"),
        ],
    )
    def test_broken_files(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, wanted: str
    ) -> None:
        (tmp_path / "a.jsonl").write_bytes(content)
        assert wanted in refusal(capsys, "mmmu_pro", "--answers", tmp_path / "a.jsonl")

    def test_no_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "there is no such file" in refusal(capsys, "mmmu_pro", "--answers", tmp_path / "none.jsonl")

    def test_unknown_benchmark(self, capsys: pytest.CaptureFixture[str]) -> None:
        message = refusal(capsys, "textqa", "--answers", "a")
        assert "Unknown benchmark 'textqa'. Did you mean: textvqa? Available: crpe, hallusionbench" in message

    def test_an_option_of_another_benchmark(self, capsys: pytest.CaptureFixture[str]) -> None:
        message = refusal(capsys, "mmmu_pro", "--answers", "a", "--splits", "b")
        assert "mmmu_pro takes no --splits; it takes: --answers, --questions" in message


class TestTwoFiles:
    def test_paired_difference_and_mcnemar(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        questions = write_json(tmp_path / "q.json", samples.scienceqa_questions())
        first = write_rows(tmp_path / "a.jsonl", samples.scienceqa_answers(["A", "A", "A", "B"]))
        second = write_rows(tmp_path / "b.jsonl", samples.scienceqa_answers(["A", "B", "C", "B"]))
        found = score(tmp_path, "scienceqa", "--questions", questions, "--answers", first, "--against", second)
        assert found["difference"]["accuracy_pct"] == 50
        assert (found["difference"]["gained"], found["difference"]["lost"], found["difference"]["mcnemar_p"]) == (
            2,
            0,
            0.5,
        )
        low, high = found["difference"]["interval_95"]
        assert 0 <= low <= 50 <= high <= 100
        assert "McNemar" in capsys.readouterr().out

    def test_the_same_answers_do_not_differ(self, tmp_path: Path) -> None:
        labels = samples.pope_label_files(tmp_path / "coco")
        rows = [{**row, "prediction": "Yes"} for row in samples.pope_questions()]
        answers = write_rows(tmp_path / "a.jsonl", rows)
        found = score(tmp_path, "pope", "--annotations", labels, "--answers", answers, "--against", answers)
        assert found["difference"]["mean_f1"] == 0
        assert found["difference"]["interval_95"] is None

    def test_images_are_what_is_resampled(self, tmp_path: Path) -> None:
        """Ten answers on one image are one cluster: every resample is the same, so that there is no interval."""
        rows = [{**samples.mmmu_rows(["B"])[0], "response": "B"}]
        answers = write_rows(tmp_path / "m.jsonl", rows)
        assert score(tmp_path, "mmmu_pro", "--answers", answers)["interval_95"]["accuracy"] is None


def test_neither_torch_nor_transformers_is_imported(tmp_path: Path) -> None:
    answers = write_rows(tmp_path / "m.jsonl", samples.mmmu_rows(["B"]))
    program = (
        "import sys; from transformers_agci.cli import main; "
        f"code = main(['score', 'mmmu_pro', '--answers', {str(answers)!r}]); "
        "print({'torch', 'transformers', 'datasets'} & set(sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "set()"
