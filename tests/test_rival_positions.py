"""Position methods against hand-made position tables, on every family: prefill, decoding, later turns, beams.

The tables are counted from the prompts (tiny_families/), token by token; the code under test moves stock's positions.
"""

from typing import Any

import pytest
import torch
import transformers
from decoder_inputs import CACHE
from tiny_families import TEXT, TINY, TinyFamily, make_batch, wide_image

from transformers_agci import attach
from transformers_agci.errors import InputError
from transformers_agci.families import SUPPORTED_FAMILIES, decoder_of, find_vlm
from transformers_agci.families.declaration import WORKS
from transformers_agci.method.rivals.cca import rings
from transformers_agci.method.rivals.declaration import Grid

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

VERSION = tuple(map(int, transformers.__version__.split(".")[:2]))
RICH = [[TEXT, "plain", TEXT, "tiled", TEXT], [TEXT], ["plain", "tiled", TEXT], [TEXT, "tiled", TEXT, TEXT]]
MARKS = list(range(40))  # a random model would generate them, and stock would look for their images
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 4, "min_new_tokens": 4, "suppress_tokens": MARKS}
FEW = ("qwen2_vl", "vipllava")  # M-RoPE and one axis
AXES = {"hunyuan_vl": 4}  # of position ids, where they are neither 1 nor 3
WITHOUT_CACHE = {"ernie4_5_vl_moe": "stock cannot generate without a cache"}
NO_ROPE = {"exaone4_5": "the tiny model's layers have no rotary positions"}

SERVED = {name: family for name, family in TINY.items() if SUPPORTED_FAMILIES[family.model_type].positions is WORKS}
families = pytest.mark.parametrize("family", SERVED.values(), ids=list(SERVED))


@pytest.mark.parametrize("method", ["bapa", "flat", "cca", "cca_positions"])
@pytest.mark.parametrize("name", sorted(TINY.keys() - SERVED.keys()))
def test_a_family_whose_positions_cannot_be_moved_is_refused(name: str, method: str) -> None:
    model = TINY[name].build()
    with pytest.raises(InputError, match="positions of its image tokens"):
        attach(model, method=method)


def counted(batch: Any, steps: int, text_follows: bool = True) -> list[list[int]]:
    """Per row the position of each attended token, then of `steps` tokens behind; images share one (BaPA)."""
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    table = []
    for row in range(len(ids)):
        spans = [(places[0], places[-1]) for r, places in batch.images if r == row]
        found, position = [], 0
        for column in range(ids.shape[1]):
            if not mask[row, column]:
                continue
            inside = next((span for span in spans if span[0] <= column <= span[1]), None)
            found.append(position)
            if inside is None or column == inside[1]:
                position += 1
        table.append([*found, *range(position, position + steps)])
    return table


