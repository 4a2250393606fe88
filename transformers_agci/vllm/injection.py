"""What AGCI does to what a model's encoder returns under vLLM.

`embed_multimodal` gives one tensor [N, D] per item: everything the decoder will see of it, before vLLM caches it by the
hash of its pixels and cuts it into chunks. So the formula is applied once to whole images, and what is cached, reused
by another request or cut later has been through it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from transformers_agci.errors import InputError, short
from transformers_agci.families import SUPPORTED_FAMILIES, remote_code_twin, todays_model_type
from transformers_agci.families.declaration import NOT_UNDER_VLLM, Lacks, VllmClass
from transformers_agci.method.injection import METHODS, SEEDED, injection_of
from transformers_agci.method.lam import (
    LAMBDA_KEY,
    POSITION_KEY,
    is_served,
    lambda_text,
    served_config,
    settle_key,
    validate_lambda,
)

METHOD_KEY = "global_context_broadcast_method"  # in config.json or hf_overrides: a control instead of AGCI
IMAGE_MARK = "agci_is_image"  # an argument that marks.py adds to a call: of each item, whether it is an image

# Arguments of `embed_multimodal`, by what they bring; the names are vLLM's own across its models.
IMAGE_INPUTS = frozenset({"pixel_values", "pixel_values_flat", "image_embeds", "image_patches", "image_pixel_values"})
OTHER_INPUTS = frozenset(
    {
        "pixel_values_videos",
        "pixel_values_flat_video",
        "video_pixel_values",
        "video_embeds",
        "input_features",
        "input_audio_features",
        "input_features_padded",
        "audio_embeds",
        "audio_values",
    }
)


@dataclass(frozen=True)
class Served:
    """A model that vLLM builds with AGCI: its lambda, its method, the class of vLLM."""

    lam: float
    method: str
    model: VllmClass
    hidden_size: int  # D of the decoder's input

    @property
    def words(self) -> str:
        """What the engine's log says."""
        method = "" if self.method == "agci" else f", method {self.method}"
        return f"lambda {lambda_text(self.lam)}{method} ({self.model.name})"


def served_by(config: Any, class_name: str, hidden_size: int) -> Served | None:
    """What the config of a checkpoint asks for; None where it does not carry the key, or lambda 0.

    Raises InputError where the value is no lambda or no method, and where no family declares the class.
    """
    for key in (LAMBDA_KEY, POSITION_KEY):
        settle_key(config, key)
    part = served_config(config)  # of an Omni checkpoint its thinker's
    _refuse_position_balance(part)
    if LAMBDA_KEY not in vars(part):
        return None
    lam = validate_lambda(vars(part)[LAMBDA_KEY], f"{LAMBDA_KEY} in the model's config")
    if lam == 0:
        return None
    method = vars(config).get(METHOD_KEY, "agci")
    if not isinstance(method, str) or injection_of(method) is None:
        names = ", ".join(dict.fromkeys([*METHODS, *SEEDED]))
        raise InputError(f"{METHOD_KEY} in the model's config must be one of {names}, but is {short(method)}.")
    return Served(lam, method, find_model(class_name, getattr(part, "model_type", None)), hidden_size)


def carries_key(config: Any) -> bool:
    """Whether transformers' own modules would be given something as they are built with this config."""
    for key in (LAMBDA_KEY, POSITION_KEY):
        settle_key(config, key)
    return not {LAMBDA_KEY, POSITION_KEY}.isdisjoint(vars(served_config(config)))


def _refuse_position_balance(config: Any) -> None:
    """InputError where the config turns BaPA on, which is not silently left out."""
    if vars(config).get(POSITION_KEY) and is_served(getattr(config, "model_type", None)):
        raise InputError(
            f"The config carries {POSITION_KEY}, which turns BaPA on; vLLM serves what changes image tokens only. "
            "Remove the key or set TRANSFORMERS_AGCI=0 for the unmodified model, or use the engine transformers."
        )


def find_model(class_name: str, model_type: object) -> VllmClass:
    """What the family says of vLLM's class; InputError where the class, or this model in it, is not served."""
    kind = todays_model_type(model_type)
    found = declared(kind)
    if isinstance(found, VllmClass) and class_name in (found.name, found.of_experts):
        return replace(found, name=class_name)
    why = found.reason if isinstance(found, Lacks) else f"it is served as {found.name}"
    raise InputError(
        f"The config carries {LAMBDA_KEY}, but AGCI does not serve vLLM's {class_name} (model_type {kind!r}): {why}. "
        f"Remove the key or set TRANSFORMERS_AGCI=0 for the unmodified model; served: {', '.join(served_classes())}."
    )


