"""The config key on stock transformers: what `activate` changes, and that a checkpoint with the key gets AGCI however
it is loaded. Programs that never import us are in test_autoload_processes.py."""

import copy
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from test_reference_outputs import case_inputs
from tiny_checkpoints import FAMILIES, MODEL_CLASSES, build_config, make_inputs

import transformers_agci
from transformers_agci import LAMBDA_KEY, SUPPORTED_FAMILIES, attach
from transformers_agci.method import autoload
from transformers_agci.method.handle import current_handle

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # peft asks by the old name
]


@pytest.fixture(autouse=True)
def _active(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    autoload.activate()
    autoload._warned.clear()
    caplog.set_level(logging.INFO, logger="transformers_agci")
    yield


@pytest.fixture
def keyed(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    """family -> a copy of its tiny checkpoint whose config.json carries the key."""

    def folder(family: str, value: Any = 0.5) -> Path:
        target = tmp_path / family
        target.mkdir()
        for file in tiny_checkpoint(family).iterdir():
            if file.name != "config.json":
                (target / file.name).symlink_to(file)
        config = json.loads((tiny_checkpoint(family) / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(config | {LAMBDA_KEY: value}))
        return target

    return folder


def logits(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(**inputs).logits


def expected(folder: Path, family: str) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Logits at lambda 0.5 and at 0, with hooks put on by hand, and the inputs."""
    model = getattr(transformers, MODEL_CLASSES[family]).from_pretrained(folder)
    inputs = make_inputs(family, model, batch=2)
    handle = current_handle(model)
    handle.detach()
    delattr(model.config, LAMBDA_KEY)
    stock = logits(model, inputs)
    attach(model, 0.5)
    return logits(model, inputs), stock, inputs


@pytest.mark.parametrize("family", FAMILIES)
def test_key_serves_every_family(family: str, keyed: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    folder = keyed(family)
    half, stock, inputs = expected(folder, family)
    caplog.clear()
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    handle = current_handle(model)
    assert (handle.lam, handle.from_config, handle.scope, handle.method) == (0.5, True, "image", "agci")
    assert [record.getMessage() for record in caplog.records] == [
        f"AGCI is on: lambda 0.5 from config.json of {folder} ({SUPPORTED_FAMILIES[family].name}). "
        "TRANSFORMERS_AGCI=0 turns it off."
    ]
    assert torch.equal(logits(model, inputs), half)
    assert not torch.equal(half, stock)
    assert handle.injections == 2
    handle.lam = 0.0
    assert torch.equal(logits(model, inputs), stock)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next"])
@pytest.mark.parametrize("lam", ["0", "0.25", "1"])
def test_published_checkpoint(family: str, lam: str, tmp_path: Path) -> None:
    """Weights under the names of transformers 4.57, as the published code has them, and its key in config.json."""
    reference = Path(__file__).parent / "reference" / family
    made = json.loads((reference / "config_kwargs.json").read_text())
    config = made["config"] | {"model_type": family, "architectures": [made["cls"]], LAMBDA_KEY: float(lam)}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(reference / "weights.safetensors"), tmp_path / "model.safetensors", {"format": "pt"})
    model = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation="eager")
    expected = load_file(reference / "outputs.safetensors")[f"single/lam{lam}/logits"]
    torch.testing.assert_close(logits(model, case_inputs(family, "single", model)), expected, atol=1e-5, rtol=0)
    assert current_handle(model).injections == (float(lam) > 0)


@pytest.mark.slow
def test_every_way_to_load(keyed: Callable[..., Path]) -> None:
    folder = keyed("qwen2_5_vl")
    half, _, inputs = expected(folder, "qwen2_5_vl")
    config = transformers.AutoConfig.from_pretrained(folder)
    direct = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder)
    for model in (
        direct,
        transformers.AutoModelForImageTextToText.from_pretrained(folder, config=config),
        transformers.AutoModelForImageTextToText.from_pretrained(folder, device_map="auto"),
        transformers.AutoModelForImageTextToText.from_pretrained(folder, device_map={"": "cpu"}, dtype=torch.float32),
        transformers.AutoModelForImageTextToText.from_pretrained(folder, attn_implementation="sdpa"),
    ):
        torch.testing.assert_close(logits(model, inputs), half, atol=1e-5, rtol=0)
        assert current_handle(model).injections == 2
    inner = transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        states = inner(**inputs).last_hidden_state
        torch.testing.assert_close(states, direct.model(**inputs).last_hidden_state, atol=1e-5, rtol=0)
    assert current_handle(inner).injections == 2
    for made in (transformers.AutoModelForImageTextToText.from_config(config), type(direct)(config)):
        made.load_state_dict(direct.state_dict())
        torch.testing.assert_close(logits(made, inputs), half, atol=1e-5, rtol=0)
        assert current_handle(made).injections == 2
    half_precision = type(direct).from_pretrained(folder, dtype=torch.bfloat16).eval()
    in_bfloat16 = inputs | {"pixel_values": inputs["pixel_values"].bfloat16()}
    changed = logits(half_precision, in_bfloat16)
    current_handle(half_precision).lam = 0.0
    assert not torch.equal(logits(half_precision, in_bfloat16), changed)


def test_flat_config(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The published Qwen2.5-VL checkpoints keep the text part's fields beside the model's own."""
    nested = build_config("qwen2_5_vl").to_dict()
    flat = nested.pop("text_config") | nested | {LAMBDA_KEY: 0.5, "architectures": [MODEL_CLASSES["qwen2_5_vl"]]}
    flat = {name: value for name, value in flat.items() if name not in ("dtype", "torch_dtype")}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    model = transformers.AutoModelForImageTextToText.from_config(config)
    inputs = make_inputs("qwen2_5_vl", model)
    half = logits(model, inputs)
    assert current_handle(model).injections == 1
    assert len(caplog.records) == 1
    model.global_context_broadcast_lambda = 0.25
    assert current_handle(model).lam == 0.25
    quarter = logits(model, inputs)
    assert not torch.equal(half, quarter)
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved[LAMBDA_KEY] == 0.25
    assert LAMBDA_KEY not in saved["text_config"]
    loaded = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "saved")
    assert loaded.global_context_broadcast_lambda == 0.25
    torch.testing.assert_close(logits(loaded, inputs), quarter, atol=1e-5, rtol=0)


def test_checkpoint_without_the_key_is_left_alone(tiny_checkpoint: Callable[[str], Path]) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(tiny_checkpoint("llava"))
    assert current_handle(model) is None
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def tiny_llama(**changes: Any) -> Any:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, **changes
    )
    return transformers.LlamaForCausalLM(config)


def test_key_in_an_unsupported_model_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert current_handle(tiny_llama(**{LAMBDA_KEY: 0.5})) is None
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert LAMBDA_KEY in record.getMessage()
    assert all(f"{family.name} ({name})" in record.getMessage() for name, family in SUPPORTED_FAMILIES.items())


def test_key_in_an_unsupported_composite_model_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    text = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "model_type": "llama",
    }
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        "projection_dim": 16,
    }
    config = transformers.VipLlavaConfig(
        text_config=text, vision_config=vision, image_token_index=31, vision_feature_layers=[-1], **{LAMBDA_KEY: 0.5}
    )
    config.model_type = "made_up"
    transformers.VipLlavaForConditionalGeneration(config)
    assert len(caplog.records) == 1
    assert "model_type 'made_up'" in caplog.records[0].getMessage()


