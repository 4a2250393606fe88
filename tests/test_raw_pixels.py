"""Pixels that cross as bytes and are normalised on the device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_checkpoints import FAMILIES, build_processor, random_image
from tiny_run import LAMBDAS, ask, probe, rows

from transformers_agci.inference import prepare
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.prepare import PIXELS, RawPixels, raw_pixels

# LLaVA-NeXT fills up the tiles of smaller images with zeros behind its normalising.
AS_BYTES = [family for family in FAMILIES if family != "llava_next"]


@pytest.mark.parametrize("family", AS_BYTES)
def test_the_device_makes_what_the_processor_makes(family: str) -> None:
    processor = build_processor(family)
    raw = raw_pixels(processor)
    assert raw is not None
    shown = [random_image(number, *size) for number, size in enumerate(((300, 200), (61, 190), (90, 90)))]
    wanted = processor.image_processor(images=shown, return_tensors="pt")[PIXELS]
    made = raw.processor.image_processor(images=shown, return_tensors="pt")[PIXELS]
    assert made.dtype == torch.uint8
    assert torch.allclose(raw.normalise(made), wanted, atol=1e-6, rtol=0)
    assert processor.image_processor.do_rescale


def test_a_processor_that_pads_behind_its_normalising_keeps_it() -> None:
    assert raw_pixels(build_processor("llava_next")) is None


def test_only_what_was_tried_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    processor = build_processor("llava")
    monkeypatch.setattr(RawPixels, "normalise", lambda self, pixels: pixels.float() / self.std[0])
    assert raw_pixels(processor) is None
    monkeypatch.undo()
    processor.image_processor.do_rescale = False
    assert raw_pixels(processor) is None


def test_the_engine_gives_the_same_answers(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl"))))
    for number in range(12):
        random_image(number).save(tmp_path / f"{number}.jpg")
    questions = probe(tmp_path)
    ask(loaded, questions, tmp_path / "floats.jsonl")
    normalised = []

    def counted(self: Any, pixels: torch.Tensor) -> torch.Tensor:
        normalised.append(pixels.dtype)
        return original(self, pixels)

    original = RawPixels.normalise
    monkeypatch.setattr(RawPixels, "normalise", counted)
    monkeypatch.setattr(prepare, "BYTES_CROSS_TO", ("cpu",))
    ask(loaded, questions, tmp_path / "bytes.jsonl")
    assert normalised[1:] == [torch.uint8] * 3  # the first is the trial; then each image once
    for lam in LAMBDAS:
        floats, as_bytes = (rows(tmp_path / f"{name}.lam{lam:g}.jsonl") for name in ("floats", "bytes"))
        assert [row["prediction"] for row in floats] == [row["prediction"] for row in as_bytes]
        assert [row["margin"] for row in floats] == pytest.approx([row["margin"] for row in as_bytes], abs=1e-4)
