"""The self-check under vLLM: what it answers, held against transformers with our hooks, token by token.

The prompts ask about one, two and three images. vLLM runs with so small a budget of tokens per step that the third
image of three is cut by chunked prefill; one and two images fit. Each figure is the largest difference between the
log-probabilities of the five first tokens that transformers finds most likely. At lambda a row passes only where AGCI
moves these by at least twice what is allowed, so that a model without it would fail, and vLLM injected the images.
"""

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from transformers_agci.data.images import open_image
from transformers_agci.data.probe_rows import PROMPT
from transformers_agci.errors import counted
from transformers_agci.experiments.checkpoint_check import CAPTION, atlas_image
from transformers_agci.families import Family
from transformers_agci.inference.load import LoadedModel, LoadOptions, load
from transformers_agci.inference.prepare import to_device
from transformers_agci.inference.prompt import tokenize
from transformers_agci.method.attach import agci
from transformers_agci.method.lam import lambda_text
from transformers_agci.method.self_check import DEFAULT_LAMBDA, Check, SelfCheck
from transformers_agci.vllm.engine import VllmEngine, mm_data, open_vllm
from transformers_agci.vllm.running import RunningVllm, sampling

if TYPE_CHECKING:
    from transformers_agci.vllm.options import VllmOptions

MOST_LIKELY = 5  # tokens whose log-probabilities are compared
RETURNED = 20  # tokens whose log-probabilities vLLM is asked for: as many as it gives by default
EXACT = 1e-4  # float32
ROUNDED = 0.15  # the other dtypes: two engines round every layer in their own way
SEEN = 2  # times what is allowed: an effect of lambda that cannot be missing unnoticed
SEQUENCES = 8  # at once; vLLM wants no fewer tokens per step

LogProbs = Mapping[int, float]  # by token id


@dataclass(frozen=True)
class _Prompt:
    name: str
    text: str
    images: tuple[Image.Image, ...]
    tokens: int
    family: Family

    @property
    def request(self) -> dict[str, Any]:
        return {"prompt": self.text, "multi_modal_data": mm_data(self.family, self.images)}

    @property
    def pixels(self) -> set[tuple[tuple[int, int], bytes]]:
        """What tells its images apart, for vLLM's encoder cache as well."""
        return {(image.size, image.tobytes()) for image in self.images}


@dataclass(frozen=True)
class _Expected:
    """What transformers says, by lambda and prompt."""

    prompts: Mapping[str, _Prompt]
    values: Mapping[tuple[float, str], torch.Tensor]  # log-probabilities [V]
    exact: bool

    def figure(self, lam: float, name: str, found: LogProbs) -> float:
        """The largest difference; infinite where vLLM does not return a token."""
        expected = self.values[lam, name]
        most = expected.topk(MOST_LIKELY).indices.tolist()
        return max(abs(found.get(token, -math.inf) - float(expected[token])) for token in most)

    def effect(self, lam: float, name: str) -> float:
        """How far lambda moves these log-probabilities in transformers."""
        most = self.values[lam, name].topk(MOST_LIKELY).indices
        return float((self.values[lam, name] - self.values[0.0, name])[most].abs().max())


def check_under_vllm(options: LoadOptions, vllm: "VllmOptions", image: Path | None = None) -> SelfCheck:
    """Check the checkpoint under vLLM at lambda 0, and at its own lambda or 0.5: two engines, one after the other.

    Raises InputError where vLLM is not installed, does not start, or does not serve the model.
    """
    engine = open_vllm(options, vllm)
    lam = engine.lam or DEFAULT_LAMBDA
    expected = _by_transformers(options, lam, image)
    small = replace(engine, arguments={**engine.arguments, **_budget(expected.prompts), **vllm.engine_args})
    with contextlib.closing(small):
        rows = [*_at_zero(small, expected), *_at_lambda(small, expected, lam)]
    return SelfCheck(f"{engine.family.name} under vLLM {engine.identity['vllm']}", lam, tuple(rows))


# --- transformers --------------------------------------------------------------------------------------------------


def _by_transformers(options: LoadOptions, lam: float, image: Path | None) -> _Expected:
    """Ask transformers with hooks, and give its memory back."""
    loaded = load(options)
    prompts = {prompt.name: prompt for prompt in _prompts(loaded, image)}
    values = {}
    for strength in (0.0, lam):
        with agci(loaded.model, strength), torch.inference_mode():
            for name, prompt in prompts.items():
                logits = loaded.model(**_inputs(loaded, prompt.text, prompt.images)).logits[0, -1]
                values[strength, name] = logits.float().log_softmax(-1).cpu()
    expected = _Expected(prompts, values, loaded.model.dtype == torch.float32)
    del loaded
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return expected


