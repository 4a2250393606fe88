"""The shape of the embedded model: a stock Qwen2.5-VL, about 3 million parameters."""

from typing import Any

from transformers_agci.embedded.atlas import CELL
from transformers_agci.embedded.drawing import CANVAS

PATCH = 14  # pixels
MERGE = 2  # patches along a side of an image token
GRID = CANVAS // PATCH // MERGE  # image tokens along a side of the canvas: 9
IMAGE_TOKENS = GRID * GRID
TOKENS_PER_CELL_SIDE = CELL // PATCH // MERGE  # 3
WINDOW = 112  # pixels, Qwen2.5-VL's own; it cuts the middle and the last cells of the canvas into pieces
ROPE_THETA = 10_000.0
MROPE_SECTION = (6, 9, 9)  # time, height, width
NORM_EPS = 1e-6
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)  # per channel, as every Qwen2.5-VL
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)

VISION: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": MERGE,
    "temporal_patch_size": 2,
    "window_size": WINDOW,
    # No block joins the windows: an image that lies across a border is seen in pieces, which the decoder must join.
    # With full attention in the last block the model answers better and its margins hardly depend on the position.
    "fullatt_block_indexes": [],
    "out_hidden_size": 192,
}
TEXT: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "rms_norm_eps": NORM_EPS,
    "rope_theta": ROPE_THETA,
    "tie_word_embeddings": True,
}


def configuration(tokenizer: Any) -> Any:
    """The Qwen2_5_VLConfig that fits `tokenizer` (its vocabulary and the ids of Qwen's special tokens)."""
    from transformers import Qwen2_5_VLConfig

    def number(token: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(token))

    blank = number("<|endoftext|>")
    ids: dict[str, Any] = {"bos_token_id": blank, "eos_token_id": number("<|im_end|>"), "pad_token_id": blank}
    text = {
        **TEXT,
        **ids,
        "vocab_size": len(tokenizer),
        "rope_scaling": {"type": "mrope", "mrope_section": list(MROPE_SECTION)},
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=VISION,
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
        tie_word_embeddings=True,
        **ids,
    )


def fresh_model(tokenizer: Any, seed: int) -> Any:
    """An untrained Qwen2_5_VLForConditionalGeneration in float32."""
    import torch
    from transformers import Qwen2_5_VLForConditionalGeneration

    torch.manual_seed(seed)
    return Qwen2_5_VLForConditionalGeneration(configuration(tokenizer)).float()
