"""POPE's shape, 18 questions about each image: ours beside the plain loop, with what is computed once per image.

python perf/pope_speed.py                   the embedded model, any machine
python perf/pope_speed.py --random_7b       a GPU: Qwen2.5-VL-7B's shape, images of 640x480 pixels as COCO's
python perf/pope_speed.py --small           the same with a small shape, on any machine
"""

import tempfile
from pathlib import Path

from compare import Comparison, add_comparison_arguments, further
from machine import announce
from models import chosen_model, model_parser
from rows import pope_questions

OF_POPE = ("tails", "varying_lengths", "first_token", "host_values", "equal_lengths")


def main() -> None:
    parser = model_parser(__doc__)
    parser.add_argument("--pictures", type=int, default=54, help="default 54, 972 questions")
    add_comparison_arguments(parser)
    args = parser.parse_args()
    announce()
    loaded = chosen_model(args)
    width, height = (640, 480) if args.random_7b or args.small else (252, 252)
    with tempfile.TemporaryDirectory() as name:
        asked = pope_questions(Path(name), args.pictures, width, height)
        Comparison(loaded, asked, [0.5], args.rounds, asked[: args.plain_rows], **further(args, OF_POPE)).run()


if __name__ == "__main__":
    main()
