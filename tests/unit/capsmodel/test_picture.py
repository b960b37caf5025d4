"""Decoded image files against the pixels that were put into them."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from capsmodel.datasets import DataCorruptError
from capsmodel.datasets.picture import decode

GREY = np.random.default_rng(1).integers(256, size=(6, 5), dtype=np.uint8)
COLOUR = np.random.default_rng(2).integers(256, size=(6, 5, 3), dtype=np.uint8)


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(picture)
    file = BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def pixels(content: bytes, channels: int, size: tuple[int, int] = (6, 5), **options) -> np.ndarray:
    options = {"resize": False, "where": "row 7 of file", **options}
    return decode(content, (channels, *size), **options)


def luma(colour: np.ndarray) -> np.ndarray:
    """Grey of colours by ITU-R 601, before it's rounded."""
    return colour.astype(float) @ [0.299, 0.587, 0.114]


class TestColours:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
    def test_grey_and_colour_as_they_are(self, kind) -> None:
        np.testing.assert_array_equal(pixels(encoded(GREY, kind), 1)[0], GREY)
        expected = COLOUR.transpose(2, 0, 1)
        found = pixels(encoded(COLOUR, kind), 3)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, expected)

    def test_grey_becomes_three_equal_channels(self) -> None:
        np.testing.assert_array_equal(pixels(encoded(GREY), 3), np.stack([GREY] * 3))

    def test_colour_becomes_grey_by_its_luma(self) -> None:
        found = pixels(encoded(COLOUR), 1)[0]
        assert np.abs(found - luma(COLOUR)).max() < 0.51

    def test_a_palette_is_looked_up(self) -> None:
        palette = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
        palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
        expected = [[[10, 40, 70]], [[20, 50, 80]], [[30, 60, 90]]]
        np.testing.assert_array_equal(pixels(encoded(palette), 3, (1, 3)), expected)

    def test_bilevel_is_black_and_white(self) -> None:
        bilevel = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
        assert pixels(encoded(bilevel), 1, (1, 2)).tolist() == [[[0, 255]]]

    @pytest.mark.parametrize("alpha", [0, 255, 128])
    def test_transparent_parts_lie_over_black(self, alpha) -> None:
        layers = np.dstack([COLOUR, np.full((6, 5), alpha, np.uint8)])
        expected = COLOUR.transpose(2, 0, 1) * (alpha / 255)
        assert np.abs(pixels(encoded(layers), 3) - expected).max() <= 1
        grey = Image.merge("LA", [Image.fromarray(GREY), Image.new("L", (5, 6), alpha)])
        assert np.abs(pixels(encoded(grey), 1)[0] - GREY * (alpha / 255)).max() <= 1

    def test_a_transparent_colour_of_a_palette_lies_over_black(self) -> None:
        palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
        palette.putpalette([200, 200, 200, 100, 100, 100])
        assert pixels(encoded(palette, transparency=0), 1, (1, 2)).tolist() == [[[0, 100]]]

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_of_16_bits_the_upper_eight_count(self, kind) -> None:
        values = np.array([[0, 255, 256, 0x1234, 65535]], np.uint16)
        assert pixels(encoded(values, kind), 1, (1, 5)).tolist() == [[[0, 0, 1, 0x12, 255]]]

    @pytest.mark.parametrize("dtype", [np.int32, np.float32])
    def test_32_bits_are_refused(self, dtype) -> None:
        with pytest.raises(DataCorruptError, match=r"row 7 of file: .* 32 bits"):
            pixels(encoded(GREY.astype(dtype), "TIFF"), 1)


class TestShape:
    def test_turned_upright_by_exif(self) -> None:
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned: the first row is the right side
        found = pixels(encoded(GREY, exif=exif), 1, (5, 6))
        np.testing.assert_array_equal(found[0], np.rot90(GREY, -1))

    def test_of_an_animation_the_first_image(self) -> None:
        frames = [Image.new("L", (5, 6), value) for value in (40, 90)]
        found = pixels(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), 1)
        assert np.unique(found).tolist() == [40]

    def test_another_size_is_refused(self) -> None:
        with pytest.raises(DataCorruptError, match=r"row 7 of file: .* 6x5 .* 4x5: .* resize"):
            pixels(encoded(GREY), 1, (4, 5))

    def test_resized_bilinearly(self) -> None:
        """Twice as large, each pixel is 3/4 of the nearest one and 1/4 of the next."""
        ramp = np.array([[0, 100, 200]], np.uint8)
        found = pixels(encoded(ramp), 1, (1, 6), resize=True)
        assert found.tolist() == [[[0, 25, 75, 125, 175, 200]]]

    def test_shrinking_averages(self) -> None:
        checks = (np.indices((8, 8)).sum(axis=0) % 2 * 200).astype(np.uint8)
        found = pixels(encoded(checks), 1, (2, 2), resize=True)
        assert np.abs(found - 100.0).max() <= 10


class TestDamage:
    def test_no_image(self) -> None:
        with pytest.raises(DataCorruptError, match="row 7 of file: is no image of a known format"):
            pixels(b"GIF or so", 1)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP"])
    def test_truncated(self, kind) -> None:
        content = encoded(np.kron(GREY, np.ones((9, 9), np.uint8)), kind)
        with pytest.raises(DataCorruptError, match="row 7 of file: the image cannot be decoded"):
            pixels(content[: len(content) * 2 // 3], 1, (54, 45))

    def test_a_missing_file(self, tmp_path) -> None:
        with pytest.raises(DataCorruptError, match="cannot be decoded: FileNotFoundError"):
            decode(tmp_path / "none.png", (1, 6, 5), resize=False, where="row 7")
