"""A model that is in memory already (attached, with LoRA, quantised, in the middle of training) as a LoadedModel."""

import copy
import hashlib
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from transformers_agci.errors import InputError
from transformers_agci.families import family_of, find_vlm
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.processor import processor_identity, ready_processor
from transformers_agci.inference.quick import ALL, OF_THE_MODEL, recorded
from transformers_agci.method.lam import LAMBDA_KEY

FINGERPRINT = "live_weights_sha256"  # in the identity of a live model
UNCHANGED = "a model that is in memory is used as it is"
SAMPLED = 4096  # values of each tensor that its fingerprint looks at


def live_model(model: Any, processor: Any) -> LoadedModel:
    """The model as it is, never changed; the processor is copied, since answering pads on the left.

    The identity in a manifest is a fingerprint of a sample of the weights: a run in a folder is not continued with a
    model that was trained in between. Raises InputError for a model of no supported family, and a processor without
    tokenizer, image processor or chat template.
    """
    family = family_of(model)
    ready = ready_processor(_copied(processor), "the processor")
    now = _state_of(model)
    identity = {**now, **processor_identity(ready)}
    lam = _lambda_of(model)
    device = torch.device(model.device)
    quick = ALL - set(OF_THE_MODEL)  # nothing is put on its layers
    notes = {
        "model": f"{type(model).__name__} in memory",
        "lambda_in_config": lam,
        "vision_attention_because": UNCHANGED,
        "patch_embedding_because": UNCHANGED,
        **recorded(quick, device.type),
    }
    return LoadedModel(model, ready, family, device, identity, notes, lam, quick)


def as_it_is_now(loaded: LoadedModel) -> LoadedModel:
    """A live model's current record of weights and lambda: it may have been trained or set since it was wrapped."""
    if FINGERPRINT not in loaded.identity:
        return loaded
    lam = _lambda_of(loaded.model)
    return replace(
        loaded,
        device=torch.device(loaded.model.device),
        identity={**loaded.identity, **_state_of(loaded.model)},
        notes={**loaded.notes, "lambda_in_config": lam},
        lam=lam,
    )


def _lambda_of(model: Any) -> Any:
    return vars(find_vlm(model).config).get(LAMBDA_KEY)


def _state_of(model: Any) -> dict[str, Any]:
    return {
        "family": family_of(model).model_type,
        FINGERPRINT: fingerprint(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": getattr(model.config, "_attn_implementation", None),
        "quantization": type(quantized).__name__ if (quantized := _quantization(model)) is not None else None,
        "device": torch.device(model.device).type,
        "vision_attention": "stock",
        "patch_embedding": "stock",
    }


def fingerprint(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and up to 4,096 evenly spread values of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            continue
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].contiguous().cpu()
        digest.update(sample.view(torch.uint8).numpy().tobytes() if sample.numel() else b"")
    return digest.hexdigest()


def _copied(processor: Any) -> Any:
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise InputError(
            f"The processor must be one for text and images, as AutoProcessor gives it, but is a "
            f"{type(processor).__name__}."
        )
    copied = copy.copy(processor)
    copied.tokenizer = copy.deepcopy(processor.tokenizer)
    return copied


def _quantization(model: Any) -> Any:
    return getattr(model.config, "quantization_config", None)
