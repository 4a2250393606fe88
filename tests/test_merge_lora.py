"""agci merge-lora: equal logits, the base's own layout, and what a user is told about bad input."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import training_data as td
from safetensors.torch import load_file, save_file
from tiny_checkpoints import FAMILIES, Checkpoints, build_processor, prompt_inputs, random_image
from transformers import AutoModelForImageTextToText, AutoProcessor

from transformers_agci import LAMBDA_KEY
from transformers_agci.cli import main
from transformers_agci.storage.lock import exclusive_lock
from transformers_agci.training import merge

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")

LAM = 0.5
QUICK = ("qwen2_5_vl", "llava")
FAMILY_CASES = [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in FAMILIES]


class Tuned(NamedTuple):
    """A base checkpoint with the key, an adapter trained on it."""

    base: Path
    adapter: Path


@pytest.fixture(scope="module")
def tuned(tiny_checkpoint: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tuned]:
    """family -> two steps of training at a high rate, so that the adapter does something; once per family."""
    made: dict[str, Tuned] = {}

    def of(family: str) -> Tuned:
        if family not in made:
            folder = tmp_path_factory.mktemp(family)
            shutil.copytree(tiny_checkpoint(family), folder / "base")
            assert main(["set-lambda", str(folder / "base"), str(LAM)]) == 0
            data = td.write_data(folder / "data")
            raw = td.training_recipe(family, folder / "base", data, folder / "adapter", max_steps=2, learning_rate=0.01)
            assert main(["train-lora", str(td.write_recipe(folder / "r.yaml", raw))]) == 0
            made[family] = Tuned(folder / "base", folder / "adapter")
        return made[family]

    return of


def words(tmp_path: Path, family: str, parts: Tuned, **changes: Any) -> list[str]:
    """The command line of a merge; None as a change takes the key out."""
    recipe = {
        "model_name_or_path": str(parts.base),
        "adapter_name_or_path": str(parts.adapter),
        "template": td.TEMPLATE_OF[family],
        "export_dir": str(tmp_path / "merged"),
        "export_size": 5,
        "export_device": "cpu",
        "export_legacy_format": False,
        **changes,
    }
    given = {key: value for key, value in recipe.items() if value is not None}
    return ["merge-lora", str(td.write_recipe(tmp_path / "merge.yaml", given))]


def load(folder: Path) -> Any:
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any, family: str) -> torch.Tensor:
    with torch.no_grad():
        return model(**prompt_inputs(build_processor(family), "Is there a dog?", random_image(seed=3))).logits


@pytest.mark.parametrize("family", FAMILY_CASES)
def test_merged_logits_are_the_adapter_s(family: str, tuned: Callable[[str], Tuned], tmp_path: Path) -> None:
    """Against peft's own reading of the adapter; every file beside the weights is the base's, byte for byte."""
    from peft import PeftModel

    parts = tuned(family)
    assert main(words(tmp_path, family, parts)) == 0
    merged = tmp_path / "merged"
    with_adapter = logits(PeftModel.from_pretrained(load(parts.base), parts.adapter).eval(), family)
    merged_logits = logits(load(merged), family)
    assert torch.allclose(merged_logits, with_adapter, atol=1e-5, rtol=1e-5)  # they reach 20
    merged_by_peft = PeftModel.from_pretrained(load(parts.base), parts.adapter).merge_and_unload().eval()
    assert torch.allclose(merged_logits, logits(merged_by_peft, family), atol=1e-6)
    assert (with_adapter - logits(load(parts.base), family)).abs().max() > 1e-3

    assert json.loads((merged / "config.json").read_text())[LAMBDA_KEY] == LAM
    for file in parts.base.iterdir():
        if file.name not in ("model.safetensors", "config.json.bak", ".config.json.lock"):
            assert (merged / file.name).read_bytes() == file.read_bytes(), file.name
    AutoProcessor.from_pretrained(merged)
    before, after = load_file(parts.base / "model.safetensors"), load_file(merged / "model.safetensors")
    assert list(before) == list(after)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("language_model" in name or name.startswith("model.layers") for name in changed)


def test_shards_and_another_layout(tuned: Callable[[str], Tuned], tmp_path: Path) -> None:
    """A base whose keys are spelled as another transformers spells them; files as small as asked for."""
    parts = tuned("llava")
    base = tmp_path / "base"
    shutil.copytree(parts.base, base)
    tensors = load_file(base / "model.safetensors")
    other = {
        name.replace("language_model.model.", "model.language_model.")
        .replace("language_model.lm_head", "lm_head")
        .replace("vision_tower", "model.vision_tower")
        .replace("multi_modal", "model.multi_modal"): value
        for name, value in tensors.items()
    }
    assert other.keys() != tensors.keys()
    save_file(other, base / "model.safetensors", metadata={"format": "pt"})
    assert main(words(tmp_path, "llava", Tuned(base, parts.adapter), export_size=1e-4)) == 0
    merged = tmp_path / "merged"
    files = sorted(merged.glob("*.safetensors"))
    assert len(files) > 2
    index = json.loads((merged / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == other.keys()
    assert set(index["weight_map"].values()) == {file.name for file in files}
    whole = tmp_path / "whole"
    assert main(words(tmp_path, "llava", parts, export_dir=str(whole))) == 0
    assert torch.equal(logits(load(merged), "llava"), logits(load(whole), "llava"))


def test_weights_are_stored_as_wide_as_the_model_computes(tuned: Callable[[str], Tuned], tmp_path: Path) -> None:
    """A base stored in float16 and computed in float32 (as the embedded model): what changes keeps its precision."""
    parts = tuned("qwen2_5_vl")
    base = tmp_path / "base"
    shutil.copytree(parts.base, base)
    half = {name: value.half() for name, value in load_file(base / "model.safetensors").items()}
    save_file(half, base / "model.safetensors", metadata={"format": "pt"})
    assert main(words(tmp_path, "qwen2_5_vl", Tuned(base, parts.adapter))) == 0
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    kinds = {value.dtype for value in merged.values()}
    assert kinds == {torch.float16, torch.float32}
    assert all(torch.equal(half[name], value) for name, value in merged.items() if value.dtype == torch.float16)


def test_twice(tuned: Callable[[str], Tuned], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = words(tmp_path, "qwen2_5_vl", tuned("qwen2_5_vl"))
    assert main(command) == 0
    assert "lambda 0.5" in capsys.readouterr().out
    assert main(command) == 0
    assert "holds this merged checkpoint already" in capsys.readouterr().out
    assert main([*command, "export_size=1"]) == 2
    assert "export_size is 5000000000.0 there and 1000000000.0 now" in capsys.readouterr().err


# --- lambda --------------------------------------------------------------------------------------------------------


def test_a_lost_key_is_a_warning(
    tuned: Callable[[str], Tuned], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest of our training says the lambda; without it, the model that the adapter names does."""
    parts = tuned("qwen2_5_vl")
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(parts.base, base)
    shutil.copytree(parts.adapter, adapter, ignore=shutil.ignore_patterns("checkpoint-*"))
    assert main(["set-lambda", str(base), "--remove"]) == 0
    for source in ("training.manifest.json", "base/config.json"):
        capsys.readouterr()
        assert main(["check-recipe", *words(tmp_path, "qwen2_5_vl", Tuned(base, adapter))[1:]]) == 0
        said = capsys.readouterr().out
        assert f"the adapter was trained with lambda 0.5 ({'its ' if 'manifest' in source else ''}" in said
        assert source in said
        assert "would run without AGCI" in said
        (adapter / "training.manifest.json").unlink(missing_ok=True)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    assert main(words(tmp_path, "qwen2_5_vl", Tuned(base, adapter))) == 0
    assert "nothing says with which lambda the adapter was trained" in capsys.readouterr().err
    assert LAMBDA_KEY not in json.loads((tmp_path / "merged" / "config.json").read_text())


