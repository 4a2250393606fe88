"""How well the embedded model answers: Yes and No questions on fresh items, as the position probe asks them."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from transformers_agci.data.draws import StreamName
from transformers_agci.data.grid import POSITIONS
from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.checkpoint import save_checkpoint
from transformers_agci.embedded.fast_forward import FastDecoder, FastVision
from transformers_agci.embedded.probe_set import RenderedItem, render_items
from transformers_agci.embedded.training import on_one_thread, train
from transformers_agci.embedded.training_data import PackedQuestions
from transformers_agci.errors import InputError
from transformers_agci.statistics import clustered_proportion, permutation_null

EVALUATION = ("embedded", "evaluation")  # the random stream of the items behind the published accuracies


class Evaluation(NamedTuple):
    """Margins (logit of Yes minus logit of No), [items, 9 positions] each."""

    to_shown: np.ndarray
    to_absent: np.ndarray

    @property
    def yes_right(self) -> np.ndarray:
        """1 where a shown image was affirmed."""
        return (self.to_shown > 0).astype(float)

    @property
    def no_right(self) -> np.ndarray:
        """1 where an absent image was denied."""
        return (self.to_absent < 0).astype(float)

    @property
    def balanced_accuracy(self) -> float:
        """The mean of both accuracies."""
        return float(self.yes_right.mean() + self.no_right.mean()) / 2


@torch.no_grad()
def evaluate(model: Any, tokenizer: Any, items: int, stream: StreamName = EVALUATION) -> Evaluation:
    """Ask about the first `items` items of a stream, every image in all nine positions, in float32.

    Through the quick forward, which gives the stock model's margins to 1e-4.
    """
    atlas = Atlas()
    questions = PackedQuestions(tokenizer, atlas.names, chained=0, prompts=2)
    vision = FastVision(model)
    decoder = FastDecoder(model, questions.layout.positions(), questions.layout.mask())
    embedding = model.model.language_model.embed_tokens
    image = questions.layout.image
    verdict = embedding.weight[questions.yes] - embedding.weight[questions.no]
    margins = []
    for rendered in render_items(atlas, stream, items):
        images = torch.from_numpy(np.stack(list(composites(rendered))))
        ids = questions.template(1)
        asked = (rendered.item.target, rendered.item.absent)
        last = [questions.write_question(ids[0], number, asked_image) for number, asked_image in enumerate(asked)]
        text = embedding(ids).expand(len(images), -1, -1)
        tokens = vision(vision.canvas.patches(images))
        hidden = decoder(torch.cat([text[:, : image.start], tokens, text[:, image.stop :]], 1))
        margins.append(hidden[:, last] @ verdict)  # [9, 2]
    both = torch.stack(margins).numpy()
    return Evaluation(both[..., 0], both[..., 1])


def composites(rendered: RenderedItem) -> Iterator[np.ndarray]:
    """The nine composites of an item, opened from their JPEGs."""
    for k in range(len(POSITIONS)):
        with Image.open(io.BytesIO(rendered.composite(k))) as image:
            yield np.asarray(image.convert("RGB"))


def reload(folder: Path) -> Any:
    """The checkpoint as users load it: float32 computed from the float16 that is stored."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()


class Trained(NamedTuple):
    """The losses of each stage, step by step, and how well the checkpoint answers."""

    losses: dict[str, list[float]]
    answers: Evaluation


def train_and_evaluate(folder: Path, seed: int, steps: int | None, items: int) -> Trained:
    """Train the embedded model into a folder on one thread, save it, and ask the saved one about fresh items."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`output` {folder} cannot be written: {error.strerror}.") from error
    with on_one_thread():
        state, losses = train(folder, seed=seed, steps=steps)
        save_checkpoint(state.model, state.tokenizer, folder)
        return Trained(losses, evaluate(reload(folder), state.tokenizer, items))


def summary(answers: Evaluation) -> str:
    """Accuracies with their intervals, the unevenness with its test, and the map, as text."""
    yes, no = clustered_proportion(answers.yes_right), clustered_proportion(answers.no_right)
    both = clustered_proportion(np.concatenate([answers.yes_right, answers.no_right], axis=1))
    spread = permutation_null(answers.yes_right)
    side = int(len(POSITIONS) ** 0.5)
    lines = [
        f"{len(answers.to_shown)} items x {len(POSITIONS)} positions, 95 % intervals clustered by item",
        *(
            f"{name:<18} {100 * found.estimate:5.1f} % ({100 * found.low:.1f} to {100 * found.high:.1f})"
            for name, found in (("balanced accuracy", both), ("Yes accuracy", yes), ("No accuracy", no))
        ),
        f"unevenness of the Yes map: largest - smallest {100 * spread.gap.observed:.1f} points "
        f"(by chance {100 * spread.gap.expected:.1f}, p = {spread.gap.p:.3g}), standard deviation "
        f"{100 * spread.sd.observed:.2f} (by chance {100 * spread.sd.expected:.2f}, "
        f"p = {spread.sd.p:.3g})",
    ]
    for title, table, form in (
        ("Yes accuracy by position, %", 100 * answers.yes_right, "{:7.1f}"),
        ("No accuracy by position, %", 100 * answers.no_right, "{:7.1f}"),
        ("mean margin of the Yes questions", answers.to_shown, "{:7.2f}"),
    ):
        cells = table.mean(0).reshape(side, side)
        lines += [title, *("".join(form.format(value) for value in row) for row in cells)]
    return "\n".join(lines)
