"""The flow of one question about one image: drawn over the image, and as JSON."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from transformers_agci.data.probe_rows import PROMPT
from transformers_agci.experiments.flow.flow import Flow, layers_text
from transformers_agci.experiments.flow.maps import SOURCES
from transformers_agci.method.lam import lambda_text
from transformers_agci.report.overlay import Overlay, overlay_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 1000  # pixels: a larger image is drawn at this size
LABEL = "attention per area of the image (1: all attention, evenly spread)"


def density(flow: Flow, source: str, width: int, height: int) -> np.ndarray:
    """[height, width]: attention per share of the image's area. Its mean is the attention that the image gets."""
    return flow.layout.rasterize(flow.of(source), height, width).numpy() * (width * height)


def image_flow_figure(flows: Sequence[Flow], source: str, image: Image.Image, question: str) -> "Figure":
    """The image, and over it the flow at every lambda on one scale from zero, each with its answer and its range."""
    shown = image.copy()
    shown.thumbnail((LARGEST, LARGEST))
    overlays = []
    for flow in flows:
        values = density(flow, source, *shown.size)
        note = (
            f"answer: {flow.prediction}\n{100 * float(flow.of(source).sum()):.1f} % of the attention is on the image\n"
            f"per area: {values.min():.3g} to {values.max():.3g}"
        )
        overlays.append(Overlay(values, _name(flow.lam), note))
    return overlay_figure(
        shown,
        overlays,
        label=LABEL,
        title=headline(question),
        footnote=f"from {SOURCES[source]}, {layers_text(flows[0].layers)}, mean over heads; n = 1, so no interval",
    )


def headline(question: str) -> str:
    """What a figure is headed by: the caption where the question is the probe's, else the question.

    >>> headline(PROMPT.format(caption="a dog on a beach"))
    'Is it in the image? a dog on a beach'
    """
    before, after = PROMPT.split("{caption}")
    if question.startswith(before) and question.endswith(after):
        return f"Is it in the image? {question[len(before) : len(question) - len(after)]}"
    return question


def _name(lam: float) -> str:
    return "baseline" if lam == 0 else f"AGCI, lambda {lambda_text(lam)}"


def as_json(flows: Sequence[Flow], image: str, question: str) -> dict[str, Any]:
    """All numbers: per lambda the answer, and per grid of tokens its place on the image and the flows."""
    return {
        "image": image,
        "question": question,
        "layers": list(flows[0].layers),
        "flows": [
            {
                "lambda": flow.lam,
                "prediction": flow.prediction,
                "on_picture": {source: float(flow.of(source).sum()) for source in SOURCES},
                "grids": [
                    {"part": list(grid.region), **{source: grid.values(flow.of(source)).tolist() for source in SOURCES}}
                    for grid in flow.layout.grids
                ],
            }
            for flow in flows
        ],
    }
