"""What a user may hand to a family that it cannot be right with: one sentence each."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_families import TEXT, TINY, Batch, TinyFamily, make_batch, type_ids

from transformers_agci import SUPPORTED_FAMILIES, InputError, attach
from transformers_agci.cli import main
from transformers_agci.families import REFUSED_FAMILIES, image_token_id
from transformers_agci.inference.checkpoint_files import read_config
from transformers_agci.inference.load import LoadOptions, load

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]


def test_a_config_without_an_image_token() -> None:
    class Bare:
        model_type = "aya_vision"

    with pytest.raises(InputError, match=r"says no image token \(image_token_id or image_token_index\)"):
        image_token_id(Bare())


def with_ids(family: TinyFamily, batch: Batch, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """The batch's inputs with other ids, cut behind where these are shorter."""
    length = ids.shape[1]
    mask = batch.inputs["attention_mask"][:, :length]
    return batch.inputs | {"input_ids": ids, "attention_mask": mask} | type_ids(family, ids)


def damaged(family: TinyFamily, batch: Batch) -> dict[str, torch.Tensor]:
    """What is wrong -> the ids of a prompt with two images: tokens too few, too many, of the wrong image; a cut."""
    ids, (_, first), (_, second) = batch.inputs["input_ids"], *batch.images
    fewer, more, moved = ids.clone(), ids.clone(), ids.clone()
    fewer[0, first[-1]] = 50
    more[0, second[-1] + 1] = family.image_token
    moved[0, first[-1]], moved[0, second[-1] + 1] = 50, family.image_token
    return {"fewer": fewer, "more": more, "moved": moved, "cut": ids[:, : second[-2]]}


@pytest.mark.sampled(8)
@pytest.mark.parametrize("family", TINY.values(), ids=list(TINY))
@torch.no_grad()
def test_image_tokens_that_are_not_those_of_the_images(family: TinyFamily) -> None:
    model = family.build()
    batch = make_batch(family, [[TEXT, "plain", TEXT, "tiled", TEXT]])
    handle = attach(model, 0.5)
    for wrong, ids in damaged(family, batch).items():
        if (family.model_type, wrong) == ("inkling_mm_model", "moved"):
            continue  # the prompt alone says how long each image is
        inputs = with_ids(family, batch, ids)
        with pytest.raises(
            ValueError, match=r"do not match|do not divide|does not match|placeholder tokens|in runs of"
        ):
            model(**inputs)
    assert handle.injections == 0


@torch.no_grad()
def test_rows_of_an_image_far_apart() -> None:
    """Pixtral's rows have a break between them; a text is none."""
    family = TINY["mistral3"]
    model = family.build()
    batch = make_batch(family, [[TEXT, "tiled", TEXT]])
    places = batch.images[0][1]
    handle = attach(model, 0.5)
    ids, cut = batch.inputs["input_ids"], places[3]
    batch.inputs["input_ids"] = torch.cat([ids[:, :cut], torch.full((1, 5), 50), ids[:, cut:]], dim=1)
    batch.inputs["attention_mask"] = torch.ones_like(batch.inputs["input_ids"])
    with pytest.raises(ValueError, match=r"runs of \[3, 3\].*images of \[6\] tokens"):
        model(**batch.inputs)
    assert handle.injections == 0


def write_config(folder: Path, **config: object) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("model_type", REFUSED_FAMILIES)
def test_refused_families_say_why(model_type: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        read_config(write_config(tmp_path / "model", model_type=model_type))
    assert REFUSED_FAMILIES[model_type].reason in str(error.value)


def test_an_unknown_family_is_told_what_would_try_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="agci self-check --experimental CHECKPOINT"):
        read_config(write_config(tmp_path / "model", model_type="made_up"))


