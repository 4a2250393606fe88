"""The plain loop, which every figure is compared with: one question at a time, as the published scripts ask them.

Open the image, run the processor, generate; stock transformers with AGCI attached. Exactly two new tokens, what a
real Yes or No answer takes (the published script allows 128; a ratio to that is never printed).
"""

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from split import Split

from transformers_agci import agci
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prompt import chat_text
from transformers_agci.inference.questions import Question


def plain_loop(
    loaded: LoadedModel,
    asked: Sequence[Question],
    lambdas: Sequence[float],
    split: Split | None = None,
    at_most: float = float("inf"),
) -> int:
    """Answer every question at every lambda; stops after `at_most` seconds. Returns the number of answers."""

    def part(name: str) -> AbstractContextManager[None]:
        return nullcontext() if split is None else split.part(name)

    model, processor, begin, answers = loaded.model, loaded.processor, time.monotonic(), 0
    for lam in lambdas:
        with agci(model, lam), torch.inference_mode():
            for question in asked:
                if time.monotonic() - begin > at_most:
                    return answers
                pictures = [image.open() for image in question.images]
                with part("preprocess"):
                    prompt = chat_text(processor, question)
                    inputs = processor(text=[prompt], images=pictures, return_tensors="pt").to(model.device)
                made = model.generate(**inputs, min_new_tokens=2, max_new_tokens=2, do_sample=False)
                with part("write"):
                    processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
                answers += 1
    return answers
