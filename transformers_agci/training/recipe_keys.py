"""The keys of LLaMA-Factory's recipes that we know: used, fixed to one value, or without a meaning here.

A recipe is a frozen dataclass whose fields are the keys in use, each with its type, LLaMA-Factory's default and what
is allowed. `None` as a default means: not given.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from transformers_agci.errors import InputError

# flash_attn -> what transformers calls it
ATTENTION = {"auto": None, "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}


@dataclass(frozen=True)
class Bounds:
    """What a key may hold: both ends of its range, or a choice of words."""

    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Fixed:
    """A key of which only these values are served, and why."""

    allowed: tuple[Any, ...]
    reason: str


def _only(reason: str, *allowed: Any) -> Fixed:
    return Fixed(allowed, reason)


def _key(
    default: Any = None, minimum: float | None = None, maximum: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    return dataclasses.field(default=default, metadata={"bounds": Bounds(minimum, maximum, choices)})


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What both kinds of recipes share.

    Attributes:
        source: the file's name; it begins the messages.
        ignored: keys without a meaning here, each as a sentence that says why.
        unsupported: keys and values that LLaMA-Factory may take and we do not, each as a sentence.
    """

    command: ClassVar[str]
    fixed: ClassVar[Mapping[str, Fixed]]
    without_meaning: ClassVar[Mapping[str, str]]

    source: str
    ignored: tuple[str, ...] = ()
    unsupported: tuple[str, ...] = ()
    model_name_or_path: str

    @classmethod
    def keys(cls) -> "dict[str, dataclasses.Field[Any]]":
        """The keys in use, by name."""
        about = {field.name for field in dataclasses.fields(Recipe)} - {"model_name_or_path"}
        return {field.name: field for field in dataclasses.fields(cls) if field.name not in about}

    @property
    def values(self) -> dict[str, Any]:
        """Key -> value, defaults filled in."""
        return {name: getattr(self, name) for name in self.keys()}

    def check_supported(self) -> None:
        """InputError for the first thing that our own trainer cannot do."""
        if self.unsupported:
            raise InputError(self.unsupported[0])


@dataclass(frozen=True, kw_only=True)
class TrainerKeys:
    """Handed to transformers' TrainingArguments under the same name."""

    per_device_train_batch_size: int = _key(8, 1)
    gradient_accumulation_steps: int = _key(1, 1)
    learning_rate: float = _key(5e-5, 0)
    num_train_epochs: float = _key(3.0, 0)
    max_steps: int = _key(-1, -1)
    lr_scheduler_type: str = "linear"
    weight_decay: float = _key(0.0, 0)
    max_grad_norm: float = _key(1.0, 0)
    optim: str | None = None
    adam_beta1: float = _key(0.9, 0)
    adam_beta2: float = _key(0.999, 0)
    adam_epsilon: float = _key(1e-8, 0)
    bf16: bool = False
    fp16: bool = False
    seed: int = _key(42, 0)
    data_seed: int | None = _key(None, 0)
    logging_steps: int = _key(500, 1)
    save_strategy: str = _key("steps", choices=("steps", "epoch", "no"))
    save_steps: int = _key(500, 1)
    save_total_limit: int | None = _key(None, 1)
    dataloader_num_workers: int = _key(0, 0)
    ddp_timeout: int = _key(1800, 1)
    ddp_backend: str | None = None
    use_cpu: bool | None = None  # default: where there is no GPU
    report_to: str = "none"
    run_name: str | None = None  # in the tracker


_WITHOUT_MEANING = {
    "trust_remote_code": "the Python code of a checkpoint is never run",
    "use_fast_tokenizer": "the checkpoint's own tokenizer is taken",
    "low_cpu_mem_usage": "transformers always loads that way",
    "print_param_status": "the number of trainable weights is always printed",
}

