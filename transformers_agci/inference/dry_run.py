"""What a run would do, said without its weights: the first prompt, its tokens, the memory, the plan."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers_agci.errors import InputError, counted
from transformers_agci.families import find_vlm, image_token_id
from transformers_agci.inference.batches import Block, Column, Plan, make_plan, plan_columns
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import Batch, Prepared, prepare
from transformers_agci.inference.prompt import chat_text
from transformers_agci.inference.questions import Question
from transformers_agci.method.lam import lambda_text

GIB = 2**30
LOOKED_AT = 20  # columns that are tried until one has a good row


def describe(
    loaded: LoadedModel,
    questions: Sequence[Question],
    lambdas: Sequence[float],
    outputs: Sequence[Path],
    *,
    batch_size: int | None = None,
    block_rows: int | None = None,
) -> list[str]:
    """Lines for a person to read; `loaded` may come from `load(options, weights=False)`.

    The first batch is really decoded and tokenized, so that the token counts are the processor's own. Raises
    InputError when no row of the first batches can be asked.
    """
    if not questions:
        raise InputError("There is no row to ask; the input is empty.")
    plan = make_plan(questions, loaded.device.type, batch_size, block_rows)
    columns = [column for block in plan.blocks for column in _columns(block, questions, plan)]
    looked_at = sorted(columns[:LOOKED_AT], key=lambda column: min(column.batches[0]))  # the first row first
    prepared = _first_good(looked_at, questions, loaded.processor)
    forwards = counted(sum(len(column.batches) for column in columns), "batch", "batches")
    return [
        f"model: {loaded.family.name}, {loaded.model.dtype}, on {loaded.device}".replace("torch.", ""),
        *_first_prompt(loaded, questions, prepared.batches[0]),
        _memory(loaded.model, prepared.batches[0], kept=len(prepared.batches) > 1),
        f"plan: {counted(len(questions), 'row')} in {counted(len(plan.blocks), 'block')}, {forwards} for each of "
        f"{counted(len(lambdas), 'lambda')} ({', '.join(map(lambda_text, lambdas))})",
        *(f"would write: {path}" for path in outputs),
    ]


def _columns(block: Block, questions: Sequence[Question], plan: Plan) -> list[Column]:
    return plan_columns(questions, range(block.start, block.stop), plan.batch_size)


def _first_prompt(loaded: LoadedModel, questions: Sequence[Question], batch: Batch) -> list[str]:
    """The first row's prompt and its tokens, and the batch that it is in."""
    place = batch.numbers.index(min(batch.numbers))
    first = questions[batch.numbers[place]]
    rows, length = batch.text["input_ids"].shape
    tokens = int(batch.text["attention_mask"][place].sum())
    image_tokens = int((batch.text["input_ids"][place] == image_token_id(find_vlm(loaded.model).config)).sum())
    return [
        f"first prompt ({first.where}):",
        *(f"    {line}" for line in chat_text(loaded.processor, first).splitlines()),
        f"its tokens: {tokens}, of which {image_tokens} are image tokens of {counted(len(first.images), 'image')}",
        f"its batch: {counted(rows, 'prompt')} of up to {length} tokens",
    ]


def _first_good(columns: Sequence[Any], questions: Sequence[Question], processor: Any) -> Prepared:
    for column in columns:
        prepared = prepare(column, questions, processor)
        if prepared.batches:
            return prepared
    raise InputError(f"None of the first rows can be asked, for instance {prepared.failed[0].error}")


def _memory(model: Any, batch: Batch, kept: bool) -> str:
    """An estimate in GiB: the weights and the key-value cache are exact, the rest is what one layer holds at a time.

    `kept`: the first question's keys and values are kept for the others about its images, beside the running cache.
    """
    rows, length = batch.text["input_ids"].shape
    pixel_bytes = sum(pixels.nbytes for pixels in batch.pixels.values())
    size = model.dtype.itemsize  # bytes
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    text = model.config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    cache = 2 * text.num_hidden_layers * heads * head * rows * length * size * (2 if kept else 1)
    ffn = text.intermediate_size
    widest = max(ffn) if isinstance(ffn, list | tuple) else ffn
    layer = rows * length * (6 * text.hidden_size + 3 * widest) * size
    logits = rows * text.vocab_size * (size + 4)
    total = weights + cache + layer + logits + pixel_bytes
    return (
        f"memory: about {total / GIB:.2f} GiB (weights {weights / GIB:.2f}, key-value cache {cache / GIB:.2f}, "
        f"activations {layer / GIB:.2f}, pixels {pixel_bytes / GIB:.2f})"
    )
