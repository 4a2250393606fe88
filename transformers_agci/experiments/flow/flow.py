"""Information flow (the paper's case study): what the text after the image attends to, laid back onto the image.

Two flows are measured at pre-fill, each one number per image token, averaged over heads and chosen layers: from all
text after the image (mean over its tokens), and from the answer's position (the last one, which predicts the answer).
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from transformers_agci.errors import InputError
from transformers_agci.experiments.defaults import FLOW_LAYERS, FLOW_TOKENS
from transformers_agci.experiments.flow.attention_rows import AttentionRows
from transformers_agci.experiments.flow.maps import SOURCES
from transformers_agci.families import decoder_of, find_vlm, image_token_id, require
from transformers_agci.families.token_layout import ImageInfo, TokenLayout, token_layout
from transformers_agci.inference.answer import Answerer
from transformers_agci.inference.host_values import host_values
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import to_device
from transformers_agci.inference.prompt import chat_text, refusal_named, tokenize
from transformers_agci.inference.questions import Question, up_to
from transformers_agci.method.attach import agci
from transformers_agci.method.lam import lambda_text


@dataclass(frozen=True)
class Flow:
    """One image, one question, one lambda.

    text, answer  [N] attention to each image token, from all text after the image and from the answer's position;
                  a flow that looked at nothing but the image would sum to 1
    """

    lam: float
    prediction: str
    layers: tuple[int, ...]
    text: torch.Tensor = field(repr=False)
    answer: torch.Tensor = field(repr=False)
    layout: TokenLayout = field(repr=False)

    @property
    def in_words(self) -> str:
        """The answer, and the share of the attention that is on the image."""
        shares = ", ".join(
            f"{100 * float(self.of(source).sum()):.1f} % of the attention from {words} is on the image"
            for source, words in SOURCES.items()
        )
        return f"lambda {lambda_text(self.lam)}: {self.prediction!r}; {shares}"

    def of(self, source: str) -> torch.Tensor:
        """The flow from "text" or "answer"."""
        return {"text": self.text, "answer": self.answer}[source]


def measure_flow(
    loaded: LoadedModel,
    question: Question,
    lambdas: Sequence[float],
    layers: str = FLOW_LAYERS,
    max_new_tokens: int = FLOW_TOKENS,
) -> list[Flow]:
    """The flows of one question about one image, at every lambda.

    layers  "all", one ("14"), or a range ("8-20"), counted from 0
    Raises InputError for a question without exactly one image, and for layers that the model does not have.
    """
    if len(question.images) != 1:
        raise InputError(
            f"{question.where}: information flow needs exactly one image, but there are {len(question.images)}."
        )
    for capability in ("layout", "flow"):
        require(loaded.family, capability, getattr(loaded.family, capability))
    chosen = parse_layers(layers, layer_count(loaded.model))
    image = question.images[0].open()
    with refusal_named(question.where):
        prompt = tokenize(loaded.processor, [chat_text(loaded.processor, question)], [[image]])
    columns = _image_columns(prompt["input_ids"][0], image_token_id(find_vlm(loaded.model).config), question.where)
    layout = _layout(loaded, prompt, image.size, len(columns))
    rows = range(columns.stop, prompt["input_ids"].shape[1])
    inputs = to_device(loaded, prompt)
    answerer = Answerer(loaded.model, loaded.processor)
    flows = []
    for lam in lambdas:
        with agci(loaded.model, lam), host_values(loaded) or contextlib.nullcontext():
            answer = answerer.answer(inputs, up_to(max_new_tokens))[0]
            if answer.not_a_number:
                raise InputError(f"{question.where}: the model gives logits that are not numbers; try `dtype` float32.")
            with AttentionRows(loaded.model, chosen, rows, columns) as recorded, torch.inference_mode():
                loaded.model(**inputs, logits_to_keep=1)
        mean = recorded.weights.mean(dim=0)  # [rows, N]
        flows.append(Flow(lam, answer.text, tuple(chosen), mean.mean(dim=0), mean[-1], layout))
    return flows


def _layout(loaded: LoadedModel, prompt: Mapping[str, Any], size: tuple[int, int], tokens: int) -> TokenLayout:
    """How the prompt's one image, of `size` pixels (width, height), lies under its tokens."""
    grid = prompt["image_grid_thw"][0].tolist() if "image_grid_thw" in prompt else None
    image = ImageInfo(*size, tokens, loaded.model.config, loaded.processor.image_processor, grid)
    return token_layout(loaded.family, image)


def _image_columns(ids: torch.Tensor, image_token_id: int, where: str) -> range:
    places = (ids == image_token_id).nonzero().flatten().tolist()
    if not places or places[-1] - places[0] + 1 != len(places):
        raise InputError(
            f"{where}: the prompt's image tokens do not stand together; give one image and a text without image tokens."
        )
    return range(places[0], places[-1] + 1)


def layer_count(model: Any) -> int:
    """How many layers the decoder has."""
    decoder: Any = decoder_of(find_vlm(model))
    return len(decoder.layers)


def layers_text(layers: Sequence[int]) -> str:
    """The layers in words.

    >>> layers_text([3]), layers_text([0, 1, 2])
    ('layer 3', 'layers 0-2')
    """
    return f"layer {layers[0]}" if len(layers) == 1 else f"layers {layers[0]}-{layers[-1]}"


def parse_layers(text: str, count: int) -> list[int]:
    """Read "all", "14" or "8-20" (both ends included) for a decoder of `count` layers.

    >>> parse_layers("2-4", 6), parse_layers("5", 6)
    ([2, 3, 4], [5])
    """
    if text == "all":
        return list(range(count))
    first, _, last = text.partition("-")
    last = last or first
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last) < count):
        raise InputError(
            f"`layers` must be all, one layer or a range such as 0-{count - 1}, within 0 to {count - 1} "
            f"for this model, but is {text!r}."
        )
    return list(range(int(first), int(last) + 1))
