"""One user turn in the model's own chat template, and a batch of them as tensors."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image

from transformers_agci.errors import InputError, error_line
from transformers_agci.inference.questions import ANSWER_WORDS, Question

IMAGE_MARK = "<image>"
PACKED_KEYS = {"pixel_values", "image_grid_thw"}  # of an image processor that lays patches [P, C] end to end


def chat_content(question: Question) -> list[dict[str, str]]:
    """The parts of the user turn: the images first, or where the text holds one `<image>` mark per image."""
    pieces = question.text.split(IMAGE_MARK)
    if not question.marks or len(pieces) - 1 != len(question.images) or not question.images:
        return [*({"type": "image"} for _ in question.images), {"type": "text", "text": question.text}]
    content: list[dict[str, str]] = []
    for index, piece in enumerate(pieces):
        if index:
            content.append({"type": "image"})
        if piece:
            content.append({"type": "text", "text": piece})
    return content


def chat_text(processor: Any, question: Question) -> str:
    """The prompt as the model's chat template writes it, up to where the answer begins.

    Raises InputError where the text holds the model's image token (the model would look for one more image), or what no
    tokenizer takes.
    """
    content = chat_content(question)
    for part in content:
        check_text(part.get("text", ""), question.where)
    image_token = str(getattr(processor, "image_token", IMAGE_MARK))
    if any(image_token in part.get("text", "") for part in content):
        raise InputError(
            f"{question.where}: the text holds {image_token}, which stands for an image in this model's "
            "prompts; take it out of the row."
        )
    messages = [{"role": "user", "content": content}]
    return processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def check_text(text: str, where: str) -> None:
    """Raise InputError where a text holds half a surrogate pair: JSON can write it, tokenizers and requests cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{where}: the text holds half a surrogate pair (\\ud800 to \\udfff), which is no character."
        ) from None


def tokenize(processor: Any, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
    """The processor's tensors for a batch, padded on the left; `images` holds one list per prompt."""
    nested = [list(of_prompt) for of_prompt in images]
    given = {"images": nested} if any(nested) else {}
    return dict(processor(text=list(prompts), padding=True, return_tensors="pt", **given))


@contextlib.contextmanager
def refusal_named(where: str) -> Iterator[None]:
    """Whatever a processor raises about the image or text of `where` becomes an InputError: they raise what they like.

    Such as Qwen's about an image that is 200 times as wide as it is high.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where}: the processor refuses this image or text ({error_line(error)}).") from error


class _Recorded:
    """Stands in for an image processor: what it made of the same images is given again."""

    def __init__(self, real: Any) -> None:
        self._real = real
        self._made: Any = None

    def __call__(self, images: Any, **settings: Any) -> Any:
        if self._made is None:
            self._made = _preprocessed(self._real, images, settings)
        return type(self._made)(data=dict(self._made))  # processors take entries out of what they get

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _preprocessed(image_processor: Any, images: Any, settings: dict[str, Any]) -> Any:
    """What the image processor makes of the images; Qwen's are given to it one at a time.

    It lays the patches of all images end to end, so that one call per image makes the same numbers. A call for 18
    large images copies stacks that no cache holds, and takes twice as long.
    """
    if not PACKED_KEYS.issubset(image_processor.model_input_names):
        return image_processor(images, **settings)
    nested = [of_prompt if isinstance(of_prompt, list) else [of_prompt] for of_prompt in images]
    made = [image_processor([image], **settings) for of_prompt in nested for image in of_prompt]
    return type(made[0])(data={key: torch.cat([of_image[key] for of_image in made]) for key in made[0]})


def images_once(processor: Any) -> Any:
    """A copy of the processor that preprocesses images in its first call only: all its calls are about the same ones.

    The processor itself stays as it is: another thread may be using it.
    """
    once = copy.copy(processor)
    once.image_processor = _Recorded(processor.image_processor)
    return once


def answer_token_ids(processor: Any) -> tuple[int, int]:
    """The ids whose logits stand for Yes and No at the beginning of an answer.

    They are the first tokens of "Yes" and "No" as the tokenizer writes them at the beginning of a text. For
    tokenizers that put a space there (Llama's, Mistral's) this is the form with the space, which is also what follows
    the "ASSISTANT:" and "[/INST]" of their templates; for the others the bare word, which follows their line break.
    """
    ids = [processor.tokenizer(word, add_special_tokens=False)["input_ids"] for word in ANSWER_WORDS]
    yes, no = (tokens[0] for tokens in ids)
    if yes == no:  # a space of its own before both
        yes, no = (tokens[1] for tokens in ids)
    if yes == no:
        raise InputError(
            "This tokenizer begins Yes and No with the same token, so that their logits cannot be told apart."
        )
    return yes, no