def test_another_lambda_is_a_warning(
    tuned: Callable[[str], Tuned], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = tuned("qwen2_5_vl")
    shutil.copytree(parts.base, tmp_path / "base")
    assert main(["set-lambda", str(tmp_path / "base"), "1"]) == 0
    assert main(words(tmp_path, "qwen2_5_vl", Tuned(tmp_path / "base", parts.adapter))) == 0
    assert "says lambda 1, but the adapter was trained with 0.5" in capsys.readouterr().err


# --- bad input -----------------------------------------------------------------------------------------------------


def test_bad_input_is_one_sentence(
    tuned: Callable[[str], Tuned], tiny_checkpoint: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = tuned("qwen2_5_vl")
    empty = tmp_path / "empty"
    empty.mkdir()
    cases: dict[str, dict[str, Any]] = {
        "without one there is nothing to merge": {"adapter_name_or_path": None},
        "There is no adapter folder": {"adapter_name_or_path": str(tmp_path / "nowhere")},
        "no finished adapter in it": {"adapter_name_or_path": str(empty)},
        "take qwen2_vl": {"template": "llava"},
        "is the folder of the base checkpoint": {"export_dir": str(parts.base)},
        "export_legacy_format is true": {"export_legacy_format": True},
        "does not know the key export_sise; did you mean export_size?": {"export_sise": 3},
    }
    for what, changes in cases.items():
        assert main(words(tmp_path, "qwen2_5_vl", parts, **changes)) == 2, what
        assert what in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


def test_a_quantized_base(tuned: Callable[[str], Tuned], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = tuned("qwen2_5_vl")
    base = tmp_path / "base"
    shutil.copytree(parts.base, base)
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.0.self_attn.q_proj.weight"))
    for dtype, spelled in ((torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")):
        save_file(weights | {name: weights[name].to(dtype)}, base / "model.safetensors", metadata={"format": "pt"})
        assert main(words(tmp_path, "qwen2_5_vl", Tuned(base, parts.adapter))) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert f"holds {name} as {spelled}, and adapters are not merged into quantized checkpoints" in said


def test_an_adapter_that_is_not_a_number(
    tuned: Callable[[str], Tuned], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = tuned("qwen2_5_vl")
    adapter = tmp_path / "adapter"
    shutil.copytree(parts.adapter, adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    weights[name][0, 0] = float("nan")
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    assert main(words(tmp_path, "qwen2_5_vl", Tuned(parts.base, adapter))) == 2
    assert "infinite or not a number" in capsys.readouterr().err
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("other", ["llava", "qwen3_vl"])
def test_adapter_of_another_family(
    other: str,
    tuned: Callable[[str], Tuned],
    tiny_checkpoint: Checkpoints,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A tiny LLaVA has other shapes in no layer that counts; a layer too many or of another shape gives it away."""
    base = tmp_path / "base"
    shutil.copytree(tiny_checkpoint(other), base)
    tensors = load_file(base / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.3.mlp.up_proj.weight"))
    for changed, what in ((None, "which the checkpoint does not have"), (tensors[name][1:], "63x32 in the checkpoint")):
        content = {key: value for key, value in tensors.items() if key != name}
        content |= {} if changed is None else {name: changed.contiguous()}
        save_file(content, base / "model.safetensors", metadata={"format": "pt"})
        parts = Tuned(base, tuned("qwen2_5_vl").adapter)
        assert main(words(tmp_path, other, parts)) == 2
        said = capsys.readouterr().err
        assert "was not trained on" in said
        assert what in said
        assert "It says that it belongs to" in said
    assert not (tmp_path / "merged").exists()


def test_after_a_kill(
    tuned: Callable[[str], Tuned], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed merge left is room for the next one, which takes it away; two at a time are refused."""
    command = words(tmp_path, "qwen2_5_vl", tuned("qwen2_5_vl"))
    left = tmp_path / ".merged.unfinished"
    left.mkdir()
    (left / "model.safetensors").write_bytes(bytes(2 * 10**6))
    with exclusive_lock(tmp_path / "merged", "testing"):
        assert main(command) == 2
    assert "Another program is merging into" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(merge.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 9, 9))
        assert main(command) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merge.yaml", "merged"]
    assert len(load_file(tmp_path / "merged" / "model.safetensors")) > 1


def test_no_room(
    tuned: Callable[[str], Tuned], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little room is seen before anything is written; a disk that fills up leaves nothing behind."""
    command = words(tmp_path, "qwen2_5_vl", tuned("qwen2_5_vl"))
    with monkeypatch.context() as patch:
        patch.setattr(merge.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 9, 9))
        assert main(command) == 2
    assert "GB are free there; make room" in capsys.readouterr().err

    def full(*args: Any, **kwargs: Any) -> None:
        Path(args[1]).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(merge, "save_file", full)
        assert main(command) == 2
    assert "became full while the merged checkpoint" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["merge.yaml"]
    assert main(command) == 0
