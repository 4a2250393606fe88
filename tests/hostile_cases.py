"""Every command with files of its own, for the tests that damage them: it works, or would, had it a model."""

import gzip
import io
import json
import random
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import benchmark_samples as samples
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.experiments.ruler.conditions import CALIBRATION, RULER
from transformers_agci.inference.checkpoint_files import fingerprint

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = 55  # per case
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
        stop="experiments.ruler.run.in_order",
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
        stop="experiments.ruler.run.in_order",
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
