"""AGCI under the real vLLM: the same answers and log-probabilities as transformers with our hooks.

`make vllm-test` makes its environment and runs this there. Every engine that is started takes a minute.
"""

import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoConfig, LlamaForCausalLM

from transformers_agci import agci
from transformers_agci.cli import main
from transformers_agci.data.probe_rows import PROMPT
from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.embedded.probe_set import ProbeSet, build_probe_set
from transformers_agci.errors import InputError
from transformers_agci.experiments.engines import VllmOptions
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.prompt import answer_token_ids, chat_text, tokenize
from transformers_agci.inference.questions import ImageFile, Question, QuestionSet
from transformers_agci.method.lam import LAMBDA_KEY
from transformers_agci.vllm.engine import VllmEngine, open_vllm
from transformers_agci.vllm.running import sampling

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vllm is not installed here: make vllm-test"),
]

MODEL = str(embedded_model_path())
EAGER = {"max_model_len": 512, "enforce_eager": True}
MEMORY = 0.1  # share of the machine's memory that must be free; the model needs none of it
VLLM_WORDS = ["--gpu_memory_utilization", str(MEMORY), "--engine_args", json.dumps(EAGER)]
LAMBDAS = (0.0, 0.5)
ITEMS = 40  # nine Yes and nine No rows each
EXACT = 1e-4  # of log-probabilities in float32
YES_NO = ("yes_logit", "no_logit")


class Scores(NamedTuple):
    """What a run said of each row: the answer, and the log-probabilities of Yes and No."""

    words: list[str]
    log_probs: torch.Tensor  # [rows, 2]


@pytest.fixture(scope="module")
def probe_set(tmp_path_factory: pytest.TempPathFactory) -> ProbeSet:
    return build_probe_set(tmp_path_factory.mktemp("probe"), ITEMS)


@pytest.fixture(scope="module")
def rows(probe_set: ProbeSet) -> list[Question]:
    """720 rows with one image each."""
    assert probe_set.negatives is not None
    lines = [line for file in (probe_set.rows, probe_set.negatives) for line in file.read_text().splitlines()]
    return [question(json.loads(line), probe_set) for line in lines]


@pytest.fixture(scope="module")
def pairs(rows: list[Question]) -> list[Question]:
    """Rows with two images each: an image and that of the same cell of the item after it."""
    both = zip(rows[:72], rows[9:81])
    return [Question(one.row, one.where, one.text, (*one.images, *other.images)) for one, other in both]


def question(row: dict[str, Any], probe_set: ProbeSet) -> Question:
    where = f"row {row['id']}"
    return Question(
        row, where, PROMPT.format(caption=row["caption"]), (ImageFile(probe_set.images, row["image"], where),)
    )


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load(LoadOptions(MODEL, device="cpu"))


@pytest.fixture(scope="module")
def by_vllm(
    rows: list[Question], pairs: list[Question], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[float, int], Scores]:
    """By lambda and number of images; two engines, one after the other."""
    engine = open_vllm(
        LoadOptions(MODEL, dtype="float32"), VllmOptions(gpu_memory_utilization=MEMORY, engine_args=EAGER)
    )
    folder = tmp_path_factory.mktemp("vllm")
    found = {}
    for lam, asked in itertools.product(LAMBDAS, (pairs, rows)):
        images = len(asked[0].images)
        path = folder / f"{images}.lam{lam}.jsonl"
        summary = answer_questions(engine, QuestionSet(asked), [lam], [path], AnswerOptions())
        assert summary.counts.rows == len(asked)
        written = [json.loads(line) for line in path.read_text().splitlines()]
        scores = torch.tensor([[row[name] for name in YES_NO] for row in written], dtype=torch.float64)
        found[lam, images] = Scores([row["prediction"] for row in written], scores)
    engine.close()
    return found


