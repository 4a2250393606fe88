"""`agci convert-llava`: a tiny model written back to the original layout comes out with equal tensors and logits."""

import json
import weakref
from pathlib import Path
from typing import Any

import original_llava
import original_llava as llava
import pytest
import tiny_checkpoints as tiny
import torch
import transformers
from original_llava import ROWS, loaded_model, read
from safetensors.torch import load_file

from transformers_agci import cli
from transformers_agci.conversion import convert as converting
from transformers_agci.conversion import plan, shards
from transformers_agci.conversion.convert import MANIFEST, convert
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.method.handle import current_handle
from transformers_agci.method.lam import LAMBDA_KEY

converted = original_llava.converted  # fixture

VERSIONS = ("llava", "llava_next")  # LLaVA-1.5 on LLaMA, LLaVA-1.6 on Mistral


def written_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def inputs_for(family: str, model: Any, image_id: int) -> dict[str, torch.Tensor]:
    """The same image and words, with this model's image token."""
    inputs = tiny.make_inputs(family, model, batch=2)
    ids = inputs["input_ids"]
    return inputs | {"input_ids": torch.where(ids == model.config.image_token_id, image_id, ids)}


@pytest.mark.parametrize("family", VERSIONS)
@pytest.mark.parametrize(
    ("kind", "shards", "inside"),
    [("safetensors", 3, True), ("safetensors", 1, False), ("bin", 3, False), ("bin", 1, True)],
)
def test_equal_tensors_and_logits(family: str, kind: str, shards: int, inside: bool, tmp_path: Path) -> None:
    model = llava.reference_model(family)
    source = llava.write_original(family, model, tmp_path / "original", kind=kind, shards=shards, tower=inside)
    tower = None if inside else llava.write_tower(model, tmp_path / "clip", kind=kind)
    made = convert(source, tmp_path / "hf", tower=tower)
    assert made.files == shards + (not inside)
    converted = loaded_model(made.folder)
    assert type(converted) is type(model)
    assert made.rows == (ROWS, 384)  # 349 words, two tokens more, a multiple of 64

    before, after = model.state_dict(), converted.state_dict()
    assert set(before) == set(after)
    for name, tensor in before.items():
        if tensor.shape == after[name].shape:
            assert torch.equal(tensor, after[name]), name
        else:
            assert torch.equal(tensor, after[name][:ROWS]), name
            assert torch.allclose(after[name][ROWS:], tensor.mean(dim=0).expand(384 - ROWS, -1)), name
    with torch.no_grad():
        expected = model(**inputs_for(family, model, 0)).logits
        found = converted(**inputs_for(family, converted, ROWS)).logits
    torch.testing.assert_close(found[..., :ROWS], expected, rtol=1e-5, atol=1e-5)
    assert (found[..., ROWS:].amax(dim=-1) < found[..., :ROWS].amax(dim=-1)).all()  # a new token is never the likeliest


@pytest.mark.parametrize("family", VERSIONS)
def test_every_tensor_once_under_names_that_4_57_reads(family: str, tmp_path: Path) -> None:
    model = llava.reference_model(family)
    source = llava.write_original(family, model, tmp_path / "original", shards=3)
    folder = convert(source, tmp_path / "hf").folder
    index = read(folder, "model.safetensors.index.json")
    tensors = written_tensors(folder)
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert len(tensors) == len(llava.original_tensors(model))
    prefixes = {"language_model.model", "language_model.lm_head", "vision_tower.vision_model", "multi_modal_projector"}
    prefixes |= {"image_newline"} if family == "llava_next" else set()
    assert all(any(name.startswith(prefix) for prefix in prefixes) for name in tensors)
    used = {prefix for prefix in prefixes if any(name.startswith(prefix) for name in tensors)}
    assert used == prefixes


