"""`agci convert-llava` on what is wrong: one sentence that names it, exit code 2, and nothing left behind."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import original_llava as llava
import pytest
import torch
from safetensors.torch import load_file

from transformers_agci import cli
from transformers_agci.conversion import convert as converting
from transformers_agci.storage.lock import exclusive_lock

INDEX = "model.safetensors.index.json"
BIN_INDEX = "pytorch_model.bin.index.json"


@pytest.fixture(scope="module")
def model() -> Any:
    return llava.reference_model("llava_next")


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Converts and expects exit code 2 and one sentence with these words; nothing may stand at the output."""

    def check(source: Path, *words: str, options: tuple[str, ...] = ()) -> str:
        before = sorted(tmp_path.iterdir())
        capsys.readouterr()
        assert cli.main(["convert-llava", str(source), str(tmp_path / "hf"), *options]) == 2
        told = capsys.readouterr().err.strip()
        assert told.startswith("agci: ")
        assert "\n" not in told
        assert "Traceback" not in told
        for word in words:
            assert word in told, told
        assert sorted(tmp_path.iterdir()) == before
        return told

    return check


def original(tmp_path: Path, model: Any, **more: Any) -> Path:
    return llava.write_original("llava_next", model, tmp_path / "original", **more)


def change(file: Path, edit: Any) -> None:
    content = json.loads(file.read_text())
    edit(content)
    file.write_text(json.dumps(content))


# --- config --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("mm_projector_type", "linear", ("mm_projector_type 'linear'", "'mlp2x_gelu'")),
        ("mm_vision_select_feature", "all", ("mm_vision_select_feature 'all'", "'cls_patch'")),
        ("mm_use_im_start_end", True, ("mm_use_im_start_end True",)),
        ("mm_use_im_patch_token", True, ("mm_use_im_patch_token True",)),
        ("image_aspect_ratio", "anyres_max_9", ("image_aspect_ratio 'anyres_max_9'",)),
        ("mm_patch_merge_type", "flat", ("mm_patch_merge_type 'flat'", "'spatial_unpad'")),
        ("image_grid_pinpoints", "(1x1),...,(6x6)", ("image_grid_pinpoints", "(1x1)")),
        ("image_grid_pinpoints", [[100, 56]], ("image_grid_pinpoints", "56")),
        ("mm_vision_tower", "google/siglip-so400m", ("google/siglip-so400m", "--vision_tower")),
        ("mm_vision_tower", None, ("'mm_vision_tower'",)),
        ("hidden_size", None, ("'hidden_size'",)),
        ("num_attention_heads", 0, ("num_attention_heads must be a whole number of at least 1",)),
        ("vocab_size", "many", ("vocab_size must be a whole number of at least 1", "'many'")),
        ("hidden_size", 48, ("shape", "do not belong together")),
        ("num_hidden_layers", 3, ("no place for", "layers.3")),
        ("num_hidden_layers", 5, ("lacks 9 of", "layers.4")),
        ("num_key_value_heads", 4, ("k_proj", "shape")),
        ("vocab_size", 10, ("vocab_size 10", "do not belong together")),
        ("eos_token_id", 300, ("eos_token_id 300", "tokenizer.model")),
        ("model_type", "llava_qwen", ("'llava_qwen'", "llava_mistral")),
        ("global_context_broadcast_lambda", -1, ("global_context_broadcast_lambda", "-1")),
    ],
)
def test_configs_of_another_form(
    key: str, value: Any, words: tuple[Any, ...], tmp_path: Path, model: Any, refuse: Any
) -> None:
    refuse(original(tmp_path, model, **{key: value}), *words)


def test_transformers_own_layout_is_not_converted(tiny_checkpoint: Callable[[str], Path], refuse: Any) -> None:
    refuse(tiny_checkpoint("llava"), "is used as it is")


def test_no_such_folder_or_config(tmp_path: Path, model: Any, refuse: Any) -> None:
    refuse(tmp_path / "nowhere", "no model folder")
    source = original(tmp_path, model)
    (source / "config.json").write_text("{")
    refuse(source, "config.json", "JSON")
    (source / "config.json").unlink()
    refuse(source, "holds no config.json")


