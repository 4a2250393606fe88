"""The fine-tuning sample, the report of missing images, and ScienceQA's question file."""

import errno
import json
from pathlib import Path
from typing import Any, Never

import pytest

from transformers_agci.cli import main
from transformers_agci.data.instruct import draw_sample, read_conversations, to_sharegpt, write_sample
from transformers_agci.data.scienceqa import conversations
from transformers_agci.errors import InputError


def talk(number: int, image: str = "default", question: str = "<image>\nWhat?") -> dict[str, Any]:
    record = {
        "id": f"{number}",
        "conversations": [
            {"from": "human", "value": question},
            {"from": "gpt", "value": f"Answer {number}."},
        ],
    }
    if image is not None:
        record["image"] = f"coco/train2017/{number}.jpg" if image == "default" else image
    return record


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """30 COCO records whose image exists, and one record of every other sort."""
    for folder in ("coco/train2017", "ocr_vqa/images"):
        (tmp_path / "root" / folder).mkdir(parents=True)
    for number in range(30):
        (tmp_path / "root" / "coco" / "train2017" / f"{number}.jpg").touch()
    (tmp_path / "root" / "ocr_vqa" / "images" / "book.gif").touch()
    mix = [talk(number) for number in range(30)]
    mix[5:5] = [
        talk(100, "ocr_vqa/images/book.jpg"),
        talk(101, "gqa/images/none.jpg"),
        talk(102, None, "Only text."),
        talk(103, question="No mark"),
        talk(104, question="<image> <image>"),
        {"id": "105", "conversations": []},
        {"id": "106", "conversations": [{"from": "robot", "value": "x"}]},
        ["107"],
        talk(108, None),
    ]
    (tmp_path / "mix.json").write_text(json.dumps(mix))
    return tmp_path


def test_the_sample_is_the_first_n_of_a_seeded_shuffle(tree: Path) -> None:
    everything = draw_sample(tree / "mix.json", tree / "root", 31, seed=3)
    assert everything.read == 39
    assert len(everything.rows) == 31
    assert everything.skipped == {
        "malformed conversation": 3,
        "text only": 2,
        "not exactly one <image>": 2,
        "missing image in gqa/images": 1,
    }
    few = draw_sample(tree / "mix.json", tree / "root", 7, seed=3)
    assert few.rows == everything.rows[:7]
    other = draw_sample(tree / "mix.json", tree / "root", 31, seed=4)
    assert other.rows != everything.rows
    assert sorted(map(str, other.rows)) == sorted(map(str, everything.rows))


@pytest.mark.slow
def test_every_record_is_equally_likely(tree: Path) -> None:
    counts = dict.fromkeys((str(n) for n in range(30)), 0) | {"100": 0}
    for seed in range(400):
        for row in draw_sample(tree / "mix.json", tree / "root", 10, seed).rows:
            counts[row["id"]] += 1
    assert 90 < min(counts.values()) <= max(counts.values()) < 170  # expected 129, standard deviation 9.4


def test_both_forms_and_dataset_info_are_written(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tree / "data"
    arguments = [
        "data",
        "sample-instruct",
        "--mix",
        str(tree / "mix.json"),
        "--image_root",
        str(tree / "root"),
        "--n",
        "31",
        "--output_dir",
        str(out),
    ]
    (out).mkdir()
    (out / "dataset_info.json").write_text('{"mine": {"file_name": "x.json"}}')
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "skipped 2: text only" in printed
    for_llava = json.loads((out / "llava_v1_5_instruct_sample_31_for_llava1.5.json").read_text())
    for_llama_factory = json.loads((out / "llava_v1_5_instruct_sample_31.json").read_text())
    info = json.loads((out / "dataset_info.json").read_text())
    assert for_llama_factory == [to_sharegpt(row) for row in for_llava]
    assert set(info) == {"mine", "llava_v1_5_instruct_sample_31"}
    entry = info["llava_v1_5_instruct_sample_31"]
    assert (entry["file_name"], entry["formatting"]) == ("llava_v1_5_instruct_sample_31.json", "sharegpt")
    (book,) = (row for row in for_llava if row["id"] == "100")
    assert book["image"] == "ocr_vqa/images/book.gif"
    for row in for_llava:
        assert (tree / "root" / row["image"]).is_file()
    first = (out / "llava_v1_5_instruct_sample_31.json").read_bytes()
    assert main(arguments) == 0
    assert (out / "llava_v1_5_instruct_sample_31.json").read_bytes() == first


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object, **options: object) -> Never:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("transformers_agci.data.instruct.write_atomic", full)
    arguments = ["--mix", str(tree / "mix.json"), "--image_root", str(tree / "root"), "--n", "3"]
    assert main(["data", "sample-instruct", *arguments, "--output_dir", str(tree / "data")]) == 2
    assert "cannot be written into" in capsys.readouterr().err
    assert list((tree / "data").iterdir()) == []
    assert main(["data", "sample-instruct", *arguments, "--name", "../x"]) == 2
    assert "--name must be a plain name without '/', but is '../x'" in capsys.readouterr().err


