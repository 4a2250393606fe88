"""The control "other": g of another image in place of one's own."""

import json
from pathlib import Path

import pytest
import torch

from transformers_agci import attach
from transformers_agci.cli import main
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.errors import InputError
from transformers_agci.inference.batches import Column
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.other_image import context_of_other_image, seed_of_other
from transformers_agci.inference.prepare import prepare
from transformers_agci.inference.prompt import answer_token_ids
from transformers_agci.inference.questions import ImageFile, Question
from transformers_agci.method.embeds_update import EmbedsUpdate


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(LoadOptions(str(embedded_model_path())))


@pytest.mark.slow
def test_context_is_the_mean_of_the_other_image(loaded: LoadedModel) -> None:
    first, again, other = (context_of_other_image(loaded, seed) for seed in (0, 0, 1))
    assert first.shape == (loaded.model.get_input_embeddings().weight.shape[1],)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_a_given_context_takes_the_place_of_every_mean() -> None:
    """By hand: tokens (1, 0), g' = (0, 2), lambda 0.5: cos 0, so that 0.5 * 1 * (0, 2) is added."""

    class Image:
        def take(self, embeds: torch.Tensor) -> torch.Tensor:
            return embeds[0]

        def put(self, embeds: torch.Tensor, tokens: torch.Tensor) -> None:
            embeds[0] = tokens

    embeds = torch.tensor([[[1.0, 0.0]]])
    for scope in ("image", "batch"):
        update = EmbedsUpdate([Image()], 0.5, scope, "agci", torch.tensor([0.0, 2.0]))
        torch.testing.assert_close(update.apply(embeds), torch.tensor([[[1.0, 1.0]]]))


@pytest.mark.slow
def test_a_run_is_agci_with_that_context(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Margins of the run are those of a handle with the context set by hand, whatever stands in the batch."""
    monkeypatch.chdir(tmp_path)
    for batch in ("1", "9"):
        words = ["probe", "--items", "1", "--global_context_lambda", "0.5", "--answer_file", f"{batch}/a.jsonl"]
        assert main([*words, "--method", "other", "--method_seed", "1", "--batch_size", batch, "--quiet"]) == 0
    one, nine = ([json.loads(line) for line in Path(f"{n}/a.other-1.jsonl").read_text().splitlines()] for n in "19")
    assert [row["margin"] for row in one] == pytest.approx([row["margin"] for row in nine], abs=1e-4)

    row = one[4]
    question = Question({}, "", row["qs"], (ImageFile(Path("1/a.probe_set/images"), row["image"], ""),))
    inputs = prepare(Column(((0,),)), [question], loaded.processor).batches[0].inputs
    yes, no = answer_token_ids(loaded.processor)
    handle = attach(loaded.model, lam=0.5)
    try:
        margins = []
        for context in (context_of_other_image(loaded, 1), None):
            handle.context = context
            with torch.no_grad():
                last = loaded.model(**inputs).logits[0, -1]
            margins.append(float(last[yes] - last[no]))
    finally:
        handle.detach()
    assert row["margin"] == pytest.approx(margins[0], abs=1e-3)
    assert abs(margins[1] - margins[0]) > 0.1


def test_names_and_refusals(loaded: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    assert [seed_of_other(name) for name in ("other", "other-7", "other-x", "agci", "random-1")] == [0, 7, *3 * [None]]
    with pytest.raises(InputError, match="attach agci and set handle"):
        attach(loaded.model, lam=0.5, method="other")
    assert main(["probe", "--items", "1", "--method", "other", "--scope", "batch"]) == 2
    assert "scope batch is a mean over the images of a batch" in capsys.readouterr().err.replace("`", "")
