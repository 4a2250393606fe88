"""Opening images that a data file names: below their root, of bearable size, whole, and as a viewer shows them."""

import io
from collections.abc import Callable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from transformers_agci.errors import InputError, short
from transformers_agci.storage.reading import open_file

MAX_PIXELS = 50_000_000  # 150 MB as RGB; a larger one is refused unread (decompression bombs)
MAX_BYTES = 1 << 29  # of an image's file

# Pillow's other formats bring external programs (EPS) or decoders that few have looked at.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")

# What may have to be done to an image before a model can see it; runs count it by these words.
ON_WHITE = "transparent parts laid on white"
FROM_16_BITS = "16 bits per pixel scaled to 8"
UPRIGHT = "turned upright as its EXIF orientation says"
FIRST_FRAME = "only the first of several frames"
CHANGES: Any = (
    "agci",
    "changes",
)  # the key in Image.info, which survives pickling; what a file says has texts for keys


class TooLarge(InputError):
    """An image with more pixels than are allowed."""


def resolve_below(root: Path | str, name: str, where: str) -> Path:
    """The path of `name` below `root`. The file itself need not exist.

    Raises InputError for an absolute name, one with "..", one that a symlink leads out of the root or in a circle, and
    one that no file can have. `where` ("rows.json:12") begins the message.
    """
    windows = PureWindowsPath(name)
    if not name or "\0" in name or name.startswith(("/", "\\")) or windows.drive or ".." in windows.parts:
        raise InputError(
            f"{where}: the path {short(name)} must be relative and without '..': it has to stay below {root}."
        )
    try:
        name.encode()
        base = Path(root).resolve()
        path = (base / name).resolve()
        path.is_file()  # asks the file system, which refuses what is too long
    except UnicodeEncodeError:
        raise InputError(f"{where}: no file can have the name {short(name)}.") from None
    except (OSError, RuntimeError) as error:  # RuntimeError: Python's word for a circle of links, up to 3.12
        reason = error.strerror if isinstance(error, OSError) else "a circle of links"
        raise InputError(f"{where}: the path {short(name)} cannot be followed ({reason}).") from None
    if not path.is_relative_to(base):
        raise InputError(
            f"{where}: {short(name)} is a link that leads out of {root} (to {path}); put the file itself below {root}."
        )
    return path


def check_plain_name(name: str, option: str) -> None:
    """InputError unless `name` can be a file's name in any folder: no "/", not "..", nothing unprintable."""
    if not name.isprintable() or len(name) > 200 or name in ("", ".", "..") or {"/", "\\"} & set(name):
        raise InputError(f"`{option}` must be a plain name without '/', but is {short(name)}.")


def open_image(path: Path | str, where: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image at `path` as a model sees it; see `visible_image`.

    Raises InputError when it is missing, not an image, truncated, or has more than `max_pixels` pixels.
    """
    return visible_image(read_image(path, where), f"{where}: the image {path}", max_pixels)


def read_image(path: Path | str, where: str) -> bytes:
    """The bytes of an image's file; a FIFO or device is refused and not waited for."""
    try:
        with open_file(path) as file:
            data = file.read(MAX_BYTES + 1)
    except InputError as error:
        if str(error).endswith("there is no such file."):
            raise InputError(f"{where}: the image {path} does not exist.") from None
        raise InputError(
            f"{where}: the image {path} cannot be read ({str(error).split(': ')[-1].rstrip('.')})."
        ) from None
    except OSError as error:
        raise InputError(f"{where}: the image {path} cannot be read ({error.strerror}).") from None
    if len(data) > MAX_BYTES:
        raise TooLarge(f"{where}: the image {path} is a file of more than {MAX_BYTES >> 20} MiB.")
    return data


def image_size(path: Path, where: str) -> tuple[int, int]:
    """The (width, height) of an image whose every byte was read once, before it is turned upright.

    A JPEG is decoded at a fraction of its size: quick, and a cut or broken one is still found. Raises as `open_image`.
    """
    data = read_image(path, where)
    decode_image(data, f"{where}: the image {path}", draft=1)
    return Image.open(io.BytesIO(data), formats=FORMATS).size


def visible_image(data: bytes, what: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The image in a file's bytes as RGB, as a viewer shows it: upright, on white; `what` names it in an error.

    What had to be done to it is in `changes_of`. transformers' own `load_image` turns images upright too, but drops
    the alpha channel, which shows colours that nobody has seen.
    """
    image = decode_image(data, what, max_pixels)
    changes = [FIRST_FRAME] if _has_frames(image) else []
    upright = turned_upright(image)
    if upright is not image:
        changes.append(UPRIGHT)
    rgb = as_rgb(upright, what)
    rgb.info = {CHANGES: (*changes, *changes_of(rgb))}
    return rgb


def changes_of(image: Image.Image) -> tuple[str, ...]:
    """What had to be done to an image of `visible_image` or `as_rgb`; () for most."""
    return tuple(image.info.get(CHANGES, ()))


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


def turned_upright(image: Image.Image) -> Image.Image:
    """The image as its EXIF orientation says; the very same where that says nothing or cannot be read."""
    if _or_none(lambda: image.getexif().get(0x0112, 1)) in (None, 1):
        return image
    return _or_none(lambda: ImageOps.exif_transpose(image)) or image


def as_rgb(image: Image.Image, what: str, background: str = "white") -> Image.Image:
    """A decoded image as RGB: transparent parts show the background, 16 bits are scaled to 8.

    Raises InputError for pixels of unknown range (32-bit and floating-point TIFF) and for colour spaces that Pillow
    does not convert.
    """
    changes = []
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image = _from_16_bits(image)
        changes.append(FROM_16_BITS)
    if image.mode in ("I", "F"):
        kind = "floating-point numbers" if image.mode == "F" else "32-bit numbers"
        raise InputError(f"{what} has {kind} for pixels, of which nobody knows which is white; save it with 8 bits.")
    try:
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.new("RGBA", rgba.size, background)
            image.alpha_composite(rgba)
            if rgba.getchannel("A").getextrema() != (255, 255):
                changes.append(ON_WHITE)
        rgb = image if image.mode == "RGB" else image.convert("RGB")
    except ValueError:
        raise InputError(
            f"{what} has pixels of the kind {image.mode}, which cannot be shown; save it as RGB."
        ) from None
    if changes:
        rgb.info = {CHANGES: tuple(changes)}
    return rgb


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Grey of 0..65535 as grey of 0..255; the transparent grey of a PNG keeps being transparent."""
    grey = np.asarray(image).astype(np.uint32)
    scaled = Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        scaled.putalpha(Image.fromarray(np.where(grey == transparent, 0, 255).astype(np.uint8)))
    return scaled


def _has_frames(image: Image.Image) -> bool:
    return bool(_or_none(lambda: getattr(image, "is_animated", False)))


def _or_none(read: Callable[[], Any]) -> Any:
    """What `read` gives; None where Pillow cannot make sense of the image's metadata."""
    try:
        return read()
    except Exception:
        return None


def _unreadable(what: str, error: Exception) -> InputError:
    if isinstance(error, Image.DecompressionBombError):
        return TooLarge(f"{what} has more pixels than are allowed.")
    if isinstance(error, Image.UnidentifiedImageError):
        return InputError(f"{what} is not an image that can be read ({', '.join(FORMATS)}).")
    return InputError(f"{what} is broken or truncated ({error}).")
