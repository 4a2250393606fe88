"""Occlusion maps: numbers against masking one copy at a time, what is run and counted, files, resuming, bad input."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from test_similarity import write_rows
from tiny_checkpoints import FAMILIES, random_image

from transformers_agci import agci
from transformers_agci.cli import main
from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.errors import InputError
from transformers_agci.experiments.occlusion.files import ImageMap, read_folder
from transformers_agci.experiments.occlusion.maps import aggregate
from transformers_agci.experiments.occlusion.masks import Raster, as_tensor, masked_copies
from transformers_agci.experiments.occlusion.occlude import MaskOptions, OcclusionCounts, OcclusionRun, difference_map
from transformers_agci.experiments.position.questions import PROMPT
from transformers_agci.experiments.positives import draw_items
from transformers_agci.inference.load import LoadedModel, LoadOptions, load


def row_of(folder: Path, image: Image.Image) -> ProbeRow:
    image.save(folder / "x_4.png")
    fields = {"id": 4, "image": "x_4.png", "caption": "a red dog", "position": "center", "answer": "Yes"}
    return ProbeRow.parse(fields, "rows.json:1")


def prompt_inputs(loaded: LoadedModel, image: Image.Image) -> dict[str, Any]:
    content = [{"type": "image"}, {"type": "text", "text": PROMPT.format(caption="a red dog")}]
    prompt = loaded.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return dict(loaded.processor(text=[prompt], images=[image], return_tensors="pt"))


def one_by_one(loaded: LoadedModel, image: Image.Image, mask: int, tokens: tuple[int, ...]) -> np.ndarray:
    """The map with Pillow's rectangles, one image per forward call, the prompt lengthened token by token."""

    def logits(shown: Image.Image) -> list[float]:
        inputs, found = prompt_inputs(loaded, shown), []
        for token in tokens:
            found.append(float(loaded.model(**inputs).logits[0, -1, token]))
            for name, value in (
                ("input_ids", token),
                ("attention_mask", 1),
                ("mm_token_type_ids", 0),
                ("token_type_ids", 0),
            ):
                if name in inputs:
                    inputs[name] = torch.cat([inputs[name], torch.tensor([[value]])], dim=1)
        return found

    original = logits(image)
    values = np.zeros((image.height // mask, image.width // mask))
    for row, col in np.ndindex(values.shape):
        box = (col * mask, row * mask, (col + 1) * mask - 1, (row + 1) * mask - 1)  # Pillow's rectangle is inclusive
        crop = image.crop((box[0], box[1], box[2] + 1, box[3] + 1))
        if len(crop.getcolors(maxcolors=10**6)) == 1:
            continue
        masked = image.copy()
        ImageDraw.Draw(masked).rectangle(box, fill="white")
        values[row, col] = np.mean([abs(a - b) for a, b in zip(logits(masked), original)])
    return values


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_equals_masking_one_copy_at_a_time(family: str, tiny_checkpoint: Any, tmp_path: Path) -> None:
    loaded = load(LoadOptions(str(tiny_checkpoint(family))))
    image = random_image(3, 120, 90)
    image.paste((7, 7, 7), (0, 60, 30, 90))  # one crop of one colour
    for lam, most in ((0.0, 1), (0.5, 3)):
        run = OcclusionRun(loaded, [], tmp_path, MaskOptions(30, 30), lam, batch_size=4, max_new_tokens=most)
        counts = OcclusionCounts()
        with agci(loaded.model, lam):
            occluded = run.occlude(row_of(tmp_path, image), counts)
            expected = one_by_one(loaded, image, 30, occluded.tokens)
        assert len(occluded.tokens) == most
        assert occluded.differences.shape == (3, 4)
        np.testing.assert_allclose(occluded.differences, expected, atol=1e-4)
        assert occluded.differences.max() > 0
        assert occluded.differences[2, 0] == 0 and occluded.masked[8] is None
        # 11 masked copies and the original: three full batches of four
        assert counts == OcclusionCounts(forward_calls=3, masked_copies_run=11, one_colour_crops_not_run=1)


@torch.no_grad()
def test_logits_are_the_raw_ones_that_generate_gives(tiny_checkpoint: Any, tmp_path: Path) -> None:
    """With a one-token answer the map is the published procedure's: generate again on every masked copy."""
    loaded = load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl"))))  # it has a repetition penalty
    image = random_image(3, 120, 90)
    run = OcclusionRun(loaded, [], tmp_path, MaskOptions(30, 30), batch_size=4, max_new_tokens=1)
    occluded = run.occlude(row_of(tmp_path, image))

    def generated(shown: Image.Image) -> float:
        made = loaded.model.generate(
            **prompt_inputs(loaded, shown),
            max_new_tokens=2,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        return float(made.logits[0][0, occluded.tokens[0]])

    masked = image.copy()
    masked.paste("white", (30, 30, 60, 60))
    assert occluded.original[0] == pytest.approx(generated(image), abs=1e-4)
    logits = occluded.masked[5]
    assert logits is not None and logits[0] == pytest.approx(generated(masked), abs=1e-4)


def test_masks_cover_exactly_their_squares() -> None:
    raster = Raster(840, 840)
    covered = np.zeros((840, 840), dtype=int)
    for left, top, right, bottom in raster.masks():
        covered[top:bottom, left:right] += 1
    assert len(raster.masks()) == 400 and (covered == 1).all()
    pixels = as_tensor(random_image(1, 90, 60))
    masked, same = masked_copies(pixels, [Raster(90, 60, 30, 30).at(1, 2), None], (255, 255, 255))
    assert torch.equal(same, pixels)
    assert (masked[:, 30:60, 60:90] == 255).all() and int((masked != pixels).any(0).sum()) <= 30 * 30
    assert raster.enlarged(np.arange(400.0).reshape(20, 20))[41, 42] == 1
    overlapping = Raster(6, 6, mask=4, stride=2)
    assert overlapping.enlarged(np.array([[1.0, 3.0], [5.0, 7.0]]))[:4:3, :4:3].tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_infinite_differences_and_flat_maps() -> None:
    raster = Raster(2, 1, 1, 1)
    logits = torch.tensor([[1.0], [float("-inf")], [1.5]])
    assert difference_map(raster, raster.masks(), logits).tolist() == [[1e5, 0.5]]
    assert difference_map(raster, raster.masks(), torch.ones(3, 1)).tolist() == [[0.0, 0.0]]


def test_items_are_those_that_the_published_draw_takes() -> None:
    import random

    items: Any = {f"item{number}": [number] * 9 for number in range(50)}
    random.seed(1)
    expected = [row for group in random.sample([items[name] for name in items], 20) for row in group]
    assert draw_items(items) == expected
    assert len(draw_items({"a": items["item3"]})) == 9


@pytest.fixture
def command(tiny_checkpoint: Any, tmp_path: Path) -> list[str]:
    file, images = write_rows(tmp_path, items=1)
    return [
        "occlusion",
        "--model_path",
        str(tiny_checkpoint("llava")),
        "--eval_file",
        str(file),
        "--img_path",
        str(images),
        "--output_dir",
        str(tmp_path / "D"),
        "--mask_size",
        "30",
        "--max_new_tokens",
        "1",
        "--quiet",
    ]


@pytest.mark.slow
def test_command_writes_resumes_and_maps(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "all 1 item (fewer than --items asks for): 9 images" in said
    # the targets stand alone on white: eight of nine crops are one colour
    assert "9 masked copies run; 72 crops of one colour not run" in said
    folder = tmp_path / "D"
    values = np.array(json.loads((folder / "0_4/0_4_attention_map.json").read_text()))
    assert values.shape == (3, 3) and values[1, 1] == 1 and values.sum() == 1
    assert Image.open(folder / "0_4/0_4_attention_map.png").width > 800
    scores = json.loads((folder / "0_4/0_4_crop_scores.json").read_text())
    assert scores["masked_logits"].count(None) == 8 and scores["row"]["position"] == "center"
    whole = (folder / "occlusion.jsonl").read_bytes()

    # a kill after seven images: the eighth has no line, its map is torn
    (folder / "occlusion.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:7]))
    (folder / "0_7/0_7_attention_map.json").write_text("[[0.1, ")
    (folder / "0_8/0_8_crop_scores.json").unlink()
    maps = ["occlusion-maps", "--prob_results_dir", str(folder), "--output_path", str(tmp_path / "maps.png")]
    assert main(maps) == 1
    assert "2 unfinished images omitted: 0_7, 0_8" in capsys.readouterr().out
    assert main(command) == 0
    assert (folder / "occlusion.jsonl").read_bytes() == whole
    assert "2 images in" in capsys.readouterr().out
    assert main(maps) == 0
    said = capsys.readouterr().out
    assert "100.0 " in said and "[100.0" not in said  # all of the mass lies on the target; one item has no interval
    pictures = sorted(file.name for file in tmp_path.glob("maps*.png"))
    assert pictures == ["maps.png", *(f"maps_{k}.png" for k in range(9))]


def test_shares_of_known_maps() -> None:
    raster = Raster(90, 90, 10, 10)
    inside = np.zeros((9, 9))
    inside[:3, :3] = 1.0
    maps = [
        ImageMap("a_0", "a", 0, raster, inside),
        ImageMap("b_0", "b", 0, raster, np.ones((9, 9))),
        ImageMap("a_4", "a", 4, raster, np.zeros((9, 9))),
    ]
    summed = aggregate(maps)
    assert summed.shares[0].estimate == pytest.approx((1 + 1 / 9) / 2)
    assert summed.areas == pytest.approx([1 / 9] * 9)
    mean = summed.means[0]
    assert mean is not None and mean[0, 0] == 1 and mean[-1, -1] == 0.5
    assert summed.counts[4] == 1 and summed.shares[4].n == 0  # no mask changed anything: no mass
    assert summed.means[8] is None
    with pytest.raises(InputError, match="cannot be summed"):
        aggregate([*maps, ImageMap("c_0", "c", 0, Raster(60, 60, 10, 10), np.ones((6, 6)))])


def test_bad_input_is_told_in_one_sentence(
    command: list[str], tiny_checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*options: str, code: int = 2) -> str:
        assert main([*command, *options]) == code
        told = capsys.readouterr()
        return told.err + told.out

    assert "is smaller than the mask of 91 pixels" in fails("--mask_size", "91", code=1)
    assert "was made with other settings: mask_size is 91" in fails()
    assert "is not a colour" in fails("--colour", "snow white")
    assert "--stride must be at least 1" in fails("--stride", "0")
    assert "is a LLaVA-v1.5 checkpoint" in fails("--family", "qwen3_vl")
    rows = (tmp_path / "rows.json").read_text().splitlines()
    for field, value, told in (
        ("id", 0, "the id 0 is used twice, first at rows.json:1"),
        ("image", "sub/0_0.png", "the image name 0_0 is used twice, first at rows.json:1"),
    ):
        twice = [*rows[:4], json.dumps(json.loads(rows[4]) | {field: value}), *rows[5:]]
        (tmp_path / "rows.json").write_text("\n".join(twice))
        assert told in fails("--overwrite")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "cut_crop_scores.json").write_text("[1, 2")
    assert main(["occlusion-maps", "--prob_results_dir", str(tmp_path), "--output_path", "x.png"]) == 2
    said = capsys.readouterr().err
    assert "holds no finished image" in said and "none of its folders is whole: D, cut, images" in said


def test_an_answer_without_tokens_is_named(tiny_checkpoint: Any, tmp_path: Path) -> None:
    loaded = load(LoadOptions(str(tiny_checkpoint("llava"))))
    ids = loaded.processor.tokenizer.convert_tokens_to_ids(["Yes", "No"])
    loaded.model.generation_config.eos_token_id = ids  # whatever it answers ends the answer
    run = OcclusionRun(loaded, [], tmp_path, MaskOptions(30, 30))
    with pytest.raises(InputError, match=r"rows\.json:1: the model's answer has no token"):
        run.occlude(row_of(tmp_path, random_image(3, 90, 90)))


ODD_FIELDS: list[tuple[str, Any, str]] = [
    ("width", 0, '"width" must be a whole number from 1 to 50000000, but is 0'),
    ("height", [None], '"height" must be a whole number from 1 to 50000000, but is [None]'),
    ("height", 40_000_000, '"width" x "height" must be at most 50000000 pixels'),
    ("mask_size", 91, '"mask_size" must be a whole number from 1 to 90, but is 91'),
    ("stride", True, '"stride" must be a whole number from 1'),
    ("stride", None, '"stride" must be a whole number from 1'),
    ("row", [], '"row" must be an object, but is []'),
    ("row", {"position": "middle", "image": "a.png"}, "\"position\" is 'middle', but must be one of"),
    ("row", {"position": "center", "image": 3}, '"image" must be a text'),
    ("map", [[0, 1], [0.5, float("nan")]], "the map must be 2 x 2 numbers from 0 to 1"),
    ("map", [[0, 1], [0.5, 1e308]], "the map must be 2 x 2 numbers from 0 to 1"),
    ("map", [[0, 1]], "the map must be 2 x 2 numbers from 0 to 1"),
    ("map", None, "the map must be 2 x 2 numbers from 0 to 1, but is None"),
]


@pytest.mark.parametrize(("field", "value", "said"), ODD_FIELDS, ids=[f"{f}-{v}"[:30] for f, v, _ in ODD_FIELDS])
def test_a_field_that_no_run_writes_is_named(tmp_path: Path, field: str, value: Any, said: str) -> None:
    scores = {"row": {"position": "center", "image": "a.png"}, "width": 90, "height": 90, "mask_size": 42, "stride": 42}
    shown = {**scores, "map": [[0, 1], [0.5, 0.25]], field: value}
    (tmp_path / "a_4").mkdir()
    (tmp_path / "a_4/a_4_attention_map.json").write_text(json.dumps(shown.pop("map")))
    (tmp_path / "a_4/a_4_crop_scores.json").write_text(json.dumps(shown))
    name = "a_4_attention_map.json" if field == "map" else "a_4_crop_scores.json"
    with pytest.raises(InputError, match=f"{name}: {re.escape(said)}"):
        read_folder(tmp_path)


def test_a_manifest_that_names_no_images_is_named(tmp_path: Path) -> None:
    manifest = {"settings": {}, "notes": {"pictures": ["../a"]}, "rows": 0, "blocks": [], "runs": []}
    (tmp_path / "occlusion.manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r'manifest\.json: "pictures" must be a list of names of images'):
        read_folder(tmp_path)


def test_no_folder_no_maps(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        read_folder(tmp_path / "missing")