@pytest.mark.parametrize(
    ("whole", "prefix"),
    [(True, "vision_model."), (False, "vision_model."), (False, "")],
    ids=["CLIPModel", "CLIPVisionModel", "CLIPVisionModel of transformers 5"],
)
def test_layouts_of_the_tower(whole: bool, prefix: str, tmp_path: Path) -> None:
    model = llava.reference_model("llava")
    source = llava.write_original("llava", model, tmp_path / "original", tower=False)
    tower = llava.write_tower(model, tmp_path / "clip", kind="safetensors", whole=whole, prefix=prefix)
    made = convert(source, tmp_path / "hf", tower=tower)
    name = "vision_model.encoder.layers.2.mlp.fc2.weight"
    expected = llava.original_tensors(model)[f"model.vision_tower.vision_tower.{name}"]
    assert torch.equal(written_tensors(made.folder)[f"vision_tower.{name}"], expected)
    text_side = {
        "text_model.final_layer_norm.weight",
        "visual_projection.weight",
        "text_projection.weight",
        "logit_scale",
        "vision_model.embeddings.position_ids",
    }
    assert set(made.unused) == (text_side if whole else set())
    assert read(made.folder, "preprocessor_config.json")["image_mean"] == [0.4, 0.5, 0.6]


def test_the_checkpoints_own_tower_wins(tmp_path: Path) -> None:
    model, other = llava.reference_model("llava_next"), llava.reference_model("llava_next", seed=1)
    source = llava.write_original("llava_next", model, tmp_path / "original", mm_vision_tower="elsewhere/tower")
    tower = llava.write_tower(other, tmp_path / "clip")
    made = convert(source, tmp_path / "hf", tower=tower)
    name = "vision_tower.vision_model.embeddings.class_embedding"
    expected = llava.original_tensors(model)["model.vision_tower.vision_tower.vision_model.embeddings.class_embedding"]
    assert torch.equal(written_tensors(made.folder)[name], expected)
    assert "weights of clip" in made.unused


def test_configs_say_what_the_original_said(tmp_path: Path) -> None:
    model = llava.reference_model("llava_next", num_key_value_heads=1, rope_theta=1000000.0, sliding_window=64)
    source = llava.write_original(
        "llava_next",
        model,
        tmp_path / "original",
        sliding_window=None,
        rope_theta=1000000.0,
        mm_vision_select_layer=-1,
        **{LAMBDA_KEY: 0.25},
    )
    folder = convert(source, tmp_path / "hf").folder
    config = transformers.AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    assert (text.model_type, text.num_key_value_heads, text.num_attention_heads) == ("mistral", 1, 4)
    assert (text.hidden_size, text.intermediate_size, text.num_hidden_layers, text.vocab_size) == (32, 64, 4, 384)
    assert text.sliding_window is None
    theta = getattr(text, "rope_theta", None) or text.rope_parameters["rope_theta"]
    assert theta == 1000000.0
    assert (vision.hidden_size, vision.num_attention_heads, vision.intermediate_size) == (128, 2, 96)
    assert (vision.num_hidden_layers, vision.image_size, vision.patch_size) == (3, 56, 14)
    assert vision.hidden_act == "quick_gelu"
    assert config.vision_feature_layer == -1
    assert config.vision_feature_select_strategy == "default"
    assert config.image_grid_pinpoints == [[56, 112], [112, 56], [112, 112]]  # height, width
    assert config.image_token_id == ROWS
    assert getattr(config, LAMBDA_KEY) == 0.25
    assert read(folder, "generation_config.json") == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": ROWS + 1}


def test_dtype_is_the_checkpoints_own_or_the_one_asked_for(tmp_path: Path) -> None:
    model = llava.reference_model("llava", dtype=torch.float16)
    source = llava.write_original("llava", model, tmp_path / "original", kind="bin", tower=False)
    tower = llava.write_tower(model, tmp_path / "clip")  # float32, as OpenAI's
    for asked, expected in (("auto", torch.float16), ("bfloat16", torch.bfloat16)):
        folder = convert(source, tmp_path / asked, tower=tower, dtype=asked).folder
        assert {tensor.dtype for tensor in written_tensors(folder).values()} == {expected}
        assert read(folder, "config.json")["dtype"] == str(expected).removeprefix("torch.")


