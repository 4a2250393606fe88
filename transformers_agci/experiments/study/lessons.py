"""Fine-tuning data of the study: Yes/No rows about fresh composites, in LLaMA-Factory's form."""

import json
from pathlib import Path

import numpy as np

from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.instruct import IMAGE_TOKEN, register
from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.drawing import Look
from transformers_agci.embedded.probe_set import draw_items
from transformers_agci.experiments.position.questions import PROMPT
from transformers_agci.storage.journal import write_whole

# The fine-tuning rows of seed s are drawn with LESSONS + s, the probe's items with PROBE, and nothing else with these.
LESSONS = 41_000
PROBE = 42_000


def write_lessons(folder: Path, seed: int, rows: int) -> str:
    """Write `rows` rows and their images below `folder`; returns the data set's name in its dataset_info.json.

    Every composite is asked about twice, once with the name of its target (Yes), which stands in a random cell, and
    once with that of an image that is not in it (No).
    """
    name = f"seed{seed}"
    if (folder / f"{name}.json").exists():
        return name
    images = folder / name
    images.mkdir(parents=True, exist_ok=True)
    atlas, cells = Atlas(), np.random.default_rng([LESSONS, seed])
    lines = []
    for number, drawn in enumerate(draw_items(atlas, -(-rows // 2), LESSONS + seed, Look())):
        file = images / f"{number:05d}.jpg"
        file.write_bytes(drawn.composite(int(cells.integers(len(POSITIONS)))))
        for image, answer in ((drawn.item.target, "Yes"), (drawn.item.absent, "No")):
            question = IMAGE_TOKEN + PROMPT.format(caption=atlas.names[image])
            row = {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                "images": [f"{name}/{file.name}"],
            }
            lines.append(json.dumps(row, ensure_ascii=False).encode())
    register(folder, name)
    write_whole(folder / f"{name}.json", [b"\n".join(lines[:rows]), b"\n"])
    return name
