"""Probe and self-check on families whose images are several runs: tiny models behind their own processors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from test_separators import aya, cohere, idefics, lfm, llama, ovis
from tiny_checkpoints import random_image
from tiny_families import TILE, TINY

from transformers_agci.cli import main

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]

SQUARE = {"height": TILE, "width": TILE}
CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}MARK{% else %}{{ c['text'] }}"
    "{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} Answer:{% endif %}"
)

# family -> its processor, and what makes it fit the tiny model's tiles
FITTED: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    "aya_vision": (aya, {"img_size": TILE, "patch_size": 8}, {"size": SQUARE}),
    "idefics3": (
        idefics,
        {"image_seq_len": 4},
        {"size": {"longest_edge": 2 * TILE}, "max_image_size": {"longest_edge": TILE}},
    ),
    "cohere2_vision": (cohere, {}, {"size": SQUARE}),
    "llama4": (llama, {"patch_size": 4}, {"size": SQUARE}),
    "ovis2": (ovis, {"image_seq_length": 4}, {"size": SQUARE}),
    "lfm2_vl": (lfm, {}, {"tile_size": TILE, "encoder_patch_size": 4, "max_num_patches": 16}),
}

INDICATORS = ["<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>"]  # of Ovis2's processor


def checkpoint(family: str, folder: Path) -> Path:
    """A tiny model with the family's own processor around a small tokenizer."""
    made, settings, image_settings = FITTED[family]
    processor, mark, token = made(["one token each"])
    for name, value in settings.items():
        setattr(processor, name, value)
    for name, value in image_settings.items():
        setattr(processor.image_processor, name, value)
    processor.chat_template = CHAT.replace("MARK", mark)
    base = TINY[family].config()
    values = base.to_dict()
    for part in (values, values["text_config"]):
        if "vocab_size" in part:
            part["vocab_size"] = 400
    for name in ("image_token_id", "image_token_index"):
        if name in values:
            values[name] = processor.tokenizer.convert_tokens_to_ids(token)
    if family == "ovis2":
        values["visual_indicator_token_ids"] = processor.tokenizer.convert_tokens_to_ids(INDICATORS)
    torch.manual_seed(0)
    model = getattr(transformers, TINY[family].model)(type(base).from_dict(values))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "family", [family if family == "idefics3" else pytest.param(family, marks=pytest.mark.slow) for family in FITTED]
)
def test_probe_and_self_check(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if family not in TINY:
        pytest.skip(f"this transformers has no {family}")
    folder = checkpoint(family, tmp_path / "model")
    names = ("top_left", "top_center", "top_right", "left", "center", "right")
    names += ("bottom_left", "bottom_center", "bottom_right")
    for number in range(9):
        random_image(number, 90, 45).save(tmp_path / f"a_{number}.jpg")
    rows = [
        {"id": number, "image": f"a_{number}.jpg", "caption": "a dog", "position": name, "answer": "Yes"}
        for number, name in enumerate(names)
    ]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    paths = ["--model", str(folder), "--eval_file", str(tmp_path / "rows.json"), "--img_path", str(tmp_path)]
    answers = ["--answers_file", str(tmp_path / "A.jsonl"), "--global_context_lambda", "0", "0.5", "--batch_size", "3"]
    assert main(["probe", *paths, *answers]) == 0
    assert "vision ran on 9 images" in capsys.readouterr().out
    for lam in ("0", "0.5"):
        written = [json.loads(line) for line in (tmp_path / f"A.lam{lam}.jsonl").read_text().splitlines()]
        assert [row["image"] for row in written] == [row["image"] for row in rows]
        assert all("prediction" in row for row in written)
    main(["self-check", str(folder)])
    table = {
        line[:28].strip(): line[30:38].split()[0] if line[30:38].split() else ""
        for line in capsys.readouterr().out.splitlines()
    }
    for check in ("once per image", "decoder input is the formula", "two adjacent images", "a long image"):
        assert table[check] == "ok", (check, table)


@pytest.mark.slow
def test_occlusion_says_what_a_family_without_layout_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint("aya_vision", tmp_path / "model")
    for number in range(9):
        random_image(number, 90, 45).save(tmp_path / f"a_{number}.jpg")
    names = ("top_left", "top_center", "top_right", "left", "center", "right")
    names += ("bottom_left", "bottom_center", "bottom_right")
    rows = [
        json.dumps({"id": number, "image": f"a_{number}.jpg", "caption": "a dog", "position": name, "answer": "Yes"})
        for number, name in enumerate(names)
    ]
    (tmp_path / "rows.json").write_text("\n".join(rows))
    words = [
        "--eval_file",
        str(tmp_path / "rows.json"),
        "--img_path",
        str(tmp_path),
        "--output_dir",
        str(tmp_path / "O"),
    ]
    assert main(["occlusion", "--model", str(folder), *words, "--max_new_tokens", "2"]) == 0
    assert "for Aya Vision they cannot be laid over image tokens: where its tiles" in capsys.readouterr().out
