"""The engine vllm on a vLLM that answers from a script: what is asked, how answers are read, what is refused."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import stub_vllm
from stub_vllm import AsyncEngineArgs, AsyncLLM
from transformers import GenerationConfig

from transformers_agci.embedded.location import embedded_model_path
from transformers_agci.errors import InputError
from transformers_agci.experiments.engines import VllmOptions
from transformers_agci.families import SUPPORTED_FAMILIES
from transformers_agci.inference.answering import AnswerOptions, answer_questions
from transformers_agci.inference.load import LoadOptions, load
from transformers_agci.inference.progress import RunSummary
from transformers_agci.inference.prompt import answer_token_ids
from transformers_agci.inference.questions import BlankImage, ImageFile, Question, QuestionSet, up_to
from transformers_agci.method.lam import LAMBDA_KEY
from transformers_agci.vllm import engine as module
from transformers_agci.vllm.engine import VllmEngine, open_vllm
from transformers_agci.vllm.injection import METHOD_KEY

MODEL = str(embedded_model_path())


class VLLMClientError(Exception):
    """As vLLM 0.32 calls what is the request's fault."""


class VLLMValidationError(VLLMClientError):
    pass


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> VllmEngine:
    stub_vllm.install(monkeypatch)
    monkeypatch.setattr(module, "vllm_version", lambda: "0.0-stub")
    opened = open_vllm(LoadOptions(MODEL), VllmOptions())
    encode, (yes, no) = opened.processor.tokenizer.encode, answer_token_ids(opened.processor)

    def script(prompt: dict[str, Any]) -> tuple[list[int], dict[int, float]]:
        text = prompt["prompt"]
        if "not valid" in text:
            raise VLLMValidationError("This model's maximum context length is 512 tokens.")
        if "too long" in text:
            raise ValueError("The decoder prompt (length 9000) is\nlonger than the maximum model length of 512.")
        if "broken off" in text:
            return [], {}
        if "lower case" in text:
            return encode("yes, there is one"), {yes: -3.0, no: -4.0}
        if "unscored" in text:
            return encode("Yes"), {yes: -0.5}
        if "penalty" in text:
            return encode("No"), {yes: -0.5, no: -1.5}
        return encode("Yes and more"), {yes: -0.25, no: -1.5}

    monkeypatch.setattr(AsyncLLM, "script", staticmethod(script), raising=False)
    return opened


def questions(*texts: str, images: int = 1) -> list[Question]:
    return [
        Question({"id": i}, f"rows.json:{i + 1}", text, (BlankImage(56, 56),) * images, group=i)
        for i, text in enumerate(texts)
    ]


def ask(
    engine: VllmEngine, asked: list[Question], folder: Path, lambdas: tuple[float, ...] = (0.0,), **options: Any
) -> RunSummary:
    outputs = [folder / f"lam{lam}.jsonl" for lam in lambdas]
    return answer_questions(engine, QuestionSet(asked), lambdas, outputs, AnswerOptions(block_rows=2, **options))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_answers_and_margins(engine: VllmEngine, tmp_path: Path) -> None:
    summary = ask(engine, questions("one", "lower case", "unscored", "penalty", "five"), tmp_path)
    found = rows(tmp_path / "lam0.0.jsonl")
    assert [row["id"] for row in found] == [0, 1, 2, 3, 4]
    assert [row["prediction"] for row in found] == ["Yes", "yes, there", "Yes", "No", "Yes"]
    assert [row["margin"] for row in found] == [1.25, 1.0, None, 1.0, 1.25]
    assert found[2]["yes_logit"] == -0.5
    assert found[2]["no_logit"] is None
    counts: Any = summary.counts
    assert (counts.rows, counts.asked_again, counts.words_missing, counts.disagreements) == (5, 1, 1, 1)
    assert "1 row without a margin: Yes or No was not among the tokens" in " ".join(summary.lines())
    engine.close()


def test_free_text_is_asked_once(engine: VllmEngine, tmp_path: Path) -> None:
    asked = [Question({"id": 0}, "rows.json:1", "what", (BlankImage(56, 56),), stop=up_to(2))]
    ask(engine, asked, tmp_path)
    assert rows(tmp_path / "lam0.0.jsonl") == [{"id": 0, "prediction": "Yes an", "qs": "what"}]
    engine.close()


