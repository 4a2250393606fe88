"""Proof on the user's own model that AGCI is on and follows the formula.

    print(self_check(model, processor(text=prompt, images=image, return_tensors="pt")))

Each check compares what the model does with what it should do; none trusts the code that it checks: the formula is
written out again, in float64, and stock is the model with the hooks taken off.
"""

import contextlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from transformers_agci.errors import InputError
from transformers_agci.families import Family, decoder_of, family_of, find_vlm, image_token_id
from transformers_agci.method.attach import agci
from transformers_agci.method.autoload import SWITCH, active, switched_off
from transformers_agci.method.forward_call import embeds_of, forward_call
from transformers_agci.method.handle import Handle, current_handle
from transformers_agci.method.image_positions import ImagePositions, image_positions, image_token_mask
from transformers_agci.method.lam import LAMBDA_KEY, lambda_text
from transformers_agci.method.stored_weights import StoredTensors, checkpoint_folder, vision_weights

DEFAULT_LAMBDA = 0.5  # for a model that is at lambda 0: the checks need some effect to look at


@dataclass(frozen=True)
class Check:
    """One line of the table.

    passed       None where there is nothing to hold the model to
    figure       what was measured
    tolerance    the largest figure that passes, where a figure is a difference; the figure that is expected otherwise
    """

    name: str
    passed: bool | None
    figure: float | None
    tolerance: float | None
    explanation: str


@dataclass(frozen=True)
class SelfCheck:
    """The checks of one model, in the order of the table that `print` shows."""

    family: str
    lam: float  # at which the method was checked
    rows: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(row.passed is not False for row in self.rows)

    def __str__(self) -> str:
        words = {True: "ok", False: "FAILED", None: "-"}
        table = [("check", "", "figure", "allowed", "")] + [
            (row.name, words[row.passed], _number(row.figure), _number(row.tolerance), row.explanation)
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in table) for column in range(4)]
        lines = [
            "  ".join([*(text.ljust(width) for text, width in zip(line, widths, strict=False)), line[4]]).rstrip()
            for line in table
        ]
        return "\n".join([f"AGCI self-check: {self.family}, lambda {lambda_text(self.lam)}", *lines, self._verdict()])

    def _verdict(self) -> str:
        if not self.passed:
            return f"{sum(row.passed is False for row in self.rows)} failed"
        unseen = sum(row.passed is None for row in self.rows)
        that = f" that could be made, {unseen} of {len(self.rows)} could not (-)" if unseen else ""
        return f"all checks passed{that}"


def self_check(model: nn.Module, inputs: Mapping[str, Any], images: int | None = None) -> SelfCheck:
    """Check AGCI on `model`; the model is left as it was found.

    Args:
        model: a supported model, with or without AGCI on it. It is checked at its own lambda, or at 0.5 where it
            has none.
        images: how many images there are; by default as many as the inputs say.
        inputs: what the processor gives for one or more prompts with images, on the model's device.

    Returns:
        A table of checks that prints itself; `.passed` says whether none failed.

    Raises:
        InputError: unsupported model, or inputs without an image.

    >>> from PIL import Image
    >>> from transformers_agci import self_check, load
    >>> model, processor = load().loaded.model, load().loaded.processor
    >>> chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}]
    >>> text = processor.apply_chat_template(chat, add_generation_prompt=True)
    >>> inputs = processor(text=text, images=[Image.new("RGB", (252, 252))], return_tensors="pt")
    >>> self_check(model, inputs).passed
    True
    """
    family, handle = family_of(model), current_handle(model)
    lam = handle.lam if handle is not None and handle.lam > 0 else DEFAULT_LAMBDA
    with evaluating(model), torch.no_grad():
        rows = (
            _start_up_hook(),
            _config_key(model, handle),
            _vision_weights(model),
            _lambda_zero(model, inputs),
            _once_per_image(model, inputs, lam, images),
            _formula(model, inputs, lam),
            _batch_mates(model, inputs, lam),
        )
    return SelfCheck(family.name, lam, rows)


# --- the surroundings ----------------------------------------------------------------------------------------------


