"""Fine-tune the embedded model with lambda 0 and 0.5, equal otherwise, over several seeds; probe; print a table.

Each model is probed on fresh items with the lambda it was trained with, beside the model as it was. A killed study goes
on with the same command; a finished run is not done again. The defaults take about ten minutes of one core.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options; none is needed."""
    parser.add_argument("--output_dir", default="study", metavar="D", help="where everything goes (default study)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="trainings per lambda (default 5)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="steps of 8 rows (default 100)")
    parser.add_argument("--items", type=int, default=100, metavar="N", help="probe items (default 100)")


def run(args: argparse.Namespace) -> int:
    """Train, merge, probe, compare."""
    import functools
    from pathlib import Path

    from transformers_agci.errors import InputError
    from transformers_agci.experiments.study.run import Study
    from transformers_agci.experiments.study.table import table_of
    from transformers_agci.storage.atomic import write_atomic

    for name in ("seeds", "steps", "items"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} must be at least 1, but is {getattr(args, name)}.")
    study = Study(Path(args.output_dir), args.seeds, args.steps, args.items)
    study.run(functools.partial(print, flush=True))
    table = table_of(study)
    write_atomic(study.folder / "study.md", (table + "\n").encode())
    print(
        f"\n{args.seeds} seeds, {args.steps} steps of 8 rows, {args.items} items x 9 positions, Yes and No; percent "
        f"and points, 95 % intervals over seeds and items:\n\n{table}\n\nwritten to {study.folder / 'study.md'}"
    )
    return 0
