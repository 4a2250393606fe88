"""tokenizer.model -> a `tokenizers.Tokenizer` with the same ids, without the sentencepiece and protobuf packages.

The file is a protobuf message: the pieces with their scores, then the settings of the trainer and of the normalizer.
LLaMA's and Mistral's are byte-pair encodings with byte fallback that leave the text as it is and begin it with a
space. A file that says anything else is refused: its ids would come out differently.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors

from transformers_agci.errors import InputError

SPACE = "\u2581"  # how sentencepiece writes a space

# Field numbers of sentencepiece's model file, and the values of its enumerations that matter here.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_KIND = 1, 2, 3
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6
MODEL_TYPE, BYTE_FALLBACK = 3, 35
BPE = 2
CHARACTER_MAP, BEGINS_WITH_SPACE, REMOVES_SPACES, ESCAPES_SPACES = 2, 3, 4, 5

Value = int | float | bytes


class Piece(NamedTuple):
    """One entry of the vocabulary; its id is its place in the file."""

    text: str
    score: float
    kind: int


class Vocabulary(NamedTuple):
    """The pieces of a tokenizer.model, and the texts of its special ones."""

    pieces: tuple[Piece, ...]
    unknown: str
    controls: tuple[str, ...]


def read_vocabulary(path: Path) -> Vocabulary:
    """Read tokenizer.model.

    Raises:
        InputError: missing, not such a file, or one whose ids the fast tokenizer would not reproduce.
    """
    if not path.exists():
        raise InputError(
            f"{path.parent} holds no {path.name}, the tokenizer of the original checkpoint; download it, too."
        )
    try:
        data = path.read_bytes()
        message = list(_fields(data))
        pieces = tuple(
            _piece(dict(_fields(value))) for number, value in message if number == PIECES and isinstance(value, bytes)
        )
        settings = {
            number: dict(_fields(value))
            for number, value in message
            if number in (TRAINER, NORMALIZER) and isinstance(value, bytes)
        }
    except (ValueError, struct.error, IndexError) as error:
        raise InputError(f"{path} is not a sentencepiece model; it may be incomplete, download it again.") from error
    unknown = [piece.text for piece in pieces if piece.kind == UNKNOWN]
    if len(unknown) != 1:
        raise InputError(
            f"{path} is not a sentencepiece model with one unknown piece; it may be incomplete, download it again."
        )
    _check(path, pieces, settings.get(TRAINER, {}), settings.get(NORMALIZER, {}))
    return Vocabulary(pieces, unknown[0], tuple(piece.text for piece in pieces if piece.kind == CONTROL))


def _check(path: Path, pieces: tuple[Piece, ...], trainer: dict[int, Value], normalizer: dict[int, Value]) -> None:
    """The defaults of absent fields are those of sentencepiece's file format."""
    strange = [piece for piece in pieces if piece.kind not in (NORMAL, UNKNOWN, CONTROL, BYTE)]
    reasons = {
        "it is not a byte-pair encoding": trainer.get(MODEL_TYPE, 1) != BPE,
        "it has no byte fallback": not trainer.get(BYTE_FALLBACK, 0),
        "it changes characters before it splits": bool(normalizer.get(CHARACTER_MAP, b"")),
        "it does not begin texts with a space": not normalizer.get(BEGINS_WITH_SPACE, 1),
        "it removes extra spaces": bool(normalizer.get(REMOVES_SPACES, 1)),
        "it leaves spaces as they are": not normalizer.get(ESCAPES_SPACES, 1),
        "it has user-defined or unused pieces": bool(strange),
    }
    for reason, found in reasons.items():
        if found:
            raise InputError(
                f"{path} is a tokenizer of another kind than LLaMA's and Mistral's ({reason}), and its "
                "token ids would come out differently."
            )


def _piece(fields: dict[int, Value]) -> Piece:
    text, score, kind = fields.get(PIECE_TEXT), fields.get(PIECE_SCORE, 0.0), fields.get(PIECE_KIND, NORMAL)
    if not isinstance(text, bytes) or not isinstance(score, float) or not isinstance(kind, int):
        raise ValueError("not a piece")
    return Piece(text.decode("utf-8"), score, kind)


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    """The fields of a protobuf message: number and raw value."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == 2:
            size, at = _varint(data, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")
        raw = data[at : at + size]
        if len(raw) != size:
            raise ValueError("the file ends inside a field")
        at += size
        yield number, struct.unpack("<f", raw)[0] if kind == 5 else raw


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number of seven bits per byte, lowest first, and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("number too long")


def build_tokenizer(vocabulary: Vocabulary, begin: str, more: list[str]) -> Tokenizer:
    """The same splitting as a fast tokenizer that begins every text with `begin`; `more` tokens are put after it.

    What stands after a special token begins with a space again, as in the original code, which splits the pieces of
    text around an image separately.
    """
    ids = {piece.text: number for number, piece in enumerate(vocabulary.pieces)}
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=list(_merges(vocabulary, ids)),
            unk_token=vocabulary.unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        f"{begin} $A", f"{begin} $A {begin} $B", [(begin, ids[begin])]
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, normalized=False, special=True) for text in (vocabulary.unknown, *vocabulary.controls, *more)]
    )
    return tokenizer


def _merges(vocabulary: Vocabulary, ids: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Pairs in the order of joining: sentencepiece joins the neighbours whose union scores highest."""
    normal = [piece for piece in vocabulary.pieces if piece.kind == NORMAL]
    joinable = {piece.text for piece in normal}
    for piece in sorted(normal, key=lambda piece: (-piece.score, ids[piece.text])):
        for cut in range(len(piece.text) - 1, 0, -1):
            left, right = piece.text[:cut], piece.text[cut:]
            if left in joinable and right in joinable:
                yield left, right
