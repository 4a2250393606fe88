"""A converted checkpoint on every supported transformers: same ids, pixels and logits; and after a real kill."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import original_llava as llava
import pytest
import tiny_checkpoints as tiny

from transformers_agci.conversion.convert import MANIFEST, convert
from transformers_agci.method.lam import LAMBDA_KEY

OVERLAYS = [folder for folder in os.environ.get("AGCI_TRANSFORMERS_OVERLAYS", "").split(os.pathsep) if folder]
needs_overlays = pytest.mark.skipif(
    not OVERLAYS, reason="AGCI_TRANSFORMERS_OVERLAYS names no folders with other transformers versions"
)
pytestmark = pytest.mark.slow

LOAD = """
import json, sys
import torch, transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, image = sys.argv[1:]
processor = AutoProcessor.from_pretrained(folder)
model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
turn = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is there a dog?"}]}
prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
inputs = processor(text=[prompt], images=[Image.open(image)], return_tensors="pt")
with torch.no_grad():
    on = model.eval()(**inputs).logits[0, -1]
    model.global_context_broadcast_lambda = 0.0
    off = model(**inputs).logits[0, -1]
tower = sum(p.double().abs().sum().item() for name, p in model.named_parameters() if "vision_tower" in name)
print(json.dumps({
    "version": transformers.__version__, "missing": sorted(info["missing_keys"]), "tower": tower,
    "unexpected": sorted(map(str, info["unexpected_keys"])), "ids": inputs["input_ids"].tolist(),
    "pixels": inputs["pixel_values"].flatten()[::7].tolist(), "on": on.tolist(), "off": off.tolist(),
}))
"""


def under(overlay: str, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": overlay},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@needs_overlays
@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_loads_alike_on_every_version(family: str, tmp_path: Path) -> None:
    model = llava.reference_model(family)
    source = llava.write_original(family, model, tmp_path / "original", **{LAMBDA_KEY: 0.5})
    folder = convert(source, tmp_path / "hf").folder
    tiny.random_image(width=112, height=112).save(tmp_path / "picture.png")
    told = [under(overlay, "-c", LOAD, str(folder), str(tmp_path / "picture.png")) for overlay in ["", *OVERLAYS]]
    found: list[Any] = [json.loads(text.splitlines()[-1]) for text in told]
    assert len({each["version"] for each in found}) == len(OVERLAYS) + 1
    tower = sum(p.double().abs().sum().item() for name, p in model.named_parameters() if "vision_tower" in name)
    for each in found:
        assert (each["missing"], each["unexpected"]) == ([], [])
        assert each["tower"] == pytest.approx(tower, rel=1e-12)
        assert each["ids"] == found[0]["ids"]
        assert np.allclose(each["pixels"], found[0]["pixels"], atol=0.02)  # two ways of resizing
        for name in ("on", "off"):
            assert np.allclose(each[name], found[0][name], atol=2e-3), name
        assert np.abs(np.subtract(each["on"], each["off"])).max() > 1e-3


@needs_overlays
def test_every_version_writes_the_same_checkpoint(tmp_path: Path) -> None:
    source = llava.write_original("llava_next", llava.reference_model("llava_next"), tmp_path / "original", kind="bin")
    folders = []
    for number, overlay in enumerate(["", *OVERLAYS]):
        folders.append(tmp_path / f"hf{number}")
        under(overlay, "-m", "transformers_agci.cli", "convert-llava", str(source), str(folders[-1]))
    versions = {json.loads((folder / MANIFEST).read_text())["versions"]["transformers"] for folder in folders}
    assert len(versions) == len(folders)
    names = {path.name for path in folders[0].iterdir()} - {MANIFEST}
    for folder in folders[1:]:
        assert {path.name for path in folder.iterdir()} - {MANIFEST} == names
        for name in names:
            assert (folder / name).read_bytes() == (folders[0] / name).read_bytes(), name


KILLED = """
import os, signal, sys
from pathlib import Path
from transformers_agci.conversion import convert as converting

save, calls = converting.save_file, []

def save_file(*args, **kwargs):
    calls.append(args)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    save(*args, **kwargs)

converting.save_file = save_file
converting.convert(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_conversion_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    source = llava.write_original("llava", llava.reference_model("llava"), tmp_path / "original")
    output = tmp_path / "hf"
    done = subprocess.run([sys.executable, "-c", KILLED, str(source), str(output)], check=False, capture_output=True)
    assert done.returncode == -9
    assert not output.exists()
    left = [path.name for path in tmp_path.iterdir() if path != source]
    assert left and all(name.startswith(".") for name in left)
    assert (tmp_path / ".hf.unfinished" / "model-00001-of-00002.safetensors").exists()
    convert(source, output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "original"]
