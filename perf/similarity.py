"""Similarity: images per second through the vision side, pooling and captions included.

python perf/similarity.py                   the embedded model, any machine
python perf/similarity.py --random_7b       a GPU: Qwen2.5-VL-7B's shape, 840x840 pixels, bfloat16
python perf/similarity.py --small           the same with a small shape, on any machine
"""

import tempfile
from pathlib import Path

from flops import counter, figures
from machine import announce, say, timed
from models import chosen_model, model_parser, quick_layers
from rows import probe_questions

from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.experiments.positives import Positives
from transformers_agci.experiments.similarity.run import SimilarityRun
from transformers_agci.inference.runner import RunOptions


def main() -> None:
    parser = model_parser(__doc__)
    parser.add_argument("--images", type=int, default=72, help="default 72")
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare images (default 0)")
    args = parser.parse_args()
    announce()
    loaded = chosen_model(args)
    side = 840 if args.random_7b or args.small else 252
    with tempfile.TemporaryDirectory() as name, quick_layers(loaded.model) as how:
        folder = Path(name)
        asked = probe_questions(folder, args.images, side, side)
        rows = [
            ProbeRow.parse(
                {"id": n, "image": question.row["image"], "caption": "dog", "position": "center", "answer": "Yes"},
                question.where,
            )
            for n, question in enumerate(asked)
        ]
        measured = SimilarityRun(loaded, rows, folder, workers=args.workers)
        data = Positives({"all": rows}, folder, [], {}, 0)

        def run(number: int) -> None:
            measured.write(folder / f"{number}.jsonl", data, {}, RunOptions(progress=False))

        run(0)  # warm up
        _, took = timed(loaded.device, lambda: run(1))
        with counter() as counted:
            run(2)
    say(f"{len(rows)} images; {how}; {loaded.model.dtype}")
    say(figures(loaded, len(rows), took, counted.get_total_flops()))


if __name__ == "__main__":
    main()
