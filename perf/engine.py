"""One run of the engine, as `agci probe` makes it, into a temporary folder."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers_agci.inference.answering import AnswerCounts, AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.questions import Question, QuestionSet
from transformers_agci.inference.runner import RunOptions, output_paths
from transformers_agci.storage.result_names import Shard


def engine(
    loaded: LoadedModel, asked: Sequence[Question], lambdas: Sequence[float], shard: Shard | None = None, **options: Any
) -> AnswerCounts:
    """Answer every question at every lambda and write the result files; what was counted."""
    how = AnswerOptions(run=RunOptions(shard, progress=False), **options)
    with tempfile.TemporaryDirectory() as folder:
        outputs = output_paths(Path(folder) / "answers.jsonl", lambdas)
        counts = answer_questions(loaded, QuestionSet(asked), lambdas, outputs, how).counts
    assert isinstance(counts, AnswerCounts)
    return counts