def by_transformers(loaded: LoadedModel, asked: Sequence[Question], lam: float) -> Scores:
    """Batches of one text each, so that nothing is padded; the greedy first token is the answer."""
    words, scores = [], []
    wanted = list(answer_token_ids(loaded.processor))
    with agci(loaded.model, lam), torch.inference_mode():
        for _, batch in itertools.groupby(asked, key=lambda each: each.text):
            together = list(batch)
            prompts = [chat_text(loaded.processor, each) for each in together]
            images = [[image.open() for image in each.images] for each in together]
            logits = loaded.model(**tokenize(loaded.processor, prompts, images)).logits[:, -1]
            words += [loaded.processor.tokenizer.decode(int(token)).strip() for token in logits.argmax(-1)]
            scores.append(logits.double().log_softmax(-1)[:, wanted])
    return Scores(words, torch.cat(scores))


@pytest.mark.parametrize("lam", LAMBDAS)
@pytest.mark.parametrize("images", [1, 2])
def test_answers_are_those_of_transformers(
    by_vllm: dict[tuple[float, int], Scores],
    loaded: LoadedModel,
    rows: list[Question],
    pairs: list[Question],
    lam: float,
    images: int,
    record_property: Any,
) -> None:
    asked = rows if images == 1 else pairs
    assert len(asked) == (720 if images == 1 else 72)
    expected, found = by_transformers(loaded, asked, lam), by_vllm[lam, images]
    apart = (expected.log_probs - found.log_probs).abs().max()
    print(f"lambda {lam}, {images} images, {len(asked)} rows: log-probabilities differ by at most {apart:.2g}")
    assert found.words == expected.words
    assert apart <= EXACT


def test_lambda_is_felt(by_vllm: dict[tuple[float, int], Scores]) -> None:
    for images in (1, 2):
        assert (by_vllm[0.0, images].log_probs - by_vllm[0.5, images].log_probs).abs().mean() > 0.1


def test_smoke(tmp_path: Path) -> None:
    """One start: the probe's command on one item under both engines."""
    found = {}
    for engine in ("vllm", "transformers"):
        output = tmp_path / f"{engine}.jsonl"
        given = VLLM_WORDS if engine == "vllm" else ["--device", "cpu"]
        arguments = [
            "--items",
            "1",
            "--global_context_lambda",
            "0.5",
            "--dtype",
            "float32",
            "--answer_file",
            str(output),
        ]
        assert main(["probe", "--engine", engine, *given, *arguments]) == 0
        found[engine] = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(found["vllm"]) == 18
    for ours, theirs in zip(found["vllm"], found["transformers"]):
        assert ours["prediction"] == theirs["prediction"]
        assert ours["margin"] == pytest.approx(theirs["margin"], abs=2 * EXACT)