def _prompts(loaded: LoadedModel, image: Path | None) -> Iterator[_Prompt]:
    composites = [Image.open(BytesIO(atlas_image(cell)[0])).convert("RGB") for cell in (4, 0, 8)]
    caption = atlas_image()[1]
    if image is not None:
        given = open_image(image, "`image`")
        composites, caption = [given, given.rotate(90, expand=True), given.rotate(180)], CAPTION
    for name, caption_, count in (
        ("one image", caption, 1),
        ("two images", caption, 2),
        ("an image cut by chunked prefill", caption, 3),
        ("a repeated image", f"{caption} on a table", 1),
    ):
        content = [
            *({"type": "image"} for _ in range(count)),
            {"type": "text", "text": PROMPT.format(caption=caption_)},
        ]
        text = loaded.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        images = tuple(composites[:count])
        yield _Prompt(name, text, images, _inputs(loaded, text, images)["input_ids"].shape[1], loaded.family)


def _inputs(loaded: LoadedModel, text: str, images: Sequence[Image.Image]) -> dict[str, Any]:
    return to_device(loaded, tokenize(loaded.processor, [text], [list(images)]))


# --- vLLM ----------------------------------------------------------------------------------------------------------


def _budget(prompts: Mapping[str, _Prompt]) -> dict[str, Any]:
    """Tokens per step: two images fit, and the third one of three is cut about its middle."""
    two, three = prompts["two images"].tokens, prompts["an image cut by chunked prefill"].tokens
    return {"max_num_batched_tokens": two + (three - two) // 2, "max_num_seqs": SEQUENCES}


def _at_zero(engine: VllmEngine, expected: _Expected) -> Iterator[Check]:
    running = engine.at(0.0, images=3)
    for name in ("one image", "two images"):
        found = _ask(running, [expected.prompts[name]])[0]
        yield _compared(expected, 0.0, name, [(name, found)], _allowed(expected))


def _at_lambda(engine: VllmEngine, expected: _Expected, lam: float) -> Iterator[Check]:
    running = engine.at(lam, images=3)
    prompts, allowed = expected.prompts, _allowed(expected)
    reports = running.reports()
    yield Check("AGCI in every worker", True, len(reports), None, f"workers with lambda {lambda_text(lam)}.")
    alone = engine.arguments.get("data_parallel_size") in (None, 1)  # of several copies only the first one reports
    encoded: set[Any] = set()
    for name in ("one image", "two images", "an image cut by chunked prefill", "a repeated image"):
        before = _images(running)
        row = _compared(expected, lam, name, [(name, _ask(running, [prompts[name]])[0])], allowed)
        new = prompts[name].pixels - encoded
        encoded |= new
        if alone:
            yield _held_to_images(row, _images(running) - before, len(new))
        else:
            yield replace(row, explanation=f"Images not counted under data parallel; {row.explanation}")
    both = ("one image", "two images")
    answers = _ask(running, [prompts[name] for name in both])
    yield _compared(expected, lam, "concurrent requests", list(zip(both, answers, strict=True)), allowed)


def _allowed(expected: _Expected) -> float:
    return EXACT if expected.exact else ROUNDED


def _images(running: RunningVllm) -> int:
    """Images that the first worker has injected."""
    return int(running.reports()[0]["images"])


def _held_to_images(row: Check, injected: int, new: int) -> Check:
    """The row, failed where images that vLLM had not met were not injected, or one that it had met was, again.

    More than are new may be right: Gemma 3's crops count, too, and a small cache forgets.
    """
    right = injected >= new if new else injected == 0
    explanation = f"{injected} injected, {counted(new, 'image')} new; {row.explanation}"
    return replace(row, passed=row.passed if right else False, explanation=explanation)


def _compared(
    expected: _Expected, lam: float, name: str, answers: Sequence[tuple[str, LogProbs]], allowed: float
) -> Check:
    figure = max(expected.figure(lam, prompt, found) for prompt, found in answers)
    effect = min(expected.effect(lam, prompt) for prompt, _ in answers)
    passed: bool | None = figure <= allowed
    moved = f"AGCI moves them by {effect:.2g}" if lam else "stock"
    if passed and lam and effect < SEEN * allowed:
        passed, moved = None, f"{moved}, too small to see at this dtype"
    label = f"lambda {lambda_text(lam)}, {name}"
    return Check(label, passed, figure, allowed, f"Log-probabilities against transformers'; {moved}.")


def _ask(running: RunningVllm, prompts: Sequence[_Prompt]) -> list[LogProbs]:
    """The log-probabilities of the first token, of all prompts at once."""
    parameters = sampling(1, logprobs=RETURNED)
    jobs = [(number, partial(running.generate, prompt.request, parameters)) for number, prompt in enumerate(prompts)]
    made = dict(running.answers(jobs))
    first = (made[number].outputs[0].logprobs[0] for number in range(len(prompts)))
    return [{token: float(entry.logprob) for token, entry in each.items()} for each in first]