# --- weights -------------------------------------------------------------------------------------------------------


def test_tower_that_is_nowhere(tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, tower=False)
    refuse(source, llava.TOWER_NAME, "--vision_tower")


def test_tower_of_another_kind(tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, tower=False)
    tower = llava.write_tower(model, tmp_path / "clip")
    change(tower / "config.json", lambda config: config["vision_config"].update(num_hidden_layers=2))
    refuse(source, "no place for", "encoder.layers.2", options=("--vision_tower", str(tower)))
    change(tower / "config.json", lambda config: config.update(model_type="siglip"))
    refuse(source, "'siglip'", "CLIP", options=("--vision_tower", str(tower)))
    (tower / "config.json").unlink()
    refuse(source, "--vision_tower", "holds no config.json", options=("--vision_tower", str(tower)))


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.weight",
        "model.image_newline",
        "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
    ],
)
def test_a_missing_tensor(name: str, tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, shards=1)
    tensors = load_file(source / "model.safetensors")
    del tensors[name]
    llava.write_weights(source, tensors, "safetensors", 1)
    refuse(source, "lacks 1 of", "incomplete")


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_proj.bias", "model.vision_resampler.query", "score"])
def test_a_tensor_without_a_place(name: str, tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, shards=1)
    llava.write_weights(source, load_file(source / "model.safetensors") | {name: torch.ones(2)}, "safetensors", 1)
    refuse(source, name.removeprefix("model."), "nothing was converted")


def test_a_tensor_twice(tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, shards=1)
    tensors = load_file(source / "model.safetensors")
    long = "model.vision_tower.vision_tower.vision_model.post_layernorm.bias"
    llava.write_weights(source, tensors | {long.replace("vision_model.", ""): tensors[long].clone()}, "safetensors", 1)
    refuse(source, "post_layernorm.bias", "twice")


