"""Opening images that a data file names: below their root, of bearable size, fully decoded."""

import io
from pathlib import Path, PureWindowsPath

from PIL import Image

from transformers_agci.errors import InputError, short

MAX_PIXELS = 50_000_000  # 150 MB as RGB; a larger one is refused unread (decompression bombs)

# Pillow's other formats bring external programs (EPS) or decoders that few have looked at.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")


class TooLarge(InputError):
    """An image with more pixels than are allowed."""


def resolve_below(root: Path | str, name: str, where: str) -> Path:
    """The path of `name` below `root`. The file itself need not exist.

    Raises InputError for an absolute name, one with "..", and one that a symlink leads out of the root.
    `where` ("rows.json:12") begins the message.
    """
    windows = PureWindowsPath(name)
    if not name or "\0" in name or name.startswith(("/", "\\")) or windows.drive or ".." in windows.parts:
        raise InputError(
            f"{where}: the path {short(name)} must be relative and without '..': it has to stay below {root}."
        )
    base = Path(root).resolve()
    path = (base / name).resolve()
    if not path.is_relative_to(base):
        raise InputError(
            f"{where}: {short(name)} is a link that leads out of {root} (to {path}); put the file itself below {root}."
        )
    return path


def open_image(path: Path | str, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image at `path` as RGB, fully decoded.

    Raises InputError when it is missing, not an image, truncated, or has more than `max_pixels` pixels.
    """
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{where}: the image {path} does not exist.") from None
    except OSError as error:
        raise InputError(f"{where}: the image {path} cannot be read ({error.strerror}).") from None
    return decode_image(data, f"{where}: the image {path}", max_pixels).convert("RGB")


def image_size(path: Path, where: str) -> tuple[int, int]:
    """The (width, height) of an image whose every byte was read once; raises as `open_image` does.

    A JPEG is decoded at a fraction of its size: quick, and a cut or broken one is still found.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return open_image(path, where).size
    what = f"{where}: the image {path}"
    decode_image(data, what, draft=1)
    return Image.open(io.BytesIO(data), formats=FORMATS).size


def decode_image(data: bytes, what: str, max_pixels: int = MAX_PIXELS, draft: int | None = None) -> Image.Image:
    """An image from its file's bytes, fully decoded, in its own mode; `what` names it in an error.

    `draft` allows a JPEG to be decoded at a fraction of its size that is still at least `draft` px on both sides:
    several times faster where a photograph is about to be made smaller.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise _unreadable(what, error) from None
    width, height = image.size
    if width * height > max_pixels:
        raise TooLarge(f"{what} has {width}x{height} pixels, more than the {max_pixels} that are allowed.")
    if draft is not None:
        image.draft(None, (draft, draft))
    try:
        image.load()
    except Exception as error:  # Pillow's decoders raise many kinds of exception on broken bytes
        raise _unreadable(what, error) from None
    return image


def _unreadable(what: str, error: Exception) -> InputError:
    if isinstance(error, Image.DecompressionBombError):
        return TooLarge(f"{what} has more pixels than are allowed.")
    if isinstance(error, Image.UnidentifiedImageError):
        return InputError(f"{what} is not an image that can be read ({', '.join(FORMATS)}).")
    return InputError(f"{what} is broken or truncated ({error}).")
