"""Train the embedded model anew, from the shipped atlas, on one CPU thread (about 20 minutes).

After each of the four stages the weights go to FOLDER/stages, and the same command goes on from there. The checkpoint
loads with AutoProcessor and AutoModelForImageTextToText; --items fresh items show how well it answers.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the checkpoint goes")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and questions (default: 0)")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="train N steps in all, shared out as in the recipe (default: the recipe)"
    )
    parser.add_argument(
        "--items", type=int, default=300, metavar="N", help="fresh items that measure the result (default: 300)"
    )


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from transformers_agci.embedded.checkpoint import save_checkpoint
    from transformers_agci.embedded.evaluate import evaluate, reload, summary
    from transformers_agci.embedded.training import on_one_thread, train
    from transformers_agci.errors import InputError

    for name in ("steps", "items"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise InputError(f"--{name} must be at least 1, but is {number}.")
    folder = Path(args.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--output {args.output} cannot be written: {error.strerror}.") from error
    with on_one_thread():
        state, losses = train(folder, seed=args.seed, steps=args.steps)
        save_checkpoint(state.model, state.tokenizer, folder)
        answers = evaluate(reload(folder), state.tokenizer, args.items)
    for stage, values in losses.items():
        print(f"{stage}: loss {values[0]:.3f} -> {sum(values[-10:]) / len(values[-10:]):.3f} in {len(values)} steps")
    print(summary(answers))
    print(f"The checkpoint is in {folder}.")
    return 0
