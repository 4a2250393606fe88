"""A padded batch is its rows under every rival, on every family: two tokens of `generate`, second passes included."""

from typing import Any

import pytest
import torch
from tiny_families import TEXT, TINY, Batch, make_batch

from transformers_agci import InputError, attach
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.method.rivals import RIVALS

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SHORT, LONG = [TEXT, "plain", TEXT], [TEXT, TEXT, "plain", TEXT, TEXT]
MARKS = list(range(40))  # a random model would generate them, and stock would look for their images
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "max_new_tokens": 2,
    "min_new_tokens": 2,
    "suppress_tokens": MARKS,
    "output_scores": True,
    "return_dict_in_generate": True,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "adaptvis": {"strength": 1.0},
    "pai": {"strength": 0.5, "first_layer": 1},
    "uac": {"strength": 1.0},
    "vcd": {"strength": 1.0},
}
EXACT = 5e-6  # of log probabilities
ALONE = [name for name, family in TINY.items() if SUPPORTED_FAMILIES[family.model_type].alone]


def scores(model: Any, batch: Batch, handle: Any) -> torch.Tensor:
    """[rows, tokens, vocabulary]"""
    second = handle.logits_processor(batch.inputs, model) if handle is not None else None
    more = {} if second is None else {"logits_processor": [second]}
    return torch.stack(model.generate(**batch.inputs, **GREEDY, **more).scores, dim=1)


@pytest.mark.sampled(25)
@pytest.mark.parametrize("method", RIVALS)
@pytest.mark.parametrize("name", [name for name in TINY if name not in ALONE])
@torch.no_grad()
def test_a_padded_row_is_the_prompt_alone(name: str, method: str) -> None:
    family = TINY[name]
    prompts = [LONG, SHORT]
    singles, padded = (
        [make_batch(family, [row], alike=True) for row in prompts],
        make_batch(family, prompts, alike=True),
    )
    assert (padded.inputs["attention_mask"] == 0).sum(dim=1).tolist() == [0, 10]
    model = family.build()
    stock = [torch.cat([scores(model, batch, None) for batch in batches]) for batches in (singles, [padded])]
    allowed = max(EXACT, 3 * distance(*stock))
    try:
        handle = attach(model, method=method, **OPTIONS.get(method, {}))
        found = [torch.cat([scores(model, batch, handle) for batch in batches]) for batches in (singles, [padded])]
    except InputError as error:
        assert str(error).endswith(".")  # a family that the method has no meaning on, in one sentence
        return
    assert handle.injections >= 4
    assert torch.equal(*(torch.isfinite(each) for each in found))
    assert distance(*found) <= allowed


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference among what is finite in both."""
    both = torch.isfinite(one) & torch.isfinite(other)
    return float((one - other)[both].abs().max())


@pytest.mark.sampled(6)
@pytest.mark.parametrize("name", TINY)
def test_every_pixel_of_an_image_is_noised(name: str) -> None:
    """Crops and other resolutions included; whatever else the model is given stays."""
    rival = RIVALS["vcd"]
    assert rival.contrast is not None
    inputs = make_batch(TINY[name], [[TEXT, "tiled", TEXT], [TEXT, "plain"]]).inputs
    found = rival.contrast.second(inputs, rival.settings({}), TINY[name].image_token)
    assert found.keys() == inputs.keys()
    for key, value in inputs.items():
        is_pixels = isinstance(value, torch.Tensor) and value.is_floating_point()
        assert torch.equal(torch.as_tensor(found[key]), torch.as_tensor(value)) is not is_pixels, key


@torch.no_grad()
def test_uac_stands_beside_agci_s_note_of_units() -> None:
    """Both stand in for `get_image_features` on Perception LM; AGCI's stays when uac goes."""
    model, batch = TINY["perception_lm"].build(), make_batch(TINY["perception_lm"], [LONG, SHORT])
    agci = attach(model, 0.0)
    uac = attach(model, method="uac", strength=1.0)
    scores(model, batch, uac)
    assert uac.injections == 2
    uac.detach()
    agci.lam = 0.5
    scores(model, batch, None)
    assert agci.injections == 2
    agci.detach()
    assert "get_image_features" not in vars(model.model)
