"""Every experiment on a simulated GPU: the CPU's results, no mixed devices, few waits; over two devices, too."""

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from simulated_cuda import SimulatedCuda
from tiny_checkpoints import random_image

from transformers_agci.data.probe_rows import ProbeRow
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.experiments.flow.flow import Flow, layer_count, measure_flow
from transformers_agci.experiments.occlusion.occlude import MaskOptions, OcclusionCounts, OcclusionRun
from transformers_agci.experiments.positives import Positives
from transformers_agci.experiments.similarity.run import SimilarityRun
from transformers_agci.inference.answering import AnswerCounts, AnswerOptions, answer_questions
from transformers_agci.inference.host_values import HostValues
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.questions import ImageFile, Question, QuestionSet, up_to
from transformers_agci.inference.quick import ALL, OF_THE_MODEL
from transformers_agci.inference.runner import RunOptions, output_paths
from transformers_agci.inference.upload import Upload
from transformers_agci.inference.vision_tower import as_matrix_product, use_segments

pytestmark = pytest.mark.slow

LAMBDAS = [0.0, 0.5]
IMAGES, ABOUT_EACH = 18, 4
MOVES = 0.125  # of a margin in bfloat16, where stock itself moves by that much
CLOSE = 0.1  # margins below this may change their sign
WAITS_PROBE, WAITS_FOLLOW_UP = 3, 2  # per call
WAITS_ANSWER, WAITS_OCCLUSION, WAITS_SIMILARITY = 10, 4, 1
SIDES = {"qwen2_5_vl": (252, 28), "llava": (56, 14)}  # of an image that the processor does not resize, and of a mask


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
    ways = ALL - set(OF_THE_MODEL)
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
    given = AnswerOptions(**{"batch_size": IMAGES, "workers": 0, "run": RunOptions(progress=False), **options})
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
        assert sum(gpu.syncs.values()) <= WAITS_PROBE, gpu.report()
        masked = [kernel for kernel in gpu.kernels if kernel[1] == "mask"]  # of prompts that differ in length
        assert bool(masked) == (loaded.family.model_type == "llava"), masked
    compare(ours, stock)


