"""A processor for the tiny models of tiny_families/: it writes the marks of the family's real one around an image.

An image that is wider than high is one of several tiles, or a larger one; its pixels make the model's inputs, so that
the same image always gives the same ones. A letter is a token, Yes and No are one each.
"""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from tiny_families import BOS, EOS, PAD, VOCABULARY, Piece, TinyFamily, onevision_piece, type_ids
from transformers import BatchFeature

MARK = "\N{REPLACEMENT CHARACTER}"
YES, NO = 198, 199


class TinyTokenizer:
    """Letters to ids from 40 on."""

    eos_token_id, pad_token_id, padding_side = EOS, PAD, "left"
    chat_template = "tiny"

    def ids(self, text: str) -> list[int]:
        return [40 + ord(letter) % (YES - 40) for letter in text]

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": {"Yes": [YES], "No": [NO]}.get(text) or self.ids(text)}

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        words = {YES: "Yes", NO: "No"}
        return ["".join(words.get(int(token), "x") for token in row) for row in rows]

    def decode(self, row: Any, **_: Any) -> str:
        return self.batch_decode([row])[0]


class TinyImageProcessor:
    """Images to pieces; `pieces` is what a real processor would keep as sizes."""

    model_input_names: tuple[str, ...] = ()
    do_rescale = do_normalize = False

    def __init__(self, family: TinyFamily) -> None:
        self.family = family

    def __call__(self, images: Sequence[Sequence[Image.Image]], **_: Any) -> BatchFeature:
        rows = [[self.piece(image, alone=len(row) == 1) for image in row] for row in images]
        return BatchFeature({**self.family.collate(rows), "pieces": rows})

    def piece(self, image: Any, alone: bool) -> Piece:
        """`image` is PIL's, or uint8 [3, H, W] as occlusion gives it."""
        if isinstance(image, torch.Tensor):
            image = Image.fromarray(image.permute(1, 2, 0).numpy())
        seed = zlib.crc32(image.convert("RGB").tobytes())
        form = "tiled" if image.width > image.height else "plain"
        more = {"alone": alone} if self.family.piece is onevision_piece else {}
        return self.family.piece(form, torch.Generator().manual_seed(seed), **more)

    def to_dict(self) -> dict[str, Any]:
        return {}


class TinyProcessor:
    """Text and images together, padded on the left."""

    image_token = MARK
    chat_template = "tiny"

    def __init__(self, family: TinyFamily) -> None:
        self.family = family
        self.tokenizer = TinyTokenizer()
        self.image_processor: Any = TinyImageProcessor(family)

    def apply_chat_template(self, messages: list[dict[str, Any]], **_: Any) -> str:
        parts = messages[0]["content"]
        return "".join(MARK if part["type"] == "image" else part["text"] for part in parts) + "?"

    def __call__(self, text: Sequence[str], images: Any = None, **_: Any) -> dict[str, torch.Tensor]:
        made = dict(self.image_processor(images)) if images else {"pieces": [[] for _ in text]}
        pieces = made.pop("pieces")
        rows = [self._ids(one, list(of_row)) for one, of_row in zip(text, pieces, strict=True)]
        width = max(map(len, rows))
        ids = torch.tensor([[PAD] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, **made, **type_ids(self.family, ids)}

    def _ids(self, text: str, pieces: list[Piece]) -> list[int]:
        first, *others = text.split(MARK)
        ids = [BOS, *self.tokenizer.ids(first)]
        for piece, part in zip(pieces, others, strict=True):
            ids += [*piece.ids, *self.tokenizer.ids(part)]
        assert max(ids) < VOCABULARY
        return ids