def test_odd_speakers_and_half_a_surrogate_pair(tree: Path) -> None:
    odd = talk(1) | {"conversations": [{"from": ["human"], "value": "<image>"}]}
    half = talk(2, question="<image>\ud800")
    (tree / "mix.json").write_text(json.dumps([odd, half]))
    sample = draw_sample(tree / "mix.json", tree / "root", 1, seed=0)
    assert sample.skipped == {"malformed conversation": 1}
    written, _ = write_sample(sample.rows, tree / "data", "s")
    assert json.loads(written.read_text()) == [half]


def test_text_only_is_kept_when_asked(tree: Path) -> None:
    sample = draw_sample(tree / "mix.json", tree / "root", 32, seed=0, keep_text_only=True)
    (text,) = (row for row in sample.rows if "image" not in row)
    assert text["id"] == "102"
    assert sample.skipped["<image> without an image"] == 1
    assert to_sharegpt(text)["images"] == []


def test_ten_thousand_is_named_10k(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "sample-instruct", "--mix", str(tree / "mix.json"), "--image_root", str(tree / "root")]) == 2
    assert "Only 31 of 10000 conversations" in capsys.readouterr().err
    assert not (tree / "data").exists()


def test_check_images_counts_by_folder(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "check-images", str(tree / "mix.json"), "--image_root", str(tree / "root")]
    assert main(arguments) == 1
    printed = capsys.readouterr().out
    assert "gqa/images                          1        1   gqa/images/none.jpg" in printed
    assert "ocr_vqa/images                      1        0" in printed
    assert "3 of 34 images are missing" in printed  # 103.jpg and 104.jpg are named too
    (tree / "root" / "gqa" / "images").mkdir(parents=True)
    for name in ("gqa/images/none.jpg", "coco/train2017/103.jpg", "coco/train2017/104.jpg"):
        (tree / "root" / name).touch()
    assert main(arguments) == 0


@pytest.mark.parametrize("content", ["", "[", '[{"id": 1},', "[]", "nonsense", '[{"id": 1}} ]'])
def test_a_broken_mix_is_one_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "mix.json").write_text(content)
    with pytest.raises(InputError) as error:
        list(read_conversations(tmp_path / "mix.json"))
    assert "\n" not in str(error.value)


def test_an_image_outside_the_root_stops_the_sample(tree: Path) -> None:
    (tree / "mix.json").write_text(json.dumps([talk(1, "../../etc/passwd")]))
    with pytest.raises(InputError, match=r"mix.json:1: the path '\.\./\.\./etc/passwd'"):
        draw_sample(tree / "mix.json", tree / "root", 1, seed=0)


PROBLEMS = {
    "4": {"question": "Which figure?", "choices": ["chiasmus", "apostrophe"], "answer": 1, "hint": "", "image": None},
    "5": {"question": "What is it?", "choices": ["a", "b\nc", "d"], "answer": 2, "hint": " Look. \n", "image": "i.png"},
    "6": {"question": "Train?", "choices": ["a", "b"], "answer": 0, "hint": "", "image": None},
}


def test_scienceqa_conversations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "problems.json").write_text(json.dumps(PROBLEMS))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["5", "4"], "train": ["6"]}))
    output = tmp_path / "out" / "llava_test_CQM-A.json"
    arguments = [
        "data",
        "build-scienceqa",
        "--problems",
        str(tmp_path / "problems.json"),
        "--pid_splits",
        str(tmp_path / "pid_splits.json"),
        "--output",
        str(output),
    ]
    assert main(arguments) == 0
    assert "2 items, 1 with an image; correct answers: B 1, C 1" in capsys.readouterr().out
    assert json.loads(output.read_text()) == [
        {
            "id": "5",
            "image": "5/i.png",
            "conversations": [
                {"from": "human", "value": "<image>\nContext: Look.\nWhat is it?\nA. a\nB. b\nc\nC. d"},
                {"from": "gpt", "value": "C"},
            ],
        },
        {
            "id": "4",
            "conversations": [
                {"from": "human", "value": "Which figure?\nA. chiasmus\nB. apostrophe"},
                {"from": "gpt", "value": "B"},
            ],
        },
    ]


@pytest.mark.parametrize(
    ("problems", "splits", "message"),
    [
        (PROBLEMS, {"val": []}, "no split 'test'; the file has: val"),
        (PROBLEMS, {"test": ["9"]}, "question '9' of the split is missing"),
        ({"4": {"question": "?", "choices": ["a"], "answer": 1}}, {"test": ["4"]}, "the index of one of the first 5"),
        ([], {"test": []}, "must hold a JSON object, but holds a list"),
    ],
)
def test_bad_scienceqa_files_are_one_sentence(
    problems: dict[str, Any] | list[Any], splits: dict[str, Any], message: str, tmp_path: Path
) -> None:
    (tmp_path / "p.json").write_text(json.dumps(problems))
    (tmp_path / "s.json").write_text(json.dumps(splits))
    with pytest.raises(InputError, match=message):
        conversations(tmp_path / "p.json", tmp_path / "s.json")
    with pytest.raises(InputError, match="there is no such file"):
        conversations(tmp_path / "none.json", tmp_path / "s.json")
