"""Fine-tuning data of the study: Yes/No rows about fresh composites, in LLaMA-Factory's form."""

import json
from pathlib import Path

from transformers_agci.data.draws import random_stream
from transformers_agci.data.grid import POSITIONS
from transformers_agci.data.instruct import IMAGE_TOKEN, register
from transformers_agci.data.probe_rows import PROMPT
from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.probe_set import render_items
from transformers_agci.storage.atomic import write_atomic

TRAINING_STREAM = ("study", "training")  # then the seed: no other random stream bears this name
PROBE = 42_000  # seed of the probe set that measures every model of the study


def write_training_data(folder: Path, seed: int, rows: int) -> str:
    """Write `rows` rows and their images below `folder`; returns the data set's name in its dataset_info.json.

    Every composite is asked about twice, once with the name of its target (Yes), which stands in a random cell, and
    once with that of an image that is not in it (No).
    """
    name = f"seed{seed}"
    if (folder / f"{name}.json").exists():
        return name
    images = folder / name
    images.mkdir(parents=True, exist_ok=True)
    atlas, cells = Atlas(), random_stream(*TRAINING_STREAM, seed, "cells")
    lines = []
    for number, rendered in enumerate(render_items(atlas, (*TRAINING_STREAM, seed), -(-rows // 2))):
        file = images / f"{number:05d}.jpg"
        write_atomic(file, rendered.composite(int(cells.integers(len(POSITIONS)))), sync=False)
        for image, answer in ((rendered.item.target, "Yes"), (rendered.item.absent, "No")):
            question = IMAGE_TOKEN + PROMPT.format(caption=atlas.names[image])
            row = {
                "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
                "images": [f"{name}/{file.name}"],
            }
            lines.append(json.dumps(row, ensure_ascii=False).encode())
    register(folder, name)
    write_atomic(folder / f"{name}.json", [b"\n".join(lines[:rows]), b"\n"])
    return name