def test_bad_rows_are_skipped_and_named(engine: VllmEngine, tmp_path: Path) -> None:
    broken = Question({"id": 1}, "rows.json:2", "two", (ImageFile(tmp_path, "none.png", "rows.json:2"),))
    asked = [*questions("one"), broken, *questions("too long", "not valid", "broken off")]
    summary = ask(engine, asked, tmp_path)
    assert [row["id"] for row in rows(tmp_path / "lam0.0.jsonl")] == [0]
    said = [failed.error for failed in summary.counts.failed]
    assert "none.png" in said[0]
    assert said[1] == (
        "rows.json:1: vLLM refuses this row (The decoder prompt (length 9000) is longer than the maximum model length "
        "of 512)."
    )
    assert said[2] == ("rows.json:2: vLLM refuses this row (This model's maximum context length is 512 tokens).")
    assert said[3] == ("rows.json:3: vLLM refuses this row (it broke the answer off: abort).")
    engine.close()


def test_images_go_by_the_name_that_vllm_has_for_them(engine: VllmEngine) -> None:
    """Kimi K2.5 takes images and pieces of videos as one kind of item."""
    qwen, kimi = engine.family, SUPPORTED_FAMILIES["kimi_k25"]
    assert module.mm_limits(qwen, 2) == {"image": 2, "video": 0}
    assert module.mm_data(qwen, ("A", "B")) == {"image": ["A", "B"]}
    assert module.mm_limits(kimi, 2) == {"vision_chunk": 2}
    assert module.mm_data(kimi, ("A",)) == {"vision_chunk": [{"type": "image", "image": "A", "uuid": None}]}
    assert module.mm_data(SUPPORTED_FAMILIES["janus"], ("A",)) == {"image": ["A"]}


def test_one_engine_per_lambda_and_many_questions_at_once(engine: VllmEngine, tmp_path: Path) -> None:
    asked = questions(*(f"number {i}" for i in range(40)))
    ask(engine, asked, tmp_path, (0.0, 0.5))
    assert [arguments.hf_overrides for arguments in AsyncLLM.started] == [{LAMBDA_KEY: 0.0}, {LAMBDA_KEY: 0.5}]
    assert [arguments.limit_mm_per_prompt for arguments in AsyncLLM.started] == [{"image": 1, "video": 0}] * 2
    # several blocks of two rows in flight, and no more than the engine has room for
    assert 8 < AsyncLLM.most_at_once <= AsyncLLM.sequences + 32
    ask(engine, asked, tmp_path, (0.0, 0.5))  # everything is done already: nothing starts
    assert len(AsyncLLM.started) == 2
    engine.close()


def test_it_runs_beside_a_loop_of_the_callers(engine: VllmEngine, tmp_path: Path) -> None:
    async def notebook() -> None:
        ask(engine, questions("one", "two"), tmp_path)
        engine.close()

    asyncio.run(notebook())
    assert [row["prediction"] for row in rows(tmp_path / "lam0.0.jsonl")] == ["Yes", "Yes"]


def test_more_images_in_a_prompt_need_another_engine(engine: VllmEngine) -> None:
    first = engine.at(0.0, images=2)
    assert engine.at(0.0, images=1) is first
    assert engine.at(0.0, images=3) is not first
    assert AsyncLLM.started[1].limit_mm_per_prompt == {"image": 3, "video": 0}
    engine.close()


def test_a_control_is_set_as_lambda_is(engine: VllmEngine, tmp_path: Path) -> None:
    ask(engine, questions("one"), tmp_path, (0.5,), method="random-1")
    assert AsyncLLM.started[0].hf_overrides == {LAMBDA_KEY: 0.5, METHOD_KEY: "random-1"}
    engine.close()


