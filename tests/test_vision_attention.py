"""One attention call per layer of the vision tower: equal to stock, counted, named, left off where it does not fit."""

import copy
import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_checkpoints import build_model, make_inputs, random_image
from tiny_families import TEXT, TINY, make_batch
from torch.nn import functional

from transformers_agci import agci
from transformers_agci.inference import vision_tower
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.questions import ImageFile, Question, QuestionSet
from transformers_agci.inference.runner import RunOptions
from transformers_agci.inference.vision_tower import KERNELS, PRODUCT, STOCK, Segments, as_matrix_product, use_segments
from transformers_agci.storage import manifest

QWENS = ("qwen2_5_vl", "qwen3_vl")
BY_LENGTH = "sdpa by segment length"
GRIDS = {
    "one": [[1, 10, 14]],
    "one small": [[1, 2, 2]],
    "several sizes": [[1, 10, 14], [1, 4, 6], [1, 2, 2]],
    "equal sizes": [[1, 4, 8], [1, 4, 8]],
    "video": [[2, 6, 6]],
}


@pytest.fixture(scope="module", params=QWENS)
def model(request: pytest.FixtureRequest) -> Any:
    return build_model(request.param)


def see(model: Any, grids: list[list[int]]) -> torch.Tensor:
    """The vision tower's output for random pixels of these grids."""
    tower = model.model.visual
    grid = torch.tensor(grids)
    width = 3 * 2 * tower.config.patch_size**2
    pixels = torch.randn(int(grid.prod(1).sum()), width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = tower(pixels, grid_thw=grid)
    if isinstance(made, torch.Tensor):  # transformers 4.57
        return made
    return made[0] if isinstance(made, tuple) else made.pooler_output


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the sequences of every SDPA call from now on."""
    calls: list[int] = []
    real = functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(query.shape[-2])
        return real(query, *args, **kwargs)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    return calls


@pytest.mark.parametrize("grids", GRIDS.values(), ids=GRIDS.keys())
def test_equal_to_stock_in_fewer_calls(model: Any, grids: list[list[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = count_calls(monkeypatch)
    stock, stock_calls = see(model, grids), list(calls)
    chosen = use_segments(model)
    try:
        assert chosen.backend == BY_LENGTH
        calls.clear()
        assert torch.allclose(see(model, grids), stock, atol=1e-6)
        layers = len(model.model.visual.blocks)
        assert len(calls) <= layers * len(set(stock_calls))  # at most one per layer and distinct length
        assert sorted(set(calls)) == sorted(set(stock_calls))
    finally:
        chosen.remove()
    calls.clear()
    assert torch.equal(see(model, grids), stock)
    assert calls == stock_calls


def test_windows_of_an_image_take_a_call_per_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """20x20 patches, windows of 4x4: 25 of 16 patches; the second layer sees the whole image."""
    model = build_model("qwen2_5_vl")
    calls = count_calls(monkeypatch)
    see(model, [[1, 20, 20]])
    assert calls == [16] * 25 + [400]
    use_segments(model)
    calls.clear()
    see(model, [[1, 20, 20]])
    assert calls == [16, 400]


def test_a_wrong_segment_would_be_seen(model: Any) -> None:
    """The comparison can fail: attention over the whole sequence is not equal to stock."""
    stock = see(model, GRIDS["several sizes"])

    def over_all(query: Any, key: Any, value: Any, segments: Segments, scaling: float) -> torch.Tensor:
        whole = Segments(torch.tensor([0, len(query)]))
        return vision_tower.by_length(query, key, value, whole, scaling)

    layers = vision_tower.packed_layers(model)
    remove = vision_tower._put_on(layers, over_all)
    assert not torch.allclose(see(model, GRIDS["several sizes"]), stock, atol=1e-5)
    remove()
    assert "differs from SDPA" in str(vision_tower._disagreement(layers[0], over_all))


def test_agci_works_behind_it(model: Any) -> None:
    inputs = make_inputs(model.config.model_type, model, batch=2)

    def logits() -> torch.Tensor:
        with torch.no_grad(), agci(model, 0.5) as handle:
            made = model(**inputs).logits
        assert handle.injections == 2
        return made

    stock = logits()
    chosen = use_segments(model)
    try:
        assert torch.allclose(logits(), stock, atol=1e-6)
        assert model.model.language_model.config._attn_implementation == "sdpa"
    finally:
        chosen.remove()


def test_the_kernel_of_torch_gets_the_segments(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """No GPU is needed to see what reaches it: a stand-in with its meaning answers on the CPU."""
    given = []

    def stand_in(query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int) -> torch.Tensor:
        assert cu_q.dtype == cu_k.dtype == torch.int32
        assert isinstance(max_q, int)
        assert max_q == max_k == int(cu_q.diff().max())
        given.append(len(cu_q) - 1)
        return vision_tower.by_length(query, key, value, Segments(cu_q), query.shape[-1] ** -0.5)

    stock = see(model, GRIDS["several sizes"])
    monkeypatch.setitem(__import__("sys").modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=stand_in))
    monkeypatch.setattr(vision_tower, "_unfit", lambda backend, layer: None)
    chosen = use_segments(model)
    assert (chosen.backend, chosen.reason) == ("torch varlen", None)
    assert given == [len(vision_tower.PROBED_LENGTHS[0])]  # a GPU is asked for the long ones, too
    given.clear()
    assert torch.allclose(see(model, GRIDS["several sizes"]), stock, atol=1e-6)
    assert len(given) == len(model.model.visual.blocks)  # one call per layer
    chosen.remove()


@pytest.mark.parametrize("scaling", [8**-0.5, 0.7])
def test_varlen_takes_the_scale_of_the_layer(scaling: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def stand_in(query: Any, key: Any, value: Any, cu_q: Any, *_: Any) -> torch.Tensor:
        return vision_tower.by_length(query, key, value, Segments(cu_q), query.shape[-1] ** -0.5)

    monkeypatch.setitem(__import__("sys").modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=stand_in))
    query, key, value = torch.randn(3, 6, 2, 8)
    segments = Segments(torch.tensor([0, 2, 6]))
    ours = vision_tower.varlen(query, key, value, segments, scaling)
    assert torch.allclose(ours, slow_attention(query, key, value, [2, 4], scaling), atol=1e-6)


@pytest.mark.parametrize("lengths", [[4], [3, 3], [1, 5, 1], [2, 3, 3, 2, 7], [0, 4, 0, 2]])
def test_by_length_against_the_definition(lengths: list[int]) -> None:
    total = sum(lengths)
    query, key, value = torch.randn(3, total, 2, 8, generator=torch.Generator().manual_seed(0))
    segments = Segments(torch.tensor(list(accumulate(lengths, initial=0))))
    ours = KERNELS[BY_LENGTH](query, key, value, segments, 0.5)
    assert torch.allclose(ours, slow_attention(query, key, value, lengths, 0.5), atol=1e-6)


def slow_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, lengths: list[int], scaling: float
) -> torch.Tensor:
    """Token by token in float64."""
    made = torch.zeros_like(query, dtype=torch.float64)
    start = 0
    for length in lengths:
        segment = range(start, start + length)
        for token in segment:
            for head in range(query.shape[1]):
                scores = torch.stack([query[token, head].double() @ key[other, head].double() for other in segment])
                weights = (scores * scaling).softmax(dim=0)
                made[token, head] = sum(w * value[other, head] for w, other in zip(weights, segment, strict=True))
        start += length
    return made.float()


@pytest.mark.parametrize(
    "family", [name if name == "glm4v" else pytest.param(name, marks=pytest.mark.slow) for name in sorted(TINY)]
)
@torch.no_grad()
def test_every_family_as_it_is_loaded(family: str) -> None:
    """With the attention that transformers takes by itself; GLM-4V's layers have no bias."""
    model = TINY[family].build()
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:
        pytest.skip("it has no sdpa")
    batch = make_batch(TINY[family], [[TEXT, "plain", "tiled", TEXT]])
    stock = model(**batch.inputs).logits
    chosen = use_segments(model)
    as_matrix_product(model)
    assert chosen.backend == (BY_LENGTH if vision_tower.packed_layers(model) else STOCK), chosen.reason
    assert family != "glm4v" or chosen.backend == BY_LENGTH
    torch.testing.assert_close(model(**batch.inputs).logits, stock, atol=1e-5, rtol=1e-5)


def test_left_off_with_a_reason() -> None:
    others = {family: use_segments(build_model(family)) for family in ("llava", "internvl")}
    assert {chosen.backend for chosen in others.values()} == {STOCK}
    assert all("no packed segments" in str(chosen.reason) for chosen in others.values())
    eager = use_segments(build_model("qwen2_5_vl", attn_implementation="eager"))
    assert eager.backend == STOCK
    assert "eager, not sdpa" in str(eager.reason)


def test_a_kernel_that_fails_or_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> torch.Tensor:
        raise RuntimeError("no such\nkernel here")

    def wrong(query: torch.Tensor, *_: Any) -> torch.Tensor:
        return torch.zeros_like(query)

    model = build_model("qwen3_vl")
    stock = see(model, GRIDS["one"])
    monkeypatch.setattr(vision_tower, "KERNELS", {"a": failing, "b": wrong})
    chosen = use_segments(model)
    assert chosen.backend == STOCK
    assert "a: it raises RuntimeError (no such kernel here)" in str(chosen.reason)
    assert "b: it differs from SDPA by" in str(chosen.reason)
    assert torch.equal(see(model, GRIDS["one"]), stock)
    assert model.model.visual.config._attn_implementation == "sdpa"


def test_a_gpu_is_asked_for_long_segments_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel for segments above 128 tokens is another one; where it fails, the run must not find out in the middle.

    On a simulated GPU, which holds the kernel of torch to its rules.
    """
    from simulated_cuda import SimulatedCuda

    model = build_model("qwen2_5_vl").to(torch.bfloat16)
    with SimulatedCuda() as gpu:
        gpu.move(model)
        chosen = use_segments(model)
        assert (chosen.backend, chosen.reason) == ("torch varlen", None)
        assert [kernel[2:] for kernel in gpu.kernels if kernel[0] == "varlen"] == [(4, 16), (2, 3600)]
        chosen.remove()

        def short_only(query: Any, key: Any, value: Any, segments: Segments, scaling: float) -> torch.Tensor:
            if segments.longest > 128:
                raise RuntimeError("cuDNN: no plan")
            return vision_tower.by_length(query, key, value, segments, scaling)

        monkeypatch.setitem(KERNELS, "torch varlen", short_only)
        chosen = use_segments(model)
        assert chosen.backend == BY_LENGTH
        assert "torch varlen: it raises RuntimeError (cuDNN: no plan)" in str(chosen.reason)
        chosen.remove()


def test_what_the_kernel_of_torch_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def layer(device: str, dtype: torch.dtype) -> Any:
        weight = SimpleNamespace(device=SimpleNamespace(type=device), dtype=dtype)
        return SimpleNamespace(proj=SimpleNamespace(weight=weight, bias=weight))

    def unfit(*about: Any) -> str:
        return str(vision_tower._unfit("torch varlen", layer(*about)))

    monkeypatch.setattr(vision_tower, "find_spec", lambda name: object())
    assert unfit("cuda", torch.bfloat16) == "None"
    assert "needs bfloat16 or float16, not float32" in unfit("cuda", torch.float32)
    assert "needs a GPU, and the vision tower is on cpu" in unfit("cpu", torch.bfloat16)
    monkeypatch.setattr(vision_tower, "find_spec", lambda name: None)
    assert "needs torch 2.10 or newer" in unfit("cuda", torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    assert use_segments(build_model("qwen2_5_vl").to(dtype)).backend == BY_LENGTH


def test_the_manifest_names_it(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    random_image().save(tmp_path / "a.jpg")
    asked = [Question({"id": 1}, "rows.json:1", "Is there a dog?", (ImageFile(tmp_path, "a.jpg", "rows.json:1"),))]
    answers = {}
    for choice, backend in (("auto", BY_LENGTH), (STOCK, STOCK)):
        loaded = load(LoadOptions(str(tiny_checkpoint("qwen2_5_vl")), vision=choice))
        output = tmp_path / f"{choice}.jsonl"
        answer_questions(loaded, QuestionSet(asked), [0.0], [output], AnswerOptions(run=RunOptions(progress=False)))
        found = manifest.read(output)
        assert found is not None
        assert found["settings"]["model"]["vision_attention"] == backend
        assert found["settings"]["model"]["attention"] == "sdpa"
        assert found["notes"]["vision_attention_because"]
        assert found["settings"]["model"]["patch_embedding"] == {"auto": PRODUCT, STOCK: STOCK}[choice]
        answers[choice] = json.loads(output.read_text())
    assert answers["auto"]["prediction"] == answers[STOCK]["prediction"]
    assert answers["auto"]["margin"] == pytest.approx(answers[STOCK]["margin"], abs=1e-5)


def test_the_patch_embedding_as_a_product(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    convolution = model.model.visual.patch_embed.proj
    called = []
    convolution.register_forward_hook(lambda *_: called.append(1))
    real = torch.nn.functional.conv3d
    monkeypatch.setattr(torch.nn.functional, "conv3d", lambda *args: called.append(3) or real(*args))
    stock = see(model, GRIDS["several sizes"])
    assert called == [3, 1]
    chosen = as_matrix_product(model)
    assert (chosen.backend, chosen.reason) == (PRODUCT, None)
    called.clear()
    assert torch.allclose(see(model, GRIDS["several sizes"]), stock, atol=1e-5)
    assert called == [1]
    chosen.remove()
    assert torch.equal(see(model, GRIDS["several sizes"]), stock)


def test_a_copy_of_the_model_has_weights_of_its_own(model: Any) -> None:
    attention, embedding = use_segments(model), as_matrix_product(model)
    copied = copy.deepcopy(model)
    stock = see(model, GRIDS["several sizes"])
    assert torch.equal(see(copied, GRIDS["several sizes"]), stock)
    with torch.no_grad():
        for weight in copied.model.visual.patch_embed.parameters():
            weight.zero_()
    assert not torch.allclose(see(copied, GRIDS["several sizes"]), stock)
    assert torch.equal(see(model, GRIDS["several sizes"]), stock)
    attention.remove()
    embedding.remove()


def test_another_convolution_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "no patch convolution" in str(as_matrix_product(build_model("llava")).reason)
    model = build_model("qwen2_5_vl")
    model.model.visual.patch_embed.proj.padding = (0, 1, 1)
    assert "overlap, are padded" in str(as_matrix_product(model).reason)
    model = build_model("qwen2_5_vl")
    convolution = model.model.visual.patch_embed.proj
    convolution.forward = convolution.forward
    assert "something else runs it" in str(as_matrix_product(model).reason)
    model = build_model("qwen2_5_vl")
    monkeypatch.setattr(torch.nn.functional, "conv3d", lambda inputs, *_: torch.ones(len(inputs), 32, 1, 1, 1))
    refused = as_matrix_product(model)
    assert refused.backend == STOCK
    assert "differs from the convolution" in str(refused.reason)


@pytest.mark.gpu
@pytest.mark.parametrize("family", QWENS)
def test_the_kernel_of_torch_on_a_gpu(family: str) -> None:
    model = build_model(family).to("cuda", torch.bfloat16)
    chosen = use_segments(model)
    assert (chosen.backend, chosen.reason) == ("torch varlen", None)
