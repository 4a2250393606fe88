"""One process of the demo: `python -m transformers_agci.experiments.demo_share SHARE` answers its share of the rows.

SHARE is a `Share` as JSON. Whenever rows are answered their number is a line on the standard output, for files grow by
whole blocks only. Where the input is wrong the process says so and ends with 1.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from transformers_agci.errors import InputError


@dataclass(frozen=True)
class Share:
    """What a process answers: share `index` of `processes`, at every lambda, into the parts of `answer_file`."""

    model: str
    eval_file: str
    img_path: str
    negatives_file: str
    answer_file: str
    lambdas: tuple[float, ...]
    planted_bias: float
    index: int
    processes: int

    @property
    def command(self) -> list[str]:
        """How the process is started."""
        return [sys.executable, "-m", "transformers_agci.experiments.demo_share", json.dumps(asdict(self))]

    def answer(self) -> None:
        """Answer on the CPU."""
        from transformers_agci.experiments.position.ask import ProbeOptions, ask_probe
        from transformers_agci.inference.answering import AnswerOptions
        from transformers_agci.inference.load import LoadOptions
        from transformers_agci.inference.runner import RunOptions
        from transformers_agci.storage.result_names import Shard

        shard = Shard(self.index, self.processes)
        options = ProbeOptions(
            LoadOptions(self.model, device="cpu"),
            Path(self.eval_file),
            Path(self.img_path),
            Path(self.negatives_file),
            answer_file=Path(self.answer_file),
            lambdas=tuple(self.lambdas),
            lambda_source="the demo",
            planted_bias=self.planted_bias,
            answers=AnswerOptions(run=RunOptions(shard, progress=False, advanced=lambda rows: print(rows, flush=True))),
        )
        ask_probe(options, say=lambda line: None)


if __name__ == "__main__":
    try:
        Share(**json.loads(sys.argv[1])).answer()
    except InputError as error:
        sys.exit(str(error))
