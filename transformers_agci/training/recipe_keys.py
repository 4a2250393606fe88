"""The keys of LLaMA-Factory's recipes that we know: used, fixed to one value, or without a meaning here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# flash_attn -> what transformers calls it
ATTENTION = {"auto": None, "disabled": "eager", "sdpa": "sdpa", "fa2": "flash_attention_2"}


@dataclass(frozen=True)
class Key:
    """A key with a meaning: its type, LLaMA-Factory's default, its range."""

    type: type
    default: Any = None
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    required: bool = False


@dataclass(frozen=True)
class Fixed:
    """A key of which only these values are served, and why."""

    allowed: tuple[Any, ...]
    reason: str


@dataclass(frozen=True)
class KeyTable:
    """What one command makes of a recipe's keys."""

    command: str
    used: Mapping[str, Key]
    fixed: Mapping[str, Fixed]
    ignored: Mapping[str, str]

    @property
    def names(self) -> list[str]:
        return [*self.used, *self.fixed, *self.ignored]


def _only(reason: str, *allowed: Any) -> Fixed:
    return Fixed(allowed, reason)


# Handed to transformers' TrainingArguments under the same name.
TRAINER_KEYS: Mapping[str, Key] = {
    "per_device_train_batch_size": Key(int, 8, 1),
    "gradient_accumulation_steps": Key(int, 1, 1),
    "learning_rate": Key(float, 5e-5, 0),
    "num_train_epochs": Key(float, 3.0, 0),
    "max_steps": Key(int, -1, -1),
    "lr_scheduler_type": Key(str, "linear"),
    "weight_decay": Key(float, 0.0, 0),
    "max_grad_norm": Key(float, 1.0, 0),
    "optim": Key(str),
    "adam_beta1": Key(float, 0.9, 0),
    "adam_beta2": Key(float, 0.999, 0),
    "adam_epsilon": Key(float, 1e-8, 0),
    "bf16": Key(bool, False),
    "fp16": Key(bool, False),
    "seed": Key(int, 42, 0),
    "data_seed": Key(int, None, 0),
    "logging_steps": Key(int, 500, 1),
    "save_strategy": Key(str, "steps", choices=("steps", "epoch", "no")),
    "save_steps": Key(int, 500, 1),
    "save_total_limit": Key(int, None, 1),
    "dataloader_num_workers": Key(int, 0, 0),
    "ddp_timeout": Key(int, 1800, 1),
    "ddp_backend": Key(str),
    "use_cpu": Key(bool),  # default: where there is no GPU
    "report_to": Key(str, "none"),
}

_MODEL = {
    "model_name_or_path": Key(str, required=True),
    "template": Key(str, required=True),
}

_WITHOUT_MEANING = {
    "trust_remote_code": "the Python code of a checkpoint is never run",
    "use_fast_tokenizer": "the checkpoint's own tokenizer is taken",
    "low_cpu_mem_usage": "transformers loads that way anyhow",
    "print_param_status": "the number of trainable weights is printed anyhow",
}

TRAIN = KeyTable(
    command="agci train-lora",
    used={
        **_MODEL,
        "dataset": Key(list, required=True),
        "dataset_dir": Key(str, "data"),
        "media_dir": Key(str),  # default: dataset_dir
        "cutoff_len": Key(int, 2048, 1),
        "max_samples": Key(int, None, 1),
        "enable_thinking": Key(bool, True),
        "image_max_pixels": Key(int, 768 * 768, 1),
        "image_min_pixels": Key(int, 32 * 32, 1),
        "crop_to_patches": Key(bool, False),
        "lora_rank": Key(int, 8, 1),
        "lora_alpha": Key(int, None, 1),  # default: twice the rank
        "lora_dropout": Key(float, 0.0, 0, 1),
        "lora_target": Key(list, ["all"]),
        "use_rslora": Key(bool, False),
        "flash_attn": Key(str, "auto", choices=tuple(ATTENTION)),
        "disable_gradient_checkpointing": Key(bool, False),
        "output_dir": Key(str, required=True),
        "overwrite_output_dir": Key(bool, False),
        "warmup_ratio": Key(float, 0.0, 0, 1),
        "warmup_steps": Key(float, 0.0, 0),  # below 1: a ratio, as in transformers 5
        **TRAINER_KEYS,
    },
    fixed={
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
        "train_on_prompt": _only("only what the assistant says is learnt", False),
        "mask_history": _only("every answer of a conversation is learnt", False),
        "disable_shuffling": _only("rows are shuffled by the seed", False),
        "image_do_pan_and_scan": _only("images are not cut up", False),
        "resize_vocab": _only("the vocabulary stays as it is", False),
        "deepspeed": _only("several processes are started by torchrun"),
        "fsdp": _only("several processes are started by torchrun", ""),
        "adapter_name_or_path": _only("training begins with a new adapter"),
        "save_only_model": _only("a killed run goes on from its last checkpoint, which needs the optimizer", False),
    },
    ignored={
        **_WITHOUT_MEANING,
        "overwrite_cache": "rows are encoded when they are needed, nothing is cached",
        "preprocessing_num_workers": "rows are encoded when they are needed (dataloader_num_workers does it ahead)",
        "preprocessing_batch_size": "rows are encoded when they are needed",
        "plot_loss": "the losses stand in trainer_state.json",
        "resume_from_checkpoint": "a killed run goes on from its last checkpoint by itself",
        "include_num_input_tokens_seen": "tokens are not counted",
        "per_device_eval_batch_size": "nothing is evaluated while training",
        "eval_steps": "nothing is evaluated while training",
        "use_reentrant_gc": "it changes no result",
        "logging_dir": "no event files are written",
        "run_name": "it names a run in trackers, of which report_to has none",
        "video_max_pixels": "rows with videos are refused",
        "video_min_pixels": "rows with videos are refused",
        "video_fps": "rows with videos are refused",
        "video_maxlen": "rows with videos are refused",
    },
)

MERGE = KeyTable(
    command="agci merge-lora",
    used={
        "model_name_or_path": Key(str, required=True),
        "template": Key(str),  # merging needs none; where it is given it has to fit
        "adapter_name_or_path": Key(str),
        "export_dir": Key(str, required=True),
        "export_size": Key(float, 5.0, 0),  # GB (1e9 bytes) per file
    },
    fixed={
        "stage": _only("adapters come from supervised fine-tuning", "sft"),
        "finetuning_type": _only("adapters are LoRA", "lora"),
        "infer_dtype": _only("the checkpoint keeps its dtype", "auto"),
        "export_legacy_format": _only("weights are written as safetensors", False),
        "export_quantization_bit": _only("the checkpoint keeps its dtype"),
        "export_hub_model_id": _only("nothing is uploaded"),
    },
    ignored={
        **_WITHOUT_MEANING,
        "export_device": "the weights are added on the CPU, one file at a time",
    },
)
