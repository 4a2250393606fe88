"""Loading: processor, image size, devices, processes with and without a GPU, four bits, threads."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import spoilt_checkpoint
import torch
from spoilt_checkpoint import refuse

from transformers_agci.errors import InputError
from transformers_agci.inference.load import LoadOptions, load

folder = spoilt_checkpoint.folder  # fixture


def test_a_processor_that_is_not_there(folder: Path) -> None:
    for file in ("processor_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink(missing_ok=True)
    refuse(folder, "processor")


def test_no_chat_template(folder: Path) -> None:
    for file in folder.glob("chat_template*"):
        file.unlink()
    for file in ("processor_config.json", "tokenizer_config.json"):
        if (folder / file).exists():
            content = json.loads((folder / file).read_text())
            content.pop("chat_template", None)
            (folder / file).write_text(json.dumps(content))
    refuse(folder, "no chat template")


def test_the_image_size_can_be_pinned_where_the_family_has_one(
    folder: Path, tiny_checkpoint: Callable[[str], Path]
) -> None:
    from tiny_checkpoints import prompt_inputs, random_image

    refuse(folder, "does not support bounds on the size of its images", max_pixels=1000)
    qwen = str(tiny_checkpoint("qwen2_5_vl"))
    refuse(qwen, "0 < min_pixels <= max_pixels", min_pixels=10_000, max_pixels=5_000)
    loaded = load(LoadOptions(qwen, max_pixels=28 * 28 * 9))
    tokens = prompt_inputs(loaded.processor, "Is it?", random_image(0, 300, 300))["input_ids"]
    assert int((tokens == loaded.model.config.image_token_id).sum()) == 9
    assert loaded.identity["pictures"]["size"]["longest_edge"] == 28 * 28 * 9


def test_devices(folder: Path) -> None:
    refuse(folder, "give only one", device="cpu", device_map="auto")
    refuse(folder, "not one that PyTorch knows", device="abacus")
    refuse(folder, "is a folder", revision="main")
    refuse(folder, "finds no GPU", device="cuda")
    refuse(folder, "needs a GPU", load_in_4bit=True)
    assert load(LoadOptions(str(folder), device_map="auto")).device.type == "cpu"


def test_every_process_of_a_torchrun_has_its_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the device being set, what is made on "cuda" lands on the first GPU for all processes."""
    from transformers_agci.inference import placement

    chosen: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: chosen.append(str(device)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_RANK", "3")
    for device in (None, "cuda", "cuda:1"):
        placed = placement.placement_of(folder, LoadOptions(str(folder), device=device), torch)
        assert str(placed["device_map"][""]) == chosen[-1]
    assert chosen == ["cuda:3", "cuda:3", "cuda:1"]
    placement.placement_of(folder, LoadOptions(str(folder), device="cpu"), torch)
    assert len(chosen) == 3


def test_one_gpu_is_not_for_all_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers_agci.inference import placement

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    for name, value in {"WORLD_SIZE": "4", "RANK": "1", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"cuda:0 is one GPU for all, but torchrun has started 4 processes"):
        placement.placement_of(folder, LoadOptions(str(folder), device="cuda:0"), torch)
    for device in (None, "cuda", "cuda:1"):
        assert placement.placement_of(folder, LoadOptions(str(folder), device=device), torch)


def test_a_vision_that_is_none_of_ours_is_refused(folder: Path) -> None:
    refuse(folder, "`vision` must be auto or stock, but is 'sotck'", vision="sotck")


def test_a_process_without_a_gpu_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise CUDA's own "invalid device ordinal" ends it, with a traceback."""
    from transformers_agci.inference import placement

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: pytest.fail(f"took {device}"))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match=r"process 2 of torchrun .* there are 2 \(0 to 1\): start 2 processes"):
        placement.placement_of(folder, LoadOptions(str(folder)), torch)
    with pytest.raises(InputError, match=r"`device` cuda:7 was asked for, but there are 2 GPUs"):
        placement.placement_of(folder, LoadOptions(str(folder), device="cuda:7"), torch)


def test_a_device_map_is_for_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    refuse(folder, "gives one process all GPUs, but torchrun has started 2", device_map="auto")


