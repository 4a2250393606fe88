"""The shipped checkpoint: stock classes load it, and it answers as its card says."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from transformers_agci.data.grid import POSITIONS
from transformers_agci.embedded import embedded_model_path
from transformers_agci.embedded.architecture import train_tokenizer
from transformers_agci.embedded.atlas import ATLAS_FOLDER, Atlas
from transformers_agci.embedded.evaluate import evaluate
from transformers_agci.embedded.probe_set import render_items
from transformers_agci.experiments.position.questions import PROMPT

SIZE_LIMIT = 8 * 1024 * 1024  # bytes: atlas and checkpoint in all
OVERLAYS = [folder for folder in os.environ.get("AGCI_TRANSFORMERS_OVERLAYS", "").split(os.pathsep) if folder]


@pytest.fixture(scope="module")
def stock() -> tuple[Any, Any]:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = embedded_model_path()
    return AutoProcessor.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder).eval()


def question(processor: Any, name: str, image: Image.Image) -> Any:
    content = [{"type": "image"}, {"type": "text", "text": PROMPT.format(caption=name)}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return processor(text=[text], images=[image], return_tensors="pt")


def test_stock_classes_load_it_in_float32(stock: tuple[Any, Any]) -> None:
    processor, model = stock
    assert type(processor).__name__ == "Qwen2_5_VLProcessor"
    assert type(model).__name__ == "Qwen2_5_VLForConditionalGeneration"
    assert model.dtype == torch.float32
    assert 2_900_000 < sum(parameter.numel() for parameter in model.parameters()) < 3_300_000


def test_the_tokenizer_can_be_trained_anew(stock: tuple[Any, Any]) -> None:
    """Training makes the shipped tokenizer again: equal merges, so that new weights fit the old ids."""
    processor, _ = stock
    anew = json.loads(train_tokenizer(Atlas().names).backend_tokenizer.to_str())["model"]
    shipped = json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]
    assert anew["vocab"] == shipped["vocab"]
    assert anew["merges"] == shipped["merges"]


def test_the_model_card_has_front_matter_and_one_title() -> None:
    """What model hubs read: a YAML block of its own before the text."""
    card = (embedded_model_path() / "MODEL_CARD.md").read_text(encoding="utf-8")
    empty, block, text = card.split("---\n", maxsplit=2)
    assert empty == ""
    assert yaml.safe_load(block) == {
        "license": "apache-2.0",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
    }
    assert text.startswith("# The embedded model\n")
    code = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^# .*", code, flags=re.MULTILINE)
    assert titles == ["# The embedded model"] and len(re.findall(r"^## ", code, flags=re.MULTILINE)) >= 5


def test_atlas_and_checkpoint_stay_below_eight_megabytes() -> None:
    files = [path for folder in (ATLAS_FOLDER, embedded_model_path()) for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= SIZE_LIMIT


def test_image_tokens_start_where_a_qwen_prompt_has_them(stock: tuple[Any, Any]) -> None:
    processor, model = stock
    inputs = question(processor, "owl", Image.new("RGB", (252, 252), "white"))
    places = (inputs.input_ids[0] == model.config.image_token_id).nonzero().flatten()
    assert places.tolist() == list(range(15, 15 + 81))


@pytest.mark.parametrize("size", [(840, 840), (252, 252), (100, 100), (640, 480), (60, 400)])
def test_every_size_of_image_is_answered(stock: tuple[Any, Any], size: tuple[int, int]) -> None:
    """The canvas is pinned: about 81 image tokens whatever comes in, and a Yes or No that ends."""
    processor, model = stock
    inputs = question(processor, "owl", Image.new("RGB", size, "lightblue"))
    tokens = int((inputs.input_ids == model.config.image_token_id).sum())
    assert tokens == 81 if size[0] == size[1] else 60 <= tokens <= 110
    said = model.generate(**inputs, max_new_tokens=8)[0, inputs.input_ids.shape[1] :]
    assert processor.decode(said) in ("Yes<|im_end|>", "No<|im_end|>")


def test_answers_end(stock: tuple[Any, Any]) -> None:
    processor, model = stock
    atlas = Atlas()
    for rendered in render_items(atlas, ("test", "answers end"), 3):
        image = Image.open(io.BytesIO(rendered.composite(4)))
        for name in (atlas.names[rendered.item.target], atlas.names[rendered.item.absent]):
            inputs = question(processor, name, image)
            said = model.generate(**inputs, max_new_tokens=8)[0, inputs.input_ids.shape[1] :]
            assert processor.decode(said) in ("Yes<|im_end|>", "No<|im_end|>")


@pytest.mark.slow
def test_fresh_items_are_mostly_answered_right(stock: tuple[Any, Any]) -> None:
    """A rough bound (the card has the figures); these items come from a random stream of their own."""
    processor, model = stock
    answers = evaluate(model, processor.tokenizer, items=15, stream=("test", "fresh items"))
    assert answers.to_shown.shape == (15, len(POSITIONS))
    assert answers.balanced_accuracy > 0.75
    assert answers.yes_right.mean() > 0.65
    assert answers.no_right.mean() > 0.65


def test_configuration_says_float32_and_weights_are_float16() -> None:
    from safetensors import safe_open

    config = json.loads((embedded_model_path() / "config.json").read_text())
    assert config["dtype"] == "float32"
    assert config["transformers_version"] == "4.57.6"
    with safe_open(embedded_model_path() / "model.safetensors", "pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118


@pytest.mark.slow
def test_the_card_says_what_the_checkpoint_does(stock: tuple[Any, Any]) -> None:
    processor, model = stock
    answers = evaluate(model, processor.tokenizer, items=300)
    card = (embedded_model_path() / "MODEL_CARD.md").read_text()
    (row,) = [line for line in card.splitlines() if line.startswith("| seed 0 (shipped)")]
    stated = [float(cell.split()[0]) for cell in row.split("|")[2:5]]
    measured = [answers.balanced_accuracy, answers.yes_right.mean(), answers.no_right.mean()]
    assert np.allclose(stated, 100 * np.array(measured), atol=0.3)  # a margin near 0 may fall either way elsewhere
    assert 85 <= stated[0] <= 95


LOGITS = """
import json, sys
import numpy as np, torch, transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, image, text = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder).eval()
prompt = processor.apply_chat_template(
    [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}], add_generation_prompt=True
)
inputs = processor(text=[prompt], images=[Image.open(image)], return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits[0, -1]
print(json.dumps({"version": transformers.__version__, "dtype": str(model.dtype), "logits": logits.tolist()}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not OVERLAYS, reason="AGCI_TRANSFORMERS_OVERLAYS names no folders with other transformers versions")
def test_logits_are_equal_on_every_version_of_transformers(tmp_path: Path) -> None:
    atlas = Atlas()
    (rendered,) = render_items(atlas, ("test", "logits"), 1)
    (tmp_path / "canvas.jpg").write_bytes(rendered.composite(4))
    text = PROMPT.format(caption=atlas.names[rendered.item.target])
    command = [sys.executable, "-c", LOGITS, str(embedded_model_path()), str(tmp_path / "canvas.jpg"), text]
    found = []
    for overlay in ["", *OVERLAYS]:
        environment = {**os.environ, "PYTHONPATH": overlay}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found.append(json.loads(done.stdout.splitlines()[-1]))
    assert len({each["version"] for each in found}) == len(OVERLAYS) + 1
    assert {each["dtype"] for each in found} == {"torch.float32"}
    for each in found[1:]:
        assert np.allclose(each["logits"], found[0]["logits"], atol=1e-5)