def _start_up_hook() -> Check:
    name = "start-up hook active"
    if switched_off():
        return Check(name, False, None, None, f"{SWITCH}=0 turns the config key off in every program.")
    if "transformers_agci_startup" not in sys.modules or not active():
        return Check(
            name,
            False,
            None,
            None,
            "Python did not run it: the config key works in agci's own commands only. Install the package "
            "with pip; PYTHONPATH, --target and -S leave start-up hooks out.",
        )
    return Check(name, True, None, None, "Every program of this environment honours the config key.")


def _config_key(model: nn.Module, handle: Handle | None) -> Check:
    name, config = "config key served", find_vlm(model).config
    if not hasattr(config, LAMBDA_KEY):
        return Check(
            name,
            None,
            None,
            None,
            f"The config has no {LAMBDA_KEY}: programs run this model at lambda 0. `agci set-lambda` writes it.",
        )
    found = getattr(config, LAMBDA_KEY)
    if handle is None:
        return Check(name, False, found, None, "The config has the key, but AGCI is not on this model.")
    served = "by the key alone" if handle.from_config else "by attach"
    return Check(name, True, found, None, f"{LAMBDA_KEY} in the config; served {served}.")


def _vision_weights(model: nn.Module) -> Check:
    """Whether the model's vision weights are those of its checkpoint: some versions read a checkpoint of another
    version without a word and leave the vision tower random. Compared by value, since versions rename."""
    name, vlm = "no vision weight missing", find_vlm(model)
    folder = checkpoint_folder(vlm)
    if folder is None:
        return Check(name, None, None, None, "The model was not loaded from a folder with safetensors.")
    weights = vision_weights(vlm)
    stored = StoredTensors(folder)
    missing = [key for key, weight in weights.items() if not stored.holds(weight)]
    if missing:
        return Check(
            name,
            False,
            len(missing),
            0,
            f"of {len(weights)} vision weights are not those of the checkpoint, for instance {missing[0]}: "
            "they may be random. Another transformers version may have saved it.",
        )
    return Check(name, True, 0, 0, f"All {len(weights)} vision weights are those of the checkpoint.")


# --- the method ----------------------------------------------------------------------------------------------------


def _lambda_zero(model: nn.Module, inputs: Mapping[str, Any]) -> Check:
    with agci(model, 0.0) as handle:
        with handle.suspended():
            stock = _observe(model, inputs)
        ours = _observe(model, inputs)
    figure = max(_largest(ours.after - stock.after), _largest(ours.output - stock.output))
    equal = torch.equal(ours.after, stock.after) and torch.equal(ours.output, stock.output)
    return Check("lambda 0 is stock", equal, figure, 0.0, "Decoder input and logits, hooks on against hooks off.")


def _once_per_image(model: Any, inputs: Mapping[str, Any], lam: float, given: int | None) -> Check:
    vlm = find_vlm(model)
    images = _count_images(vlm, inputs) if given is None else given
    with agci(model, lam) as handle:
        before = handle.injections
        if callable(getattr(model, "generate", None)):
            model.generate(**inputs, min_new_tokens=2, max_new_tokens=2, do_sample=False)
        else:
            model(**inputs)
        done = handle.injections - before
    if images is None:
        return Check(
            "once per image", None, done, None, "Injections while an answer is generated; say how many images."
        )
    return Check("once per image", done == images, done, images, "Injections while an answer is generated.")


def check_images(model: nn.Module, inputs: Mapping[str, Any], lam: float, images: int, name: str) -> Check:
    """Whether a prompt of `images` images gets the formula, once per image: one line of the table, called `name`."""
    with evaluating(model), torch.no_grad(), agci(model, lam):
        seen = _observe(model, inputs)
    formula = _formula_of(seen, lam)
    found = len(seen.images)
    explanation = f"{found} of {images} images found; {formula.explanation}"
    return Check(name, found == images and formula.passed, formula.figure, formula.tolerance, explanation)


def _formula(model: nn.Module, inputs: Mapping[str, Any], lam: float) -> Check:
    with agci(model, lam):
        seen = _observe(model, inputs)
    return _formula_of(seen, lam)