def test_the_dtype_beside_four_bits_is_recorded(folder: Path) -> None:
    """A file made with another one does not go on."""
    from transformers_agci.inference.load import _model_identity

    model = SimpleNamespace(dtype=torch.float16, config=SimpleNamespace(_attn_implementation="sdpa"))
    found = _model_identity(model, LoadOptions(str(folder), load_in_4bit=True), torch.device("cuda"))
    assert (found["dtype"], found["quantization"]) == ("float16", "4bit nf4, vision and output matrix in float16")


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next", "internvl"])
def test_four_bits_leave_what_sees_the_image(
    family: str, tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.quantizers.quantizers_utils import should_convert_module

    from transformers_agci.inference import placement

    folder = tiny_checkpoint(family)
    options = LoadOptions(str(folder), load_in_4bit=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("transformers_agci.inference.placement.find_spec", lambda name, package=None: object())
    monkeypatch.setattr("transformers.utils.quantization_config.is_bitsandbytes_available", lambda: True, raising=False)
    monkeypatch.setattr("transformers.BitsAndBytesConfig.post_init", lambda self: None)
    found = placement._four_bit(folder, options, torch)
    assert (found.bnb_4bit_quant_type, found.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)
    assert placement.dtype_of(options, folder, torch) == torch.bfloat16
    model = placement.shape_of(folder, options)
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    quantized = {name for name in linear if should_convert_module(name, found.llm_int8_skip_modules)}
    assert quantized == {name for name in linear if "language_model" in name}
    assert quantized


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers_agci.inference.placement.find_spec", lambda name, package=None: None)
    refuse(folder, "`device_map` needs the package accelerate: pip install accelerate", device_map="auto")


def test_one_thread_unless_the_environment_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers_agci.inference.load import one_thread_on_cpu

    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    one_thread_on_cpu()
    monkeypatch.delenv("OMP_NUM_THREADS")
    one_thread_on_cpu()
    assert asked == [1]


def test_without_a_network_the_hubs_client_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would try again for half a minute; a hub id that lies in the cache serves all the same."""
    asked = []

    def no_network(*_: object) -> None:
        raise OSError("Name or service not known")

    def cached(model: str, **options: object) -> str:
        asked.append((model, options["local_files_only"]))
        raise FileNotFoundError(model)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.snapshot_download", cached)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"nobody/nothing is neither .* and the hub cannot be reached"):
        load(LoadOptions("nobody/nothing"))
    assert asked == [("nobody/nothing", True)]


@pytest.mark.gpu
@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="no bitsandbytes")
@pytest.mark.parametrize("dtype", ["auto", "float16"])
def test_four_bits_on_a_gpu(dtype: str, tmp_path: Path) -> None:
    """The decoder's matrices and nothing else are nf4, what sees the image and the output matrix have the dtype, and
    the model answers.
    """
    from transformers_agci.cli import main
    from transformers_agci.embedded.location import embedded_model_path

    wanted = "float16" if dtype == "float16" else "bfloat16"
    loaded = load(LoadOptions(str(embedded_model_path()), dtype=dtype, load_in_4bit=True))
    quantized = {name: module for name, module in loaded.model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert quantized
    assert all(".language_model.layers." in f".{name}" for name in quantized)
    assert {module.weight.quant_type for module in quantized.values()} == {"nf4"}
    assert {module.compute_dtype for module in quantized.values()} == {getattr(torch, wanted)}
    kept = {parameter.dtype for parameter in loaded.model.model.visual.parameters()}
    assert kept == {getattr(torch, wanted)} == {loaded.model.get_output_embeddings().weight.dtype}
    assert loaded.identity["quantization"] == f"4bit nf4, vision and output matrix in {wanted}"
    answers = tmp_path / "A.jsonl"
    asked = ["probe", "--items", "1", "--global_context_lambda", "0.5", "--answer_file", str(answers)]
    assert main([*asked, "--load_in_4bit", "--dtype", dtype]) == 0
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert len(rows) == 18
    assert {row["prediction"] for row in rows} <= {"Yes", "No"}