_TRAIN_FIXED = {
    "stage": _only("only supervised fine-tuning is done", "sft"),
    "do_train": _only("the command trains", True),
    "do_eval": _only("models are evaluated by agci probe and agci benchmark", False),
    "do_predict": _only("models are evaluated by agci probe and agci benchmark", False),
    "predict_with_generate": _only("models are evaluated by agci probe and agci benchmark", False),
    "eval_strategy": _only("models are evaluated by agci probe and agci benchmark", "no", False),
    "val_size": _only("every row is trained on", 0),
    "finetuning_type": _only("adapters are LoRA", "lora"),
    "freeze_vision_tower": _only("LoRA goes into the language model only", True),
    "freeze_multi_modal_projector": _only("LoRA goes into the language model only", True),
    "freeze_language_model": _only("LoRA goes into the language model only", False),
    "additional_target": _only("LoRA goes into the language model only"),
    "use_dora": _only("adapters are plain LoRA", False),
    "pissa_init": _only("adapters are plain LoRA", False),
    "loraplus_lr_ratio": _only("adapters are plain LoRA"),
    "quantization_bit": _only("the model is trained in its own dtype"),
    "pure_bf16": _only("adapters are trained in float32", False),
    "upcast_layernorm": _only("the model is trained in its own dtype", False),
    "packing": _only("one conversation is one sequence", False),
    "neat_packing": _only("one conversation is one sequence", False),
    "streaming": _only("rows are read before the first step, so that a bad one is named then", False),
    "mix_strategy": _only("data sets follow one another", "concat"),
    "train_on_prompt": _only("only what the assistant says is learned", False),
    "mask_history": _only("every answer of a conversation is learned", False),
    "disable_shuffling": _only("rows are shuffled by the seed", False),
    "image_do_pan_and_scan": _only("images are not cut into tiles", False),
    "resize_vocab": _only("the vocabulary stays as it is", False),
    "deepspeed": _only("several processes are started by torchrun"),
    "fsdp": _only("several processes are started by torchrun", ""),
    "adapter_name_or_path": _only("training begins with a new adapter"),
    "save_only_model": _only("a killed run goes on from its last checkpoint, which needs the optimizer", False),
}

_TRAIN_IGNORED = {
    **_WITHOUT_MEANING,
    "overwrite_cache": "rows are encoded when they are needed, nothing is cached",
    "preprocessing_num_workers": "rows are encoded when they are needed (dataloader_num_workers does it ahead)",
    "preprocessing_batch_size": "rows are encoded when they are needed",
    "plot_loss": "the losses are in trainer_state.json",
    "resume_from_checkpoint": "a killed run goes on from its last checkpoint by itself",
    "include_num_input_tokens_seen": "tokens are not counted",
    "per_device_eval_batch_size": "nothing is evaluated while training",
    "eval_steps": "nothing is evaluated while training",
    "use_reentrant_gc": "it changes no result",
    "logging_dir": "no event files are written",
    "video_max_pixels": "rows with videos are refused",
    "video_min_pixels": "rows with videos are refused",
    "video_fps": "rows with videos are refused",
    "video_maxlen": "rows with videos are refused",
}

_MERGE_FIXED = {
    "stage": _only("adapters come from supervised fine-tuning", "sft"),
    "finetuning_type": _only("adapters are LoRA", "lora"),
    "infer_dtype": _only("the checkpoint keeps its dtype", "auto"),
    "export_legacy_format": _only("weights are written as safetensors", False),
    "export_quantization_bit": _only("the checkpoint keeps its dtype"),
    "export_hub_model_id": _only("nothing is uploaded"),
}

_MERGE_IGNORED = {
    **_WITHOUT_MEANING,
    "export_device": "the weights are added on the CPU, one file at a time",
}


@dataclass(frozen=True, kw_only=True)
class TrainRecipe(TrainerKeys, Recipe):
    """Training a LoRA adapter."""

    command = "agci train-lora"
    fixed = MappingProxyType(_TRAIN_FIXED)
    without_meaning = MappingProxyType(_TRAIN_IGNORED)

    template: str
    dataset: tuple[str, ...]
    dataset_dir: str = "data"
    media_dir: str | None = None  # default: dataset_dir
    cutoff_len: int = _key(2048, 1)
    max_samples: int | None = _key(None, 1)
    enable_thinking: bool = True
    image_max_pixels: int = _key(768 * 768, 1)
    image_min_pixels: int = _key(32 * 32, 1)
    crop_to_patches: bool = False
    lora_rank: int = _key(8, 1)
    lora_alpha: int | None = _key(None, 1)  # default: twice the rank
    lora_dropout: float = _key(0.0, 0, 1)
    lora_target: tuple[str, ...] = ("all",)
    use_rslora: bool = False
    flash_attn: str = _key("auto", choices=tuple(ATTENTION))
    disable_gradient_checkpointing: bool = False
    output_dir: str
    overwrite_output_dir: bool = False
    warmup_ratio: float = _key(0.0, 0, 1)
    warmup_steps: float = _key(0.0, 0)  # below 1: a ratio, as in transformers 5


@dataclass(frozen=True, kw_only=True)
class MergeRecipe(Recipe):
    """Merging an adapter into its checkpoint: LLaMA-Factory's export."""

    command = "agci merge-lora"
    fixed = MappingProxyType(_MERGE_FIXED)
    without_meaning = MappingProxyType(_MERGE_IGNORED)

    export_dir: str
    template: str | None = None  # merging needs none; where it is given it has to fit
    adapter_name_or_path: str | None = None
    export_size: float = _key(5.0, 0)  # GB (1e9 bytes) per file
