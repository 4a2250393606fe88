"""What the ruler compares: biases of known size, and the arms that may repair them."""

from dataclasses import dataclass

from transformers_agci.data.grid import POSITIONS
from transformers_agci.method.rivals import RIVALS

CELLS = len(POSITIONS)
BETAS = (0.0, 0.25, 0.5, 1.0, 2.0)  # planted decoder biases, in attention logits between the top and the bottom row
LAMBDA = 0.5  # what the published code fixes for InternVL; no other is published
NOTHING, REPAIR = "nothing", "known repair"
METHODS = ("agci", "uniform", "random")
ARMS = (NOTHING, REPAIR, *METHODS)
CUTTING_WINDOW = 112  # pixels: Qwen2.5-VL's own; on the embedded canvas its borders cut eight of the nine sub-images


@dataclass(frozen=True)
class Condition:
    """One setting under which every question is asked.

    Attributes:
        beta: the planted decoder bias; None: no decoder bias, but vision windows that cut sub-images (encoder bias).
        arm: one of ARMS, or a rival's name with its strength ("pai:0.2"). The known repair plants -beta beside beta.
    """

    beta: float | None
    arm: str = NOTHING

    @property
    def bias(self) -> str:
        """The bias in words: "decoder 0.5" or "encoder"."""
        return "encoder" if self.beta is None else f"decoder {self.beta:g}"

    @property
    def name(self) -> str:
        """How files call the condition: "decoder 0.5, agci"."""
        return f"{self.bias}, {self.arm}"

    @property
    def planted(self) -> tuple[float, float]:
        """The planted bias, and what is planted to undo it."""
        beta = self.beta or 0.0
        return beta, -beta if self.arm == REPAIR else 0.0

    @property
    def method(self) -> str | None:
        """The method that changes the image tokens, if any."""
        return None if self.arm in (NOTHING, REPAIR) else self.arm

    @property
    def needs_whole_prompts(self) -> bool:
        """Whether the method is a rival that looks at a prompt's last token, or at a second prompt."""
        rival = RIVALS.get(self.arm.partition(":")[0])
        return rival is not None and not (rival.scores is rival.bias is rival.contrast is None)


RULER = (
    *(Condition(beta, arm) for arm in ARMS for beta in BETAS),
    *(Condition(None, arm) for arm in (NOTHING, *METHODS)),
)
# Size is judged at beta 0, with AGCI for the verdict; power at beta 0.5, whose repair is beta 0.
CALIBRATED_BETA = 0.5
CALIBRATION = (Condition(0.0), Condition(0.0, "agci"), Condition(CALIBRATED_BETA), Condition(CALIBRATED_BETA, REPAIR))
