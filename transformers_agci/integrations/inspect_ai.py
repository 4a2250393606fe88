"""The position probe in Inspect AI: inspect eval transformers_agci/position_probe --model openai/gpt-4o

    -T eval_file=probe.json -T img_path=images [-T negatives_file=N] [-T items=50]

Without a file the embedded atlas makes the rows. Figures and their intervals over items are ours; Inspect's own
accuracy stands beside them.
"""

import tempfile
from pathlib import Path
from typing import Any

from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig
from inspect_ai.scorer import (
    CORRECT,
    INCORRECT,
    Metric,
    SampleScore,
    Score,
    Scorer,
    Target,
    accuracy,
    metric,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState, generate

from transformers_agci.experiments.position.results import is_right
from transformers_agci.integrations.probe_task import TaskData, TaskRow, figures

MAX_TOKENS = 128


@task
def position_probe(
    eval_file: str | None = None,
    img_path: str | None = None,
    negatives_file: str | None = None,
    items: int | None = None,
) -> Task:
    """Is there a sub-image that matches the caption, with the target in every cell in turn?"""
    file, images, negatives = (Path(name) if name else None for name in (eval_file, img_path, negatives_file))
    folder = tempfile.mkdtemp(prefix="agci_probe_")  # of the atlas's composites; the samples name files in it
    rows = TaskData(file, images, negatives, items).rows(Path(folder, "probe_set"))
    return Task(
        dataset=MemoryDataset([_sample(number, row) for number, row in enumerate(rows)], name="position_probe"),
        solver=generate(),
        scorer=published_rule(),
        config=GenerateConfig(temperature=0, max_tokens=MAX_TOKENS),
        version=1,
    )


@metric
def position_figures() -> Metric:
    """What `agci metrics` says of the same answers: accuracies with their intervals over items, unevenness, d'."""

    def compute(scores: list[SampleScore]) -> dict[str, Any]:
        return dict(figures((each.score.metadata or {})["row"] for each in scores))

    return compute


@scorer(metrics=[accuracy(), stderr(cluster="item"), position_figures()])
def published_rule() -> Scorer:
    """Right where the reply begins with the right word; an unreadable reply is wrong, and counted by the figures."""

    async def score(state: TaskState, target: Target) -> Score:
        reply = state.output.completion.strip()
        row = {**state.metadata["row"], "prediction": reply}
        return Score(value=CORRECT if is_right(row) else INCORRECT, answer=reply, metadata={"row": row})

    return score


def _sample(number: int, row: TaskRow) -> Sample:
    content = [*(ContentImage(image=str(path)) for path in row.images), ContentText(text=row.text)]
    return Sample(
        input=[ChatMessageUser(content=content)],
        target=str(row.fields["answer"]),
        id=number,
        metadata={"item": row.item, "row": dict(row.fields)},
    )
