"""Loading: what is refused, in one sentence with the remedy, before anything of a checkpoint can run."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import spoilt_checkpoint
import torch
from safetensors.torch import load_file, save_file
from spoilt_checkpoint import FAMILY, refuse

from transformers_agci.inference import checkpoint_files
from transformers_agci.inference.load import LoadOptions, lambdas_of, load
from transformers_agci.method.lam import LAMBDA_KEY

folder = spoilt_checkpoint.folder  # fixture


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


def change_weights(folder: Path, edit: Callable[[dict], None]) -> None:
    file = folder / "model.safetensors"
    weights = load_file(file)
    edit(weights)
    save_file(weights, file, metadata={"format": "pt"})


def test_what_the_manifest_learns(folder: Path) -> None:
    loaded = load(LoadOptions(str(folder), dtype="bfloat16"))
    assert loaded.model.dtype == torch.bfloat16
    assert not loaded.model.training
    assert loaded.identity["family"] == FAMILY
    assert loaded.identity["dtype"] == "bfloat16"
    assert loaded.identity["attention"] == "sdpa"
    assert loaded.identity["device"] == "cpu"
    assert loaded.identity["pictures"]["size"] == {"shortest_edge": 56}
    assert loaded.notes["model"] == str(folder)
    before = loaded.identity["weights_sha256"]
    change_weights(folder, lambda weights: weights[min(weights)].add_(1))
    assert load(LoadOptions(str(folder))).identity["weights_sha256"] != before
    assert load(LoadOptions(str(folder), attn_implementation="eager")).identity["attention"] == "eager"


def test_float16_becomes_float32_on_a_cpu_only(folder: Path) -> None:
    change(folder / "config.json", dtype="float16", torch_dtype="float16")
    assert load(LoadOptions(str(folder), device="cpu")).model.dtype == torch.float32
    assert load(LoadOptions(str(folder), device="cpu"), weights=False).model.dtype == torch.float32
    assert load(LoadOptions(str(folder), device="cpu", dtype="float16")).model.dtype == torch.float16
    change(folder / "config.json", dtype="bfloat16", torch_dtype="bfloat16")
    assert load(LoadOptions(str(folder), device="cpu")).model.dtype == torch.bfloat16


def test_the_hash_of_large_files_is_sampled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_files, "WHOLE", 1000)
    monkeypatch.setattr(checkpoint_files, "SAMPLE", 1000)
    before = checkpoint_files.fingerprint(folder)
    assert checkpoint_files.fingerprint(folder) == before
    change_weights(folder, lambda weights: weights.update({key: value + 1 for key, value in weights.items()}))
    assert checkpoint_files.fingerprint(folder) != before


def test_lambda_comes_from_the_command_line_then_the_config_then_zero(folder: Path) -> None:
    assert lambdas_of([], load(LoadOptions(str(folder))))[0] == [0.0]
    change(folder / "config.json", **{LAMBDA_KEY: 0.25})
    loaded = load(LoadOptions(str(folder)))
    assert lambdas_of(None, loaded) == ([0.25], f"{LAMBDA_KEY} in the model's config.json")
    assert lambdas_of([0.5, 0], loaded) == ([0.5, 0], "the command line")
    change(folder / "config.json", **{LAMBDA_KEY: -1})
    refuse(folder, "lambda must be a finite number >= 0.*config.json")


def test_no_such_folder(tmp_path: Path) -> None:
    refuse(tmp_path / "none", "There is no model folder")
    refuse("./none", "There is no model folder")
    refuse(tmp_path, "holds no config.json")
    refuse("nobody/nothing", "neither a folder here nor a checkpoint that the hub gave us")


def test_a_folder_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    refuse(folder, "holds no weights")


def test_pickled_weights_are_refused_with_the_remedy(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refuse(folder, r"pickles \(pytorch_model.bin\).*save_pretrained")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": 5}, "gives 5 as the name of a weight file"),
        ({"a": None}, "gives None as the name"),
        ({"a": ["b"]}, "as the name of a weight file"),
        ([1], "has no weight_map"),
        ({}, "has no weight_map"),
        ({"a": ".."}, "names weights outside its folder"),
        ({"a": "n" * 5000}, "lacks 1 of 1 weight files, the first is 'n{79}[.]{3};"),
        ({"a": "x\0"}, "lacks 1 of 1 weight files"),
    ],
)
def test_absurd_index_entries(folder: Path, weight_map: Any, message: str) -> None:
    change(folder / "model.safetensors.index.json", weight_map=weight_map)
    refuse(folder, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1]", "must hold a JSON object"),
        (b"\xff", "is not UTF-8"),
        (b'{"model_type": {}}', "model_type {}, which AGCI"),
    ],
)
def test_a_config_that_is_none(folder: Path, content: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(content)
    refuse(folder, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "generation_config.json: the file must hold a JSON object, but holds a list"),
        ('{"eos_token_id": {"a": []}}', "eos_token_id must be a token id or a list of them, but is {'a': ..}"),
        ('{"pad_token_id": ["x"]}', "pad_token_id must be a token id"),
    ],
)
def test_a_generation_config_that_is_none(folder: Path, content: str, message: str) -> None:
    (folder / "generation_config.json").write_text(content)
    refuse(folder, message)


def test_a_tokenizer_without_a_maximal_length(folder: Path) -> None:
    """transformers writes int(1e30) into most tokenizer_config.json; no bound on numbers may refuse that."""
    change(folder / "tokenizer_config.json", model_max_length=int(1e30))
    assert load(LoadOptions(str(folder)), weights=False).processor.tokenizer.model_max_length == int(1e30)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    change(folder / "model.safetensors.index.json", **index)
    refuse(folder, "lacks 1 of 2 weight files, the first is model-00002-of-00002.safetensors")
    change(folder / "model.safetensors.index.json", weight_map={"a": "../../secret.safetensors"})
    refuse(folder, "outside its folder")


def test_an_unsupported_model_lists_the_supported_ones(folder: Path) -> None:
    change(folder / "config.json", model_type="bert")
    said = refuse(folder, "model_type 'bert'")
    assert all(name in said for name in ("Qwen2.5-VL", "Qwen3-VL", "Gemma3n", "InternVL3", "LLaVA-v1.6", "LLaVA-v1.5"))


@pytest.mark.parametrize(("model_type", "twin"), [("llava_llama", "llava-1.5"), ("llava_mistral", "llava-v1.6")])
def test_the_original_llava_layout_names_its_twin(folder: Path, model_type: str, twin: str) -> None:
    change(folder / "config.json", model_type=model_type)
    refuse(folder, twin)


def test_a_checkpoint_of_another_family(folder: Path) -> None:
    refuse(folder, r"is a LLaVA-v1.5 checkpoint.*is for Qwen2.5-VL", family="qwen2_5_vl")
    refuse(folder, "Unknown family 'qwen'. Available: qwen2_5_vl", family="qwen")
    load(LoadOptions(str(folder), family=FAMILY))


def test_an_adapter_is_to_be_merged_first(folder: Path) -> None:
    change(folder / "adapter_config.json", base_model_name_or_path="elsewhere")
    refuse(folder, "holds a LoRA adapter.*merge it")


def test_broken_json(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    refuse(folder, "config.json: the file is not valid JSON")


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "preprocessor_config.json", "processor_config.json"]
)
def test_code_of_its_own_is_refused_and_never_run(folder: Path, tmp_path: Path, file: str) -> None:
    proof = tmp_path / "it_ran"
    (folder / "evil.py").write_text(f"open({str(proof)!r}, 'w')\nclass Evil: pass\n")
    autos = {"AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", None], "AutoProcessor": "evil.Evil"}
    change(folder / file, auto_map=autos)
    refuse(folder, f"{file} asks for Python code of its own")
    assert not proof.exists()
    assert not any(name.endswith("evil") for name in sys.modules)


def test_a_chat_template_cannot_reach_python(folder: Path) -> None:
    from transformers_agci.inference.prompt import chat_text
    from transformers_agci.inference.questions import Question

    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    loaded = load(LoadOptions(str(folder)))
    with pytest.raises(Exception, match="unsafe"):
        chat_text(loaded.processor, Question({}, "x", "hello"))


def test_missing_weights_are_an_error(folder: Path) -> None:
    change_weights(folder, lambda weights: weights.pop(next(key for key in weights if "projector" in key)))
    refuse(folder, "lacks 1 of the model's weights, for instance .*projector")


def test_weights_of_another_shape_are_an_error(folder: Path) -> None:
    def squash(weights: dict) -> None:
        key = next(key for key in weights if key.endswith("q_proj.weight") and "language" in key)
        weights[key] = weights[key][:5].clone()

    change_weights(folder, squash)
    refuse(folder, "cannot be loaded|another shape")


@pytest.mark.parametrize(
    ("name", "refused"),
    [
        ("model.vision_tower.extra.weight", True),
        ("vision_tower.vision_model.extra", True),
        ("model.language_model.layers.9.mlp.up_proj.weight", True),
        ("multi_modal_projector.linear_9.weight", True),
        ("lm_head.bias", True),
        ("optimizer.state", False),
        ("model.audio_tower.weight", False),
        ("language_model.model.layers.0.self_attn.rotary_emb.inv_freq", False),
    ],
)
def test_unknown_weights(folder: Path, name: str, refused: bool) -> None:
    change_weights(folder, lambda weights: weights.update({name: torch.zeros(2)}))
    if refused:
        refuse(folder, "does not know in its vision tower, projector or decoder")
    else:
        assert set(load(LoadOptions(str(folder))).notes["unexpected_weights"]) <= {name}
