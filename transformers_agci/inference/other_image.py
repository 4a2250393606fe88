"""The control "other": AGCI with g of another image in place of the mean of each image's own tokens.

    v_i' = v_i + lambda * (1 - cos(v_i, g')) * g'        g' = mean of the image tokens of the other image

If that does as much as AGCI, what AGCI adds need not come from the image that is asked about. The other image is one
composite of the embedded atlas, drawn by the seed and encoded by the model itself; it is the same for every question,
so that answers depend neither on their order nor on what stands in the same batch.
"""

import contextlib
from collections.abc import Iterator

import torch

from transformers_agci.embedded.atlas import Atlas
from transformers_agci.embedded.probe_set import render_item
from transformers_agci.errors import InputError
from transformers_agci.inference.batches import Column
from transformers_agci.inference.load import LoadedModel
from transformers_agci.inference.prepare import prepare, to_device
from transformers_agci.inference.questions import ImageBytes, Question
from transformers_agci.method.attach import agci
from transformers_agci.method.handle import Handle
from transformers_agci.method.image_embeddings import image_embeddings
from transformers_agci.method.injection import global_context
from transformers_agci.method.names import OTHER

STREAM = ("control", OTHER)  # then the seed: the random stream of the other image
CELL = 4  # where its target stands: the middle


def seed_of_other(method: str) -> int | None:
    """The seed in "other" (0) or "other-SEED"; None for any other method.

    >>> seed_of_other("other"), seed_of_other("other-7"), seed_of_other("agci")
    (0, 7, None)
    """
    name, mark, seed = method.partition("-")
    if name != OTHER or (mark and not seed.isdecimal()):
        return None
    return int(seed or 0)


def check_other(method: str, scope: str) -> None:
    """InputError where a mean over the batch is asked for as well."""
    if seed_of_other(method) is not None and scope != "image":
        raise InputError(
            f"`scope` {scope} is a mean over the images of a batch, and `method` {method} uses none of them."
        )


@contextlib.contextmanager
def other_image_on(loaded: LoadedModel, seed: int) -> Iterator[Handle]:
    """AGCI on a model within a `with` block, at lambda 0, with g of the image that `seed` draws."""
    context = context_of_other_image(loaded, seed)
    with agci(loaded.model, 0.0) as handle:
        found, handle.context = handle.context, context
        try:
            yield handle
        finally:
            handle.context = found


def context_of_other_image(loaded: LoadedModel, seed: int) -> torch.Tensor:
    """g' [D], in float32 (float64 stays): the mean of the image tokens of the image that `seed` draws."""
    image = ImageBytes(render_item(Atlas(), (*STREAM, seed), 0).composite(CELL), "the other image")
    question = Question({}, "the other image", "", (image,))
    batch = prepare(Column(((0,),)), [question], loaded.processor).batches[0]
    with torch.no_grad():
        tokens = image_embeddings(loaded.model, to_device(loaded, batch.inputs))
    return global_context(torch.cat(tokens))
