"""Files and options of every command, damaged at random: one sentence that names the culprit, no traceback, no hang.

Each case is a command that works (or would, had it a model) with files of its own. An example damages one file, its
bytes or a value in its JSON, and runs the command in this process; then every option that takes a value is given odd
ones. Nothing loads a model: where one is needed, its folder is what is damaged, or is missing so that all else is read
before.
"""

import contextlib
import gzip
import io
import json
import os
import random
import re
import signal
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from transformers_agci.cli import COMMANDS, Command, command_parser, main
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.errors import InputError
from transformers_agci.experiments.ruler.conditions import CALIBRATION, RULER
from transformers_agci.inference.checkpoint_files import fingerprint

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = 55  # per case
LONGEST = 3000  # characters of a sentence: one lists the supported families
HANG = 60  # seconds after which an input counts as one that hangs; a damaged file of a few kB takes milliseconds
NO_MODEL = "./no_such_model"


@dataclass(frozen=True)
class Case:
    """Words of a command, and the files that it reads (name -> bytes).

    `stop` is a function of ours that would begin the long work, or load a model: there the case ends.
    """

    words: str
    files: dict[str, bytes]
    stop: str = ""
    examples: int = EXAMPLES


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def jpeg(side: int = 60, seed: int = 0) -> bytes:
    """Noise, the same in every run: what is drawn of a file depends on its length."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(3 * side * side)).save(buffer, "JPEG")
    return buffer.getvalue()


def parquet(rows: list[Any]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def zipped(rows: list[Any]) -> bytes:
    """An archive of the rows' images."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for row in rows:
            archive.writestr(f"images/{row['image']}", jpeg())
    return buffer.getvalue()


