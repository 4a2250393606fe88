"""`agci convert-llava`: a tiny model written back to the original layout comes out with equal tensors and logits."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import original_llava as llava
import pytest
import tiny_checkpoints as tiny
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file

from transformers_agci import cli
from transformers_agci.conversion import convert as converting
from transformers_agci.conversion import plan, shards
from transformers_agci.conversion.convert import MANIFEST, convert
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.method.handle import current_handle
from transformers_agci.method.lam import LAMBDA_KEY

VERSIONS = ("llava", "llava_next")  # LLaVA-1.5 on LLaMA, LLaVA-1.6 on Mistral
ROWS = len(llava.pieces())


def loaded_model(folder: Path) -> Any:
    return transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


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


# --- tokenizer, images, prompts ----------------------------------------------------------------------------------

# What the sentencepiece package makes of the same tokenizer.model: texts, and ids without the begin token.
RECORDED = json.loads((Path(__file__).parent / "reference" / "sentencepiece_ids.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """family -> folder of a converted checkpoint; tests must not write there."""
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            source = llava.write_original(family, llava.reference_model(family), root / "original")
            made[family] = convert(source, root / "hf").folder
        return made[family]

    return folder


def test_token_ids_are_those_of_sentencepiece(converted: Callable[[str], Path]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted("llava"))
    assert len(RECORDED) > 20
    for text, ids in RECORDED.items():
        assert tokenizer(text).input_ids == [1, *ids], text
        assert tokenizer.decode(ids) == text
    assert (tokenizer.image_token, tokenizer.image_token_id, tokenizer.pad_token_id) == ("<image>", ROWS, ROWS + 1)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.padding_side) == (1, 2, "left")
    assert tokenizer.model_max_length == 2048


def test_text_around_an_image_is_split_as_separate_pieces(converted: Callable[[str], Path]) -> None:
    """The original code tokenizes what stands before and after <image> by itself."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(converted("llava"))
    before, after = "USER: ", "\nIs there a dog? ASSISTANT:"
    expected = [*tokenizer(before).input_ids, ROWS, *tokenizer(after).input_ids[1:]]
    assert tokenizer(f"{before}<image>{after}").input_ids == expected


def turn(role: str, *parts: str) -> dict[str, Any]:
    content = [{"type": "image"} if part == "<image>" else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


CONVERSATION = [turn("user", "<image>", "Is there a dog?"), turn("assistant", "Yes"), turn("user", "And a cat?")]


@pytest.mark.parametrize(
    ("family", "prompt", "with_system"),
    [
        (
            "llava",
            "USER: <image>\nIs there a dog? ASSISTANT: Yes</s>USER: And a cat? ASSISTANT:",
            "Be kind. USER: Hi ASSISTANT:",
        ),
        (
            "llava_next",
            "[INST] <image>\nIs there a dog? [/INST] Yes </s>[INST] And a cat? [/INST]",
            "[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nHi [/INST]",
        ),
    ],
)
def test_prompt_forms(family: str, prompt: str, with_system: str, converted: Callable[[str], Path]) -> None:
    processor = transformers.AutoProcessor.from_pretrained(converted(family))
    assert processor.apply_chat_template(CONVERSATION, add_generation_prompt=True) == prompt
    system = [turn("system", "Be kind."), turn("user", "Hi")]
    assert processor.apply_chat_template(system, add_generation_prompt=True) == with_system
    strings = [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in system]
    assert processor.apply_chat_template(strings, add_generation_prompt=True) == with_system


def by_hand(image: Image.Image, side: int = 56) -> np.ndarray:
    """LLaVA-1.5's own preparation: padded to a square with the mean colour, resized, normalised."""
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    longest = max(image.size)
    square = Image.new("RGB", (longest, longest), tuple(int(255 * channel) for channel in mean))
    square.paste(image, ((longest - image.width) // 2, (longest - image.height) // 2))
    pixels = np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)) / 255
    return ((pixels - mean) / std).transpose(2, 0, 1)


def test_images_are_padded_as_in_the_original(converted: Callable[[str], Path]) -> None:
    processor = transformers.AutoProcessor.from_pretrained(converted("llava"))
    image = tiny.random_image(width=120, height=60)
    found = np.asarray(processor.image_processor(image, return_tensors="np")["pixel_values"][0])
    assert found.shape == (3, 56, 56)
    # PIL rounds to whole levels after each of its two passes, torch once: a level is 1/255 / 0.26
    assert np.abs(found - by_hand(image)).mean() < 0.01
    assert np.abs(found - by_hand(image)).max() < 4 / 255 / 0.26


def test_images_without_padding_are_cropped(tmp_path: Path) -> None:
    model = llava.reference_model("llava")
    source = llava.write_original("llava", model, tmp_path / "original", image_aspect_ratio=None)
    folder = convert(source, tmp_path / "hf").folder
    assert "do_pad" not in read(folder, "preprocessor_config.json")
    processor = transformers.AutoProcessor.from_pretrained(folder)
    image = tiny.random_image(width=120, height=60)
    middle = image.crop((30, 0, 90, 60))
    found, expected = (
        np.asarray(processor.image_processor(shown, return_tensors="np")["pixel_values"][0])
        for shown in (image, middle)
    )
    assert np.abs(found - expected).mean() < 0.02


@pytest.mark.parametrize(("family", "tokens"), [("llava", 16), ("llava_next", 16 + 64 + 8)])
def test_an_image_takes_the_tokens_that_the_model_expects(
    family: str, tokens: int, converted: Callable[[str], Path]
) -> None:
    processor = transformers.AutoProcessor.from_pretrained(converted(family))
    inputs = tiny.prompt_inputs(processor, "Is there a dog?", tiny.random_image(width=112, height=112))
    assert int((inputs["input_ids"] == ROWS).sum()) == tokens
    logits = loaded_model(converted(family))(**inputs).logits
    assert torch.isfinite(logits).all()


# --- the result under our own tools --------------------------------------------------------------------------------


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


# --- after a kill, on a full disk, on what is there already --------------------------------------------------------


def test_manifest_names_sources_and_versions(tmp_path: Path) -> None:
    model = llava.reference_model("llava")
    source = llava.write_original("llava", model, tmp_path / "original", kind="bin", tower=False)
    tower = llava.write_tower(model, tmp_path / "clip")
    told = read(convert(source, tmp_path / "hf", tower=tower).folder, MANIFEST)
    names = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "config.json", "tokenizer.model"}
    assert set(told["source"]) == {f"original/{name}" for name in names} | {"clip/pytorch_model.bin"}
    assert all(len(entry["sha256"]) == 64 and entry["bytes"] > 0 for entry in told["source"].values())
    assert told["versions"]["transformers"] == transformers.__version__
    assert told["embedding_rows"]["source"] == ROWS


