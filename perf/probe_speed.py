"""The position probe, ours beside the plain loop: rates, where the time goes, arithmetic, memory.

    python perf/probe_speed.py                  the embedded model, Yes and No rows, two lambdas, one thread
    python perf/probe_speed.py --random_7b      a GPU: 840x840 pixels, one question per image, one lambda, bfloat16
    python perf/probe_speed.py --small          the same with a small shape, on any machine

Same weights, dtype and threads on both sides; opening and preprocessing images is inside, loading the model is not.
Where it is not said otherwise, both sides use one process.
"""

import tempfile
from pathlib import Path

from compare import Comparison, add_comparison_arguments, further
from machine import announce
from models import chosen_model, model_parser
from rows import probe_questions

from transformers_agci.experiments.position.data import embedded_data
from transformers_agci.experiments.position.questions import questions

OF_PROBE = (
    *("padding_behind", "last_positions"),  # first: no GPU has run them yet
    *("rotary", "activation", "norms", "padded_width", "host_values", "pinned", "first_token", "painting"),
)


def main() -> None:
    parser = model_parser(__doc__)
    parser.add_argument("--items", type=int, default=20, help="items of nine images (default 20)")
    add_comparison_arguments(parser)
    args = parser.parse_args()
    announce()
    loaded = chosen_model(args)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.random_7b or args.small:
            asked = probe_questions(folder, 9 * args.items, 840, 840)
            plain = asked[: args.plain_rows]
            Comparison(loaded, asked, [0.5], args.rounds, plain, **further(args, OF_PROBE)).run()
        else:
            data = embedded_data(folder / "set", args.items, seed=0)
            asked = questions(data.items, data.img_path)
            Comparison(loaded, asked, [0.0, 0.5], args.rounds, asked, **further(args, OF_PROBE)).run()


if __name__ == "__main__":
    main()
