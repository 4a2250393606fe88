"""Information flow: the recorded rows against eager attention, its way back onto the image, commands, bad input."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_similarity import write_rows
from tiny_checkpoints import FAMILIES, build_model, build_processor, prompt_inputs, random_image

from transformers_agci import agci
from transformers_agci.cli import main
from transformers_agci.data.grid import POSITIONS
from transformers_agci.errors import InputError
from transformers_agci.experiments.flow.attention_rows import AttentionRows
from transformers_agci.experiments.flow.flow import measure_flow, parse_layers
from transformers_agci.experiments.flow.maps import aggregate, maps_text, read_flows
from transformers_agci.families import decoder_of, find_vlm
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.questions import ImageFile, Question


def image_of(model: Any, inputs: dict[str, torch.Tensor]) -> range:
    places = (inputs["input_ids"][0] == model.config.image_token_id).nonzero().flatten().tolist()
    return range(places[0], places[-1] + 1)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("lam", [0.0, 0.5])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_rows_equal_eager_attention(family: str, lam: float) -> None:
    eager, model = build_model(family, attn_implementation="eager"), build_model(family)
    text = "Is there a red dog in the given image, or is there not? " * 3  # Gemma3n's sliding window cuts something
    inputs = prompt_inputs(build_processor(family), text, random_image())
    image, length = image_of(model, inputs), inputs["input_ids"].shape[1]
    rows, layers = range(image.stop, length), [0, 2, 3]
    with agci(eager, lam):
        whole = eager(**inputs, output_attentions=True).attentions
    expected = torch.stack([whole[layer][0, :, rows.start :, image.start : image.stop].mean(0) for layer in layers])
    with agci(model, lam):
        before = model(**inputs).logits
        with AttentionRows(model, layers, rows, image) as recorded:
            within = model(**inputs).logits
        after = model(**inputs).logits
    torch.testing.assert_close(recorded.weights, expected, atol=1e-5, rtol=0)
    # the model answers as ever, and is as it was
    torch.testing.assert_close(within, before, atol=1e-5, rtol=0)
    assert torch.equal(before, after)
    decoder: Any = decoder_of(find_vlm(model))
    assert decoder.config._attn_implementation != "agci_rows"
    # kept: layers x rows x image tokens, nothing of the whole matrix
    assert recorded.weights.numel() == len(layers) * len(rows) * len(image)


def test_layers_are_all_one_or_a_range() -> None:
    assert parse_layers("all", 3) == [0, 1, 2]
    for wrong in ("3", "2-1", "-1", "x", "0-3", ""):
        with pytest.raises(InputError, match="`layers` must be all, one layer or a range such as 0-2"):
            parse_layers(wrong, 3)


def test_logits_that_are_not_numbers_have_no_flow(tiny_checkpoint: Any, tmp_path: Path) -> None:
    loaded = load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl"))))
    random_image(2, 60, 60).save(tmp_path / "x.png")
    asked = Question({}, "x.json:1", "Is there a dog?", (ImageFile(tmp_path, "x.png", "x.json:1"),))

    def spoil(_: Any, args: Any, output: Any) -> None:
        output.logits[:] = float("nan")

    loaded.model.register_forward_hook(spoil)
    with pytest.raises(InputError, match=r"x\.json:1: the model gives logits that are not numbers"):
        measure_flow(loaded, asked, [0.5])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_image_on_every_family(family: str, tiny_checkpoint: Any, tmp_path: Path) -> None:
    random_image(2, 120, 90).save(tmp_path / "x.png")
    target = tmp_path / "out" / "flow.png"
    assert (
        main(
            [
                "flow",
                "--model_path",
                str(tiny_checkpoint(family)),
                "--image",
                str(tmp_path / "x.png"),
                "--question",
                "Is there a dog?",
                "--global_context_lambda",
                "0",
                "0.5",
                "--layers",
                "1-2",
                "--max_new_tokens",
                "2",
                "--output_path",
                str(target),
            ]
        )
        == 0
    )
    assert Image.open(target).width > 1500 and Image.open(target.with_stem("flow_answer")).width > 1500
    told = json.loads(target.with_suffix(".json").read_text())
    assert told["layers"] == [1, 2] and [flow["lambda"] for flow in told["flows"]] == [0, 0.5]
    for flow in told["flows"]:
        placed = sum(np.sum(grid["text"]) for grid in flow["grids"])
        assert 0 < placed <= flow["on_picture"]["text"] + 1e-6 < 1
    assert told["flows"][0]["on_picture"] != told["flows"][1]["on_picture"]


@pytest.mark.slow
def test_probe_file_shares_and_maps(
    tiny_checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, images = write_rows(tmp_path, items=2)
    folder = tmp_path / "D"
    command = [
        "flow",
        "--model_path",
        str(tiny_checkpoint("qwen2_5_vl")),
        "--eval_file",
        str(file),
        "--img_path",
        str(images),
        "--output_dir",
        str(folder),
        "--max_new_tokens",
        "1",
        "--quiet",
    ]
    assert main(command) == 0
    assert "answer, lambda 0.5, all" in capsys.readouterr().out
    whole = (folder / "flow.jsonl").read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert len(rows) == 18 and sorted(file.name for file in folder.glob("*.png")) == [
        "flow_answer_lam0.5.png",
        "flow_answer_lam0.5_change.png",
        "flow_answer_lam0.png",
        "flow_text_lam0.5.png",
        "flow_text_lam0.5_change.png",
        "flow_text_lam0.png",
    ]
    for row in rows[::5]:
        values = np.array(row["flows"][1]["text"]["map"])  # 27 x 27, nine to a cell
        down, across = divmod(
            POSITIONS.index(row["position"]),
            3,
        )
        cell = values[9 * down : 9 * down + 9, 9 * across : 9 * across + 9]
        assert row["flows"][1]["text"]["on_target"] == pytest.approx(cell.sum() / values.sum(), abs=1e-3)
        assert row["flows"][1]["text"]["on_picture"] == pytest.approx(values.sum(), abs=1e-3)
    monkeypatch.setattr("transformers_agci.experiments.flow.maps.draw_map_grid", lambda maps, path, *_: path)  # drawn
    (folder / "flow.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:11])[:-9])
    assert main(command) == 0
    assert "8 rows in" in capsys.readouterr().out
    assert (folder / "flow.jsonl").read_bytes() == whole
    assert main([*command, "--layers", "0"]) == 2
    assert "layers is [0, 1, 2, 3] there and [0] now" in capsys.readouterr().err


def test_bad_input_is_told_in_one_sentence(
    tiny_checkpoint: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random_image().save(tmp_path / "x.png")
    model = ["flow", "--model_path", str(tiny_checkpoint("llava"))]
    image = ["--image", str(tmp_path / "x.png")]
    capsys.readouterr()  # what making the checkpoint says
    for options, told in (
        (image, "--image and --question go together"),
        ([*image, "--question", "Q?", "--layers", "9"], "--layers must be all"),
        ([*image, "--question", "Q?", "--global_context_lambda", "0", "-1"], "lambda must be a finite number >= 0"),
        ([*image, "--question", "Q?", "--global_context_lambda", "0", "0"], "Each lambda is measured once"),
        ([*image, "--question", "Q?", "--family", "gemma3n"], "is a LLaVA-v1.5 checkpoint"),
        (["--image", "missing.png", "--question", "Q?"], "missing.png does not exist"),
        (["--img_path", "P"], "--img_path belongs to --eval_file"),
    ):
        assert main([*model, *options]) == 2
        error = capsys.readouterr().err
        assert error.startswith("agci: ") and told in error, error


def recorded_rows(items: int, on_target: float = 0.2) -> list[dict[str, Any]]:
    """Rows as flow.jsonl has them: one lambda, both sources; the share on the target grows with the item."""
    rows = []
    for number in range(9 * items):
        item, cell = divmod(number, 9)
        source = {"on_picture": 0.5, "on_target": on_target + 0.01 * item, "map": [[1.0] * 3] * 3}
        row = {"id": number, "image": f"{item}_{cell}.png", "caption": f"a dog {item}", "answer": "Yes"}
        flows = [{"lambda": 0.5, "prediction": "Yes", "text": source, "answer": source}]
        rows.append({**row, "position": POSITIONS[cell], "flows": flows})
    return rows


def write_recorded(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_item_has_no_interval_and_several_have_one(tmp_path: Path) -> None:
    (one, _), (several, _) = (
        aggregate(read_flows(write_recorded(tmp_path / "f.jsonl", recorded_rows(n)))) for n in (1, 3)
    )
    text = maps_text([one])
    assert "20.0 [no interval]" in text and "[20.0, 20.0]" not in text
    assert (one.shares.cells[0].n, several.shares.cells[0].n, several.shares.overall.n) == (1, 3, 27)
    overall = several.shares.overall
    assert overall.estimate == pytest.approx(0.21) and overall.low < 0.21 < overall.high


def flows_with(**changed: Any) -> list[dict[str, Any]]:
    """The flows of a row, with other values in its entry, or in that of its text."""
    entry = recorded_rows(1)[0]["flows"][0]
    of_entry = {name: value for name, value in changed.items() if name in entry}
    return [{**entry, "text": {**entry["text"], **changed}, **of_entry}]


BROKEN: dict[str, tuple[Any, str]] = {
    "null": (None, '"flows" must be a list of objects, but is None'),
    "a text": ("0.5", '"flows" must be a list of objects'),
    "no source": ([{"lambda": 0.5, "text": flows_with()[0]["text"]}], '"flows": the field "answer" is missing'),
    "a ragged map": (flows_with(map=[[1.0], [1.0, 1.0]]), '"text": "map" must be rows of equally many numbers'),
    "another size": (flows_with(map=[[1.0]]), "the sizes of its maps, are not those of the first row"),
    "another lambda": (flows_with(**{"lambda": 0.0}), 'the lambdas of "flows"'),
    "a negative lambda": (flows_with(**{"lambda": -1}), '"lambda" must be a number of at least 0'),
    "two lambdas": (recorded_rows(1)[0]["flows"] * 2, '"flows" has a lambda twice: 0.5, 0.5'),
    "too large for a sum": (flows_with(on_target=1e308), '"on_target" must be a number from 0 to 1.01, but is 1e+308'),
    "true in a map": (flows_with(map=[[True]]), '"map" must be rows of equally many numbers from 0 to 1.01'),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_rows_that_flow_did_not_write_are_named(tmp_path: Path, kind: str) -> None:
    rows = recorded_rows(1)
    rows[4]["flows"], said = BROKEN[kind]
    with pytest.raises(InputError, match=r"^f\.jsonl:5[:,] .*" + re.escape(said)):
        read_flows(write_recorded(tmp_path / "f.jsonl", rows))


def test_rows_of_another_grid_are_named(tmp_path: Path) -> None:
    rows = [{**row, "grid": "4x4", "row": 3, "col": 3} for row in recorded_rows(1)]
    with pytest.raises(InputError, match=r"f\.jsonl:1: this experiment takes composites of 3x3 sub-images only"):
        read_flows(write_recorded(tmp_path / "f.jsonl", rows))