def declared(model_type: str) -> VllmClass | Lacks:
    """The class of vLLM that serves checkpoints of this `model_type`, or why there is none.

    vLLM has modules of its own, so that those that ask for Python code of their own may be served by the same class.
    """
    family = SUPPORTED_FAMILIES.get(model_type) or remote_code_twin(model_type)
    return NOT_UNDER_VLLM if family is None else family.vllm


def served_classes() -> list[str]:
    """The names of the classes of vLLM that AGCI serves."""
    found = (family.vllm for family in SUPPORTED_FAMILIES.values())
    return list(dict.fromkeys(each.name for each in found if isinstance(each, VllmClass)))


def inject(served: Served, config: Any, items: Any, inputs: Mapping[str, Any]) -> tuple[Any, int]:
    """What `embed_multimodal` shall return, and how many images were injected.

    Args:
        served: lambda, method and model.
        config: the checkpoint's config.
        items: what the stock method returned: tensors [N, D] in a sequence, or one [items, N, D].
        inputs: the arguments of the call, which say of what modality the items are.

    Raises InputError where that cannot be told or a tensor is not what the family says.
    """
    if not holds_images(inputs) or items is None or len(items) == 0:
        return items, 0
    function = injection_of(served.method)
    assert function is not None  # served_by has looked
    marks = _image_marks(served.model, len(items), inputs)
    rows = _image_rows(served.model, config, items, inputs)
    injected: list[torch.Tensor] = []
    images = 0
    for item, is_image, of_image in zip(items, marks, rows, strict=True):
        if not is_image:
            injected.append(item)
            continue
        tokens = item if of_image is None else item[of_image]
        lengths = served.model.images_of_item(config, len(tokens))
        done = _inject_item(served, function, tokens, lengths)
        injected.append(done if of_image is None else item.index_put((of_image,), done))
        images += len(lengths)
    return (torch.stack(injected) if isinstance(items, torch.Tensor) else tuple(injected)), images


def holds_images(inputs: Mapping[str, Any]) -> bool:
    """Whether the call is about images; vLLM makes one call for each modality."""
    given = {name for name, value in inputs.items() if value is not None}
    images, others = given & IMAGE_INPUTS, given & OTHER_INPUTS
    if images and others:
        raise InputError(
            f"AGCI cannot tell images from other items in one call with {', '.join(sorted(images | others))}."
        )
    if not images and not others:
        raise InputError(f"AGCI does not know whether {', '.join(sorted(given)) or 'no input'} holds images.")
    return bool(images)


def _image_marks(model: VllmClass, items: int, inputs: Mapping[str, Any]) -> list[bool]:
    """Whether each item is an image; InputError where that must be said, and is not."""
    if model.modality == "image":
        return [True] * items
    marks = inputs.get(IMAGE_MARK)
    if not isinstance(marks, torch.Tensor) or marks.numel() != items:
        raise InputError(
            f"AGCI does not know which items of vLLM's {model.name} are images and which are pieces of a video: the "
            "process that prepares the requests must have the plugin agci, too."
        )
    return [bool(mark) for mark in marks.flatten().tolist()]


def _image_rows(
    model: VllmClass, config: Any, items: Sequence[torch.Tensor], inputs: Mapping[str, Any]
) -> list[torch.Tensor | None]:
    """Which tokens of each item are the image's, None for all; InputError where they do not fit the items."""
    if model.image_rows is None:
        return [None] * len(items)
    try:
        rows = model.image_rows(config, inputs)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"AGCI cannot tell which tokens of vLLM's {model.name} are image tokens: {error}.") from error
    if [len(each) for each in rows] != [len(item) for item in items]:
        raise InputError(f"vLLM's {model.name} gave items that do not fit the tokens it was called with.")
    return [each.to(item.device) for each, item in zip(rows, items, strict=True)]


def _inject_item(
    served: Served, function: Callable[..., torch.Tensor], item: torch.Tensor, lengths: Sequence[int]
) -> torch.Tensor:
    """One item [N, D + extra] with the first D columns of each of its images injected."""
    width = served.hidden_size
    if item.shape[-1] < width or (item.shape[-1] > width and not served.model.extra_columns):
        raise InputError(
            f"vLLM's {served.model.name} gave an image of {item.shape[-1]} columns, where the decoder takes {width}."
        )
    if sum(lengths) != len(item):
        raise InputError(f"vLLM's {served.model.name} gave an item of {len(item)} tokens, which are no whole images.")
    done = torch.cat([function(image, served.lam) for image in item[:, :width].split(list(lengths))])
    return done if item.shape[-1] == width else torch.cat([done, item[:, width:]], dim=-1)