def test_a_killed_run_leaves_nothing_behind_and_goes_on(
    probe_set: ProbeSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "A.jsonl"
    asked = [
        "probe",
        "--engine",
        "vllm",
        "--dtype",
        "float32",
        *VLLM_WORDS,
        "--global_context_lambda",
        "0.5",
        "--quiet",
    ]
    asked += ["--eval_file", str(probe_set.rows), "--img_path", str(probe_set.images), "--answer_file", str(output)]
    killed = subprocess.Popen([sys.executable, "-m", "transformers_agci.cli", *asked], cwd=tmp_path)
    deadline = time.monotonic() + 400
    while not any(b'"prediction"' in path.read_bytes() for path in tmp_path.rglob("A*") if path.is_file()):
        assert killed.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    processes = children(killed.pid)
    assert processes
    killed.kill()
    killed.wait()
    for _ in range(600):  # the worker waits for a step to end
        if not any(Path(f"/proc/{pid}").exists() for pid in processes):
            break
        time.sleep(0.1)
    assert [pid for pid in processes if Path(f"/proc/{pid}").exists()] == []
    capsys.readouterr()
    assert main(asked) == 0
    (already,) = re.findall(r"(\d+) already done", capsys.readouterr().out)
    assert 0 < int(already) < 9 * ITEMS
    assert len(output.read_text().splitlines()) == 9 * ITEMS


def children(pid: int) -> list[int]:
    """The processes below this one, at any depth."""
    found = [
        int(word) for task in Path(f"/proc/{pid}/task").iterdir() for word in (task / "children").read_text().split()
    ]
    return found + [below for child in found for below in children(child)]


# vLLM's CPU attention has heads of 32, 64 and more.
ONE_HEAD = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
INTERLEAVED = {"rope_scaling": {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True}}
FAMILIES = {"qwen3_vl": INTERLEAVED, "internvl": {}, "llava": {}, "llava_next": {}, "vipllava": {}}


def tiny_checkpoint(family: str, folder: Path) -> Path:
    """Random weights, under the names that vLLM expects: those of the checkpoints on the hub."""
    from safetensors.torch import load_file, save_file
    from tiny_checkpoints import checkpoint

    if family == "vipllava":
        return tiny_vipllava(folder)
    checkpoint(family, folder, **ONE_HEAD, **FAMILIES[family])
    if family.startswith("llava"):  # transformers 5 leaves out a level of the CLIP tower's names
        file = folder / "model.safetensors"
        weights = load_file(file)
        named = {name.replace("vision_tower.", "vision_tower.vision_model."): weights[name] for name in weights}
        save_file(named, file, {"format": "pt"})
    return folder


def tiny_vipllava(folder: Path) -> Path:
    """vLLM runs it with transformers' modules."""
    from tiny_checkpoints import build_config, build_processor
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    llava = build_config("llava", **ONE_HEAD)
    shared = ("text_config", "vision_config", "image_seq_length", "tie_word_embeddings")
    config = VipLlavaConfig(
        **{name: getattr(llava, name) for name in shared},
        image_token_index=llava.image_token_id,
        vision_feature_layers=[-3, -2],
    )
    torch.manual_seed(0)
    VipLlavaForConditionalGeneration(config).save_pretrained(folder)
    build_processor("llava").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["the embedded model", *FAMILIES])
def test_self_check(family: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = [str(tiny_checkpoint(family, tmp_path / family))] if family in FAMILIES else []
    words = VLLM_WORDS if not model else VLLM_WORDS[:2]
    assert main(["self-check", "--engine", "vllm", "--dtype", "float32", *words, *model]) == 0
    said = capfd.readouterr().out
    for name in (
        "one image",
        "two images",
        "an image cut by chunked prefill",
        "a repeated image",
        "concurrent requests",
    ):
        assert re.search(rf"lambda 0\.5, {name} +ok", said), said
    assert re.search(r"lambda 0\.5, a repeated image .* 0 injected, 0 images new", said), said


def test_a_draft_model_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Whose config carries the key, too, and whose class nobody serves: it proposes tokens, the model has AGCI."""
    model, draft = tiny_checkpoint("llava", tmp_path / "llava"), tmp_path / "draft"
    text = AutoConfig.from_pretrained(model).text_config
    LlamaForCausalLM(text).save_pretrained(draft)
    (draft / "config.json").write_text(json.dumps(json.loads((draft / "config.json").read_text()) | {LAMBDA_KEY: 0.5}))
    speculative = {"model": str(draft), "method": "draft_model", "num_speculative_tokens": 3}
    words = [*VLLM_WORDS[:2], "--engine_args", json.dumps({**EAGER, "speculative_config": speculative})]
    assert main(["self-check", "--engine", "vllm", "--dtype", "float32", *words, str(model)]) == 0
    assert re.search(r"lambda 0\.5, concurrent requests +ok", capfd.readouterr().out)


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[VllmEngine]:
    """An engine with the options of the test's parameter."""
    opened = open_vllm(LoadOptions(MODEL, dtype="float32"), request.param)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "engine",
    [VllmOptions(gpu_memory_utilization=MEMORY, engine_args={**EAGER, "enable_mm_embeds": True})],
    indirect=True,
)
def test_image_embeds_are_images(engine: VllmEngine, loaded: LoadedModel, rows: list[Question]) -> None:
    """What the tower gives, without AGCI, put in place of the pixels."""
    (expected,) = by_transformers(loaded, rows[:1], 0.5).log_probs
    prompt = chat_text(loaded.processor, rows[0])
    inputs = tokenize(loaded.processor, [prompt], [[rows[0].images[0].open()]])
    grid = inputs["image_grid_thw"]
    with torch.inference_mode():
        embeds = loaded.model.model.visual(inputs["pixel_values"], grid_thw=grid)
    embeds = getattr(embeds, "pooler_output", embeds)
    words = answer_token_ids(loaded.processor)
    running = engine.at(0.5)
    request = {"prompt": prompt, "multi_modal_data": {"image": {"image_embeds": embeds, "image_grid_thw": grid}}}
    (first,) = running.wait(running.generate(request, sampling(1, words))).outputs
    found = torch.tensor([first.logprobs[0][word].logprob for word in words], dtype=torch.float64)
    assert (found - expected).abs().max() <= EXACT


