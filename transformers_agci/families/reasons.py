"""Why a family lacks a capability: the reasons that several of them share."""

from transformers_agci.families.declaration import Lacks

NO_CHAT = Lacks("it answers no questions in a chat: its checkpoints have no chat template")
NO_LAYOUT = Lacks("where its tiles and rows lie on the image is not declared yet")
NO_ROTARY = Lacks("its decoder has no rotary positions, so that moving them changes nothing")
UNCOUNTED = Lacks(
    "vLLM has no class of its own for it, and runs transformers' modules only where the processor says how many tokens "
    "an image has, which this one's does not"
)
UNKNOWN_TO_VLLM = Lacks(
    "vLLM has no class of its own for it, and the transformers whose modules vLLM 0.32 runs (before 5.20) does not "
    "know it"
)
LINEAR_ATTENTION = Lacks("some of its layers have linear attention, which has no weights on the image tokens to record")
