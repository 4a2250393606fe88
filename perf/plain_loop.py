"""The engine beside the plain loop: `python perf/plain_loop.py [--items 20] [--model M]`.

Both answer the same rows of the embedded probe set, Yes and No, at two lambdas, with the same weights, dtype, one
thread and one process. The plain loop asks one question at a time, as the published script does: open the picture,
processor, generate. It makes exactly two new tokens, what a real Yes or No answer takes; the engine makes one forward
call per Yes/No row. Opening and preprocessing are inside both, loading the model is not.
The two are run in turn several times; the ratio is that of the medians.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers

from transformers_agci import agci
from transformers_agci.data.pictures import open_picture
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.prompt import chat_text
from transformers_agci.inference.questions import Question
from transformers_agci.inference.results import output_paths
from transformers_agci.inference.run import RunSummary, run_questions
from transformers_agci.probes.position import questions
from transformers_agci.probes.position_data import embedded_data

LAMBDAS = (0.0, 0.5)


def plain_loop(loaded: LoadedModel, asked: list[Question], folder: Path) -> dict[str, float]:
    """Seconds per part of a loop over every row and lambda, one question at a time."""
    spent = {"decode": 0.0, "preprocess": 0.0, "generate": 0.0}
    model, processor = loaded.model, loaded.processor
    for lam in LAMBDAS:
        with agci(model, lam), torch.inference_mode():
            for question in asked:
                begin = time.perf_counter()
                picture = open_picture(folder / str(question.row["image"]), question.where)
                decoded = time.perf_counter()
                prompt = chat_text(processor, question)
                inputs = processor(text=[prompt], images=[picture], return_tensors="pt").to(model.device)
                prepared = time.perf_counter()
                model.generate(**inputs, min_new_tokens=2, max_new_tokens=2, do_sample=False)
                done = time.perf_counter()
                spent["decode"] += decoded - begin
                spent["preprocess"] += prepared - decoded
                spent["generate"] += done - prepared
    return spent


def engine(loaded: LoadedModel, asked: list[Question]) -> tuple[float, RunSummary]:
    """Seconds of one run of the engine, files written, and what it counted."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        outputs = output_paths(Path(folder) / "answers.jsonl", LAMBDAS)
        summary = run_questions(loaded, asked, LAMBDAS, outputs, progress=False)
        return time.perf_counter() - begin, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=20, help="items of nine positions (default 20)")
    parser.add_argument("--model", default=str(embedded_model_path()))
    parser.add_argument("--rounds", type=int, default=3, help="times that the two are run in turn (default 3)")
    args = parser.parse_args()

    loaded = load(LoadOptions(args.model))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread; "
          f"torch {torch.__version__}, transformers {transformers.__version__}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        data = embedded_data(Path(folder) / "set", args.items, seed=0)
        asked = questions(data.items, data.img_path)
        answers = len(asked) * len(LAMBDAS)
        plain_loop(loaded, asked[:18], data.img_path)  # warm up
        plains, engines = [], []
        for number in range(args.rounds):
            spent = plain_loop(loaded, asked, data.img_path)
            plains.append(sum(spent.values()))
            parts = ", ".join(f"{name} {1000 * seconds / answers:.2f}" for name, seconds in spent.items())
            rate = answers / plains[-1]
            print(f"round {number}: plain loop {rate:6.1f} answers/s ({parts} ms per answer)", flush=True)
            seconds, summary = engine(loaded, asked)
            engines.append(seconds)
            counts = summary.counts
            print(f"round {number}: engine     {answers / seconds:6.1f} answers/s ({counts.vision_pictures} pictures "
                  f"encoded, {counts.forwards} forward calls)", flush=True)
    ratio = statistics.median(plains) / statistics.median(engines)
    print(json.dumps({"answers": answers, "plain_answers_per_s": round(answers / statistics.median(plains), 1),
                      "engine_answers_per_s": round(answers / statistics.median(engines), 1),
                      "ratio": round(ratio, 2)}))


if __name__ == "__main__":
    main()