def test_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = llava.write_original("llava_next", llava.reference_model("llava_next"), tmp_path / "original")
    first, second = (convert(source, tmp_path / name).folder for name in ("first", "second"))
    names = sorted(path.name for path in first.iterdir())
    assert names == sorted(path.name for path in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_nothing_is_left_of_a_conversion_that_did_not_finish(
    failure: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = llava.write_original("llava", llava.reference_model("llava"), tmp_path / "in" / "original")
    calls = []
    save = converting.save_file

    def fails_late(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise failure
        save(*args, **kwargs)

    monkeypatch.setattr(converting, "save_file", fails_late)
    expected = 130 if isinstance(failure, KeyboardInterrupt) else 2
    assert cli.main(["convert-llava", str(source), str(tmp_path / "out" / "hf")]) == expected
    told = capsys.readouterr().err
    assert expected == 130 or "the disk is full" in told
    assert list((tmp_path / "out").iterdir()) == []


def test_what_a_killed_conversion_left_is_hidden_and_cleared_away(tmp_path: Path) -> None:
    source = llava.write_original("llava", llava.reference_model("llava"), tmp_path / "original")
    left = tmp_path / ".hf.unfinished"
    left.mkdir()
    (left / "config.json").write_text("{}")
    assert not (tmp_path / "hf").exists()
    convert(source, tmp_path / "hf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "original"]


def test_overwrite_replaces_only_what_a_conversion_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = llava.write_original("llava", llava.reference_model("llava"), tmp_path / "original")
    command = ["convert-llava", str(source), str(tmp_path / "hf")]
    assert cli.main(command) == 0
    (tmp_path / "hf" / "left over.txt").write_text("old")
    capsys.readouterr()
    assert cli.main(command) == 0
    assert "holds this conversion already" in capsys.readouterr().out
    assert cli.main([*command, "--dtype", "bfloat16"]) == 2
    said = capsys.readouterr().err
    assert "dtype is 'float32' there and 'bfloat16' now" in said
    assert "--overwrite" in said
    weights = next((tmp_path / "hf").glob("*.safetensors"))
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert cli.main(command) == 2
    assert f"{weights.name} has {len(whole) - 1} bytes instead of {len(whole)}" in capsys.readouterr().err
    assert cli.main([*command, "--overwrite"]) == 0
    assert weights.read_bytes() == whole
    assert not (tmp_path / "hf" / "left over.txt").exists()
    home = tmp_path / "home"
    home.mkdir()
    (home / "letter.txt").write_text("mine")
    assert cli.main(["convert-llava", str(source), str(home), "--overwrite"]) == 2
    assert "only what an earlier conversion wrote" in capsys.readouterr().err
    assert (home / "letter.txt").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "home", "original"]
