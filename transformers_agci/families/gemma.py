"""Google's Gemma: the image is squeezed into a square, and every image has the same number of tokens."""

from transformers_agci.families.declaration import WORKS, Family, Lacks
from transformers_agci.families.image_tokens import EQUAL
from transformers_agci.families.token_layout import square
from transformers_agci.families.training_support import Template, TrainingSupport, count_sequence_length

_GEMMA_3N = TrainingSupport(
    (
        Template(
            "gemma3n",
            user="<start_of_turn>user\n{content}<end_of_turn>\n<start_of_turn>model\n",
            assistant="{content}<end_of_turn>\n",
            system="{content}\n\n",
            image="\n\n<start_of_image>{tokens}<end_of_image>\n\n",
            image_token="<image_soft_token>",
            begins_with_bos=True,
            system_in_user=True,
            words=("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"),
        ),
    ),
    count_sequence_length,
    lora_on_all_layers=Lacks(
        "the decoder reads the weights of some linear layers itself; give lora_target: q_proj,k_proj,v_proj,o_proj"
    ),
    gradient_checkpointing=Lacks("its layers share keys and values, which a second forward of a layer does not find"),
)

FAMILIES = (
    Family(
        "gemma3n",
        "Gemma3n",
        "google/gemma-3n-E4B-it",
        "256",
        images=EQUAL,
        layout=square,
        flow=WORKS,
        training=_GEMMA_3N,
        in_paper=True,
    ),
)
