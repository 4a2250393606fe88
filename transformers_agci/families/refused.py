"""Families of transformers that AGCI cannot serve, each with the reason that its user reads."""

from transformers_agci.families.declaration import RefusedFamily

FAMILIES = (
    RefusedFamily(
        "mllama",
        "Llama 3.2 Vision",
        "its decoder looks at the image through cross attention, so that no image token stands among the embeddings "
        "that AGCI changes",
    ),
    RefusedFamily(
        "granite4_vision",
        "Granite 4 Vision",
        "its image features are added inside the decoder's layers only; what stands at an image token before them is "
        "zero, and zero has no direction to change",
    ),
    RefusedFamily(
        "colqwen2",
        "ColQwen2",
        "it merges the image features into the text itself, around the Qwen2-VL that AGCI would serve",
    ),
    RefusedFamily(
        "pi0",
        "PI0",
        "it merges the image features into the text itself, around the PaliGemma that AGCI would serve",
    ),
)
