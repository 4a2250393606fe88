"""POPE's and HallusionBench's figures, on made-up rows whose score is known by hand."""

from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pytest
from benchmark_samples import refusal, score, write_json, write_rows


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


class TestHallusionBench:
    def files(self, tmp_path: Path, rows: list[dict[str, Any]]) -> list[Any]:
        return [
            "hallusionbench",
            "--questions",
            write_json(tmp_path / "HallusionBench.json", samples.hallusionbench_questions()),
            "--answers",
            write_json(tmp_path / "a.json", rows),
        ]

    @pytest.mark.parametrize("fault", [{"gt_answer": "maybe"}, {"visual_input": None}])
    def test_a_fault_in_the_questions_is_named_there(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: dict[str, Any]
    ) -> None:
        files = self.files(tmp_path, samples.hallusionbench_answers(["Yes"] * 5))
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
            tmp_path,
            *self.files(
                tmp_path, samples.hallusionbench_answers(["Yes", "yes.", "I cannot see", "**Yes**", "No"], field)
            ),
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
        rows = [row for row in samples.hallusionbench_answers(["Yes"] * 5) if row["visual_input"] != "0"]
        assert score(tmp_path, *self.files(tmp_path, rows))["count"] == 4

    def test_codes_on_some_rows_only(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = samples.hallusionbench_answers(["Yes"] * 5)
        rows[0]["gpt4v_output_gpt_check"] = "1"
        assert "1 of 5 rows carry 'gpt4v_output_gpt_check'" in refusal(capsys, *self.files(tmp_path, rows))