def test_one_weight_file_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llava.reference_model("llava")
    source = llava.write_original("llava", model, tmp_path / "original", kind="bin", shards=4, tower=False)
    tower = llava.write_tower(model, tmp_path / "clip")
    opened: list[weakref.ref] = []
    names: list[str] = []

    class Watched(shards.Shard):
        def __init__(self, path: Path) -> None:
            assert all(shard() is None for shard in opened), "two weight files are open"
            opened.append(weakref.ref(self))
            super().__init__(path)

        def tensor(self, name: str) -> torch.Tensor:
            names.append(name)
            return super().tensor(name)

    for module in (plan, converting):
        monkeypatch.setattr(module, "Shard", Watched)
    convert(source, tmp_path / "hf", tower=tower)
    assert len(opened) == 5 + 1 + 5  # names and shapes, the dtype, the weights
    assert names.count("model.embed_tokens.weight") == 2  # once for the dtype
    assert len(names) == len(set(names)) + 1  # every other tensor is read once


def test_known_buffers_and_unread_files_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = llava.reference_model("llava")
    source = llava.write_original("llava", model, tmp_path / "original", shards=1)
    tensors = load_file(source / "model.safetensors")
    buffers = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
        "model.vision_tower.vision_tower.vision_model.embeddings.position_ids": torch.arange(17)[None],
    }
    llava.write_weights(source, tensors | buffers, "safetensors", 1)
    torch.save({"model.mm_projector.0.bias": torch.zeros(32)}, source / "mm_projector.bin")
    assert cli.main(["convert-llava", str(source), str(tmp_path / "hf")]) == 0
    told = capsys.readouterr().out
    for name in (*buffers, "mm_projector.bin"):
        assert f"not used: {name} (" in told
        assert name in read(tmp_path / "hf", MANIFEST)["unused"]


def test_tied_embeddings(tmp_path: Path) -> None:
    model = llava.reference_model("llava")
    model.lm_head.weight.data.copy_(model.model.language_model.embed_tokens.weight)
    source = llava.write_original("llava", model, tmp_path / "original", tie_word_embeddings=True)
    made = convert(source, tmp_path / "hf")
    assert made.unused == {"lm_head.weight": "the config ties it to the embeddings"}
    converted = loaded_model(made.folder)
    assert converted.lm_head.weight is converted.model.language_model.embed_tokens.weight


@pytest.mark.parametrize("family", VERSIONS)
def test_the_probe_runs_on_it_with_agci_on_by_the_key(family: str, tmp_path: Path) -> None:
    samples = Path(__file__).parents[1] / "probe_datasets"
    source = llava.write_original(family, llava.reference_model(family), tmp_path / "original", **{LAMBDA_KEY: 0.5})
    folder = convert(source, tmp_path / "hf").folder
    loaded = load(LoadOptions(str(folder)))
    assert loaded.lam == 0.5
    assert current_handle(loaded.model) is None or current_handle(loaded.model).lam == 0.5
    answers = {}
    for name, given in (("key", []), ("zero", ["--global_context_lambda", "0"])):
        command = [
            "probe",
            "--model_path",
            str(folder),
            "--eval_file",
            str(samples / "sample_noto_840_840.json"),
            "--img_path",
            str(samples / "images"),
            "--answer_file",
            str(tmp_path / f"{name}.jsonl"),
            *given,
        ]
        assert cli.main(command) == 0
        answers[name] = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    assert len(answers["key"]) == len(answers["zero"]) == 36
    manifest = json.loads((tmp_path / "key.manifest.json").read_text())
    assert "0.5" in json.dumps(manifest)
    margins = [(row["margin"], other["margin"]) for row, other in zip(answers["key"], answers["zero"])]
    assert all(on != off for on, off in margins)