def test_original_layout_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = build_config("llava")
    config.mm_vision_tower = "openai/clip-vit-large-patch14-336"
    setattr(config, LAMBDA_KEY, 0.5)
    from unittest import mock

    with mock.patch("transformers.models.llava.modeling_llava.AutoModel.from_config") as parts:
        parts.side_effect = lambda part, **_: torch.nn.Linear(1, 1)
        with pytest.raises(AttributeError):  # the stand-ins are no models; the warning comes before
            transformers.LlavaForConditionalGeneration(config).model.language_model.layers  # noqa: B018
    assert ["original LLaVA repository" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize("bad", ["0.5", [0.5], -1, float("nan"), float("inf"), True, None, {}])
def test_bad_value_names_the_file(bad: object, keyed: Callable[..., Path]) -> None:
    folder = keyed("llava", bad)
    with pytest.raises(ValueError, match="finite number >= 0") as error:
        transformers.AutoModelForImageTextToText.from_pretrained(folder)
    assert f"config.json of {folder}" in str(error.value)
    assert LAMBDA_KEY in str(error.value)


def test_second_activation_changes_nothing() -> None:
    wrapped = transformers.PreTrainedModel.post_init
    autoload.activate()
    assert transformers.PreTrainedModel.post_init is wrapped
    assert not hasattr(wrapped.__wrapped__, "__wrapped__")
    assert autoload.active()


def test_patched_transformers_is_refused(keyed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The published copy injects in its own forward; ours on top would give every image two doses."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(keyed("llava"))
    current_handle(model).detach()

    def forward(self: Any, **kwargs: Any) -> Any:
        return self.global_context_broadcast_lambda

    monkeypatch.setattr(type(model.model), "forward", forward)
    with pytest.raises(ValueError, match="two doses"):
        attach(model, 0.5)


def test_lora_and_merge(keyed: Callable[..., Path], tmp_path: Path) -> None:
    import peft

    model = transformers.AutoModelForImageTextToText.from_pretrained(keyed("qwen2_5_vl")).eval()
    inputs = make_inputs("qwen2_5_vl", model)
    lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"], r=2, init_lora_weights=False)
    wrapped = peft.get_peft_model(model, lora).eval()
    assert wrapped.global_context_broadcast_lambda == 0.5
    adapted = logits(wrapped, inputs)
    assert current_handle(wrapped).injections == 1
    merged = wrapped.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    assert again.global_context_broadcast_lambda == 0.5
    torch.testing.assert_close(logits(again, inputs), adapted, atol=1e-4, rtol=0)
    assert current_handle(again).injections == 1


def test_trainer(keyed: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("datasets", exc_type=ImportError)  # needs a newer huggingface_hub than transformers 4.57
    model = transformers.AutoModelForImageTextToText.from_pretrained(keyed("qwen2_5_vl"))
    one = make_inputs("qwen2_5_vl", model)
    sample = one | {"labels": one["input_ids"].where(one["input_ids"] < 200, -100)}
    arguments = transformers.TrainingArguments(
        tmp_path / "run",
        max_steps=2,
        per_device_train_batch_size=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = transformers.Trainer(model, arguments, train_dataset=[sample] * 2, data_collator=lambda rows: rows[0])
    trainer.train()
    assert current_handle(model).injections == 2
    trainer.save_model(tmp_path / "trained")
    assert json.loads((tmp_path / "trained" / "config.json").read_text())[LAMBDA_KEY] == 0.5
    again = transformers.AutoModelForImageTextToText.from_pretrained(tmp_path / "trained")
    torch.testing.assert_close(logits(again, one), logits(model, one), atol=1e-5, rtol=0)


def test_deepcopy_and_pickle(keyed: Callable[..., Path], tmp_path: Path) -> None:
    model = transformers.AutoModelForImageTextToText.from_pretrained(keyed("llava"))
    inputs = make_inputs("llava", model)
    torch.save(model, tmp_path / "model.pt")  # first: a stock model of transformers 5 that ran cannot be pickled
    half = logits(model, inputs)
    for twin in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        assert torch.equal(logits(twin, inputs), half)
        twin.global_context_broadcast_lambda = 0.0
        assert not torch.equal(logits(twin, inputs), half)
        assert current_handle(twin).from_config
    assert model.global_context_broadcast_lambda == 0.5
    assert current_handle(model).injections == 1


def test_drop_in() -> None:
    """`import transformers_agci as transformers`."""
    for name in (
        "AutoModel",
        "AutoModelForImageTextToText",
        "AutoProcessor",
        "PreTrainedModel",
        "GenerationConfig",
        "Qwen2_5_VLForConditionalGeneration",
        "pipeline",
        "models",
        "utils",
        "set_seed",
        "logging",
    ):
        assert getattr(transformers_agci, name) is getattr(transformers, name)
    # As an import statement would find it now: transformers puts another object into sys.modules while it loads.
    names = [name for name in dir(sys.modules["transformers"]) if not name.startswith("_")]
    assert len(names) > 1000
    assert set(names) <= set(dir(transformers_agci))
    assert set(transformers_agci.__all__) & set(names) == set()
    with pytest.raises(AttributeError, match="no_such_name"):
        transformers_agci.no_such_name  # noqa: B018
