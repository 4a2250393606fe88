"""A processor's tensors where the model is."""

from collections.abc import Mapping

import torch

from transformers_agci.inference.load import LoadedModel


def on_device(loaded: LoadedModel, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs on the model's device, pixels in its dtype."""
    dtype = loaded.model.dtype
    return {
        name: value.to(loaded.device, dtype if value.is_floating_point() else value.dtype)
        for name, value in inputs.items()
    }