class Positions:
    """Records the positions that the decoder receives, one tensor [axes, B, S] per call."""

    def __init__(self, model: Any) -> None:
        self.decoder = decoder_of(find_vlm(model))
        self.calls: list[torch.Tensor] = []

    def __enter__(self) -> "Positions":
        def look(module: Any, args: Any, kwargs: Any) -> None:
            given = kwargs["position_ids"]
            self.calls.append((given if given.ndim == 3 else given[None]).clone())

        self.hook = self.decoder.register_forward_pre_hook(look, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


@pytest.mark.sampled(4)
@families
@torch.no_grad()
def test_bapa_on_every_family(family: TinyFamily) -> None:
    """Padded, several images, adjacent images, none; decode steps go on; with a cache as without one."""
    model, batch = family.build(), make_batch(family, RICH)
    stock = model(**batch.inputs).logits
    handle = attach(model, method="bapa")
    with Positions(model) as seen:
        answer = model.generate(**batch.inputs, **GREEDY)
    assert handle.injections == len(batch.images) == 5
    axes = AXES.get(family.model_type, 3)
    mask = batch.inputs["attention_mask"].bool()
    for row, wanted in enumerate(counted(batch, 3)):
        got = [call[-axes:, row] if call.shape[0] > 1 else call[:, row] for call in seen.calls]
        kept = mask[row].nonzero()[:, 0]
        given = torch.cat([got[0][:, kept], *got[1:]], dim=1)
        begin = given[:, :1]  # a model that ignores padding counts columns from its beginning on
        assert (given - begin + torch.tensor(wanted)[0] == torch.tensor(wanted)).all(), (row, given, wanted)
    assert len(seen.calls) == 4
    if family.model_type not in WITHOUT_CACHE:
        assert torch.equal(model.generate(**batch.inputs, **GREEDY, use_cache=False), answer)
    ours = model(**batch.inputs).logits
    if family.model_type not in NO_ROPE:
        assert (ours - stock)[[0, 2, 3], -1].abs().amax(-1).min() > 0
    torch.testing.assert_close(ours[1, -1], stock[1, -1], atol=1e-5, rtol=1e-4)  # no image, no change


@pytest.mark.parametrize("method", ["bapa", "flat", "cca_positions"])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", FEW)
@torch.no_grad()
def test_a_padded_batch_is_its_rows(name: str, side: str, method: str) -> None:
    model, batch = TINY[name].build(), make_batch(TINY[name], RICH, side)
    attach(model, method=method)
    mask = batch.inputs["attention_mask"]
    places = mask.cumsum(-1) - 1
    given = {} if name == "qwen2_vl" else {"position_ids": places.clamp_min(0)}
    together = model(**batch.inputs, **given).logits
    offset = 0
    for row, prompt in enumerate(RICH):
        images = sum(item != TEXT for item in prompt)
        alone = {
            key: value[row : row + 1, mask[row].bool()]
            for key, value in batch.inputs.items()
            if value.shape[:2] == mask.shape
        }
        alone |= _pixels(name, batch.inputs, offset, images)
        offset += images
        logits = model(**alone).logits[0]
        torch.testing.assert_close(together[row, mask[row].bool()], logits, atol=2e-6, rtol=1e-4)


def _pixels(name: str, inputs: Any, first: int, count: int) -> dict[str, Any]:
    """The pixel inputs of `count` images from number `first` on."""
    if not count:
        return {}
    if name == "vipllava":
        return {"pixel_values": inputs["pixel_values"][first : first + count]}
    grids = inputs["image_grid_thw"]
    patches = grids.prod(-1).tolist()
    start = sum(patches[:first])
    size = sum(patches[first : first + count])
    return {
        "pixel_values": inputs["pixel_values"][start : start + size],
        "image_grid_thw": grids[first : first + count],
    }


@torch.no_grad()
def test_flat_leaves_the_text_where_it_was() -> None:
    model, batch = TINY["qwen2_vl"].build(), make_batch(TINY["qwen2_vl"], RICH)
    with Positions(model) as stock:
        model.generate(**batch.inputs, **GREEDY)
    attach(model, method="flat")
    with Positions(model) as ours:
        model.generate(**batch.inputs, **GREEDY)
    wanted = stock.calls[0].clone()
    for row, places in batch.images:
        wanted[1:, row, places] = wanted[1:, row, places[0]][:, None]
    assert torch.equal(ours.calls[0], wanted)
    for mine, theirs in zip(ours.calls[1:], stock.calls[1:], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("grid", "wanted"),
    [
        (Grid(1, 1), [0]),
        (Grid(2, 2), [0] * 4),
        (Grid(3, 3), [0, 0, 0, 0, 1, 0, 0, 0, 0]),
        (Grid(4, 5), [0] * 5 + [0, 1, 1, 1, 0] * 2 + [0] * 5),
        (Grid(5, 5), [0] * 5 + [0, 1, 1, 1, 0] + [0, 1, 2, 1, 0] + [0, 1, 1, 1, 0] + [0] * 5),
    ],
)
def test_rings_drawn_by_hand(grid: Grid, wanted: list[int]) -> None:
    assert rings(grid) == wanted


def test_rings_of_the_published_grid() -> None:
    """24 x 24: from 0 at the border to 11, so that the text goes on 12 behind the image's first token."""
    found = torch.tensor(rings(Grid(24, 24))).view(24, 24)
    assert found.max() == 11
    assert found[0].tolist() == [0] * 24
    assert found[11:13, 11:13].tolist() == [[11, 11], [11, 11]]
    assert found[5].tolist() == [0, 1, 2, 3, 4, *[5] * 14, 4, 3, 2, 1, 0]


@torch.no_grad()
def test_cca_positions_on_a_wide_grid() -> None:
    """M-RoPE with 6 x 8 patches: 3 x 4 tokens, whose two middle ones are ring 1; the text goes on at s + 2."""
    model = TINY["qwen2_vl"].build()
    inputs, image = wide_image()
    attach(model, method="cca_positions")
    with Positions(model) as seen:
        model.generate(**inputs, **GREEDY)
    s = image[0]
    ring = [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    text = inputs["input_ids"].shape[1] - s - 12
    wanted = [*range(s), *(s + r for r in ring), *range(s + 2, s + 2 + text)]
    assert seen.calls[0][-3:, 0].tolist() == [wanted] * 3
    assert [int(call[-1, 0, 0]) for call in seen.calls[1:]] == [s + 2 + text + step for step in range(3)]


@pytest.mark.parametrize("name", FEW)
@torch.no_grad()
def test_a_second_turn_goes_on_from_the_changed_positions(name: str) -> None:
    """Turn by turn on one cache, several tokens at a time, equals the whole in one call; a cropped cache too."""
    family = TINY[name]
    model, batch = family.build(), make_batch(family, [[TEXT, "plain", TEXT]])
    attach(model, method="bapa")
    more = torch.tensor([[50, 51, 52, 53, 54, 55, 56]])
    ids = torch.cat([batch.inputs["input_ids"], more], dim=1)
    whole = dict(batch.inputs, input_ids=ids, attention_mask=torch.ones_like(ids))
    if "mm_token_type_ids" in whole:
        whole["mm_token_type_ids"] = (ids == 30).long()
    wanted = model(**whole).logits[:, -len(more[0]) :]
    cache = transformers.DynamicCache(config=model.config.get_text_config())
    model(**batch.inputs, **{CACHE: cache}, use_cache=True)
    length = batch.inputs["input_ids"].shape[1]

    def go_on(tokens: torch.Tensor) -> torch.Tensor:
        past = cache.get_seq_length()
        mask = torch.ones(1, past + tokens.shape[1], dtype=torch.long)
        positions = torch.arange(past, past + tokens.shape[1])[None]
        if name == "qwen2_vl":
            positions = (positions + int(model.model.rope_deltas[0])).expand(3, 1, -1)
        return model(input_ids=tokens, attention_mask=mask, position_ids=positions, **{CACHE: cache}).logits

    got = torch.cat([go_on(more[:, :3]), go_on(more[:, 3:4]), go_on(more[:, 4:])], dim=1)
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-4)
    cache.crop(-len(more[0]) if VERSION >= (5, 0) else length)
    torch.testing.assert_close(go_on(more), wanted, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("name", FEW)
@torch.no_grad()
def test_cache_that_the_model_made_itself(name: str) -> None:
    family = TINY[name]
    model, batch = family.build(), make_batch(family, [[TEXT, "plain", TEXT]])
    attach(model, method="bapa")
    cache = model(**batch.inputs, use_cache=True)[CACHE]
    with Positions(model) as seen:
        length = batch.inputs["input_ids"].shape[1]
        given = torch.tensor([[length]])
        if name == "qwen2_vl":
            given = (given + int(model.model.rope_deltas[0])).expand(3, 1, -1)
        model(input_ids=torch.tensor([[50]]), position_ids=given, **{CACHE: cache})
    assert int(seen.calls[0][-1, 0, 0]) == counted(batch, 1)[0][-1]


@pytest.mark.parametrize("name", FEW)
@torch.no_grad()
def test_beams_have_the_positions_of_their_prompt(name: str) -> None:
    family = TINY[name]
    model, batch = family.build(), make_batch(family, RICH)
    handle = attach(model, method="bapa")
    with Positions(model) as seen:
        with_cache = model.generate(**batch.inputs, **GREEDY, num_beams=3)
    assert handle.injections == 15
    wanted = counted(batch, 3)
    for step, call in enumerate(seen.calls[1:]):
        assert call[-1, :, 0].tolist() == [row[len(row) - 3 + step] for row in wanted for _ in range(3)]
    if VERSION >= (5, 18):  # before, generate() deals the images of a prompt to the wrong beams without a cache
        assert torch.equal(model.generate(**batch.inputs, **GREEDY, num_beams=3, use_cache=False), with_cache)


@torch.no_grad()
def test_without_a_mask_or_cache_no_packing_is_read_off_the_positions() -> None:
    """Equal positions look like packed sequences to stock; the same prompt with a mask of ones is the truth."""
    model, batch = TINY["llava"].build(), make_batch(TINY["llava"], [[TEXT, "plain", TEXT]])
    attach(model, method="bapa")
    bare = {name: value for name, value in batch.inputs.items() if name != "attention_mask"}
    wanted = model(**batch.inputs, use_cache=False).logits
    torch.testing.assert_close(model(**bare, use_cache=False).logits, wanted, atol=1e-6, rtol=0)


@torch.no_grad()
def test_lost_images_are_an_error() -> None:
    model, batch = TINY["llava"].build(), make_batch(TINY["llava"], [[TEXT, "plain", TEXT]])
    attach(model, method="bapa")
    with pytest.raises(ValueError, match="image tokens, but no images came with it"):
        model(input_ids=batch.inputs["input_ids"])


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "gemma3n", "internvl", "llava_next", "llava"])
@torch.no_grad()
def test_the_papers_families(name: str) -> None:
    """Every method that can serve it changes the answer's logits, counts its image, and leaves no trace."""
    from tiny_checkpoints import build_model, make_inputs

    from transformers_agci.method.rivals import RIVALS

    model = build_model(name).eval()
    inputs = make_inputs(name, model, batch=2)
    stock = model(**inputs).logits[:, -1]
    without_grid = {"llava_next"}  # two grids, one with newlines
    for method, rival in RIVALS.items():
        options = {"first_layer": 0} if method == "pai" else {}
        handle = attach(model, method=method, strength=1, **options)
        if rival.positions is not None and rival.positions.needs_grid and name in without_grid:
            with pytest.raises(InputError, match="is no single grid in"):
                model(**inputs)
        else:
            changed = (model(**inputs).logits[:, -1] - stock).abs().max()
            assert (changed > 0) == (method != "vcd"), method  # vcd acts on what generate makes of them
            assert handle.injections == 2
        handle.detach()
        assert torch.equal(model(**inputs).logits[:, -1], stock)
