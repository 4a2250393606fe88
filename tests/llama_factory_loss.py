"""The loss of a recipe's first step, computed by hand; run by LLaMA-Factory's Python with TRANSFORMERS_AGCI=0.

    TRANSFORMERS_AGCI=0 python tests/llama_factory_loss.py RECIPE.yaml IMAGES TEXTS key=value ...

IMAGES and TEXTS are names of data sets; each is one batch, built by LLaMA-Factory's own template and collator. The
decoder's inputs are written down from stock's forward, changed by the formula in float64, and put back; no hook of ours
takes part. Prints one JSON object.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
from decoder_inputs import formula
from llamafactory.data import SFTDataCollatorWith4DAttentionMask, get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args, read_args
from llamafactory.model import load_tokenizer
from transformers import AutoModelForImageTextToText

from transformers_agci import LAMBDA_KEY, attach

IGNORED = -100  # label of a token that is not trained on
Change = Callable[[torch.Tensor], torch.Tensor]


def batch_of(arguments: dict[str, Any], dataset: str, model: Any) -> tuple[dict[str, Any], list[int]]:
    """The whole data set as one batch in its own order, and how many images each of its rows has."""
    of_model, of_data, of_training, *_ = get_train_args({**arguments, "dataset": dataset})
    tokens = load_tokenizer(of_model)
    template = get_template_and_fix_tokenizer(tokens["tokenizer"], of_data)
    rows = list(get_dataset(template, of_model, of_data, of_training, stage="sft", **tokens)["train_dataset"])
    images = [len(row["images"] or ()) for row in rows]
    collate = SFTDataCollatorWith4DAttentionMask(
        template=template, model=model, pad_to_multiple_of=8, label_pad_token_id=IGNORED, **tokens
    )
    return dict(collate(rows)), images


def loss_of(model: Any, batch: dict[str, Any], change: Change | None = None) -> float:
    """Mean cross-entropy of the answers' tokens, the decoder's inputs_embeds [B, S, D] first changed by `change`."""

    def put(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, kwargs | {"inputs_embeds": change(kwargs["inputs_embeds"])}

    inputs = {name: value for name, value in batch.items() if name != "labels"}
    hook = model.model.language_model.register_forward_pre_hook(put, with_kwargs=True) if change else None
    with torch.no_grad():
        logits = model(**inputs).logits[:, :-1].double()  # [B, S - 1, V]
    if hook:
        hook.remove()
    wanted = batch["labels"][:, 1:]
    trained = wanted != IGNORED
    return float(-logits.log_softmax(-1)[trained].gather(1, wanted[trained][:, None]).mean())


def by_formula(lam: float, batch: dict[str, Any], images: list[int], image_token: int, per_image: bool) -> Change:
    """The change that the formula makes; a row's images are of one size, so its image tokens divide equally."""

    def change(embeds: torch.Tensor) -> torch.Tensor:
        is_image = batch["input_ids"] == image_token  # [B, S]
        whole_batch = embeds[is_image].double().mean(0)
        result = embeds.double().clone()
        for row, count in enumerate(images):
            if count:
                places = is_image[row].nonzero()[:, 0]
                assert len(places) % count == 0
                for one in places.chunk(count):
                    result[row, one] = formula(embeds[row, one], lam, None if per_image else whole_batch)
        return result.to(embeds.dtype)

    return change


def main() -> None:
    recipe, with_images, texts, *overrides = sys.argv[1:]
    sys.argv[1:] = [recipe, *overrides]
    arguments = read_args()
    model = AutoModelForImageTextToText.from_pretrained(arguments["model_name_or_path"], dtype=torch.float32).train()
    lam, image_token = getattr(model.config, LAMBDA_KEY), model.config.image_token_id
    batch, images = batch_of(arguments, with_images, model)
    text, none = batch_of(arguments, texts, model)
    dummy = text["input_ids"] == image_token
    stock_text = loss_of(model, text)
    answer = {
        "lambda": lam,
        "pictures": images,
        "image_tokens": (batch["input_ids"] == image_token).sum(1).tolist(),
        "stock": loss_of(model, batch),
        "formula": loss_of(model, batch, by_formula(lam, batch, images, image_token, per_image=True)),
        "mean over the batch": loss_of(model, batch, by_formula(lam, batch, images, image_token, per_image=False)),
        "text images": sum(none),
        "dummy tokens": int(dummy.sum()),
        "dummy tokens attended": int(text["attention_mask"][dummy].sum()),
        "text, stock": stock_text,
        "text, dummy changed": loss_of(model, text, lambda embeds: embeds + 9 * dummy[..., None]),
    }
    handle = attach(model, lam=lam)
    answer |= {
        "text, AGCI": loss_of(model, text),
        "text injections": handle.injections,
        "AGCI": loss_of(model, batch),
        "injections": handle.injections,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