def test_a_worker_without_the_plugin_is_an_error(
    engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stock = [{"class": "Stub", "lambda": None, "method": None, "images": 0}]
    monkeypatch.setattr(AsyncLLM, "reports", staticmethod(lambda arguments: stock))
    ask(engine, questions("one"), tmp_path)  # lambda 0 needs none
    with pytest.raises(InputError, match="AGCI is not on in vLLM's worker"):
        ask(engine, questions("one"), tmp_path, (0.5,))
    engine.close()


def test_answers_about_images_that_were_not_injected_are_an_error(
    engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version of vLLM that goes around what the plugin wraps; its worker says that AGCI is on."""
    around = [{**stub_vllm.as_plugin_says(AsyncEngineArgs(MODEL, hf_overrides={LAMBDA_KEY: 0.5}))[0], "images": 3}]
    monkeypatch.setattr(AsyncLLM, "reports", staticmethod(lambda arguments: around))
    with pytest.raises(InputError, match="answered about an image that its workers have not injected"):
        ask(engine, questions("one", "two"), tmp_path, (0.5,))
    assert rows(tmp_path / "lam0.5.jsonl") == []
    engine.close()
    for folder in ("words", "copies"):
        (tmp_path / folder).mkdir()
    ask(engine, questions("one", "two", images=0), tmp_path / "words", (0.5,))
    engine.close()
    copies = open_vllm(LoadOptions(MODEL), VllmOptions(data_parallel_size=2))  # of which one reports
    ask(copies, questions("one", "two"), tmp_path / "copies", (0.5,))
    copies.close()


def test_an_engine_that_ends_is_one_sentence(
    engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class EngineDeadError(Exception):
        pass

    whole = AsyncLLM.script
    asked = questions(*(f"number {i}" for i in range(200)))

    def dies(prompt: dict[str, Any]) -> Any:
        if "number 150" in prompt["prompt"]:
            raise EngineDeadError
        return whole(prompt)

    monkeypatch.setattr(AsyncLLM, "script", staticmethod(dies))
    with pytest.raises(InputError, match="vLLM's engine has ended"):
        ask(engine, asked, tmp_path)
    monkeypatch.setattr(AsyncLLM, "script", staticmethod(whole))
    summary = ask(engine, asked, tmp_path)
    assert summary.counts.already_done > 50
    assert summary.counts.rows + summary.counts.already_done == 200
    engine.close()


def test_another_engine_does_not_go_on(engine: VllmEngine, tmp_path: Path) -> None:
    asked = questions("one", "two", "three")
    output = tmp_path / "lam0.0.jsonl"
    answer_questions(load(LoadOptions(MODEL)), QuestionSet(asked[:2]), [0.0], [output], AnswerOptions(block_rows=2))
    with pytest.raises(InputError, match="engine"):
        ask(engine, asked[:2], tmp_path)
    assert AsyncLLM.started == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"scope": "batch"}, "`scope` batch needs the engine transformers"),
        ({"method": "magic"}, "`method` magic needs the engine transformers"),
        ({"batch_size": 4}, "batches by itself"),
        ({"workers": 2}, "`workers` is for the engine transformers"),
    ],
)
def test_what_vllm_cannot_do_is_refused(engine: VllmEngine, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        ask(engine, questions("one"), tmp_path, **options)


@pytest.mark.parametrize(
    ("model", "vllm", "said"),
    [
        (LoadOptions(MODEL, device="cpu"), VllmOptions(), "`device` is for the engine transformers"),
        (LoadOptions(MODEL, vision="stock"), VllmOptions(), "`vision` is for the engine transformers"),
        (LoadOptions(MODEL, kernels="stock"), VllmOptions(), "`kernels` is for the engine transformers"),
        (LoadOptions(MODEL, family="llava"), VllmOptions(), "Qwen2.5-VL checkpoint"),
        (LoadOptions(MODEL), VllmOptions(engine_args={"model": "other"}), "must not hold 'model'"),
        (LoadOptions(MODEL), VllmOptions(engine_args={"tensor_parallel_size": 2}), "must not hold 'tensor_parallel"),
        (LoadOptions(MODEL), VllmOptions(engine_args={"hf_overrides": {}}), "must not hold 'hf_overrides'"),
        (
            LoadOptions(MODEL, max_pixels=10**6),
            VllmOptions(engine_args={"mm_processor_kwargs": {"min_pixels": 9}}),
            "must not hold 'mm_processor_kwargs' beside",
        ),
    ],
)
def test_options_that_are_not_vllms(engine: VllmEngine, model: LoadOptions, vllm: VllmOptions, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_vllm(model, vllm)


def test_torchrun_is_refused(engine: VllmEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="without torchrun"):
        open_vllm(LoadOptions(MODEL), VllmOptions())


def test_vllms_arguments(engine: VllmEngine, tmp_path: Path) -> None:
    given = VllmOptions(tensor_parallel_size=2, engine_args={"max_model_len": 512})
    opened = open_vllm(LoadOptions(MODEL, dtype="float32"), given)
    ask(opened, questions("one"), tmp_path)
    (started,) = AsyncLLM.started
    assert (started.dtype, started.tensor_parallel_size, started.max_model_len) == ("float32", 2, 512)
    assert opened.identity["engine_args"] == {"max_model_len": 512}
    assert opened.notes["engine_sizes"] == {"tensor_parallel_size": 2}
    opened.close()
    unknown = open_vllm(LoadOptions(MODEL), VllmOptions(engine_args={"max_model_length": 512}))
    with pytest.raises(InputError, match=r"engine_args.*max_model_length"):
        ask(unknown, questions("one"), tmp_path / "unknown")


def test_settings_that_vllm_has(engine: VllmEngine, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.05, "min_new_tokens": 2}))
    assert module._generation(tmp_path) == {"repetition_penalty": 1.05, "min_tokens": 2}
    nothing = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "guidance_scale": 1, "sequence_bias": None}
    (tmp_path / "generation_config.json").write_text(json.dumps(nothing))
    assert module._generation(tmp_path) == {}


def test_the_settings_that_shape_answers_are_in_the_manifest(
    engine: VllmEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(engine, questions("one"), tmp_path)
    engine.generation = {"repetition_penalty": 1.05}
    with pytest.raises(InputError, match=r"generation\.repetition_penalty is 'not set' there and 1\.05 now"):
        ask(engine, questions("one"), tmp_path)
    (tmp_path / "B").mkdir()
    ask(engine, questions("one"), tmp_path / "B")
    manifest = json.loads((tmp_path / "B" / "lam0.0.manifest.json").read_text())
    assert manifest["settings"]["generation"] == {"decoding": "greedy", "repetition_penalty": 1.05}
    engine.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_repeat_ngram_size", 3),
        ("sequence_bias", [[[5], -10.0]]),
        ("forced_bos_token_id", 0),
        ("forced_eos_token_id", 7),
        ("suppress_tokens", [1]),
        ("bad_words_ids", [[1]]),
        ("guidance_scale", 1.5),
        ("exponential_decay_length_penalty", [5, 1.1]),
        ("encoder_repetition_penalty", 1.2),
        ("min_length", 200),
    ],
)
def test_settings_that_vllm_lacks(engine: VllmEngine, tmp_path: Path, name: str, value: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({name: value}))
    with pytest.raises(InputError, match=f"has {name}, which vLLM lacks"):
        module._generation(tmp_path)


# What a generation config may hold and no greedy answer of ours depends on: lengths and modes that we set, sampling,
# beams, caches, drafts, what is returned.
WITHOUT_EFFECT = """
    max_length max_new_tokens max_time do_sample num_beams temperature top_k top_p min_p top_h typical_p epsilon_cutoff
    eta_cutoff early_stopping length_penalty num_return_sequences num_beam_groups diversity_penalty penalty_alpha
    low_memory renormalize_logits remove_invalid_values use_mtp use_cache cache_implementation cache_config
    max_cache_len
    return_legacy_cache prefill_chunk_size compile_config disable_compile continuous_batching_config
    output_attentions output_hidden_states output_scores output_logits return_dict_in_generate bos_token_id
    decoder_start_token_id is_assistant num_assistant_tokens num_assistant_tokens_schedule
    assistant_confidence_threshold
    prompt_lookup_num_tokens max_matching_ngram_size assistant_early_exit assistant_lookbehind target_lookbehind
    assistant_ensemble_weight speculation_type generation_kwargs _from_model_config transformers_version _commit_hash
"""


def test_every_setting_of_transformers_is_known_to_have_an_effect_or_none() -> None:
    known = {*WITHOUT_EFFECT.split(), *module.VLLM_SETTINGS, *module.OF_THE_CHECKPOINT, *module.LACKING_SETTINGS}
    assert [name for name in vars(GenerationConfig()) if name not in known] == []


def test_a_dry_run_starts_nothing(engine: VllmEngine, tmp_path: Path) -> None:
    lines = engine.describe(questions("one", "two"), [0.0, 0.5], [tmp_path / "A.jsonl"], AnswerOptions())
    assert lines[0] == f"engine: Qwen2.5-VL, model {MODEL} under vLLM 0.0-stub"
    assert any("2 lambdas (0, 0.5)" in line for line in lines)
    assert AsyncLLM.started == []