def test_follow_up_questions(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    asked = questions(folder, ABOUT_EACH)
    stock, _ = answers(loaded, asked, tmp_path / "cpu.jsonl", [0.5])
    with SimulatedCuda() as gpu:
        ours, counts = answers(moved(loaded, gpu), asked, tmp_path / "gpu.jsonl", [0.5])
        assert counts.forwards == 2  # the first question about each image, then all others
        assert sum(gpu.syncs.values()) <= WAITS_PROBE + WAITS_FOLLOW_UP, gpu.report()
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


def test_columns_that_will_be_cut_are_not_sent_whole(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    """Four columns: the first is cut when memory runs out, the second is on its way by then, two are cut at once."""
    asked = questions(folder, 1)
    with SimulatedCuda() as gpu:
        there = moved(loaded, gpu)

        def on_full_device(_: Any, args: Any, given: Any) -> None:
            if len(given["inputs_embeds"]) > 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")

        sent: list[int] = []
        real = Upload._sent
        with mock.patch.object(
            Upload,
            "_sent",
            lambda self, batches, event: sent.append(len(batches[0].numbers)) or real(self, batches, event),
        ):
            full = there.model.model.language_model.register_forward_pre_hook(on_full_device, with_kwargs=True)
            answers(there, asked[:16], tmp_path / "gpu.jsonl", [0.5], batch_size=4, block_rows=16)
            full.remove()
        assert sorted(sent) == [2] * 8 + [4] * 2


def test_all_runs_on_a_model_share_a_stream(loaded: LoadedModel) -> None:
    """The memory of a stream's tensors is kept for that stream: a stream for each run would take it again."""
    with SimulatedCuda() as gpu:
        there = moved(loaded, gpu)
        one, other = (Upload(there, None, grids_stay=True) for _ in range(2))
        assert one._stream is other._stream is not None


def test_memory_that_runs_out_in_follow_up_questions(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    """Their calls are halved, and no image is encoded twice; the size that fitted is kept for the next lambda."""
    asked = questions(folder, ABOUT_EACH)
    stock, _ = answers(loaded, asked, tmp_path / "cpu.jsonl", LAMBDAS)
    with SimulatedCuda() as gpu:
        there, tried = moved(loaded, gpu), []

        def on_full_device(_: Any, args: Any, given: Any) -> None:
            tried.append(len(given["inputs_embeds"]))
            if tried[-1] > 2 * IMAGES:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")

        full = there.model.model.language_model.register_forward_pre_hook(on_full_device, with_kwargs=True)
        ours, counts = answers(there, asked, tmp_path / "gpu.jsonl", LAMBDAS)
        full.remove()
    others = ABOUT_EACH - 1
    assert tried[:2] == [IMAGES, others * IMAGES]
    assert max(tried[2:]) <= 2 * IMAGES
    assert sum(tried) == 2 * ABOUT_EACH * IMAGES + others * IMAGES
    assert counts.halved_blocks == [0]
    assert counts.vision_images == IMAGES
    compare(ours, stock)


def row(folder: Path, number: int) -> ProbeRow:
    return ProbeRow.parse(
        {"id": number, "image": f"{number}.png", "caption": "sailboat", "position": "center", "answer": "Yes"},
        f"x:{number + 1}",
    )


def occlusion(loaded: LoadedModel, only: ProbeRow, folder: Path, gpu: SimulatedCuda | None = None) -> Any:
    """The map of one image; on a device the waits of each call: what copies differ in, how many tokens each image has,
    whether anything is hidden, and the logits.
    """
    _, mask = SIDES[loaded.family.model_type]
    counts = OcclusionCounts()
    if gpu is not None:
        gpu.clear()
    made = OcclusionRun(loaded, [only], folder, MaskOptions(mask, mask), 0.5, 16, 1).occlude(only, counts)
    if gpu is not None:
        limit = WAITS_ANSWER + WAITS_OCCLUSION * counts.forward_calls
        assert sum(gpu.syncs.values()) <= limit, gpu.report()
    return made, counts


@pytest.mark.parametrize("painting", [True, False], ids=["painted", "by the processor"])
def test_occlusion(loaded: LoadedModel, tmp_path: Path, painting: bool) -> None:
    side, _ = SIDES[loaded.family.model_type]
    random_image(0, side, side).save(tmp_path / "0.png")
    stock, counts = occlusion(loaded, row(tmp_path, 0), tmp_path)
    assert counts.masked_copies_painted == 0
    with SimulatedCuda() as gpu:
        there = moved(loaded, gpu)
        there = there if painting else dataclasses.replace(there, quick=there.quick - {"painting"})
        ours, counts = occlusion(there, row(tmp_path, 0), tmp_path, gpu)
        assert counts.masked_copies_run >= 15
        assert counts.masked_copies_painted == (counts.masked_copies_run if painting else 0)
        if painting:  # the image once, and where its values stand; the copies as floats take more
            assert gpu.bytes_uploaded < 12 * 3 * side * side * counts.masked_copies_run
    assert abs(torch.tensor(ours.original) - torch.tensor(stock.original)).max() <= 2 * MOVES
    assert ours.differences == pytest.approx(stock.differences, abs=4 * MOVES)


def similarity(
    loaded: LoadedModel, rows: list[ProbeRow], folder: Path, path: Path, gpu: SimulatedCuda | None = None
) -> list[float]:
    """Of two batches; each is read back once."""
    if gpu is not None:
        gpu.clear()
    run = SimilarityRun(loaded, rows, folder, lam=0.5, batch_size=IMAGES // 2, workers=0)
    run.write(path, Positives({"all": rows}, folder, [], {}, 0), {}, RunOptions(progress=False))
    if gpu is not None:
        assert sum(gpu.syncs.values()) <= 2 * WAITS_SIMILARITY, gpu.report()
        assert not [place for place in gpu.uploads if place.startswith("waits") and "upload.py" in place]
    return [json.loads(line)["similarity"] for line in path.read_text().splitlines()]


def test_similarity(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    rows = [row(folder, number) for number in range(IMAGES)]
    stock = similarity(loaded, rows, folder, tmp_path / "cpu.jsonl")
    with SimulatedCuda() as gpu:
        ours = similarity(moved(loaded, gpu), rows, folder, tmp_path / "gpu.jsonl", gpu)
    assert ours == pytest.approx(stock, abs=0.02)


def flow(loaded: LoadedModel, asked: Question, gpu: SimulatedCuda | None = None) -> list[Flow]:
    """Each new token of the answer is a wait, and each layer's attention."""
    if gpu is not None:
        gpu.clear()
    made = measure_flow(loaded, asked, LAMBDAS, max_new_tokens=4)
    if gpu is not None:
        limit = WAITS_ANSWER + 4 + layer_count(loaded.model) + WAITS_PROBE
        assert sum(gpu.syncs.values()) <= limit * len(LAMBDAS), gpu.report()
    return made


def test_flow(loaded: LoadedModel, folder: Path) -> None:
    asked = questions(folder, 1)[0]
    stock = flow(loaded, asked)
    with SimulatedCuda() as gpu:
        ours = flow(moved(loaded, gpu), asked, gpu)
    for one, other in zip(ours, stock, strict=True):
        assert torch.allclose(one.text, other.text, atol=0.02)


FIRST, SECOND = "cuda:0", "cuda:1"
# Modules beside the layers: before the tower, behind it, before the decoder, behind it.
PARTS = {
    "qwen2_5_vl": (
        ("model.visual.patch_embed", "model.visual.rotary_pos_emb"),
        "model.visual.blocks",
        ("model.visual.merger",),
    ),
    "llava": (
        ("model.vision_tower.embeddings", "model.vision_tower.pre_layrnorm"),
        "model.vision_tower.encoder.layers",
        ("model.vision_tower.post_layernorm", "model.multi_modal_projector"),
    ),
}

WHOLE = {"qwen2_5_vl": ("model.visual",), "llava": ("model.vision_tower", "model.multi_modal_projector")}


def device_map(loaded: LoadedModel, split: str) -> dict[str, str]:
    """Half of the decoder, or of the tower and all behind it as well, or the whole tower, on the second device."""
    if split == "apart":
        parts = dict.fromkeys(("model.language_model", "lm_head"), FIRST)
        return parts | dict.fromkeys(WHOLE[loaded.family.model_type], SECOND)
    before, tower, behind = PARTS[loaded.family.model_type]
    far = SECOND if split == "tower" else FIRST  # where the tower ends

    def halves(layers: str, end: str) -> dict[str, str]:
        count = len(loaded.model.get_submodule(layers))
        return {f"{layers}.{n}": FIRST if n < count // 2 else end for n in range(count)}

    decoder = "model.language_model"
    return {
        **dict.fromkeys((*before, f"{decoder}.embed_tokens"), FIRST),
        **halves(tower, far),
        **dict.fromkeys(behind, far),
        **halves(f"{decoder}.layers", SECOND),
        **dict.fromkeys((f"{decoder}.norm", f"{decoder}.rotary_emb", "lm_head"), SECOND),
    }


@pytest.mark.parametrize("split", ["decoder", "tower", "apart"])
def test_two_devices(
    loaded: LoadedModel, folder: Path, tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As accelerate spreads a model: every experiment, twice in a row."""
    hooks = pytest.importorskip("accelerate.hooks")
    asked, rows = questions(folder, 2), [row(folder, number) for number in range(IMAGES)]
    stock, _ = answers(loaded, asked, tmp_path / "cpu.jsonl", [0.5])
    places = device_map(loaded, split)

    def place(name: str) -> str:
        return places[max((key for key in places if name == key or name.startswith(f"{key}.")), key=len)]

    monkeypatch.setattr(hooks, "set_module_tensor_to_device", lambda *_, **__: None)  # they are there already
    with SimulatedCuda(devices=2) as gpu:
        gpu.move(loaded.model, place)
        loaded.model.hf_device_map = places
        hooks.attach_align_device_hook_on_blocks(
            loaded.model,
            execution_device={name: torch.device(at) for name, at in places.items()} | {"": torch.device(FIRST)},
            offload=dict.fromkeys(places, False),
            skip_keys=loaded.model._skip_keys_device_placement,
        )
        there = moved(loaded, gpu, place)
        for number in range(2):  # the second time finds every forward that the first one had to put back
            gpu.clear()
            ours, counts = answers(there, asked, tmp_path / f"gpu{number}.jsonl", [0.5])
            assert counts.forwards == 2
            assert sum(gpu.syncs.values()) <= WAITS_PROBE + WAITS_FOLLOW_UP, gpu.report()
            occlusion(there, rows[0], folder, gpu)
            similarity(there, rows, folder, tmp_path / f"similarity{number}.jsonl", gpu)
            flow(there, asked[0], gpu)
    compare(ours, stock)


def test_flash_attention_reads_the_bounds_of_segments_on_the_device(loaded: LoadedModel) -> None:
    """SDPA's loop and our kernels read them on the host, which does not wait; a kernel of flash attention cannot."""
    if loaded.family.model_type != "qwen2_5_vl":
        pytest.skip("a tower without segments")
    with SimulatedCuda() as gpu:
        there = moved(loaded, gpu)
        tower = there.model.model.visual
        for implementation, device in (("sdpa", "cpu"), ("flash_attention_2", "cuda")):
            tower.config._attn_implementation = implementation
            with HostValues(there.model) as host:
                grid = torch.tensor([[1, 8, 8]])
                _, given = host._give(tower, (torch.ones(64, 3).to("cuda"),), {"grid_thw": grid})
            assert given["cu_seqlens"].device.type == given["cu_window_seqlens"].device.type == device
            assert given["window_index"].device.type == given["position_ids"].device.type == "cuda"


@pytest.mark.gpu
def test_memory_that_runs_out_on_a_gpu(tmp_path: Path) -> None:
    """The process may take half of what a batch needed: the batch is halved, the answers stay."""
    for number in range(IMAGES):
        random_image(number, 840, 840).save(tmp_path / f"{number}.png")
    bounds = {"min_pixels": 28 * 28, "max_pixels": 840 * 840}
    there, asked = load(LoadOptions(str(embedded_model_path()), dtype="bfloat16", **bounds)), questions(tmp_path, 1)
    resting = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    whole, counts = answers(there, asked, tmp_path / "whole.jsonl", [0.5])
    assert counts.halved_blocks == []
    more = torch.cuda.max_memory_allocated() - resting
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((resting + more // 2) / torch.cuda.get_device_properties(0).total_memory)
    try:
        halved, counts = answers(there, asked, tmp_path / "halved.jsonl", [0.5])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert counts.halved_blocks == [0]
    compare(halved, whole)
