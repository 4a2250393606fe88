"""An original LLaVA checkpoint given to anything that loads a model: the answer is the command that converts it."""

import json
from pathlib import Path
from typing import Any

import original_llava as llava
import pytest
import tiny_checkpoints as tiny
import transformers

from transformers_agci import attach, cli
from transformers_agci.errors import InputError

ROOT = Path(__file__).parents[1]
PROBE = [
    "--eval_file",
    f"{ROOT}/probe_datasets/sample_noto_840_840.json",
    "--img_path",
    f"{ROOT}/probe_datasets/images",
]
POPE = [f"{ROOT}/eval/POPE/sample/questions.jsonl"]
COMMANDS = {
    "probe": ["probe", "--model_path", "M", *PROBE, "--answer_file", "OUT.jsonl"],
    "probe script": ["probe", "--family", "llava", "--model_path", "M", *PROBE, "--answer_file", "OUT.jsonl"],
    "probe, dry run": ["probe", "--model_path", "M", *PROBE, "--answer_file", "OUT.jsonl", "--dry_run"],
    "similarity": [
        "similarity",
        "--model_path",
        "M",
        "--eval_file",
        f"{ROOT}/similarity_data/sample_noto_840_840.json",
        "--img_path",
        f"{ROOT}/similarity_data/images",
        "--answer_file",
        "OUT.jsonl",
    ],
    "occlusion": ["occlusion", "--model_path", "M", *PROBE, "--output_dir", "OUT"],
    "flow": ["flow", "--model_path", "M", *PROBE, "--output_dir", "OUT"],
    "benchmark": ["benchmark", "pope", "--model_path", "M", "--data", *POPE, "--answer_file", "OUT.jsonl"],
    "downstream": [
        "downstream",
        "--model_path",
        "M",
        "--eval_file_path_pope",
        *POPE,
        "--answers_file_pope",
        "OUT.jsonl",
    ],
    "mmmu-pro": [
        "mmmu-pro",
        "--model",
        "M",
        "--dataset_repo_id",
        "MMMU",
        "--dataset_variant",
        "vision",
        "--output_root",
        "OUT",
    ],
    "self-check": ["self-check", "M"],
    "set-lambda": ["set-lambda", "M", "0.5"],
    "train-lora": ["train-lora", f"{ROOT}/configs/train_lora/llava1_5.yaml", "model_name_or_path=M", "output_dir=OUT"],
    "merge-lora": [
        "merge-lora",
        f"{ROOT}/configs/merge_lora/llava1_5.yaml",
        "model_name_or_path=M",
        "export_dir=OUT",
        "adapter_name_or_path=OUT",
    ],
}


@pytest.fixture(scope="module")
def mmmu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of one row, for the command that reads its data before the model."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path_factory.mktemp("mmmu")
    (folder / "vision").mkdir()
    image = {"bytes": b"", "path": "x.png"}
    row = {"id": "test_1", "image": image, "options": "['a', 'b']", "answer": "A", "subject": "Art"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folder / "vision" / "test-00000-of-00001.parquet")
    return folder


def original_folder(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    told = {"mm_vision_tower": llava.TOWER_NAME, "hidden_size": 32, **config}
    llava.write_json(folder / "config.json", told)
    (folder / "pytorch_model.bin").write_bytes(b"never opened")
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_names_the_conversion_and_the_twin(
    name: str, mmmu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = original_folder(tmp_path / "llava-v1.5-7b", model_type="llava_llama", image_aspect_ratio="pad")
    given = [
        word.replace("OUT", str(tmp_path / "out")) if word.startswith("OUT") or "=OUT" in word else word
        for word in COMMANDS[name]
    ]
    given = [
        str(folder) if word == "M" else word.replace("=M", f"={folder}") if word.endswith("=M") else word
        for word in given
    ]
    given = [str(mmmu) if word == "MMMU" else word for word in given]
    assert cli.main(given) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"agci convert-llava {folder} llava-v1.5-7b-hf" in told
    assert "llava-hf/llava-1.5-7b-hf" in told
    assert json.loads((folder / "config.json").read_text()).get("global_context_broadcast_lambda") is None


@pytest.mark.parametrize(
    ("model_type", "aspect", "twin"),
    [
        ("llava", "pad", "llava-hf/llava-1.5-7b-hf"),  # as LLaVA-1.5 called itself before transformers had a "llava"
        ("llava_llama", "pad", "llava-hf/llava-1.5-7b-hf"),
        ("llava_llama", "anyres", "llava-hf/llava-v1.6-mistral-7b-hf"),
        ("llava_mistral", "anyres", "llava-hf/llava-v1.6-mistral-7b-hf"),
    ],
)
def test_the_twin_follows_from_the_config(
    model_type: str, aspect: str, twin: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = original_folder(tmp_path / "original", model_type=model_type, image_aspect_ratio=aspect)
    assert cli.main(["self-check", str(folder)]) == 2
    assert twin in capsys.readouterr().err


def test_a_hub_id_is_refused_by_its_config_before_the_weights_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import huggingface_hub

    folder = original_folder(tmp_path / "snapshot", model_type="llava_mistral", image_aspect_ratio="anyres")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *args, **kwargs: str(folder / "config.json"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("fetched"))
    assert cli.main(["self-check", "liuhaotian/llava-v1.6-mistral-7b"]) == 2
    told = capsys.readouterr().err
    assert "agci convert-llava liuhaotian/llava-v1.6-mistral-7b llava-v1.6-mistral-7b-hf" in told


def test_a_model_that_stock_transformers_made_of_it_at_random_gets_no_agci() -> None:
    config = tiny.build_config("llava")
    config.mm_vision_tower = llava.TOWER_NAME
    model = transformers.LlavaForConditionalGeneration._from_config(config)
    with pytest.raises(InputError, match="agci convert-llava"):
        attach(model, lam=0.5)
