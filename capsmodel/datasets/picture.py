"""Decoding image files of any kind into bytes of one shape."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from capsmodel.datasets import DataCorruptError

MODES = {1: "L", 3: "RGB"}
"""Pillow's mode for each number of channels."""
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def decode(
    encoded: bytes | Path, shape: tuple[int, int, int], *, resize: bool, where: str
) -> Pixels:
    """Pixels of an image file.

    The picture is turned upright as its EXIF data say. Transparent parts are laid over black, the
    value of the zeros that pad images elsewhere. Of 16 bits a channel the upper eight count; 32-bit
    pixels are refused, for their range is not known. Of an animation the first image counts. Colour
    becomes grey by its luma (ITU-R 601), grey becomes colour by three equal channels.

    Args:
        encoded: The file's content, or its path.
        shape: Channels (1 grey, 3 colour), height and width of the result.
        resize: Scale a picture of another size to that of `shape` (bilinear, smoothed where it
            shrinks; its proportions are not kept) instead of refusing it.
        where: Names the image in errors.

    Returns:
        uint8 `[C, H, W]`.

    Raises:
        DataCorruptError: The file cannot be decoded, or the picture has another size.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    channels, height, width = shape
    try:
        with Image.open(BytesIO(encoded) if isinstance(encoded, bytes) else encoded) as file:
            upright = ImageOps.exif_transpose(file)
            picture = _over_black(_eight_bits(upright, file.format)).convert(MODES[channels])
    except UnidentifiedImageError as error:
        raise DataCorruptError(f"{where}: is no image of a known format") from error
    except Exception as error:  # decoders raise whatever they stumble on
        raise DataCorruptError(
            f"{where}: the image cannot be decoded: {type(error).__name__}: {error}"
        ) from error
    if picture.size != (width, height):
        if not resize:
            raise DataCorruptError(
                f"{where}: the image is {picture.height}x{picture.width} (height x width), "
                f"expected {height}x{width}: change image_shape, or set resize to true"
            )
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(height, width, channels).transpose(2, 0, 1)


def _eight_bits(picture: Any, file_format: str | None) -> Any:
    """The picture; of 16-bit grey the upper eight bits."""
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
    # Older versions of Pillow read the 16-bit grey of PNG and PPM into 32 bits.
    if not picture.mode.startswith("I;16") and file_format not in ("PNG", "PPM"):
        raise ValueError("its pixels have 32 bits, whose range is not known; expected 8 or 16")
    from PIL import Image

    return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))


def _over_black(picture: Any) -> Any:
    """The picture without transparency."""
    if not picture.has_transparency_data:
        return picture
    from PIL import Image

    black = Image.new("RGBA", picture.size, "black")
    return Image.alpha_composite(black, picture.convert("RGBA"))