STAGE = "1-names-ae5dc4b46bb1.safetensors"  # of 4 steps, seed 0
PROBE = [json.loads(line) for line in (ROOT / "probe_datasets/sample_noto_840_840.json").read_text().splitlines()[:18]]
ANSWERED = [
    {**row, "prediction": "Yes", "qs": "Q?", "yes_logit": 1.5, "no_logit": 0.5 + k / 9, "margin": 1.0 - k / 9}
    for k, row in enumerate(PROBE)
]
ITEMS_APART = [
    {
        **row,
        "image": f"{item}_{row['image']}",
        "caption": f"{row['caption']} {item} {answer}",
        "answer": answer,
        "prediction": "Yes" if (item * 7 + k * 5) % 11 < (8 if answer == "Yes" else 3) else "No",
        "margin": row["margin"] + item / 7,
    }
    for answer in ("Yes", "No")
    for item in range(40)
    for k, row in enumerate(ANSWERED[:9])
]
RULER_SETTINGS = {
    "stream": "ruler/items/0",
    "conditions": [condition.name for condition in RULER],
    "lambda": 0.5,
    "weights_sha256": fingerprint(embedded_model_path()),
}
RULER_ITEMS = [
    {"item": n, "margins": {c.name: [1.5 - n / 7 - k / 9 for k in range(18)] for c in RULER}} for n in range(3)
]
SIMILAR = [{**row, "similarity": 0.5 + k / 40} for k, row in enumerate(PROBE)]
PROBLEMS = {
    str(n): {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": "image.png"}
    for n in range(4)
}
MIX = [
    {
        "id": str(n),
        "image": f"coco/{n}.jpg",
        "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "That."}],
    }
    for n in range(4)
]
CONFIG = {"model_type": "qwen2_5_vl", "architectures": ["A"], "text_config": {}, "vision_config": {}}
RECIPE = {
    "model_name_or_path": NO_MODEL,
    "stage": "sft",
    "do_train": True,
    "finetuning_type": "lora",
    "template": "qwen2_vl",
    "dataset": "tiny",
    "dataset_dir": "data",
    "output_dir": "out",
    "learning_rate": 1.0e-4,
    "cutoff_len": 2048,
}
MERGE = {
    "model_name_or_path": NO_MODEL,
    "adapter_name_or_path": "adapter",
    "template": "qwen2_vl",
    "export_dir": "merged",
}
RECIPE_FILES = {
    "recipe.yaml": yaml.safe_dump(RECIPE).encode(),
    "data/dataset_info.json": b'{"tiny": {"file_name": "t.json"}}',
}
OCCLUDED = {
    "width": 84,
    "height": 84,
    "mask_size": 42,
    "stride": 42,
    "row": PROBE[4],
    "token_logits": [1.0],
    "masked_logits": [[1.0]] * 4,
}
FLOWS = [
    {
        **row,
        "flows": [
            {
                "lambda": lam,
                "prediction": "Yes",
                **{
                    source: {"on_picture": 0.1, "on_target": 0.2, "map": [[0.5] * 9] * 9}
                    for source in ("text", "answer")
                },
            }
            for lam in (0.0, 0.5)
        ],
    }
    for row in PROBE
]
RULER_RESULT = json.dumps(json.loads((ROOT / "docs/ruler/ruler.json").read_text())).encode()
IMAGE = {"images/noto_000_0.jpg": jpeg()}
ROWS = {"rows.json": lines(PROBE), **IMAGE}
WITH_ROWS = f"--model {NO_MODEL} --eval_file rows.json --img_path images"

CASES = {
    "metrics": Case(
        "metrics --results_file A.jsonl B.jsonl --draws 3",
        {"A.jsonl": lines(ANSWERED), "B.jsonl": lines(ANSWERED)},
    ),
    "metrics of a gzip": Case(
        "metrics --results_file A.jsonl.gz --draws 3", {"A.jsonl.gz": gzip.compress(lines(ANSWERED))}
    ),
    "metrics of three": Case(
        "metrics --results_file A.jsonl B.jsonl A.jsonl --draws 3 --labels first second third --json out.json",
        {"A.jsonl": lines(ANSWERED), "B.jsonl": lines(ANSWERED), "A.manifest.json": b'{"settings": {"lambda": 0}}'},
        examples=15,  # each takes two seconds
    ),
    "evidence": Case(
        "evidence A.jsonl B.jsonl --draws 3",
        {"A.jsonl": lines(ANSWERED), "B.jsonl": lines(ANSWERED)},
    ),
    "evidence beside controls": Case(
        "evidence A.jsonl --negatives_file N.jsonl --text_only_file T.jsonl --blank_image_file B.jsonl --draws 3",
        {
            "A.jsonl": lines(ANSWERED[:9]),
            "N.jsonl": lines(ANSWERED[9:]),
            "T.jsonl": lines(ANSWERED[:9]),
            "B.jsonl": lines(ANSWERED[:9]),
        },
    ),
    "report": Case(
        "report A.jsonl B.jsonl --img_path images --text_only_file T.jsonl --blank_image_file T.jsonl --draws 3",
        {"A.jsonl": lines(ANSWERED), "B.jsonl": lines(ANSWERED), "T.jsonl": lines(ANSWERED), **IMAGE},
        examples=30,  # each draws a page
    ),
    "report of more": Case(
        "report A.jsonl --ruler ruler.json --flow flow.jsonl --occlusion D --images none --draws 3",
        {
            "A.jsonl": lines(ANSWERED),
            "ruler.json": RULER_RESULT,
            "flow.jsonl": lines(FLOWS),
            "D/a_4/a_4_crop_scores.json": json.dumps(OCCLUDED).encode(),
            "D/a_4/a_4_attention_map.json": b"[[0, 1], [0.5, 0.25]]",
        },
        examples=30,
    ),
    "compare": Case(
        f"compare --model {NO_MODEL} --methods stock agci:0.5 --data rows.json --img_path images --output_dir C",
        {"rows.json": lines(ITEMS_APART), "C/compare.json": b"{}", **IMAGE},
        stop="experiments.engines.open_engine",
    ),
    "app": Case(
        f"app --model {NO_MODEL} --report r.html",
        {"r.html": b"<!doctype html><title>x</title>"},
        stop="app.serve.serve",
    ),
    "families": Case("families", {}, examples=0),
    "evidence with a curve": Case(
        "evidence A.jsonl B.jsonl --draws 3 --output_curve c.png",
        {
            "A.jsonl": lines(ANSWERED),
            "B.jsonl": lines(ANSWERED),
            "A.manifest.json": b'{"settings": {"lambda": 0, "method": "agci"}}',
            "B.manifest.json": b'{"settings": {"lambda": 0.5, "method": "agci"}}',
        },
    ),
    "sweep": Case(
        "sweep A.jsonl B.jsonl --json out.json",
        {"A.jsonl": lines(ITEMS_APART), "B.jsonl": lines(ITEMS_APART)},
    ),
    "plan": Case("plan A.jsonl --difference 5", {"A.jsonl": lines(ITEMS_APART)}),
    "ruler": Case(
        "ruler --items 3 --output_dir R",
        {"R/margins.jsonl": lines([RULER_SETTINGS, *RULER_ITEMS])},
        stop="experiments.ruler.run.ProcessPoolExecutor",
    ),
    "ruler calibration": Case(
        "ruler --calibration --items 3 --pool 3 --sets 1 --output_dir R",
        {
            "R/calibration.jsonl": lines(
                [
                    RULER_SETTINGS | {"stream": "ruler/pool/0", "conditions": [c.name for c in CALIBRATION]},
                    *RULER_ITEMS,
                ]
            )
        },
        stop="experiments.ruler.run.ProcessPoolExecutor",
    ),
    "study": Case(
        "study --seeds 1 --steps 1 --items 1 --output_dir S",
        {"S/study.json": b'{"steps": 1, "items": 1, "learning_rate": 0.001}'},
        stop="experiments.study.run.embedded_data",
    ),
    "demo": Case(
        "demo --items 1 --output_dir D",
        {
            "D/answers.lam0.jsonl": lines(ANSWERED),
            "D/answers.lam0.manifest.json": b"{}",
        },
        stop="experiments.demo.embedded_data",
    ),
    "train-embedded": Case(
        "train-embedded --output out --items 1 --steps 4",
        {f"out/stages/{STAGE}": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "},
        stop="embedded.training.run_stage",
    ),
    "data build-similarity": Case(
        "data build-similarity --source src --output_dir out --items 1 --workers 1 --canvas 90 --box 28 --gutter 1",
        {"src/metadata.csv": b"file_name,caption\n0.jpg,thing\n", "src/0.jpg": jpeg(80)},
    ),
    "data build-samples": Case(
        "data build-samples --root R",
        {
            "R/probe_datasets/sample_noto_840_840.json": lines(PROBE),
            "R/data/dataset_info.json": b"{}",
        },
        stop="data.samples.build",
        examples=6,  # each reads the atlas
    ),
    "downstream": Case(
        f"downstream --model {NO_MODEL} --data_root D",
        {
            "D/ScienceQA/q.json": json.dumps(samples.scienceqa_questions()).encode(),
            "D/POPE/p.jsonl": lines(samples.pope_questions()),
        },
    ),
    "mmmu-pro": Case(
        f"mmmu-pro --model {NO_MODEL} --dataset_repo_id D --output_root out",
        {"D/vision/test-00000-of-00001.parquet": parquet(samples.mmmu_rows(list("AB")))},
    ),
    "metrics-similarity": Case(
        "metrics-similarity --results_file S.jsonl --draws 3",
        {"S.jsonl": lines(SIMILAR)},
    ),
    "occlusion-maps": Case(
        "occlusion-maps --prob_results_dir D --output_path maps --draws 3",
        {
            "D/a_4/a_4_crop_scores.json": json.dumps(OCCLUDED).encode(),
            "D/a_4/a_4_attention_map.json": b"[[0, 1], [0.5, 0.25]]",
        },
    ),
    "merge-shards": Case(
        "merge-shards A.jsonl",
        {
            "A.parts/0-of-2.jsonl": lines([{"block": 0, "rows": PROBE[:2], "failed": []}]),
            "A.parts/1-of-2.jsonl": lines([{"block": 1, "rows": PROBE[2:4], "failed": []}]),
            "A.manifest.json": json.dumps(
                {"settings": {}, "notes": {}, "rows": 4, "blocks": [[2, 2]], "runs": []}
            ).encode(),
        },
    ),
    "data check": Case("data check rows.json --img_path images", ROWS),
    "data check-images": Case("data check-images mix.json --image_root .", {"mix.json": json.dumps(MIX).encode()}),
    "data sample-instruct": Case(
        "data sample-instruct --mix mix.json --image_root . --n 1 --keep_text_only --output_dir out",
        {"mix.json": json.dumps(MIX).encode(), "coco/0.jpg": jpeg(), "coco/1.jpg": jpeg()},
    ),
    "data build-scienceqa": Case(
        "data build-scienceqa --problems p.json --pid_splits s.json --output out.json",
        {"p.json": json.dumps(PROBLEMS).encode(), "s.json": b'{"test": ["0", "1", "2"]}'},
    ),
    "data build-probe": Case(
        "data build-probe --source src --output_dir out --items 1 --workers 1 --canvas 90 --box 28 --gutter 1",
        {
            "src/metadata.csv": "".join(["file_name,caption\n", *(f"{n}.jpg,thing {n}\n" for n in range(11))]).encode(),
            **{f"src/{n}.jpg": jpeg(80, seed=n) for n in range(11)},
        },
    ),
    "data fetch": Case(
        "data fetch probe --local_copy copy",
        {"copy/laion_bias_test_easy_10k_840_840.json": lines(PROBE), "copy/images.zip": zipped(PROBE)},
    ),
    "set-lambda": Case("set-lambda model 0.5", {"model/config.json": json.dumps(CONFIG).encode()}),
    "self-check": Case(
        "self-check model",
        {"model/config.json": json.dumps(CONFIG).encode(), "model/model.safetensors": b"\x08" + bytes(15)},
    ),
    "convert-llava": Case(
        "convert-llava original out",
        {
            "original/config.json": b'{"model_type": "llava", "mm_vision_tower": "t", "hidden_size": 8}',
            "original/pytorch_model.bin": b"PK",
        },
    ),
    "check-recipe": Case("check-recipe recipe.yaml", RECIPE_FILES),
    "train-lora": Case("train-lora recipe.yaml", RECIPE_FILES),
    "merge-lora": Case("merge-lora recipe.yaml", {"recipe.yaml": yaml.safe_dump(MERGE).encode()}),
    "probe": Case(f"probe {WITH_ROWS}", ROWS),
    "similarity": Case(f"similarity {WITH_ROWS}", ROWS),
    "occlusion": Case(f"occlusion {WITH_ROWS}", ROWS),
    "flow": Case(f"flow {WITH_ROWS}", ROWS),
    "score scienceqa": Case(
        "score scienceqa --questions q.json --answers a.jsonl --resamples 3",
        {
            "q.json": json.dumps(samples.scienceqa_questions()).encode(),
            "a.jsonl": lines(samples.scienceqa_answers(list("ABCA"))),
        },
    ),
    "score pope": Case(
        "score pope --answers a.jsonl --resamples 3",
        {"a.jsonl": lines([{**row, "answer": "yes", "prediction": "Yes"} for row in samples.pope_questions()])},
    ),
    "score textvqa": Case(
        "score textvqa --annotations t.json --answers a.jsonl --resamples 3",
        {
            "t.json": json.dumps(samples.textvqa_annotations()).encode(),
            "a.jsonl": lines([{**row, "prediction": "red"} for row in samples.textvqa_questions()]),
        },
    ),
    "score hallusionbench": Case(
        "score hallusionbench --answers a.jsonl --resamples 3",
        {"a.jsonl": lines([{**row, "prediction": "Yes"} for row in samples.hallusionbench_questions()])},
    ),
    "score crpe": Case(
        "score crpe --answers a.jsonl --resamples 3",
        {"a.jsonl": lines([{**row, "prediction": "A"} for row in samples.crpe_questions()])},
    ),
    "score mmmu_pro": Case(
        "score mmmu_pro --answers a.jsonl --resamples 3",
        {"a.jsonl": lines(samples.mmmu_rows(list("BABAB")))},
    ),
    "benchmark": Case(
        f"benchmark scienceqa --model {NO_MODEL} --data q.json",
        {"q.json": json.dumps(samples.scienceqa_questions()).encode()},
    ),
}

# Values that a JSON field may have where it should not.
ODD_JSON: list[Any] = [
    None,
    True,
    -1,
    0,
    1e308,
    10**30,
    "",
    " ",
    "\x00",
    "\ud800",
    "\x1b[31m",
    "../x.jpg",
    "/etc/passwd",
    "a" * 5000,
    [],
    {},
    [[]],
    {"a": [1]},
    [None],
    float("nan"),
    float("inf"),
]
RAW = (
    b"9" * 5000,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xff\xfe",
    b"\x00" * 50,
    b"null",
    b"[]",
    b"{}",
    b"\xef\xbb\xbf",
    b"",
    b"NaN",
)
ODD_OPTIONS = (
    "",
    " ",
    "-1",
    "0",
    "00",
    "1.5",
    "nan",
    "inf",
    "1e999",
    "0x10",
    "9" * 5000,
    "a/b",
    "../x",
    ".",
    "/",
    "-",
    "\udcff",
    "a\0b",
    "[]",
    "a" * 5000,
    "x.docx",
    "no_such_file",
    "é",
    "0/0",
    "3/2",
    "1/0",
    "1/2/3",
    "٣",
)


ODD_STEP = 5  # every fifth of them for an option, begun at another one for the next option


def damaged_bytes(draw: Callable[..., Any], data: bytes) -> bytes:
    """The bytes cut off, with a piece replaced, or with a line doubled or left out."""
    at = draw(st.integers(0, max(0, len(data) - 1)))
    how = draw(st.sampled_from(("cut", "insert", "replace", "double", "omit", "whole")))
    if how == "whole":
        return draw(st.sampled_from(RAW) | st.binary(max_size=60))
    if how == "cut":
        return data[:at]
    if how in ("double", "omit"):
        parts = data.splitlines(keepends=True) or [data]
        k = draw(st.integers(0, len(parts) - 1))
        return b"".join([*parts[:k], *(parts[k : k + 1] * (2 if how == "double" else 0)), *parts[k + 1 :]])
    piece = draw(st.sampled_from(RAW) | st.binary(min_size=1, max_size=8))
    return data[:at] + piece + data[at + (len(piece) if how == "replace" else 0) :]


def damaged_json(draw: Callable[..., Any], data: bytes) -> bytes:
    """One value of one row replaced by one of another kind, or its name left out."""
    text = data.decode()
    rows = [json.loads(line) for line in text.splitlines()] if text.count("\n") > 1 else [json.loads(text)]
    k = draw(st.integers(0, len(rows) - 1))
    parents: list[tuple[Any, Any]] = [(rows, k)]
    parents += [
        (parent, key)
        for parent in containers(rows[k])
        for key in (parent if isinstance(parent, dict) else range(len(parent)))
    ]
    parent, key = draw(st.sampled_from(parents))
    if isinstance(parent, dict) and draw(st.booleans()):
        del parent[key]
    else:
        parent[key] = draw(st.sampled_from(ODD_JSON))
    return "\n".join(json.dumps(row) for row in rows).encode()


def containers(value: Any) -> Iterator[Any]:
    """A value's dicts and lists, itself first."""
    if isinstance(value, dict | list):
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from containers(inner)


def damage(draw: Callable[..., Any], case: Case, folder: Path) -> str:
    """Damage one file of the case in `folder`; returns its name."""
    name = draw(st.sampled_from(sorted(case.files)))
    path, data = folder / name, case.files[name]
    how = draw(st.sampled_from(("bytes", "bytes", "json", "json", "json", "gone", "folder", "link", "pipe")))
    if how == "json" and name.endswith((".json", ".jsonl")):
        path.write_bytes(damaged_json(draw, data))
    elif how in ("bytes", "json"):
        path.write_bytes(damaged_bytes(draw, data))
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "link":
            path.symlink_to(path.name)
        elif how == "pipe":
            os.mkfifo(path)
    return name


def stuck(*_: object) -> None:
    raise AssertionError(f"no answer after {HANG} s")


def run(words: list[str]) -> tuple[int, str, str]:
    """The command's exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, stuck)
    signal.alarm(HANG)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return code, out.getvalue(), err.getvalue()


def names_the_culprit(said: str, words: list[str], case: Case) -> bool:
    """Whether a message names a file or folder of the case, a word that was given, an option or a recipe's key."""
    names = {part for name in case.files for part in Path(name).parts} | {"model folder", "lambda must be"}
    names |= {f"'{Path(name).stem}'" for name in case.files}  # a result is called after its file
    shown = [word.encode("utf-8", "backslashreplace").decode()[:20] for word in words[1:]]
    given = {word for word in shown if len(word) > 1} | ({shown[-1]} - {""})
    return (
        any(name in said for name in names)
        or any(re.search(rf"(?<!\w){re.escape(word)}", said) for word in given)
        or re.search(r"--[a-z_0-9]+|[\w/]+\.(?:jpe?g|jsonl?)", said) is not None
    )


def stopped(*_: object, **__: object) -> None:
    raise InputError("the model folder is read from here on")


@contextlib.contextmanager
def ending_at(case: Case) -> Iterator[None]:
    """The case ends where the long work would begin."""
    with pytest.MonkeyPatch.context() as patch:
        if case.stop:
            patch.setattr(f"transformers_agci.{case.stop}", stopped)
        yield


def check_damaged(data: st.DataObject, case: Case) -> int:
    """Damage one file, run the command, and hold it to its promises; returns the exit code."""
    with in_a_folder_of(case) as folder:
        damage(data.draw, case, folder)
        return check(case.words.split(), case)


@contextlib.contextmanager
def in_a_folder_of(case: Case) -> Iterator[Path]:
    """A folder with the case's files; ../x is below another one that goes away, too."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made) / "inside"
        folder.mkdir()
        with contextlib.chdir(folder):
            write(case, folder)
            yield folder


def check(words: list[str], case: Case) -> int:
    """Run a command and hold it to its promises; returns the exit code."""
    with ending_at(case):
        code, out, err = run(words)
    told = (words, code, out[-1000:], err[-1000:])
    assert code in (0, 1, 2), told
    assert "Traceback" not in out + err, told
    if code == 2 and err:
        sentence = err.splitlines()[-1]
        assert sentence.startswith("agci: ") and len(sentence) < LONGEST, told
    if code:
        assert names_the_culprit(err if code == 2 and err else out + err, words, case), told
    return code


def write(case: Case, folder: Path) -> None:
    """The case's files, undamaged."""
    for name, content in case.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """What takes a minute on a busy machine is no hang."""
    import torch  # noqa: F401
    import transformers.generation.utils  # noqa: F401


READING = [name for name, case in CASES.items() if case.files]


@pytest.mark.parametrize("name", READING)
def test_a_damaged_input_ends_in_one_sentence(name: str) -> None:
    codes: list[int] = []

    @settings(
        max_examples=CASES[name].examples,
        derandomize=True,
        deadline=None,
        phases=(Phase.generate,),
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def try_it(data: st.DataObject) -> None:
        codes.append(check_damaged(data, CASES[name]))

    try_it()
    assert len(codes) >= CASES[name].examples and set(codes) & {1, 2}


def test_two_thousand_inputs_in_all() -> None:
    assert sum(CASES[name].examples for name in READING) >= 2000


def cases_of(command: Command) -> list[str]:
    words = command.words.split()
    return [name for name, case in CASES.items() if case.words.split()[: len(words)] == words]


def options_with_values(command: Command) -> list[str]:
    actions = command_parser(command)._actions
    return [action.option_strings[0] for action in actions if action.option_strings and action.nargs != 0]


def test_every_command_is_damaged() -> None:
    assert [command.words for command in COMMANDS if not cases_of(command)] == []


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if options_with_values(command)], ids=lambda command: command.words
)
def test_every_option_with_odd_values(command: Command) -> None:
    """Each of the command's options that take a value, with a fifth of the odd values each, another one every time."""
    case = CASES[cases_of(command)[0]]
    codes = []
    for number, option in enumerate(options_with_values(command)):
        for odd in ODD_OPTIONS[number % ODD_STEP :: ODD_STEP]:
            with in_a_folder_of(case):
                codes.append(check([*case.words.split(), option, odd], case))
    assert codes and 2 in codes


# What these would read next is not there: a model, an adapter, an original checkpoint.
NEEDS_MORE = {
    "study",
    "demo",
    "train-embedded",
    "data build-samples",
    "downstream",
    "mmmu-pro",
    "self-check",
    "convert-llava",
    "check-recipe",
    "train-lora",
    "merge-lora",
    "probe",
    "similarity",
    "occlusion",
    "flow",
    "benchmark",
    "compare",
    "app",
}


@pytest.mark.parametrize("name", CASES)
def test_an_undamaged_case_succeeds_or_lacks_its_model(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(CASES[name], tmp_path)
    with ending_at(CASES[name]):
        code, out, err = run(CASES[name].words.split())
    assert code == (2 if name in NEEDS_MORE else 1 if name.startswith("data check") else 0), (out, err)
    assert name not in NEEDS_MORE or "model" in out + err or "config.json" in err