def test_quantized_weights(tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, shards=1)
    tensors = load_file(source / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    llava.write_weights(source, tensors | {name: tensors[name].to(torch.int8)}, "safetensors", 1)
    refuse(source, name, "int8", "quantized")


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_truncated_file(kind: str, tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, kind=kind)
    file = sorted(source.glob(f"*.{kind}"))[1]
    os.truncate(file, file.stat().st_size // 2)
    refuse(source, file.name, "download it again")
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    refuse(source, file.name)


@pytest.mark.parametrize(("kind", "index"), [("safetensors", INDEX), ("bin", BIN_INDEX)])
def test_an_index_that_does_not_fit_its_files(kind: str, index: str, tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, kind=kind)
    whole = (source / index).read_text()
    change(source / index, lambda content: content["weight_map"].pop("lm_head.weight"))
    refuse(source, index, "lm_head.weight", "does not name all")
    (source / index).write_text(whole)
    change(source / index, lambda content: content["weight_map"].update(more=content["weight_map"]["lm_head.weight"]))
    refuse(source, index, "more", "not in it")
    change(source / index, lambda content: content["weight_map"].update(more=f"../{index}"))
    refuse(source, index, "outside its folder")
    (source / index).write_text(whole)
    next(source.glob(f"*.{kind}")).unlink()
    refuse(source, "lacks 1 of 2 weight files")
    (source / index).write_text("{}")
    refuse(source, "weight_map")
    for file in (*source.glob(f"*.{kind}"), source / index):
        file.unlink()
    refuse(source, "holds no weights", "pytorch_model.bin")


class Hostile:
    """What a pickle can do when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_that_runs_code_is_not_opened(tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, kind="bin", shards=1)
    mark = tmp_path / "it ran"
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save(tensors | {"hook": Hostile(mark)}, source / "pytorch_model.bin")
    refuse(source, "pytorch_model.bin", "not to be trusted")
    assert not mark.exists()
    torch.load(source / "pytorch_model.bin", weights_only=False)
    assert mark.exists()  # it would have run
    mark.unlink()
    torch.save(tensors | {"note": "text"}, source / "pytorch_model.bin")
    refuse(source, "something else than tensors")


def test_files_of_the_oldest_torch_format(tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, kind="bin", shards=1)
    tensors = torch.load(source / "pytorch_model.bin", weights_only=True)
    torch.save(tensors, source / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    refuse(source, "pytorch_model.bin")


def test_values_that_the_dtype_cannot_hold(tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model, shards=1)
    tensors = load_file(source / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e6
    llava.write_weights(source, tensors, "safetensors", 1)
    refuse(source, "model.norm.weight", "1e+06", "--dtype", options=("--dtype", "float16"))


# --- tokenizer -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainer", "normalizer", "more", "words"),
    [
        ({3: 1}, {}, (), "byte-pair"),
        ({35: 0}, {}, (), "byte fallback"),
        ({}, {2: b"map"}, (), "changes characters"),
        ({}, {3: 0}, (), "begin texts with a space"),
        ({}, {4: 1}, (), "removes extra spaces"),
        ({}, {5: 0}, (), "leaves spaces"),
        ({}, {}, (("<mine>", 0.0, 4),), "user-defined"),
    ],
)
def test_tokenizers_of_another_kind(
    trainer: dict[Any, Any] | dict[str, Any],
    normalizer: dict[str, Any] | dict[Any, Any],
    more: tuple[Any, ...],
    words: str,
    tmp_path: Path,
    model: Any,
    refuse: Any,
) -> None:
    source = original(tmp_path, model)
    (source / "tokenizer.model").write_bytes(llava.tokenizer_model(trainer, normalizer, more))
    refuse(source, "tokenizer.model", words)


def test_a_missing_or_broken_tokenizer(tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model)
    whole = (source / "tokenizer.model").read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"version https://git-lfs.github.com/spec/v1\n"):
        (source / "tokenizer.model").write_bytes(broken)
        refuse(source, "tokenizer.model")
    (source / "tokenizer.model").unlink()
    refuse(source, "holds no tokenizer.model")


def test_added_tokens(tmp_path: Path, model: Any, refuse: Any) -> None:
    source = original(tmp_path, model)
    rows = len(llava.pieces())
    llava.write_json(source / "added_tokens.json", {"<|im_start|>": rows})
    refuse(source, "ChatML", "llava-hf")
    llava.write_json(source / "added_tokens.json", {"<extra>": rows + 1})
    refuse(source, "without a gap")
    llava.write_json(source / "added_tokens.json", {"<extra>": rows})
    refuse(source, f"vocab_size {rows}")


# --- disk ----------------------------------------------------------------------------------------------------------


def test_too_little_room_is_told_before_anything_is_written(
    tmp_path: Path, model: Any, refuse: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = original(tmp_path, model)
    free = converting.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(converting.shutil, "disk_usage", lambda folder: free)
    monkeypatch.setattr(converting, "_write", lambda *args: pytest.fail("written"))
    refuse(source, "needs about", "make room")


def test_the_room_that_is_asked_for_is_what_is_written(tmp_path: Path, model: Any) -> None:
    source = original(tmp_path, model, kind="bin", shards=1)
    for dtype in ("float32", "bfloat16"):
        plan = converting.make_plan(source, None, dtype)
        folder = converting.convert(source, tmp_path / dtype, dtype=dtype).folder
        assert plan.size == json.loads((folder / INDEX).read_text())["metadata"]["total_size"]


def test_an_output_that_cannot_be_made(
    tmp_path: Path, model: Any, refuse: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    source = original(tmp_path, model)
    (tmp_path / "hf").write_text("a file")
    refuse(source, "exists already")
    refuse(source, "only what an earlier conversion wrote", options=("--overwrite",))
    assert cli.main(["convert-llava", str(source), str(tmp_path / "hf" / "deeper")]) == 2
    assert "could not be written" in capsys.readouterr().err


def test_two_conversions_into_one_folder(tmp_path: Path, model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    source = original(tmp_path, model)
    with exclusive_lock(tmp_path / "hf", "testing"):
        assert cli.main(["convert-llava", str(source), str(tmp_path / "hf")]) == 2
        assert "Another program" in capsys.readouterr().err
        assert cli.main(["convert-llava", str(source), str(tmp_path / "hf")]) == 2  # the other's lock still stands
    assert not (tmp_path / "hf").exists()
