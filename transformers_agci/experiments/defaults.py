"""What an experiment takes where nothing is given: its options, its command and its function of the API read it here.

Numbers and words alone, so that the help of a command loads no experiment.
"""

from typing import Literal

ATLAS_ITEMS = 100  # made of the embedded atlas where a command is given no rows
FIRST_LOOK_ITEMS = 20  # the same in Python, where most calls are a first look
DRAWN_ITEMS, DRAW_SEED = 20, 1  # the paper's draw of items for occlusion and flow

DRAWS = 2000  # permutations of the null of "no position effect"
RESAMPLES = 2000  # of the bootstrap around a benchmark's score
Choice = Literal["balanced", "auc", "evenness"]  # by what a strength is chosen
CHOOSE_BY: Choice = "balanced"
DEV_SHARE = 0.5  # of the items, which choose among strengths; the others report

OCCLUSION_TOKENS = 128  # longest answer
FLOW_TOKENS = 32
FLOW_LAYERS = "all"
POOLING = "max"  # of the image tokens whose similarity is measured

DEMO_ITEMS = 100
DEMO_BIAS = 1.0  # planted, in attention logits between the top and the bottom row of cells
PROCESSES = 2  # of demo and ruler, one thread each
RULER_ITEMS, RULER_POOL, RULER_SETS = (
    300,
    600,
    100,
)  # of a measurement; of the calibration, and the sets drawn from them
STUDY_SEEDS, STUDY_STEPS, STUDY_ITEMS = 5, 100, 100

INSTRUCT_ROWS = 10_000  # of the fine-tuning sample

Images = Literal["page", "folder", "none"]  # where those of `agci report` go
IMAGES: Images = "page"
THUMBNAILS = 400  # in the page, at most