@pytest.mark.parametrize(
    ("model_type", "twin"), [("internvl_chat", "internvl"), ("llava_qwen", "llava_onevision"), ("ovis", "ovis2")]
)
def test_remote_code_names_the_family_that_transformers_has(model_type: str, twin: str, tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", model_type=model_type, auto_map={"AutoModel": "modeling.Model"})
    with pytest.raises(InputError, match=SUPPORTED_FAMILIES[twin].hub_id):
        read_config(folder)


def test_a_processor_of_another_family(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_checkpoint("llava"), tmp_path / "mixed")
    for file in tiny_checkpoint("llava_next").iterdir():
        if file.name != "config.json" and file.suffix != ".safetensors":
            shutil.copy(file, folder / file.name)
    with pytest.raises(InputError, match="but a LlavaNextProcessor, where LlavaProcessor belongs to it"):
        load(LoadOptions(str(folder)))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_config_json_without_an_image_token(
    family: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """transformers fills in its default, which the tiny tokenizer does not have."""
    folder = shutil.copytree(tiny_checkpoint(family), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    without = {key: value for key, value in config.items() if key not in ("image_token_id", "image_token_index")}
    (folder / "config.json").write_text(json.dumps(without))
    assert main(["self-check", str(folder)]) == 2
    assert "the image token (image_token_id or image_token_index" in capsys.readouterr().err


def test_the_older_name_of_a_family(tmp_path: Path) -> None:
    config = read_config(write_config(tmp_path / "model", model_type="lfm2-vl"))
    assert config["model_type"] == "lfm2_vl"


@torch.no_grad()
def test_a_text_alone_is_left_alone() -> None:
    model = TINY["idefics3"].build()
    batch = make_batch(TINY["idefics3"], [[TEXT], [TEXT, TEXT]])
    stock = model(**batch.inputs).logits
    handle = attach(model, 0.5)
    assert torch.equal(model(**batch.inputs).logits, stock)
    assert handle.injections == 0


@pytest.mark.parametrize("family", [name for name in ("hunyuan_vl", "emu3") if name in TINY])
@torch.no_grad()
def test_a_family_whose_prompts_depend_on_their_mates_warns_once(family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = TINY[family].build()
    two, one = (make_batch(TINY[family], [[TEXT, "tiled", TEXT], [TEXT, "plain", TEXT]][:n]) for n in (2, 1))
    handle = attach(model, 0.5)

    def warnings() -> list[str]:
        found = [record.getMessage() for record in caplog.records if "in its batch" in record.getMessage()]
        caplog.clear()
        return found

    model(**one.inputs)
    model.generate(**one.inputs, max_new_tokens=1, do_sample=False, num_beams=2)
    assert warnings() == []
    model(**two.inputs)
    assert warnings() == [
        f"AGCI: transformers' own output of {handle.family.name} for a prompt depends on the others in its batch, "
        "with and without AGCI: give it one prompt per call."
    ]
    model(**two.inputs)
    assert warnings() == []


@torch.no_grad()
def test_images_without_their_marks_cannot_be_told_apart() -> None:
    """Inkling: nothing but the mark before an image says where one begins."""
    family = TINY.get("inkling_mm_model") or pytest.skip("this transformers has no inkling_mm_model")
    model = family.build()
    batch = make_batch(family, [[TEXT, "plain", "plain", TEXT]])
    handle = attach(model, 0.5)
    model(**batch.inputs)
    assert handle.injections == 2
    ids = batch.inputs["input_ids"]
    batch.inputs["input_ids"] = torch.cat([ids[:, ids[0] != 3], torch.full((1, 2), 50)], dim=1)
    with pytest.raises(ValueError, match="cannot tell where these images end"):
        model(**batch.inputs)


@torch.no_grad()
def test_slices_without_their_marks_are_ambiguous() -> None:
    """MiniCPM: a prompt written by hand, two images with two tokens between them."""
    family = TINY.get("minicpmv4_6") or pytest.skip("this transformers has no minicpmv4_6")
    model = family.build()
    batch = make_batch(family, [[TEXT, "plain", "plain", TEXT]])
    handle = attach(model, 0.5)
    batch.inputs["input_ids"][0, batch.images[1][1][0] - 1] = 50  # in place of the second image's mark
    with pytest.raises(ValueError, match="are tiles of one image or images"):
        model(**batch.inputs)
    assert handle.injections == 0
