"""One run of the engine, as `agci probe` makes it, into a temporary folder."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.questions import Question
from transformers_agci.inference.run import run_questions
from transformers_agci.inference.summary import Counts
from transformers_agci.storage.result_file import output_paths


def engine(loaded: LoadedModel, asked: Sequence[Question], lambdas: Sequence[float], **options: Any) -> Counts:
    """Answer every question at every lambda and write the result files; what was counted."""
    with tempfile.TemporaryDirectory() as folder:
        outputs = output_paths(Path(folder) / "answers.jsonl", lambdas)
        return run_questions(loaded, asked, lambdas, outputs, progress=False, **options).counts
