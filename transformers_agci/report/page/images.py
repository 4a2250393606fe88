"""Images of a page: thumbnails as JPEG, maps as small PNGs, both as data URIs or as files beside the page."""

import base64
import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from transformers_agci.report.heatmap import Scale

SIDE = 252  # pixels of a thumbnail in the page
FOLDER_SIDE = 420  # pixels of one beside it
QUALITY = 72


def jpeg(image: Image.Image, side: int) -> bytes:
    """An RGB image as a JPEG of at most `side` pixels; the image itself is made smaller."""
    image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def jpeg_uri(content: bytes) -> str:
    """A JPEG as a data URI."""
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


def map_uri(values: NDArray[np.floating], scale: Scale) -> str:
    """A map [rows, cols] as a PNG of one pixel per value, in the colours of its scale."""
    from matplotlib import colormaps

    share = (values - scale.low) / ((scale.high - scale.low) or 1)
    pixels = (255 * colormaps[scale.colours](np.clip(share, 0, 1))[..., :3]).round().astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).quantize(64, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
