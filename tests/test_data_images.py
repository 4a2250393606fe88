"""The opening of images: what a model sees is what a viewer shows, and every complaint."""

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_data_reading import make_circle, make_fifo

from transformers_agci.data.images import (
    FIRST_FRAME,
    FROM_16_BITS,
    ON_WHITE,
    UPRIGHT,
    changes_of,
    decode_image,
    image_size,
    open_image,
    resolve_below,
    visible_image,
)
from transformers_agci.errors import InputError


def jpeg(size: tuple[int, int] = (40, 30), mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise(size, 50).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def test_an_image_is_opened_as_rgb(tmp_path: Path) -> None:
    for mode in ("RGB", "L", "CMYK"):
        (tmp_path / "a.jpg").write_bytes(jpeg(mode=mode))
        image = open_image(tmp_path / "a.jpg", "r:1")
        assert (image.mode, image.size) == ("RGB", (40, 30))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is not an image"),
        (jpeg()[:-200], "is broken or truncated"),
        (jpeg((200, 100)), "has 200x100 pixels, more than the 10000"),
    ],
)
def test_a_bad_image_is_one_sentence(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^r\.json:5: the image .*a\.jpg {message}"):
        open_image(path, "r.json:5", max_pixels=10_000)


def test_a_truncated_image_never_passes_silently() -> None:
    whole = jpeg()
    for length in range(len(whole) - 2):
        with pytest.raises(InputError):
            decode_image(whole[:length], "it")


def test_a_folder_is_not_a_image(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        open_image(tmp_path, "r:1")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey16(values: Any) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=np.uint16))


def half_transparent(mode: Any) -> Image.Image:
    """Red, of which the right half is transparent."""
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    return image.convert(mode)


RED_ON_WHITE = [(200, 0, 0), (255, 255, 255)]


@pytest.mark.parametrize(
    ("data", "pixels", "changes"),
    [
        (saved(grey16([0, 32768, 65535]), "PNG"), [(0,) * 3, (128,) * 3, (255,) * 3], (FROM_16_BITS,)),
        (saved(grey16([0, 257, 65535]), "TIFF"), [(0,) * 3, (1,) * 3, (255,) * 3], (FROM_16_BITS,)),
        (
            saved(grey16([0, 7, 65535]), "PNG", transparency=7),
            [(0,) * 3, (255,) * 3, (255,) * 3],
            (FROM_16_BITS, ON_WHITE),
        ),
        (saved(half_transparent("RGBA"), "PNG"), RED_ON_WHITE, (ON_WHITE,)),
        (saved(half_transparent("RGBA"), "WEBP", lossless=True), RED_ON_WHITE, (ON_WHITE,)),
        (saved(half_transparent("RGBA"), "TIFF"), RED_ON_WHITE, (ON_WHITE,)),
        (saved(half_transparent("RGBA"), "GIF"), RED_ON_WHITE, (ON_WHITE,)),
        (saved(Image.new("RGBA", (2, 1), (200, 0, 0, 255)), "PNG"), [(200, 0, 0)] * 2, ()),
        (saved(Image.new("LA", (1, 1), (7, 0)), "PNG"), [(255,) * 3], (ON_WHITE,)),
        (saved(Image.new("RGB", (1, 1), (1, 2, 3)).quantize(), "PNG"), [(1, 2, 3)], ()),
        (saved(Image.new("1", (1, 1), 1), "PNG"), [(255,) * 3], ()),
        (saved(Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "TIFF"), [(255, 0, 0)], ()),
    ],
)
def test_a_model_sees_what_a_viewer_shows(
    data: bytes, pixels: list[tuple[int, int, int]], changes: tuple[Any, ...]
) -> None:
    image = visible_image(data, "it")
    assert image.mode == "RGB"
    assert [image.getpixel((x, 0)) for x in range(image.width)] == pixels
    assert changes_of(image) == changes
    assert changes_of(pickle.loads(pickle.dumps(image))) == changes  # as a worker sends it


def test_an_image_stands_upright_and_only_its_first_frame_counts() -> None:
    lying = Image.new("RGB", (20, 10))
    exif = Image.Exif()
    exif[0x0112] = 6
    image = visible_image(saved(lying, "JPEG", exif=exif), "it")
    assert (image.size, changes_of(image)) == ((10, 20), (UPRIGHT,))
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind, options in (("GIF", {}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        animated = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        image = visible_image(animated, "it")
        assert (image.getpixel((0, 0)), changes_of(image)) == ((255, 0, 0), (FIRST_FRAME,)), kind


@pytest.mark.parametrize(("mode", "message"), [("F", "has floating-point numbers"), ("I", "has 32-bit numbers")])
def test_pixels_of_unknown_range_are_refused(mode: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^it {message} for pixels"):
        visible_image(saved(Image.new(mode, (2, 2), 1), "TIFF"), "it")


def test_a_text_in_a_file_cannot_pose_as_a_change() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("changes", "x")
    assert changes_of(visible_image(saved(Image.new("RGB", (1, 1)), "PNG", pnginfo=info), "it")) == ()


@pytest.mark.parametrize("size", [(1, 1), (100_000, 1), (1, 100_000)])
def test_thin_images_are_read(size: tuple[int, int]) -> None:
    assert visible_image(saved(Image.new("RGB", size), "PNG"), "it").size == size


@pytest.mark.parametrize("make", [make_fifo, make_circle, lambda path: path.symlink_to("/dev/zero")])
def test_an_image_that_is_no_file_is_not_waited_for(tmp_path: Path, make: Callable[..., Any]) -> None:
    make(tmp_path / "x.jpg")
    for read in (open_image, image_size):
        with pytest.raises(InputError, match=r"^r:1: the image .*x\.jpg cannot be read"):
            read(tmp_path / "x.jpg", "r:1")


@pytest.mark.parametrize("name", ["x" * 5000, "a/" * 2500 + "x", "\ud800.jpg", "circle", "circle/x.jpg"])
def test_a_name_that_leads_nowhere_is_one_sentence(tmp_path: Path, name: str) -> None:
    make_circle(tmp_path / "circle")
    with pytest.raises(InputError, match=r"^r:1: ") as error:
        open_image(resolve_below(tmp_path, name, "r:1"), "r:1")
    assert str(error.value).isprintable()


def test_draft_halves_a_large_jpeg_and_leaves_a_small_one() -> None:
    assert min(decode_image(jpeg((1200, 900)), "it", draft=270).size) >= 270
    assert decode_image(jpeg((512, 384)), "it", draft=270).size == (512, 384)