def _formula_of(seen: "_Seen", lam: float) -> Check:
    expected = seen.before.double().clone()
    for image in seen.images:
        v = image.take(seen.before).double()  # [N, D]
        g = v.mean(dim=0)
        cos = (v @ g) / (v.norm(dim=1) * g.norm()).clamp_min(1e-30)
        image.put(expected, v + lam * (1 - cos)[:, None] * g)
    figure = _largest(seen.after - expected) / max(_largest(expected), 1e-30)
    changed = _largest(seen.after - seen.before) / max(_largest(expected), 1e-30)
    tolerance = _rounding(seen.after.dtype)
    return Check(
        "decoder input is the formula",
        bool(figure <= tolerance),
        figure,
        tolerance,
        f"Largest difference over the largest value; AGCI changes it by {changed:.2g}.",
    )


def _batch_mates(model: nn.Module, inputs: Mapping[str, Any], lam: float) -> Check:
    """The same prompts alone and beside a second set of them with other images."""
    differences = []
    for strength in (0.0, lam):
        with agci(model, strength):
            alone = _observe(model, inputs).after
            together = _observe(model, _with_mates(inputs)).after[: len(alone)]
        differences.append(_largest(together - alone) / max(_largest(alone), 1e-30))
    stock, figure = differences
    tolerance = _rounding(alone.dtype) + (1 + 4 * lam) * stock
    return Check(
        "batch mates do not matter",
        bool(figure <= tolerance),
        figure,
        tolerance,
        f"Decoder input, batch 1 against batch 2; stock differs by {stock:.2g}.",
    )


@dataclass(frozen=True)
class _Seen:
    """What one call of the model showed."""

    before: torch.Tensor  # [B, S, D] decoder input before injection
    after: torch.Tensor  # [B, S, D] what the decoder received
    output: torch.Tensor  # logits or hidden states of the last token
    images: list[ImagePositions]


def _observe(model: Any, inputs: Mapping[str, Any]) -> _Seen:
    vlm: Any = find_vlm(model)
    family: Family = family_of(model)
    embeds: list[torch.Tensor] = []
    images: list[ImagePositions] = []

    def look(decoder: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        received = embeds_of(decoder, args, kwargs)
        if received is not None:
            embeds.append(received.detach().clone())

    def locate(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        call = forward_call(module, args, kwargs)
        if not call.has_images:
            raise InputError("These inputs hold no image: give the processor's output with pixel_values.")
        images.extend(image_positions(vlm, family, call, image_token_mask(vlm, call)))

    hooks = [
        vlm.register_forward_pre_hook(locate, with_kwargs=True),
        decoder_of(vlm).register_forward_pre_hook(look, with_kwargs=True, prepend=True),
        decoder_of(vlm).register_forward_pre_hook(look, with_kwargs=True),
    ]
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    try:
        output = model(**inputs, **last_only)
    finally:
        for hook in hooks:
            hook.remove()
    before, after = embeds
    return _Seen(before, after, output[0][:, -1], images)


def _with_mates(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The prompts, and after them the same prompts with their images in negative."""
    return {name: _twice(name, value, strip="target_sizes" in inputs) for name, value in inputs.items()}


def _twice(name: str, value: Any, strip: bool) -> Any:
    """A list or tensor and itself once more; pixels may be one strip [1, 3, patch, all patches * patch]."""
    if isinstance(value, list):
        return value + value
    if not torch.is_tensor(value):
        return value
    if name == "pixel_values":
        return torch.cat([value, -value], dim=-1 if strip and len(value) == 1 else 0)
    return torch.cat([value, value])


def _count_images(vlm: Any, inputs: Mapping[str, Any]) -> int | None:
    """The number of images, from what the processor made of them rather than from our own search.

    None where the inputs do not say it: tiles are not images.
    """
    for name in ("image_grid_thw", "image_sizes"):
        if inputs.get(name) is not None:
            return len(inputs[name])
    if inputs.get("pixel_values") is None:
        raise InputError("These inputs hold no image: give the processor's output with pixel_values.")
    images = family_of(vlm).images
    if images.inside is not None:
        return None
    if not images.touching:
        return len(inputs["pixel_values"])
    is_image = (inputs["input_ids"] == image_token_id(vlm.config)).int()  # pixel_values holds tiles
    return int((is_image.diff(dim=1, prepend=torch.zeros_like(is_image[:, :1])) == 1).sum())


def _rounding(dtype: torch.dtype) -> float:
    """The relative difference that rounding explains: a float32 sum over many tokens, one rounding of the others."""
    return 1e-5 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps


def _largest(values: torch.Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode within a `with` block; afterwards every module trains or not as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
