"""A benchmark in POPE's form that the embedded model can be asked: atlas images, each alone on the canvas.

    python perf/atlas_pope.py FOLDER [--items 30] [--seed 0]

Writes FOLDER/pope.jsonl (lmms-lab's columns) and FOLDER/images. The targets are those of the probe set with the same
seed; a Yes question asks for the image that is shown, a No question for one that is not. The embedded model learnt
canvases of nine images and one question, so this is another task for it: ask it with `--benchmark_prompt "{question}"`.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.probe_set import PROBE_STREAM, build_similarity_set, render_items
from transformers_agci.experiments.position.questions import PROMPT


def write_questions(folder: Path, items: int, seed: int) -> Path:
    """Nine Yes and nine No questions per item, in the order of the images."""
    made, atlas = build_similarity_set(folder, items, seed), Atlas()
    absent = [atlas.names[r.item.absent] for r in render_items(atlas, (*PROBE_STREAM, seed), items)]
    rows = []
    for line in made.rows.read_text().splitlines():
        shown = json.loads(line)
        for answer, caption in (("yes", shown["caption"]), ("no", absent[len(rows) // 18])):
            rows.append(
                {
                    "question_id": str(len(rows)),
                    "question": PROMPT.format(caption=caption),
                    "answer": answer,
                    "image_source": shown["image"].removesuffix(".jpg"),
                    "image": shown["image"],
                    "category": "random",
                }
            )
    file = folder / "pope.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def main(argv: Sequence[str] | None = None) -> None:
    """Write, and say the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--items", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    file = write_questions(args.folder, args.items, args.seed)
    print(
        f"agci compare --benchmark pope --benchmark_data {file} --benchmark_images {args.folder / 'images'} "
        "--benchmark_prompt '{question}'"
    )


if __name__ == "__main__":
    main()
