"""Tokenizer, image processor, chat template and generation settings, as the files that every transformers reads.

They are written in the form of transformers 4.57, which 5.x reads, too; what 5.x writes 4.57 does not read.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from transformers_agci.conversion.original import Original
from transformers_agci.conversion.sentencepiece_file import build_tokenizer, read_vocabulary
from transformers_agci.errors import InputError
from transformers_agci.storage.json_file import read_json_object

TOKENIZER = "tokenizer.model"
IMAGE, PAD = "<image>", "<pad>"
CHATML = "<|im_start|>"

# Mean and standard deviation of OpenAI's CLIP, for a tower whose preprocessor_config.json is not at hand.
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
BICUBIC = 3  # PIL's number

# What stands in a turn, in order; an image is followed by a line break, as both versions were trained.
_CONTENT = (
    "{%- macro content(turn) -%}"
    "{%- if turn['content'] is string -%}{{ turn['content'] }}"
    "{%- else -%}{%- for part in turn['content'] -%}"
    "{%- if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)
# LLaVA-1.5 and LLaMA-based 1.6 speak Vicuna's form: "USER: question ASSISTANT: answer</s>USER: ...". No system sentence
# of its own, as in the llava-hf checkpoints; a system turn goes first.
VICUNA = _CONTENT + (
    "{%- for turn in messages -%}"
    "{%- if turn['role'] == 'system' -%}{{ content(turn) + ' ' }}"
    "{%- elif turn['role'] == 'user' -%}{{ 'USER: ' + content(turn) + ' ' }}"
    "{%- else -%}{{ 'ASSISTANT: ' + content(turn) + '</s>' }}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
)
# Mistral's form: "[INST] question [/INST] answer </s>[INST] ...". A system turn stands inside the first user turn.
MISTRAL = _CONTENT + (
    "{%- set told = namespace(system='') -%}"
    "{%- for turn in messages -%}"
    "{%- if turn['role'] == 'system' -%}{%- set told.system = '<<SYS>>\\n' + content(turn) + '\\n<</SYS>>\\n\\n' -%}"
    "{%- elif turn['role'] == 'user' -%}{{ '[INST] ' + told.system + content(turn) + ' [/INST]' }}"
    "{%- set told.system = '' -%}"
    "{%- else -%}{{ ' ' + content(turn) + ' </s>' }}{%- endif -%}"
    "{%- endfor -%}"
)


class Vocabulary(NamedTuple):
    """A tokenizer that knows the image and pad tokens, and their ids."""

    tokenizer: Tokenizer
    image: int
    pad: int
    begin: str
    end: str
    unknown: str


def read_tokenizer(folder: Path, original: Original) -> Vocabulary:
    """The tokenizer of the original checkpoint with two tokens more: one for an image, one for padding."""
    path = folder / TOKENIZER
    vocabulary = read_vocabulary(path)
    texts = [piece.text for piece in vocabulary.pieces]
    named = {}
    for key in ("bos_token_id", "eos_token_id"):
        number = original.config.get(key)
        if not isinstance(number, int) or not 0 <= number < len(texts) or texts[number] not in vocabulary.controls:
            raise InputError(f"{original.path}: {key} {number!r} is no special token of {path}.")
        named[key] = texts[number]
    added = _added_tokens(folder, len(texts))
    if CHATML in added:
        raise InputError(
            f"{folder} speaks ChatML ({CHATML}), as LLaVA-1.6-34B does; only the prompt forms of Vicuna "
            "and Mistral are written here, so take the llava-hf checkpoint of that model."
        )
    more = [*added, *(text for text in (IMAGE, PAD) if text not in texts and text not in added)]
    tokenizer = build_tokenizer(vocabulary, named["bos_token_id"], more)
    rows = int(original.config["vocab_size"])
    if len(texts) + len(added) > rows:
        raise InputError(
            f"{path} and its added tokens have {len(texts) + len(added)} entries, but {original.path} "
            f"says vocab_size {rows}; they do not belong together."
        )
    image, pad = (tokenizer.get_vocab()[text] for text in (IMAGE, PAD))
    return Vocabulary(tokenizer, image, pad, named["bos_token_id"], named["eos_token_id"], vocabulary.unknown)


def _added_tokens(folder: Path, pieces: int) -> list[str]:
    """Tokens that the original added behind tokenizer.model's pieces, in the order of their ids."""
    found: dict[int, str] = {}
    try:
        if (folder / "added_tokens.json").exists():
            found |= {int(number): text for text, number in read_json_object(folder / "added_tokens.json").items()}
        if (folder / "tokenizer_config.json").exists():
            decoder = read_json_object(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
            found |= {int(number): token["content"] for number, token in decoder.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"added_tokens.json or tokenizer_config.json of {folder} does not list tokens with their ids "
            f"({type(error).__name__}: {error}); download both again."
        ) from error
    found = {number: text for number, text in found.items() if number >= pieces}
    if sorted(found) != list(range(pieces, pieces + len(found))):
        raise InputError(
            f"The added tokens of {folder} have the ids {sorted(found)}, which do not follow "
            f"{TOKENIZER}'s {pieces} pieces without a gap."
        )
    return [found[number] for number in sorted(found)]


def tokenizer_config(folder: Path, original: Original, vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer_config.json. The class is the general one: 5.x's LlamaTokenizer would split text its own way."""
    found = read_json_object(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    longest = original.config.get("tokenizer_model_max_length") or found.get("model_max_length")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "processor_class": processor_class(original),
        "bos_token": vocabulary.begin,
        "eos_token": vocabulary.end,
        "unk_token": vocabulary.unknown,
        "pad_token": PAD,
        "image_token": IMAGE,
        "extra_special_tokens": {"image_token": IMAGE},
        "padding_side": "left",
        "model_max_length": longest or original.config.get("max_position_embeddings", 4096),
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


def processor_class(original: Original) -> str:
    """The class of transformers' that prepares its prompts and images."""
    return "LlavaNextProcessor" if original.anyres else "LlavaProcessor"


def image_processor_config(original: Original, config: Mapping[str, Any], tower: Path | None) -> dict[str, Any]:
    """preprocessor_config.json: side and crop are the tower's, tiles or padding the original config's."""
    side = config["vision_config"]["image_size"]  # pixels
    found: Any = {}
    if tower is not None and (tower / "preprocessor_config.json").exists():
        found = read_json_object(tower / "preprocessor_config.json")
    made = {
        "image_processor_type": "CLIPImageProcessor",
        "processor_class": processor_class(original),
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": found.get("resample", BICUBIC),
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": found.get("image_mean", CLIP_MEAN),
        "image_std": found.get("image_std", CLIP_STD),
    }
    if original.anyres:
        return made | {
            "image_processor_type": "LlavaNextImageProcessor",
            "do_pad": True,
            "image_grid_pinpoints": config["image_grid_pinpoints"],
        }
    if original.pads_to_square:
        return made | {"image_processor_type": "LlavaImageProcessor", "do_pad": True}
    return made


def processor_config(original: Original, config: Mapping[str, Any]) -> dict[str, Any]:
    """processor_config.json: what the number of image tokens follows from."""
    return {
        "processor_class": processor_class(original),
        "image_token": IMAGE,
        "patch_size": config["vision_config"]["patch_size"],
        "vision_feature_select_strategy": config["vision_feature_select_strategy"],
        "num_additional_image_tokens": 1,  # CLIP's class token
    }


def chat_template(original: Original) -> str:
    """The template of the conversations that its decoder was trained on."""
    return MISTRAL if original.mistral else VICUNA


SAMPLING = ("temperature", "top_p", "top_k", "typical_p", "min_p")


def generation_config(folder: Path, original: Original, pad: int) -> dict[str, Any]:
    """The original's settings with the new pad token.

    Sampling values without do_sample do nothing, and later versions of transformers refuse to save them; max_length is
    the context's, and beside max_new_tokens a warning at every call.
    """
    path = folder / "generation_config.json"
    found = dict(read_json_object(path)) if path.exists() else {}
    idle = () if found.get("do_sample") else SAMPLING
    for key in ("_from_model_config", "transformers_version", "max_length", *idle):
        found.pop(key, None)
    ids = {key: original.config[key] for key in ("bos_token_id", "eos_token_id")}
    return {**ids, **found, "pad_token_id": pad}
