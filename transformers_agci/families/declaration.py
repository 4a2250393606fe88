"""What a family declares: one frozen `Family` per model_type, in the file of its kin (qwen.py, llava.py, ...).

A declaration needs no torch; its functions work on what they are given and load what they need when they are called.
Every capability is declared: what does not work is `Lacks(reason)`, and whoever asks for it reads the reason.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from transformers_agci.errors import CannotServe

if TYPE_CHECKING:
    import torch

    from transformers_agci.families.token_layout import ImageInfo, TokenGrid
    from transformers_agci.families.training_support import TrainingSupport


# Under which names a call of a vlm holds images, and what may come with them in another resolution or as crops.
PIXELS = ("pixel_values", "pixel_values_images", "image_patches")
ALL_PIXELS = (*PIXELS, "pixel_values_local", "high_res_pixel_values")


@dataclass(frozen=True)
class ForwardCall:
    """What a family may look at to find its images: arguments of the vlm's forward, None where not given.

    `encoded` is the image entry of `mm_encoder_outputs`: since transformers 5.18 `generate()` encodes the images
    before the forward call and passes this in place of the pixels (and of what `get_image_features` takes with them).
    """

    input_ids: "torch.Tensor | None" = None  # [B, S]
    inputs_embeds: "torch.Tensor | None" = None  # [B, S, D]
    attention_mask: Any = None  # [B, past + S] where stock masks by token
    pixel_values: Any = None
    image_grid_thw: "torch.Tensor | None" = None  # [images, 3] patches in time, height, width
    image_sizes: Any = None  # [images, 2] height, width in pixels
    encoded: Any = None
    cache: Any = None  # of keys and values
    arguments: Mapping[str, Any] = field(default_factory=dict)  # all of them, by name

    @property
    def has_images(self) -> bool:
        """Whether pixels or encoded images came with the call."""
        return self.pixel_values is not None or self.encoded is not None

    @property
    def has_sliced_images(self) -> bool:
        """Whether chunked prefill cut the encoded images: a slice carries the pooled and DeepStack features only."""
        held = {name for name, value in getattr(self.encoded, "__dict__", {}).items() if value is not None}
        return self.encoded is not None and held <= {"pooler_output", "deepstack_features"}

    @property
    def has_videos(self) -> bool:
        """Whether a video came with the call; some families mark its frames with the image token."""
        encoded = self.arguments.get("mm_encoder_outputs")
        return self.arguments.get("pixel_values_videos") is not None or (
            isinstance(encoded, Mapping) and encoded.get("video") is not None
        )


@dataclass(frozen=True)
class Works:
    """A capability that needs nothing of its own in this family."""


@dataclass(frozen=True)
class Lacks:
    """A capability that a family does not have; `reason` is what the user reads after a colon, without a full stop."""

    reason: str


WORKS = Works()

# config, call, number of image tokens -> tokens of each unit in order; None: every run is a unit.
Lengths = Callable[[Any, ForwardCall, int], Sequence[int] | None]


@dataclass(frozen=True)
class RowOfRuns:
    """The image tokens of one row, seen from the gaps between their runs.

    Where the call has embeddings in place of ids, the numbers are not ids, but equal where the embeddings are.
    A gap is empty where two units touch. The ids that `marks` of the family names are ids in either case.
    """

    before: Sequence[int]  # the tokens before the first run
    gaps: Sequence[Sequence[int]]  # one fewer than there are units
    behind: Sequence[int]  # the tokens behind the last run
    lengths: Sequence[int] = ()  # tokens of each unit
    marks: Sequence[int] = ()  # what `marks` of the family found in the config
    frame: Sequence[int] = ()  # the marks before and behind an image, where their ids are known


# row -> for every gap, whether it lies within an image. Raises ValueError where that cannot be known.
Inside = Callable[[RowOfRuns], list[bool]]


@dataclass(frozen=True)
class ImageTokens:
    """How the image tokens of a call divide into images.

    Attributes:
        lengths: the tokens of each unit, in order. A unit is an image, or a tile of one.
        inside: which gaps between units lie within an image; None: a unit is an image.
        touching: whether units of one run are one image.
        marks: config -> ids of the tokens that may stand around units, as far as the config says them.
        frame: config -> ids of the marks before and behind an image, empty where they are not known.
        rows: config -> whether a unit is cut into rows by tokens of its own, at most ROW_SEPARATOR at a time.
        units_are_lost: whether encoded images no longer tell how many units each has, so that it is noted on them.
    """

    lengths: Lengths
    inside: Inside | None = None
    touching: bool = False
    marks: Callable[[Any], Sequence[int]] = lambda config: ()
    frame: Callable[[Any], Sequence[int]] = lambda config: ()
    rows: Callable[[Any], bool] = lambda config: False
    units_are_lost: bool = False


# One image -> the grids in which its tokens lie on it.
Layout = Callable[["ImageInfo"], "list[TokenGrid]"]
# image processor, least and most pixels (None: as they are) -> None; the processor then resizes into these bounds.
PinImageSize = Callable[[Any, int | None, int | None], None]

# config, tokens of an item of vLLM -> tokens of each image in it
ImagesOfItem = Callable[[Any, int], list[int]]
# config, arguments of vLLM's `embed_multimodal` -> of each item, which of its tokens are image tokens: bool [N]
ImageRows = Callable[[Any, Mapping[str, Any]], "Sequence[torch.Tensor]"]


def one_image(config: Any, tokens: int) -> list[int]:
    """The item is the image."""
    return [tokens]


@dataclass(frozen=True)
class VllmClass:
    """The class of vLLM that serves a family.

    What vLLM calls an item of the modality image is what we call an image: all of its tiles, its thumbnail and
    LLaVA-NeXT's newline tokens come in one tensor. `images_of_item` says otherwise where that is not so.

    Attributes:
        name: its `__name__`; other models that vLLM runs with it are not served.
        of_experts: the name under which vLLM builds decoders of experts, where that is another one.
        images_of_item: how the tokens of an item divide into images.
        extra_columns: whether features that are no input of the decoder may follow the visible ones in each row
            (Qwen3-VL's DeepStack, positions that video pruning appends); they stay as they are.
        image_rows: which tokens of an item are the image's, where words stand between them; None: all.
        modality: what vLLM calls its images. "vision_chunk" holds pieces of videos, too (vllm/marks.py).
    """

    name: str
    images_of_item: ImagesOfItem = one_image
    extra_columns: bool = False
    image_rows: ImageRows | None = None
    modality: str = "image"
    of_experts: str | None = None


# vLLM has no class of its own, and runs transformers' modules; these encode images, vLLM cuts what they give by image.
BY_TRANSFORMERS = VllmClass("TransformersMultiModalForCausalLM", of_experts="TransformersMultiModalMoEForCausalLM")
FIXED_SIZE = Lacks("the checkpoint fixes the size of its images itself")
NOT_CONVERTED = Lacks("its checkpoints are published in transformers' own layout")
NOT_TRAINED = Lacks(
    "its prompt format has not been held against LLaMA-Factory's; train it there, with the config key set"
)
NOT_UNDER_VLLM = Lacks("what vLLM's class for it returns for an image has not been compared with transformers yet")


@dataclass(frozen=True)
class Family:
    """One supported family.

    Attributes:
        model_type: `model_type` in config.json, the key of the table.
        name: the name in tables; for the paper's models also that of the folder in scripts/.
        hub_id: a checkpoint in transformers' layout; the one that the paper evaluates where it does.
        image_tokens: image tokens of one 840x840 image, in words.
        images: how the image tokens of one call divide into images.
        layout: how the tokens of one image lie on it; occlusion's overlay and information flow need it.
        probe: whether the checkpoint answers questions here: probe, similarity, benchmarks.
        flow: whether the decoder's attention can be recorded for information flow.
        training: what LoRA fine-tuning needs to know.
        image_size: how `min_pixels` and `max_pixels` are put into the image processor.
        conversion: the `model_type`s of the layout that `agci convert-llava` converts from.
        refusal: config -> why this checkpoint cannot be served although its model_type is right, or None.
        vllm: the class of vLLM that serves it.
        vision_windows: whether the vision tower's first layers see windows only, so that occlusion may reuse them.
        grid_positions: whether the position ids of image tokens say in which row and column they lie (M-RoPE).
        positions: whether methods that move the positions of image tokens (bapa, flat, cca) can act on its decoder.
        alone: whether stock's output for a prompt depends on its mates, so that the engine takes batches of one.
        in_paper: whether the paper evaluates it; those have scripts/ and configs/.
        other_processors: classes of processors that its checkpoints may have beside transformers' own for it.
        remote_code: `model_type`s of checkpoints of the same models that ask for Python code of their own.
    """

    model_type: str
    name: str
    hub_id: str
    image_tokens: str
    images: ImageTokens
    layout: Layout | Lacks
    probe: Works | Lacks = WORKS
    flow: Works | Lacks = WORKS
    training: "TrainingSupport | Lacks" = NOT_TRAINED
    image_size: PinImageSize | Lacks = FIXED_SIZE
    conversion: tuple[str, ...] | Lacks = NOT_CONVERTED
    refusal: Callable[[Any], str | None] = lambda config: None
    vllm: VllmClass | Lacks = NOT_UNDER_VLLM
    vision_windows: bool = False
    grid_positions: bool = False
    positions: Works | Lacks = WORKS
    alone: bool = False
    in_paper: bool = False
    remote_code: tuple[str, ...] = ()
    other_processors: tuple[str, ...] = ()


@dataclass(frozen=True)
class RefusedFamily:
    """A family of transformers that AGCI cannot serve at all, and why; the reason follows a colon."""

    model_type: str
    name: str
    reason: str


# What a family may lack -> how messages and tables call it.
CAPABILITIES: Mapping[str, str] = {
    "probe": "answering questions",
    "layout": "occlusion maps and information flow",
    "flow": "information flow",
    "positions": "methods that move the positions of its image tokens",
    "training": "fine-tuning",
    "image_size": "bounds on the size of its images (min_pixels, max_pixels)",
    "conversion": "conversion from an original checkpoint",
    "vllm": "vLLM",
}
# The same, for what lies below `training`.
TRAINING_CAPABILITIES: Mapping[str, str] = {
    "lora_on_all_layers": "LoRA on all linear layers (lora_target: all)",
    "gradient_checkpointing": "gradient checkpointing",
    "tiles": "cutting images into tiles in training (crop_to_patches)",
}

T = TypeVar("T")


def require(family: Family, capability: str, found: T | Lacks) -> T:
    """What the family declares under `capability`.

    Raises CannotServe, an InputError, with the family's reason where it declares that it lacks it.
    """
    if isinstance(found, Lacks):
        what = {**CAPABILITIES, **TRAINING_CAPABILITIES}[capability]
        raise CannotServe(f"{family.name} ({family.model_type}) does not support {what}: {found.reason}.")
    return found
