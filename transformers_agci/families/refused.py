"""Families of transformers that AGCI cannot serve, each with the reason that its user reads.

Every image-text-to-text family of transformers 5.24 is either here or supported.
"""

from transformers_agci.families.declaration import RefusedFamily

_CROSS_ATTENTION = (
    "its decoder looks at the image through cross attention, so that no image token stands among the embeddings that "
    "AGCI changes"
)
_INSIDE = (
    "it writes the image into the embeddings inside its decoder, so that no place is left between the two where AGCI "
    "could change them"
)
_QUERIES = (
    "a Q-Former makes its few image tokens, each about the whole image, so that no place on the image belongs to them"
)
_AROUND = "it merges the image features into the text itself, around the {} that AGCI would serve"


def _all(reason: str, **names: str) -> tuple[RefusedFamily, ...]:
    """model_type (with _ for - and .) -> name, of families with one reason."""
    return tuple(RefusedFamily(_SPELLED.get(key, key), name, reason) for key, name in names.items())


_SPELLED = {
    "blip_2": "blip-2",
    "kosmos_2": "kosmos-2",
    "kosmos_2_5": "kosmos-2.5",
    "vision_encoder_decoder": "vision-encoder-decoder",
}

FAMILIES = (
    RefusedFamily("mllama", "Llama 3.2 Vision", _CROSS_ATTENTION),
    *_all(
        _CROSS_ATTENTION,
        blip="BLIP",
        florence2="Florence-2",
        idefics="IDEFICS",
        pix2struct="Pix2Struct",
        pp_formulanet="PP-FormulaNet",
        t5gemma2="T5Gemma 2",
        udop="UDOP",
        vision_encoder_decoder="VisionEncoderDecoder",
    ),
    RefusedFamily("evolla", "Evolla", "it reads proteins, not images"),
    RefusedFamily(
        "granite4_vision",
        "Granite 4 Vision",
        "its image features are added inside the decoder's layers only; what stands at an image token before them is "
        "zero, and zero has no direction to change",
    ),
    RefusedFamily("mistral4", "Mistral 4", "this class is its text model, which takes no images"),
    RefusedFamily(
        "diffusion_gemma",
        "DiffusionGemma",
        "it denoises blocks of text instead of reading a prompt once, and AGCI is defined for one prefill",
    ),
    RefusedFamily("pi0", "PI0", _AROUND.format("PaliGemma")),
    RefusedFamily("colqwen2", "ColQwen2", _AROUND.format("Qwen2-VL")),
    *_all(_QUERIES, blip_2="BLIP-2", instructblip="InstructBLIP", instructblipvideo="InstructBlipVideo"),
    *_all(_INSIDE, chameleon="Chameleon", git="GIT", kosmos_2="Kosmos-2", kosmos_2_5="Kosmos-2.5"),
    RefusedFamily(
        "idefics2",
        "Idefics2",
        "its prompts do not say where an image ends: an image that is cut has five runs of image tokens with one mark "
        "between two of them, and so have five small images that stand side by side",
    ),
)
