"""`make demo`: the position probe on the embedded model, baseline against AGCI, in a minute."""

import os
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from transformers_agci.embedded.location import EMBEDDED, embedded_model_path
from transformers_agci.embedded.probe_set import IMAGE_FOLDER, NEGATIVES_FILE, ROWS_FILE
from transformers_agci.errors import InputError
from transformers_agci.experiments.demo_share import Share
from transformers_agci.experiments.position.data import ProbeData, embedded_data
from transformers_agci.experiments.position.metrics import evaluate, load, metrics_figure, write_json
from transformers_agci.experiments.position.tables import summary_text
from transformers_agci.inference.progress import Progress, Say
from transformers_agci.inference.runner import output_paths
from transformers_agci.report.heatmap import write_figure
from transformers_agci.storage.result_file import ResultFile, merge_shards

LAMBDAS = (0.0, 0.5)
LOOK_EVERY = 0.5  # seconds between two looks at how far the processes are
# One thread each: the bytes of a row are then the same in every run. Nothing is fetched.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class Demo:
    """`items` items of nine composites, Yes and No, at two lambdas, by `processes` processes; writes to `folder`.

    `beta` is the size of the decoder bias that is planted in the model, 0 for none.
    """

    folder: Path
    items: int
    seed: int
    processes: int
    model: str
    beta: float
    progress: bool = True

    @property
    def probe_set(self) -> Path:
        """The folder of the composites and their rows."""
        return self.folder / "probe_set"

    @property
    def answer_file(self) -> Path:
        """What the result files of the lambdas are named after."""
        return self.folder / "answers.jsonl"

    @property
    def outputs(self) -> list[Path]:
        """One result file per lambda."""
        return output_paths(self.answer_file, LAMBDAS)

    def run(self, say: Say = print) -> None:
        """Build the images, ask, print the table, draw the map, say what it shows."""
        started = time.monotonic()
        self._clear()
        data = embedded_data(self.probe_set, self.items, self.seed)
        answers = data.rows * len(LAMBDAS)
        say(self._what_is_planted())
        if self.model == EMBEDDED:
            say("The model was trained on the same 400 images; poses and combinations are new to it.")
        say(
            f"{answers} answers: {self.items} items x 9 positions, Yes and No, lambda 0 and 0.5, on the CPU by "
            f"{self.processes} processes; model: {self.model}"
        )
        self._ask(data)
        for path in self.outputs:
            merge_shards(path)
        asked = time.monotonic() - started
        metrics = evaluate(load(self.outputs))
        image = write_figure(metrics_figure(metrics), self.folder / "heatmap.png")
        write_json(metrics, self.folder / "metrics.json")
        assert metrics.pair is not None
        say(f"\n{summary_text(metrics.results, metrics.pair)}\n")
        say(
            f"{answers} answers in {asked:.0f} s, {time.monotonic() - started:.0f} s with table and map. Rows and "
            f"manifests: {', '.join(map(str, self.outputs))}"
        )
        say(f"heat map: {image}")
        say(metrics.pair.verdict)

    def _what_is_planted(self) -> str:
        if self.beta == 0:
            return "No bias is planted in the model: `planted_bias` plants a decoder bias of a size (docs/ruler.md)."
        return (
            f"A decoder bias of known size, {self.beta:g}, is planted in the model (docs/ruler.md): answers about the "
            "bottom row get worse. Does AGCI repair it? `planted_bias` 0 turns it off."
        )

    def _clear(self) -> None:
        """Remove what an earlier demo answered: nothing is taken from a cache."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.outputs:
                ResultFile(path, [], {}).delete()
        except OSError as error:
            raise InputError(f"`output_dir`: '{self.folder}' cannot be written: {error.strerror}.") from error

    def _ask(self, data: ProbeData) -> None:
        """Answer in every process and show how far they are, together."""
        with tempfile.TemporaryFile("w+") as log:
            workers = [_Worker(self._start(index, log)) for index in range(self.processes)]
            bar = Progress(data.rows * len(LAMBDAS), self.progress)
            try:
                while any(worker.process.poll() is None for worker in workers):
                    time.sleep(LOOK_EVERY)
                    bar.add(sum(worker.rows for worker in workers) - bar.done)
                    if any(worker.process.poll() for worker in workers):
                        break
            finally:
                for worker in workers:
                    worker.end()
                bar.add(sum(worker.rows for worker in workers) - bar.done)
                bar.close()
            if any(worker.process.returncode for worker in workers):
                log.seek(0)
                said = " ".join(dict.fromkeys(log.read().split("\n")))  # of several processes once
                raise InputError(f"A process of the demo failed; it said: {said.strip()}")

    def _start(self, index: int, log: IO[str]) -> subprocess.Popen[str]:
        share = Share(
            model=str(embedded_model_path()) if self.model == EMBEDDED else self.model,
            eval_file=str(self.probe_set / ROWS_FILE),
            img_path=str(self.probe_set / IMAGE_FOLDER),
            negatives_file=str(self.probe_set / NEGATIVES_FILE),
            answer_file=str(self.answer_file),
            lambdas=LAMBDAS,
            planted_bias=self.beta,
            index=index,
            processes=self.processes,
        )
        environment = {**os.environ, **ENVIRONMENT}
        return subprocess.Popen(share.command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)


class _Worker:
    """A process of the demo, and how many rows it has answered: a thread adds up what it says."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.rows = 0
        self._reader = threading.Thread(target=self._listen, daemon=True)
        self._reader.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.rows += int(line) if line.strip().isdigit() else 0  # what a library prints there is no number

    def end(self) -> None:
        """Stop the process where it still runs; `rows` is then final."""
        self.process.terminate()
        self.process.wait()
        self._reader.join()
