"""Every experiment on a simulated GPU: the CPU's results, no mixed devices, few waits; over two devices, too."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_cuda import SimulatedCuda
from tiny_checkpoints import random_image

from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.experiments.flow.flow import measure_flow
from transformers_agci.experiments.occlusion.occlude import MaskOptions, OcclusionRun
from transformers_agci.experiments.similarity.run import SimilarityRun
from transformers_agci.inference.answering import AnswerCounts, AnswerOptions, answer_questions
from transformers_agci.inference.batches import Column
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.prepare import prepare
from transformers_agci.inference.questions import ImageFile, Question, QuestionSet, up_to
from transformers_agci.inference.runner import RunOptions, output_paths
from transformers_agci.inference.vision_tower import as_matrix_product, use_segments

pytestmark = pytest.mark.slow

LAMBDAS = [0.0, 0.5]
IMAGES, ABOUT_EACH = 18, 4
MOVES = 0.125  # of a margin in bfloat16, where stock itself moves by that much
CLOSE = 0.1  # margins below this may change their sign
WAITS_PROBE, WAITS_FOLLOW_UP = 3, 2  # per call


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images")
    for number in range(IMAGES):
        random_image(number, 112, 112).save(path / f"{number}.png")
    return path


@pytest.fixture(params=["embedded", "llava"])
def loaded(request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path]) -> Iterator[LoadedModel]:
    """The embedded model (Qwen2.5-VL) and a tiny LLaVA, bfloat16, on the CPU as transformers makes them."""
    path = embedded_model_path() if request.param == "embedded" else tiny_checkpoint("llava")
    yield load(LoadOptions(str(path), dtype="bfloat16", vision="stock", kernels="stock"))


def moved(loaded: LoadedModel, gpu: SimulatedCuda, place: Callable[[str], str] = lambda name: "cuda:0") -> LoadedModel:
    """The model on the device, as `load` would leave it there."""
    gpu.move(loaded.model, place)
    use_segments(loaded.model)
    as_matrix_product(loaded.model)
    gpu.clear()
    ways = frozenset({"host_values", "pinned", "first_token", "tails", "painting"})
    return dataclasses.replace(loaded, device=torch.device("cuda:0"), quick=ways)


def questions(folder: Path, about_each: int) -> list[Question]:
    """Captions of different lengths, so that prompts are padded."""
    captions = ["a sailboat", "a rather long description of a red square", "a cat", "an image"][:about_each]
    asked = []
    for number in range(IMAGES):
        for at in range(about_each):
            caption = (
                captions[(at + number % 2) % len(captions)] if about_each > 1 else captions[0] + " red" * (number % 3)
            )
            where = f"x:{len(asked) + 1}"
            image = ImageFile(folder, f"{number}.png", where)
            asked.append(Question({"n": len(asked)}, where, f"Is there {caption}?", (image,)))
    return asked


def answers(
    loaded: LoadedModel, asked: list[Question], path: Path, lambdas: list[float], **options: Any
) -> tuple[list[dict[str, Any]], AnswerCounts]:
    paths = output_paths(path, lambdas)
    given = AnswerOptions(batch_size=IMAGES, workers=0, run=RunOptions(progress=False), **options)
    counts = answer_questions(loaded, QuestionSet(asked), lambdas, paths, given).counts
    assert isinstance(counts, AnswerCounts)
    return [json.loads(line) for each in paths for line in each.read_text().splitlines()], counts


def compare(ours: list[dict[str, Any]], stock: list[dict[str, Any]]) -> None:
    for one, other in zip(ours, stock, strict=True):
        assert one["margin"] == pytest.approx(other["margin"], abs=2 * MOVES)
        assert one["prediction"] == other["prediction"] or abs(other["margin"]) < CLOSE


def test_the_probe(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    asked = questions(folder, 1)
    stock, _ = answers(loaded, asked, tmp_path / "cpu.jsonl", [0.5])
    with SimulatedCuda() as gpu:
        ours, counts = answers(moved(loaded, gpu), asked, tmp_path / "gpu.jsonl", [0.5])
        assert counts.forwards == 1
        limit = WAITS_PROBE if loaded.family.model_type == "qwen2_5_vl" else WAITS_PROBE + 3
        assert sum(gpu.syncs.values()) <= limit, gpu.report()
    compare(ours, stock)


def test_follow_up_questions(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    asked = questions(folder, ABOUT_EACH)
    stock, _ = answers(loaded, asked, tmp_path / "cpu.jsonl", [0.5])
    with SimulatedCuda() as gpu:
        ours, counts = answers(moved(loaded, gpu), asked, tmp_path / "gpu.jsonl", [0.5])
        assert counts.forwards == 2  # the first question about each image, then all others
        limit = WAITS_PROBE if loaded.family.model_type == "qwen2_5_vl" else WAITS_PROBE + 3
        assert sum(gpu.syncs.values()) <= limit + WAITS_FOLLOW_UP, gpu.report()
    compare(ours, stock)


def test_free_text_and_two_lambdas(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    asked = [dataclasses.replace(question, stop=up_to(3)) for question in questions(folder, 2)]
    with SimulatedCuda() as gpu:
        ours, counts = answers(moved(loaded, gpu), asked, tmp_path / "gpu.jsonl", LAMBDAS)
        assert counts.vision_images == IMAGES
    assert len(ours) == len(asked) * len(LAMBDAS)


def test_memory_that_runs_out(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    """A device on which the pixels of 18 images have room, and what the model makes of them has not."""
    asked = questions(folder, 1)
    stock, _ = answers(loaded, asked, tmp_path / "cpu.jsonl", LAMBDAS)
    with SimulatedCuda() as gpu:
        there, tried = moved(loaded, gpu), []
        hook = there.model.register_forward_pre_hook(
            lambda _, args, given: tried.append(len(given["input_ids"])), with_kwargs=True
        )

        def on_full_device(_: Any, args: Any, given: Any) -> None:
            if len(given["inputs_embeds"]) > 10:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")

        full = there.model.model.language_model.register_forward_pre_hook(on_full_device, with_kwargs=True)
        ours, counts = answers(there, asked, tmp_path / "gpu.jsonl", LAMBDAS)
        hook.remove()
        full.remove()
    assert tried == [IMAGES, *[IMAGES // 2] * 4]  # two halves at two lambdas
    assert counts.halved_blocks == [0]
    compare(ours, stock)


def row(folder: Path, number: int) -> ProbeRow:
    return ProbeRow.parse(
        {"id": number, "image": f"{number}.png", "caption": "sailboat", "position": "center", "answer": "Yes"},
        f"x:{number + 1}",
    )


def test_occlusion(loaded: LoadedModel, folder: Path) -> None:
    only = row(folder, 0)

    def masked(model: LoadedModel) -> Any:
        return OcclusionRun(model, [only], folder, MaskOptions(28, 28), 0.5, 16, 1).occlude(only)

    stock = masked(loaded)
    with SimulatedCuda() as gpu:
        there = moved(loaded, gpu)
        ours = masked(there)
    assert abs(torch.tensor(ours.original) - torch.tensor(stock.original)).max() <= 2 * MOVES
    assert ours.differences == pytest.approx(stock.differences, abs=4 * MOVES)


def test_similarity(loaded: LoadedModel, folder: Path) -> None:
    rows = [row(folder, number) for number in range(9)]

    def measured(model: LoadedModel) -> list[float]:
        asked = [Question(r.fields, r.where, "Picture.", (ImageFile(folder, r.image, r.where),)) for r in rows]
        (batch,) = prepare(Column((tuple(range(9)),)), asked, model.processor).batches
        made = SimilarityRun(model, rows, folder, lam=0.5)._measure(range(9), batch.inputs)
        return [found["similarity"] for found in made]

    stock = measured(loaded)
    with SimulatedCuda() as gpu:
        assert measured(moved(loaded, gpu)) == pytest.approx(stock, abs=0.02)


def test_flow(loaded: LoadedModel, folder: Path) -> None:
    asked = questions(folder, 1)[0]
    stock = measure_flow(loaded, asked, LAMBDAS)
    with SimulatedCuda() as gpu:
        ours = measure_flow(moved(loaded, gpu), asked, LAMBDAS)
    for one, other in zip(ours, stock, strict=True):
        assert torch.allclose(one.text, other.text, atol=0.02)


@pytest.mark.parametrize("split", ["decoder", "tower"])
def test_two_devices(folder: Path, tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate spreads a model: half of the decoder, or of the tower and all behind it, on the second device."""
    hooks = pytest.importorskip("accelerate.hooks")
    loaded = load(LoadOptions(str(embedded_model_path()), dtype="bfloat16", vision="stock", kernels="stock"))
    asked, only = questions(folder, 2), row(folder, 0)
    stock, _ = answers(loaded, asked, tmp_path / "cpu.jsonl", [0.5])
    vision, layers = loaded.model.model.visual.blocks, loaded.model.model.language_model.layers
    first, second = "cuda:0", "cuda:1"
    far = second if split == "tower" else first  # where the tower ends
    half_tower, half_text = len(vision) // 2, len(layers) // 2
    places = {
        "model.visual.patch_embed": first,
        "model.visual.rotary_pos_emb": first,
        **{
            f"model.visual.blocks.{n}": second if split == "tower" and n >= half_tower else first
            for n in range(len(vision))
        },
        "model.visual.merger": far,
        "model.language_model.embed_tokens": first,
        **{f"model.language_model.layers.{n}": first if n < half_text else second for n in range(len(layers))},
        "model.language_model.norm": second,
        "model.language_model.rotary_emb": second,
        "lm_head": second,
    }

    def place(name: str) -> str:
        return places[max((key for key in places if name == key or name.startswith(f"{key}.")), key=len)]

    monkeypatch.setattr(hooks, "set_module_tensor_to_device", lambda *_, **__: None)  # they are there already
    with SimulatedCuda(devices=2) as gpu:
        gpu.move(loaded.model, place)
        loaded.model.hf_device_map = places
        hooks.attach_align_device_hook_on_blocks(
            loaded.model,
            execution_device={name: torch.device(at) for name, at in places.items()} | {"": torch.device(first)},
            offload=dict.fromkeys(places, False),
            skip_keys=loaded.model._skip_keys_device_placement,
        )
        there = moved(loaded, gpu, place)
        for number in range(2):  # the second time finds every forward that the first one had to put back
            ours, _ = answers(there, asked, tmp_path / f"gpu{number}.jsonl", [0.5])
            OcclusionRun(there, [only], folder, MaskOptions(56, 56), 0.5, 16, 1).occlude(only)
    compare(ours, stock)
