"""Lets a CUDA build of torchvision be imported beside a CPU torch: its operators are declared, none is ever called.

`make vllm-env` copies this file and the .pth beside it into the check environment of vLLM.
"""

import sys
from typing import Any

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class Finder:
    """Declares the operators when torchvision is first imported, and leaves finding it to the others."""

    library = None  # a Library takes its declarations back when it is collected

    def find_spec(self, name: Any, path: Any = None, target: Any = None) -> None:
        if name == "torchvision" and Finder.library is None:
            import torch

            Finder.library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                Finder.library.define(operator)


sys.meta_path.insert(0, Finder())