@pytest.mark.parametrize(
    "engine", [VllmOptions(tensor_parallel_size=2, gpu_memory_utilization=MEMORY, engine_args=EAGER)], indirect=True
)
def test_two_processes_share_the_model(
    engine: VllmEngine, loaded: LoadedModel, rows: list[Question], tmp_path: Path
) -> None:
    asked = rows[:18]
    answer_questions(engine, QuestionSet(asked), [0.5], [tmp_path / "A.jsonl"], AnswerOptions())
    assert engine.running is not None
    assert [report["lambda"] for report in engine.running.reports()] == [0.5, 0.5]
    written = [json.loads(line) for line in (tmp_path / "A.jsonl").read_text().splitlines()]
    found = torch.tensor([[row[name] for name in YES_NO] for row in written], dtype=torch.float64)
    assert (found - by_transformers(loaded, asked, 0.5).log_probs).abs().max() <= EXACT


@pytest.mark.parametrize("engine", [VllmOptions(gpu_memory_utilization=MEMORY, engine_args=EAGER)], indirect=True)
def test_the_switch_turns_it_off(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_AGCI", "0")
    with pytest.raises(InputError, match="AGCI is not on in vLLM's worker"):
        engine.at(0.5)


def test_pixel_limits(rows: list[Question], tmp_path: Path) -> None:
    """vLLM calls the image processor itself, with the same limits: a smaller image, the same answers."""
    limits: dict[str, Any] = {"min_pixels": 56 * 56, "max_pixels": 126 * 126}
    reduced = load(LoadOptions(MODEL, device="cpu", **limits))
    options = VllmOptions(gpu_memory_utilization=MEMORY, engine_args=EAGER)
    engine = open_vllm(LoadOptions(MODEL, dtype="float32", **limits), options)
    answer_questions(engine, QuestionSet(rows[:9]), [0.5], [tmp_path / "A.jsonl"], AnswerOptions())
    engine.close()
    written = [json.loads(line) for line in (tmp_path / "A.jsonl").read_text().splitlines()]
    found = torch.tensor([[row[name] for name in YES_NO] for row in written], dtype=torch.float64)
    assert (found - by_transformers(reduced, rows[:9], 0.5).log_probs).abs().max() <= EXACT


def test_prompts_that_are_too_long_are_skipped(rows: list[Question], tmp_path: Path) -> None:
    """A prompt beyond the model's length is a bad row; the others are answered."""
    long = Question({"id": -1}, "rows.json:2", "scarf " * 600, rows[0].images)
    options = VllmOptions(gpu_memory_utilization=MEMORY, engine_args=EAGER)
    engine = open_vllm(LoadOptions(MODEL, dtype="float32"), options)
    summary = answer_questions(engine, QuestionSet([rows[0], long]), [0.5], [tmp_path / "A.jsonl"], AnswerOptions())
    engine.close()
    assert summary.counts.rows == 1
    assert "rows.json:2: vLLM refuses this row" in summary.counts.failed[0].error
