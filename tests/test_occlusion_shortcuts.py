"""What occlusion maps save: windows and painted copies that are used again change nothing but the work."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_occlusion import row_of
from tiny_checkpoints import random_image

from transformers_agci.experiments.occlusion.masks import as_tensor, masked_copies
from transformers_agci.experiments.occlusion.occlude import MaskOptions, OcclusionRun
from transformers_agci.inference.load import LoadOptions, load


@pytest.mark.parametrize("full", [[1], [2], []])
@torch.no_grad()
def test_reused_windows_change_nothing_but_the_work(full: list[int]) -> None:
    """Qwen2.5-VL: only touched windows go through the window-only layers, and the image tokens are the same."""
    from tiny_checkpoints import build_model, build_processor
    from tiny_checkpoints import prompt_inputs as inputs_of

    from transformers_agci import image_embeddings
    from transformers_agci.experiments.occlusion.window_reuse import reused_windows
    from transformers_agci.families import SUPPORTED_FAMILIES

    model: Any = build_model("qwen2_5_vl")
    tower = model.model.visual
    tower.fullatt_block_indexes = full  # of its two layers; the windows are 2x2 tokens
    processor, image = build_processor("qwen2_5_vl"), random_image(4, 112, 112)
    masked = image.copy()
    masked.paste("white", (60, 4, 80, 20))  # inside the second of four windows
    original, copy_ = (inputs_of(processor, "Is there a dog?", shown) for shown in (image, masked))
    expected = [image_embeddings(model, inputs)[0] for inputs in (original, copy_)]
    rows: list[int] = []
    hook = tower.blocks[0].mlp.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    with reused_windows(model, SUPPORTED_FAMILIES["qwen2_5_vl"], original):
        rows.clear()
        found = [image_embeddings(model, inputs)[0] for inputs in (original, copy_)]
    hook.remove()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert rows == [16, 32]  # of 64 patches: the first window always, and the touched one
    assert torch.equal(image_embeddings(model, copy_)[0], expected[1])
    assert all("forward" not in vars(module) for module in (tower.patch_embed, *tower.blocks))


def test_reused_windows_restore_the_forwards_that_they_found() -> None:
    """accelerate puts a forward on every module that it moves or offloads; without it the next call mixes devices."""
    from tiny_checkpoints import build_model, make_pixels

    from transformers_agci.experiments.occlusion.window_reuse import reused_windows
    from transformers_agci.families import SUPPORTED_FAMILIES

    model = build_model("qwen2_5_vl")
    tower = model.model.visual
    tower.fullatt_block_indexes = [1]
    called = []
    for module in (tower.patch_embed, tower.blocks[0]):
        stock = module.forward
        module.forward = lambda *args, stock=stock, **kwargs: called.append(1) or stock(*args, **kwargs)
    found = [tower.patch_embed.forward, tower.blocks[0].forward]
    inputs = make_pixels("qwen2_5_vl", model)
    with reused_windows(model, SUPPORTED_FAMILIES["qwen2_5_vl"], inputs), torch.no_grad():
        called.clear()
        tower(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"])
    assert called  # within the block they are still in line
    assert [tower.patch_embed.forward, tower.blocks[0].forward] == found


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_painted_copies_are_what_the_processor_makes_of_painted_images(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, family: str
) -> None:
    """Masks across and along the borders of patches, off the grid, of a colour of their own."""
    from dataclasses import replace

    from transformers_agci.experiments.forced_answer import ForcedAnswer
    from transformers_agci.experiments.occlusion.masks import Mask
    from transformers_agci.experiments.occlusion.painting import Painters
    from transformers_agci.inference.load import LoadOptions, load
    from transformers_agci.inference.questions import ImageFile, Question

    loaded = load(LoadOptions(str(tiny_checkpoint(family))))
    side = 112 if family == "qwen2_5_vl" else 128
    random_image(1, side, side + 32).resize((side, side)).save(tmp_path / "a.png")
    image = ImageFile(tmp_path, "a.png", "x:1")
    asked = ForcedAnswer(loaded, Question({}, "x:1", "Is there a dog?", (image,)), 1)
    pixels, colour = as_tensor(image.open()), (10, 200, 90)
    masks = [None, Mask(0, 0, 28, 28), Mask(31, 5, 50, 71), Mask(side - 9, side - 1, side, side)]
    painter = Painters(loaded).of(asked, pixels, asked.inputs([pixels]), colour)
    assert painter.painted
    ours, stock = painter.copies(masks), asked.inputs(masked_copies(pixels, masks, colour))
    assert ours.keys() == stock.keys()
    for name, value in stock.items():
        assert torch.allclose(ours[name].float(), value.float(), atol=1e-6), name
    assert len({tuple(copy.flatten().tolist()) for copy in ours["pixel_values"].chunk(4)}) == 4
    small = replace(loaded, processor=load(LoadOptions(loaded.notes["model"], max_pixels=64 * 64)).processor)
    resized = ForcedAnswer(small, asked_question(image), 1)
    processed = Painters(small).of(resized, pixels, resized.inputs([pixels]), colour)
    assert not processed.painted  # its order is not the image's
    assert processed.copies(masks)["pixel_values"].shape == resized.inputs([pixels] * 4)["pixel_values"].shape
    off = replace(loaded, quick=frozenset())
    assert not Painters(off).of(asked, pixels, asked.inputs([pixels]), colour).painted


def asked_question(image: Any) -> Any:
    from transformers_agci.inference.questions import Question

    return Question({}, "x:1", "Is there a dog?", (image,))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava"])
@torch.no_grad()
def test_a_run_paints_where_it_may_and_its_maps_stay(family: str, tiny_checkpoint: Any, tmp_path: Path) -> None:
    """Beside copies that the processor makes: the same logits, and the manifest says how many were painted."""
    from dataclasses import replace

    from transformers_agci.experiments.forced_answer import ForcedAnswer
    from transformers_agci.experiments.positives import Positives
    from transformers_agci.inference.runner import RunOptions
    from transformers_agci.storage import manifest

    loaded = load(LoadOptions(str(tiny_checkpoint(family))))
    side = 112 if family == "qwen2_5_vl" else 56
    rows = [row_of(tmp_path, random_image(3, side, side))]
    stock, images = ForcedAnswer.inputs, []

    def measured(name: str, quick: frozenset[str]) -> np.ndarray:
        images.clear()
        run = OcclusionRun(replace(loaded, quick=quick), rows, tmp_path, MaskOptions(14, 14), 0.5, 7, 1)
        folder = tmp_path / name
        run.write(folder, Positives({"a": rows}, tmp_path, [], {}, 0), {}, RunOptions(progress=False))
        (ran,) = manifest.read(folder / "occlusion.jsonl")["runs"]
        scores = json.loads((folder / "x_4/x_4_crop_scores.json").read_text())
        found = [logits for logits in scores["masked_logits"] if logits is not None]
        assert ran["masked_copies_run"] == len(found)
        assert ran["masked_copies_painted"] == (len(found) if quick else 0)
        return np.array(found)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForcedAnswer, "inputs", lambda self, given: images.extend(given) or stock(self, given))
        painted = measured("painted", loaded.quick)
        assert len(images) == 1  # the image itself
        processed = measured("processed", frozenset())
        assert len(images) > len(processed)
    np.testing.assert_allclose(painted, processed, atol=1e-5)
    assert painted.std() > 1e-4


def test_a_processor_that_does_more_than_reorder_keeps_its_copies(tiny_checkpoint: Any, tmp_path: Path) -> None:
    """It darkens what is bright: in the order of its bytes, but not what would be painted."""
    import copy

    from transformers_agci.experiments.occlusion.painting import Painters

    loaded = load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl"))))
    assert Painters(loaded)._find_order(112, 112) is not None
    real = copy.copy(loaded.processor.image_processor)

    class Darkened:
        def __call__(self, images: Any, **settings: Any) -> Any:
            return real([torch.where(image > 250, 250, image) for image in images], **settings)

    painters = Painters(loaded)
    loaded.processor.image_processor = Darkened()
    assert painters._find_order(112, 112) is None


def test_images_of_ever_new_sizes_do_not_fill_the_memory(tiny_checkpoint: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of one size takes 9 bytes for each of its values: 38 MB for 840x840 pixels."""
    from transformers_agci.experiments.occlusion.painting import PIXELS, Painters

    painters = Painters(load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl")))))
    monkeypatch.setattr(painters, "_find_order", lambda height, width: None)
    for side in range(28, 428, 4):
        painters._order(torch.zeros(3, side, side, dtype=torch.uint8), {PIXELS: torch.zeros(1)})
    assert (424, 424) in painters._orders
    assert len(painters._orders) <= 4


def test_masked_copies_divide_evenly() -> None:
    from transformers_agci.experiments.occlusion.occlude import even_size

    for copies in (1, 2, 9, 82, 401):
        size = even_size(copies, 16)
        assert 1 <= size <= 16
        assert -(-copies // size) * size - copies < 9
    assert -(-401 // 13) * 13 == 403  # 416 by sixteens
