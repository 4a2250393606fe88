"""From an original LLaVA checkpoint to a fine-tuned, merged, probed one, by the commands that a user types."""

import json
from pathlib import Path

import original_llava as llava
import pytest
from test_llama_factory import (  # noqa: F401  (fixtures)
    LAM,
    Train,
    Trained,
    TrainingEnvironment,
    data,
    merge_words,
    probe_words,
    train,
    training,
)

from transformers_agci import LAMBDA_KEY, cli

pytestmark = pytest.mark.train


@pytest.mark.parametrize(("recipe", "family"), [("llava1_5", "llava"), ("llava1_6", "llava_next")])
def test_converted_trained_merged_and_probed(
    recipe: str,
    family: str,
    training: TrainingEnvironment,  # noqa: F811
    train: Train,  # noqa: F811
    tmp_path: Path,
) -> None:
    model = llava.reference_model(family)
    source = llava.write_original(family, model, tmp_path / "original", kind="bin", tower=False)
    tower = llava.write_tower(model, tmp_path / "clip")
    base, adapter, merged = (tmp_path / name for name in ("base", "adapter", "merged"))
    assert cli.main(["convert-llava", str(source), str(base), "--vision_tower", str(tower)]) == 0
    assert cli.main(["set-lambda", str(base), str(LAM)]) == 0
    log = train(recipe, base, adapter)
    assert f"AGCI is on: lambda {LAM}" in log
    done = Trained(base, adapter, merged, log)
    assert len(done.losses()) == 3 and all(0 < loss < 20 for loss in done.losses())
    training.run("llamafactory-cli", "export", *merge_words(recipe, done, merged))
    assert json.loads((merged / "config.json").read_text())[LAMBDA_KEY] == LAM
    assert cli.main(probe_words(merged, tmp_path / "answers.jsonl")) == 0
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 36
