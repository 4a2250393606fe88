"""A note on each item of a request whether it is an image, for models that are given images and pieces of videos alike.

Kimi K2.5 takes both as `vision_chunk`, and a piece that is a single frame has the shape of an image. The process that
prepares requests still knows which is which; vLLM caches what it prepares item by item, the note with the pixels:

    request    [{"type": "image", ...}, {"type": "video_chunk", ...}]
    prepared   pixel_values, grid_thws, agci_is_image [True, False]
    the model  injects the first (injection.py); without the note it is an error
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from transformers_agci.vllm.injection import IMAGE_MARK


def marking(factories: Any, modality: str) -> Any:
    """vLLM's makers of a model's processor, so that it writes the note."""
    from vllm.multimodal.inputs import MultiModalFieldConfig

    base: Any = factories.processor

    class Marking(base):  # type: ignore[misc]
        def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
            prepared = super()._apply_hf_processor_main(mm_items, hf_kwargs)
            if modality in mm_items:
                kinds = [item["type"] for item in mm_items[modality].get_all()]
                prepared[IMAGE_MARK] = torch.tensor([kind == "image" for kind in kinds])
            return prepared

        def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
            stock = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
            return {**stock, IMAGE_MARK: MultiModalFieldConfig.batched(modality, keep_on_cpu=True)}

    return dataclasses.replace(factories, processor=Marking)
