"""The self-check on a checkpoint: the position probe's question about one image, as the processor makes it."""

from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.probe_set import PROBE_STREAM, render_item
from transformers_agci.errors import InputError
from transformers_agci.experiments.position.questions import PROMPT
from transformers_agci.inference.checkpoint_files import model_folder
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
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
    checked = self_check(loaded.model, _inputs(loaded, image), images=1)
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
            yield Check(
                name, None, None, None, f"The processor does not take them: {' '.join(str(error).split())[:120]}"
            )
            continue
        yield check_images(loaded.model, inputs, lam, len(images), name)


def _tensors(loaded: LoadedModel, text: str, images: list[Image.Image]) -> dict[str, Any]:
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    prompt = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return _on_device(loaded, tokenize(loaded.processor, [prompt], [images]))


def explore_checkpoint(options: LoadOptions, image: Path | None = None) -> Exploration:
    """Look at a checkpoint of any family that transformers has, in float32 on the CPU, on two images that touch.

    Only data is read: safetensors, no code of the checkpoint's own.
    """
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = model_folder(options.model, options.revision)
    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        processor: Any = AutoProcessor.from_pretrained(folder, **safe)
        model: Any = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, **safe).float().eval()
    except Exception as error:  # transformers has many
        raise InputError(
            f"{options.model} cannot be loaded by transformers ({' '.join(str(error).split())[:200]})."
        ) from None
    data = image.read_bytes() if image is not None else atlas_image()[0]
    picture = Image.open(BytesIO(data)).convert("RGB")
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "What is it?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return explore(model, tokenize(processor, [prompt], [[picture, picture.rotate(90)]]), images=2)


def _inputs(loaded: LoadedModel, path: Path | None) -> dict[str, Any]:
    image: ImageSource
    if path is None:
        data, caption = atlas_image()
        image = ImageBytes(data, "the embedded atlas")
    else:
        image, caption = ImageFile(path.parent, path.name, "`image`"), CAPTION
    question = Question(
        row={}, where="self-check", text=PROMPT.format(caption=caption), images=(image,), group=0, stop=YES_NO
    )
    inputs = tokenize(loaded.processor, [chat_text(loaded.processor, question)], [[image.open()]])
    return _on_device(loaded, inputs)


def _on_device(loaded: LoadedModel, inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.to(loaded.device, loaded.model.dtype) if value.is_floating_point() else value.to(loaded.device)
        for name, value in inputs.items()
    }


def atlas_image(cell: int = 4) -> tuple[bytes, str]:
    """A composite of nine atlas images, and the name of the one in this cell (0 to 8)."""
    atlas = Atlas()
    rendered = render_item(atlas, (*PROBE_STREAM, 0), number=0)
    return rendered.composite(cell), atlas.names[rendered.item.target]
