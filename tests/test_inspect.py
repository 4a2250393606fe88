"""The position probe under Inspect AI: its own mock model, our rows, rule and figures."""

import json
from pathlib import Path
from typing import Any

import pytest

from transformers_agci.experiments.position.data import embedded_data
from transformers_agci.experiments.position.measures import measure
from transformers_agci.experiments.position.questions import PROMPT
from transformers_agci.experiments.position.results import read_results

pytestmark = pytest.mark.app
ITEMS = 3
REPLIES = ("Yes", "No", "no, there is not", "I cannot tell")  # one after another


async def no_tokens(*_: object) -> int:
    """The mock model would fetch a tokenizer to count what it was sent."""
    return 0


@pytest.fixture
def evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Inspect's log of 54 rows that its mock model answers."""
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    from inspect_ai import eval as inspect_eval
    from inspect_ai.model import ModelOutput, get_model

    from transformers_agci.integrations.inspect_ai import position_probe

    outputs = [ModelOutput.from_content("mockllm/model", REPLIES[n % len(REPLIES)]) for n in range(18 * ITEMS)]
    model = get_model("mockllm/model", custom_outputs=outputs)
    monkeypatch.setattr(model.api, "count_tokens", no_tokens)
    [log] = inspect_eval(position_probe(items=ITEMS), model=model, display="none", max_samples=1)
    return log


def test_every_row_is_asked_and_the_figures_are_ours(evaluated: Any, tmp_path: Path) -> None:
    assert evaluated.status == "success", evaluated.error
    rows = [{**each.metadata["row"], "prediction": each.output.completion} for each in evaluated.samples]
    assert len(rows) == 18 * ITEMS
    data = embedded_data(tmp_path / "set", ITEMS, 0)
    asked = {(row.image, row.caption, row.answer) for rows_of_item in data.items.values() for row in rows_of_item}
    assert {(row["image"], row["caption"], row["answer"]) for row in rows} == asked
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    report = measure(read_results(file))
    found = {name: each.value for score in evaluated.results.scores for name, each in score.metrics.items()}
    assert found["items"] == ITEMS
    assert found["accuracy_yes"] == pytest.approx(100 * report.yes.accuracy.estimate)
    assert found["accuracy_low_no"] == pytest.approx(100 * report.no.accuracy.low)
    assert found["unreadable_yes"] + found["unreadable_no"] == sum(row["prediction"] == REPLIES[3] for row in rows)
    right = sum(each.scores["published_rule"].value == "C" for each in evaluated.samples)
    assert found["accuracy"] == pytest.approx(right / len(rows))


def test_the_question_and_its_image_are_those_of_agci_probe(evaluated: Any) -> None:
    for sample in evaluated.samples:
        image, text = sample.input[0].content
        assert text.text == PROMPT.format(caption=sample.metadata["row"]["caption"])
        assert image.type == "image"


def test_the_entry_point_names_the_task() -> None:
    from importlib.metadata import entry_points

    [point] = [each for each in entry_points(group="inspect_ai") if each.name == "transformers_agci"]
    assert hasattr(point.load(), "position_probe")
