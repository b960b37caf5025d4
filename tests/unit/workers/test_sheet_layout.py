"""What the sheets share: pictures from tensors, and columns laid out in bands."""

import pytest
import torch
from PIL import Image

from workers.artifacts.bands import FAILURE_GAP, Column, Layout, Row, Sheet, compose
from workers.artifacts.drawing import GAP, PAPER, as_bytes, cell_side, picture

SIDE = 84
BLANK = torch.zeros(1, 28, 28, dtype=torch.uint8)


def a_sheet(hits: int, failures: int = 0, title: str = "title", **settings: object) -> Sheet:
    """Columns of two blank pictures each; failures must be even."""
    columns = [Column(("1",), (BLANK, BLANK), failure=False)] * hits
    columns += [Column(("1",), (BLANK, BLANK), failure=True)] * failures
    rows = (Row("input"), Row("drawing"))
    return Sheet(title, columns, head=("label",), rows=rows, **settings)


def colours_of(picture: Image.Image) -> set[tuple[int, ...]]:
    return {colour for _, colour in picture.getcolors(1_000_000)}


@pytest.mark.parametrize(
    ("height", "width", "about", "side"),
    [
        (28, 28, 84, 84),
        (36, 36, 84, 72),
        (36, 36, 100, 108),
        (5, 5, 84, 85),
        (20, 30, 84, 90),
        (84, 84, 84, 84),
        (512, 300, 84, 84),
    ],
)
def test_pixels_become_whole_squares(height: int, width: int, about: int, side: int) -> None:
    assert cell_side(torch.zeros(1, height, width), about) == side


def test_a_picture_enlarges_each_pixel() -> None:
    image = torch.arange(4, dtype=torch.uint8).view(1, 2, 2) * 50
    enlarged = picture(image, 6)
    assert enlarged.size == (6, 6)
    for row in range(6):
        for column in range(6):
            grey = int(image[0, row // 3, column // 3])
            assert enlarged.getpixel((column, row)) == (grey, grey, grey)


def test_three_channels_are_colours_and_others_are_averaged() -> None:
    image = torch.zeros(3, 4, 4, dtype=torch.uint8)
    image[0] = 250
    assert colours_of(picture(image, 8)) == {(250, 0, 0)}
    image = torch.tensor([250, 10], dtype=torch.uint8).view(2, 1, 1).expand(2, 4, 4)
    assert colours_of(picture(image, 8)) == {(130, 130, 130)}


def test_a_picture_that_is_not_square_keeps_its_shape() -> None:
    shown = picture(torch.zeros(1, 2, 4, dtype=torch.uint8), 8)
    assert shown.size == (8, 8)
    black = [row for row in range(8) if shown.getpixel((4, row)) == (0, 0, 0)]
    assert black == [2, 3, 4, 5]
    assert colours_of(shown) == {(0, 0, 0), PAPER}


def test_a_large_picture_is_made_smaller() -> None:
    stripes = torch.zeros(1, 64, 64, dtype=torch.uint8)
    stripes[:, ::2] = 200
    assert colours_of(picture(stripes, 32)) == {(100, 100, 100)}


def test_values_become_bytes() -> None:
    values = torch.tensor([-0.01, 0, 0.5, 1, 1.001], dtype=torch.bfloat16)
    assert as_bytes(values).tolist() == [0, 0, 128, 255, 255]


def test_a_sheet_grows_with_its_columns_and_then_by_bands() -> None:
    few, more = Layout(a_sheet(6)), Layout(a_sheet(7))
    assert more.size == (few.size[0] + SIDE + GAP, few.size[1])
    failed = Layout(a_sheet(5, failures=2))
    assert failed.size == (more.size[0] + FAILURE_GAP, more.size[1])
    two_bands = Layout(a_sheet(14))
    assert two_bands.size[0] == more.size[0]
    assert two_bands.size[1] > 1.7 * more.size[1]
    assert Layout(a_sheet(14, band_columns=14)).bands == 1


def test_no_two_columns_overlap_and_failures_are_right_of_the_line() -> None:
    for hits in range(20):
        for pairs in range(0 if hits else 1, 4):
            sheet = a_sheet(hits, 2 * pairs)
            layout = Layout(sheet)
            assert len(set(layout.places)) == len(layout.places) == len(sheet.columns)
            width, height = layout.size
            bottom = layout.row(len(sheet.rows))
            assert all(x + SIDE <= width and y + bottom <= height for x, y in layout.places)
            assert (layout.line is not None) == (hits > 0 and pairs > 0)
            if layout.line is not None:
                assert all(x + SIDE < layout.line for x, _ in layout.places[:hits])
                assert all(x > layout.line for x, _ in layout.places[hits:])


def test_both_columns_of_a_failure_stand_side_by_side() -> None:
    for pairs in range(1, 8):
        places = Layout(a_sheet(3, 2 * pairs)).places[3:]
        for (left, top), (right, same) in zip(places[::2], places[1::2], strict=True):
            assert (right, same) == (left + SIDE + GAP, top)


def test_a_long_title_makes_room() -> None:
    assert Layout(a_sheet(1, title="word " * 40)).size[0] > 2 * Layout(a_sheet(1)).size[0]


def test_pictures_stand_below_each_other_and_a_row_shows_its_colour() -> None:
    greys = [torch.full((1, 28, 28), grey, dtype=torch.uint8) for grey in (200, 77)]
    column = Column(("1",), tuple(greys), failure=False)
    rows = (Row("input"), Row("drawing", (1, 2, 250)))
    sheet = Sheet("title", [column], head=("label",), rows=rows)
    layout, painted = Layout(sheet), compose(sheet)
    left, top = layout.places[0]
    for number, grey in enumerate((200, 77)):
        middle = (left + SIDE // 2, top + layout.row(number) + SIDE // 2)
        assert painted.getpixel(middle) == (grey,) * 3
    assert (1, 2, 250) in colours_of(painted)
