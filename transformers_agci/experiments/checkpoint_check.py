"""The self-check on a checkpoint: the position probe's question about one image, as the processor makes it."""

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from transformers_agci.data.probe_rows import PROMPT
from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.probe_set import PROBE_STREAM, render_item
from transformers_agci.errors import InputError, error_line
from transformers_agci.families import REFUSED_FAMILIES
from transformers_agci.inference.checkpoint_files import model_folder
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.prepare import to_device
from transformers_agci.inference.prompt import chat_text, tokenize
from transformers_agci.inference.questions import YES_NO, ImageBytes, ImageFile, ImageSource, Question
from transformers_agci.method.attach import attach_from_config
from transformers_agci.method.experimental import Exploration, explore
from transformers_agci.method.self_check import Check, SelfCheck, check_images, self_check

CAPTION = "a dog"  # asked about an image that the user gives


def check_checkpoint(options: LoadOptions, image: Path | None = None) -> SelfCheck:
    """Load the checkpoint and check it on `image`, by default on a composite of the embedded atlas.

    Where no start-up hook did it, AGCI is put on by the config key: the other checks are about the method itself.
    """
    loaded = load(options)
    if loaded.lam is not None:
        attach_from_config(loaded.model)
    inputs = _inputs(loaded, image)
    try:
        checked = self_check(loaded.model, inputs, images=1)
    except ValueError as error:  # what AGCI, or the model, says of a prompt that it cannot serve
        raise InputError(error_line(error)) from error
    return replace(checked, rows=(*checked.rows, *_other_prompts(loaded, checked.lam)))


def _other_prompts(loaded: LoadedModel, lam: float) -> Iterator[Check]:
    """Two images that touch in the prompt, and one that is long enough to be cut into tiles."""
    data, _ = atlas_image()
    square = Image.open(BytesIO(data)).convert("RGB")
    long = Image.new("RGB", (3 * square.width, square.height))
    for column in range(3):
        long.paste(square, (column * square.width, 0))
    for name, images in (("two adjacent images", [square, square.rotate(90)]), ("a long image", [long])):
        try:
            inputs = _tensors(loaded, f"{name}?", images)
        except Exception as error:  # processors raise what they like
            yield Check(name, None, None, None, f"The processor does not take them: {error_line(error, 120)}")
            continue
        try:
            yield check_images(loaded.model, inputs, lam, len(images), name)
        except ValueError as error:  # as for one image
            yield Check(name, False, None, None, error_line(error))


def _tensors(loaded: LoadedModel, text: str, images: list[Image.Image]) -> dict[str, Any]:
    return to_device(loaded, tokenize(loaded.processor, [_prompt(loaded.processor, text, len(images))], [images]))


def _prompt(processor: Any, text: str, images: int) -> str:
    """Images and then a text, in the chat template; where there is none, the image token before the text."""
    if not (getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)):
        return f"{processor.image_token * images}{text}"
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": text}]
    prompt: str = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return prompt


def explore_checkpoint(options: LoadOptions, image: Path | None = None) -> Exploration:
    """Look at a checkpoint of any family that transformers has, in float32 on the CPU, on two images that touch.

    On one image where the processor takes no two. Only data is read: safetensors, no code of the checkpoint's own.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    folder = model_folder(options.model, options.revision)
    picture = _image(image)[0].open()
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        refused = REFUSED_FAMILIES.get(AutoConfig.from_pretrained(folder, **safe).model_type)
        if refused is not None:
            return Exploration((f"{refused.name} cannot be served: {refused.reason}.",), False)
        processor: Any = AutoProcessor.from_pretrained(folder, **safe)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, **safe).float().eval()
    except Exception as error:  # transformers has many
        raise InputError(f"{options.model} cannot be loaded by transformers ({error_line(error, 200)}).") from None
    for given in ([picture, picture.rotate(90)], [picture]):
        try:
            inputs = tokenize(processor, [_prompt(processor, "What is it?", len(given))], [given])
        except Exception as error:  # processors raise what they like
            reason = error_line(error, 200)
        else:
            return explore(model, inputs, images=len(given))
    raise InputError(
        f"The {type(processor).__name__} of {options.model} makes no prompt with an image ({reason}): a processor for "
        "text and images is needed to look at the model."
    )


def _inputs(loaded: LoadedModel, path: Path | None) -> dict[str, Any]:
    image, caption = _image(path)
    question = Question(
        row={}, where="self-check", text=PROMPT.format(caption=caption), images=(image,), group=0, stop=YES_NO
    )
    opened = image.open()
    try:
        inputs = tokenize(loaded.processor, [chat_text(loaded.processor, question)], [[opened]])
    except InputError:
        raise
    except Exception as error:  # processors raise what they like
        raise InputError(
            f"The processor takes no question about {path or 'the embedded image'} ({error_line(error, 200)}); "
            "name another image with `image`."
        ) from error
    return to_device(loaded, inputs)


def _image(path: Path | None) -> tuple[ImageSource, str]:
    """The image to ask about and what it shows: the user's, or one of the embedded atlas."""
    if path is not None:
        return ImageFile(path.parent, path.name, "`image`"), CAPTION
    data, caption = atlas_image()
    return ImageBytes(data, "the embedded atlas"), caption


def atlas_image(cell: int = 4) -> tuple[bytes, str]:
    """A composite of nine atlas images, and the name of the one in this cell (0 to 8)."""
    atlas = Atlas()
    rendered = render_item(atlas, (*PROBE_STREAM, 0), number=0)
    return rendered.composite(cell), atlas.names[rendered.item.target]
