"""LoRA on the language model: which layers get an adapter, and how it is made."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from transformers_agci.errors import InputError
from transformers_agci.families import decoder_of, family_of, find_vlm, require
from transformers_agci.training.recipe import Recipe

ALL = "all"


def with_lora(model: Any, recipe: Recipe) -> Any:
    """The model with a new adapter in its language model; everything else is frozen. peft's wrapper is returned."""
    from peft import LoraConfig, get_peft_model

    rank = recipe["lora_rank"]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=recipe["lora_alpha"] or 2 * rank,
        lora_dropout=recipe["lora_dropout"],
        use_rslora=recipe["use_rslora"],
        target_modules=target_layers(model, recipe["lora_target"]),
    )
    config.base_model_name_or_path = recipe["model_name_or_path"]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)  # peft's own
        return get_peft_model(model, config)


def target_layers(model: Any, wanted: Sequence[str]) -> list[str]:
    """Full names of the language model's linear layers that `lora_target` means: "all", or ends of names (up_proj,
    mlp.up_proj).

    Raises InputError for a name that no linear layer of the language model has.
    """
    vlm: Any = find_vlm(model)
    prefix = next(name for name, module in model.named_modules() if module is decoder_of(vlm))
    layers = [
        f"{prefix}.{name}" for name, module in decoder_of(vlm).named_modules() if isinstance(module, torch.nn.Linear)
    ]
    kinds = sorted({layer.rpartition(".")[2] for layer in layers})
    if list(wanted) == [ALL]:
        family = family_of(model)
        support = require(family, "training", family.training)
        require(family, "lora_on_all_layers", support.lora_on_all_layers)
        return layers
    meant = {word: [layer for layer in layers if layer.endswith(f".{word}")] for word in wanted}
    unknown = next((word for word in wanted if not meant[word]), None)
    if unknown is not None:
        raise InputError(
            f"lora_target: the language model has no linear layer {unknown!r}; it has: {', '.join(kinds)} (or all)."
        )
    return [layer for layer in layers if any(layer in named for named in meant.values())]
