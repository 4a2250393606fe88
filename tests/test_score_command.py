"""`agci score`: files that do not fit each other, rows with faults, two files, and what is not loaded."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pytest
from benchmark_samples import refusal, score, write_json, write_rows


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
            "TextVQA": ("textvqa", samples.textvqa_answers()),
            "HallusionBench": ("hallusionbench", samples.hallusionbench_answers(["Yes"] * 5)),
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
        said = capsys.readouterr().out
        assert "McNemar" in said
        assert "second minus first, accuracy_pct: +50.00 points" in said  # of percentages; 50 % more would be relative

    def test_the_same_answers_do_not_differ(self, tmp_path: Path) -> None:
        labels = samples.pope_label_files(tmp_path / "coco")
        rows = [{**row, "prediction": "Yes"} for row in samples.pope_questions()]
        answers = write_rows(tmp_path / "a.jsonl", rows)
        found = score(tmp_path, "pope", "--annotations", labels, "--answers", answers, "--against", answers)
        assert found["difference"]["mean_f1"] == 0
        assert found["difference"]["interval_95"] is None

    def test_a_difference_of_one_set_says_so(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """There is no mean F1 of one set, and a note says so; its difference must not seem to be one."""
        row = {
            "category": "random",
            "image": "a.jpg",
            "question": "Is there a dog?",
            "answer": "yes",
            "prediction": "Yes",
        }
        answers = write_rows(tmp_path / "a.jsonl", [row])
        score(tmp_path, "pope", "--answers", answers, "--against", answers)
        said = capsys.readouterr().out
        assert "second minus first, mean_f1 of what there is: " in said and "There is no mean F1" in said

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
