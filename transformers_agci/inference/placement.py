"""Where a model's weights go and in which type: devices, each process's own GPU, 4 bits, or shapes alone."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers_agci.errors import InputError
from transformers_agci.inference.process_group import local_rank, rank_and_size, started_by_torchrun

if TYPE_CHECKING:
    from transformers_agci.inference.load import LoadOptions


def dtype_of(options: "LoadOptions", folder: Path, torch: Any) -> Any:
    """The dtype asked for; auto: the checkpoint's own, but float32 for float16 on a CPU, which is 5 times faster, and
    bfloat16 for what 4-bit quantization leaves.
    """
    if options.dtype == "auto" and options.load_in_4bit:
        return torch.bfloat16
    if options.dtype != "auto":
        return getattr(torch, options.dtype)
    from transformers import AutoConfig

    own = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False).dtype
    return torch.float32 if own == torch.float16 and device_of(options).type == "cpu" else "auto"


def placement_of(folder: Path, options: "LoadOptions", torch: Any) -> dict[str, Any]:
    """device_map and quantization for from_pretrained."""
    cuda = torch.cuda.is_available()
    if options.device_map is not None and options.device is not None:
        raise InputError("`device_map` spreads the model over devices, `device` puts it on one: give only one of them.")
    placed: dict[str, Any] = {}
    if options.load_in_4bit:
        placed["quantization_config"] = _four_bit(folder, options, torch)
    if options.device_map is not None:
        _check_one_process(options.device_map)
        _need("accelerate", "`device_map`")
        return placed | {"device_map": options.device_map}
    device = device_of(options)
    if device.type == "cuda":
        if not cuda:
            raise InputError(f"`device` {device} was asked for, but PyTorch finds no GPU here; give `device` cpu.")
        _check_own_gpu(device)
        _check_number(device, torch.cuda.device_count())
        torch.cuda.set_device(device)  # what is made on "cuda" without a number belongs to this process's GPU
    if device.type == "cpu" and not options.load_in_4bit:
        return placed  # works without accelerate
    _need("accelerate", f"`device` {device}")
    return placed | {"device_map": {"": device}}


def device_of(options: "LoadOptions") -> Any:
    """The device that was asked for, else this process's GPU, else the CPU; "cuda" is this process's GPU, too."""
    import torch

    own = f"cuda:{local_rank()}"
    wanted = options.device or (own if torch.cuda.is_available() else "cpu")
    wanted = own if wanted == "cuda" else wanted
    try:
        return torch.device(wanted)
    except RuntimeError as error:
        raise InputError(f"`device` {wanted!r} is not one that PyTorch knows; give cpu, cuda or cuda:1.") from error


def _check_number(device: Any, count: int) -> None:
    """InputError where there is no GPU with this number: more processes than GPUs, or a number that is too large."""
    if device.index is None or device.index < count:
        return
    rank = local_rank()
    if started_by_torchrun() and device.index == rank:
        raise InputError(
            f"This is process {rank} of torchrun on this machine and would take GPU {rank}, but there are {count} "
            f"(0 to {count - 1}): start {count} processes (--nproc_per_node {count})."
        )
    raise InputError(f"`device` {device} was asked for, but there are {count} GPUs here (0 to {count - 1}).")


def _check_one_process(device_map: str) -> None:
    """InputError under torchrun: every process would spread its model over the GPUs of all."""
    size = rank_and_size()[1]
    if size > 1:
        raise InputError(
            f"`device_map` {device_map} gives one process all GPUs, but torchrun has started {size}, each with a GPU "
            "of its own: omit `device_map`, or start one process."
        )


def _check_own_gpu(device: Any) -> None:
    """InputError under torchrun for a GPU with a number: the processes of a machine would share it."""
    size, own = rank_and_size()[1], local_rank()
    if size > 1 and device.index not in (None, own):
        raise InputError(
            f"`device` {device} is one GPU for all, but torchrun has started {size} processes, and this one has GPU "
            f"{own}: give `device` cuda, or omit it."
        )


def _four_bit(folder: Path, options: "LoadOptions", torch: Any) -> Any:
    """The decoder in nf4, computed in bfloat16. What sees the image stays as it is: it is small beside the decoder,
    and the experiments measure what it does to single places of the image.
    """
    if not torch.cuda.is_available():
        raise InputError("`load_in_4bit` needs a GPU, and PyTorch finds none here.")
    _need("bitsandbytes", "`load_in_4bit`")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype_of(options, folder, torch),
        llm_int8_skip_modules=_not_quantized(shape_of(folder, options)),  # its name says int8; it is for both
    )


def _not_quantized(model: Any) -> list[str]:
    """The full names of the vision side's modules and of the output matrix."""
    from transformers_agci.families import decoder_of, find_vlm
    from transformers_agci.method.hooks import vision_modules

    vlm = find_vlm(model)
    head = model.get_output_embeddings()  # Nemotron-H Omni's is its decoder's
    kept = [*vision_modules(vlm), decoder_of(vlm).get_output_embeddings() if head is None else head]
    return [name for name, module in model.named_modules() if any(module is one for one in kept)]


def _need(package: str, option: str) -> None:
    if find_spec(package) is None:
        raise InputError(f"{option} needs the package {package}: pip install {package}.")


def shape_of(folder: Path, options: "LoadOptions") -> Any:
    """The model on the meta device: its parameters have shapes and no storage."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    dtype = dtype_of(options, folder, torch)
    dtype = config.dtype if dtype == "auto" else dtype
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype or torch.float32)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return model.eval()
