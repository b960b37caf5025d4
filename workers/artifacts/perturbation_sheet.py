"""The perturbation sheet (figure 4 of the paper): what each dimension of a capsule stands for.

One image that was recognised; one row for each dimension of its class's capsule, and in the eleven
columns what is drawn when a number is added to that dimension. The column in the frame adds 0.
"""

from dataclasses import dataclass
from math import ceil

from PIL import Image, ImageDraw
from torch import Tensor

from capsmodel.analysis import perturb, reconstruct
from capsmodel.model import Model
from workers.artifacts import Artifact, View
from workers.artifacts.drawing import (
    GAP,
    INK,
    MARGIN,
    PAPER,
    QUIET,
    TITLE_HEIGHT,
    as_bytes,
    cell_side,
    font,
    picture,
    text_width,
)
from workers.specs import PerturbationSheetConfig

COLUMNS = 11
MAX_DIMS = 32
BLOCK_ROWS = 16
"""Dimensions below each other; more stand in a second block beside the first."""
ABOUT = 56
PANEL_ABOUT = 84
"""Input and reconstruction stand in a panel at the left, larger."""
PANEL_WIDTH = 112
NAME_WIDTH = 50
HEAD_HEIGHT = 24
LINE_HEIGHT = 20
NARROW = 4
"""Distance between drawings."""
TITLE_SIZE = 18
NAME_SIZE = 13


@dataclass(frozen=True)
class Perturbed:
    """All that stands on a sheet."""

    title: str
    image: Tensor
    """uint8 `[C, H, W]`."""
    reconstruction: Tensor
    """uint8 `[C, H, W]`."""
    drawings: Tensor
    """uint8 `[D, 11, C, H, W]`."""
    offsets: list[float]
    """What the columns add, ascending; 0 in the middle."""


class PerturbationSheet(Artifact):
    """Composes the sheet; see `workers.specs.PerturbationSheetConfig`."""

    name = "perturbation-sheet"

    def __init__(self, config: PerturbationSheetConfig) -> None:
        self.config = config
        middle = COLUMNS // 2
        self.offsets = [config.largest * (k - middle) / middle for k in range(COLUMNS)]

    def suits(self, model: Model) -> bool:
        """Where the model draws; of two digits the first is drawn."""
        return model.draws

    def due(self, epoch: int) -> bool:
        """After every `every_epochs`-th epoch, if that is set."""
        every = self.config.every_epochs
        return every is not None and epoch % every == 0

    def make(self, view: View) -> Image.Image:
        """The sheet of a part of the data, as the model sees it now."""
        return compose(self.perturbed(view))

    def perturbed(self, view: View) -> Perturbed:
        """What stands on it."""
        index = _example(view)
        image = view.examples.images[index]
        chosen = image.unsqueeze(0).float() / 255
        labels = view.examples.labels[index].view(-1)
        target = labels[:1]
        drawings = perturb(view.model, chosen, target, self.offsets)[0]
        return Perturbed(
            _title(view, labels.tolist(), bool(view.recognised[index]), len(drawings)),
            image,
            as_bytes(reconstruct(view.model, chosen, target))[0],
            as_bytes(drawings[:MAX_DIMS]),
            self.offsets,
        )


def _example(view: View) -> int:
    """The recognised image nearest to the middle of the examples; without one, the middle.

    It is mostly the same from epoch to epoch, so that sheets can be compared.
    """
    middle = len(view.recognised) // 2
    recognised: list[int] = view.recognised.nonzero().flatten().tolist()
    return min(recognised, key=lambda index: abs(index - middle), default=middle)


def _title(view: View, labels: list[int], recognised: bool, dims: int) -> str:
    among = f" in ({labels[0]}, {labels[1]})" if len(labels) > 1 else ""
    parts = [view.part, f"epoch {view.epoch}", f"the capsule of the {labels[0]}{among}"]
    if not recognised:
        parts.append("not recognised")
    if dims > MAX_DIMS:
        parts.append(f"the first {MAX_DIMS} of {dims} dimensions")
    return " · ".join(parts)


class Layout:
    """Where the drawings stand: in blocks beside each other, right of the panel."""

    def __init__(self, shown: Perturbed) -> None:
        """Lay out as many dimensions as there are drawings."""
        dims = len(shown.drawings)
        self.side = cell_side(shown.image, ABOUT)
        self.panel_side = cell_side(shown.image, PANEL_ABOUT)
        self.blocks = ceil(dims / BLOCK_ROWS)
        self.block_rows = ceil(dims / self.blocks)
        self.step = self.side + NARROW
        self.first = MARGIN + max(PANEL_WIDTH, self.panel_side + MARGIN)
        self.block_width = NAME_WIDTH + COLUMNS * self.step + MARGIN
        self.top = TITLE_HEIGHT + HEAD_HEIGHT
        title_width = 2 * MARGIN + text_width(shown.title, TITLE_SIZE)
        panel_height = TITLE_HEIGHT + 2 * (LINE_HEIGHT + self.panel_side + GAP)
        self.size = (
            max(self.first + self.blocks * self.block_width, title_width),
            max(self.top + self.block_rows * self.step, panel_height) + MARGIN,
        )

    def column(self, block: int, number: int) -> int:
        """Left edge of a column of drawings."""
        return self.first + block * self.block_width + NAME_WIDTH + number * self.step

    def place(self, dim: int, number: int) -> tuple[int, int]:
        """Upper left corner of a drawing."""
        block, row = divmod(dim, self.block_rows)
        return self.column(block, number), self.top + row * self.step


def compose(shown: Perturbed) -> Image.Image:
    """Paint the sheet."""
    layout = Layout(shown)
    sheet = Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 12), shown.title, INK, font(TITLE_SIZE))
    _paint_panel(sheet, pen, layout, shown)
    for block in range(layout.blocks):
        _paint_offsets(pen, layout, block, shown.offsets)
    for dim, drawings in enumerate(shown.drawings):
        left, top = layout.place(dim, 0)
        middle = (left - 2 * NARROW, top + layout.side // 2)
        pen.text(middle, f"dim {dim + 1}", QUIET, font(NAME_SIZE), anchor="rm")
        for number, drawing in enumerate(drawings):
            sheet.paste(picture(drawing, layout.side), layout.place(dim, number))
    for block in range(layout.blocks):
        _paint_frame(pen, layout, block, len(shown.drawings))
    return sheet


def _paint_panel(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, layout: Layout, shown: Perturbed
) -> None:
    top = TITLE_HEIGHT
    for name, image in (("input", shown.image), ("reconstruction", shown.reconstruction)):
        pen.text((MARGIN, top + 4), name, QUIET, font(NAME_SIZE))
        sheet.paste(picture(image, layout.panel_side), (MARGIN, top + LINE_HEIGHT + 4))
        top += LINE_HEIGHT + layout.panel_side + GAP


def _paint_offsets(
    pen: ImageDraw.ImageDraw, layout: Layout, block: int, offsets: list[float]
) -> None:
    for number, offset in enumerate(offsets):
        text, ink = (f"{offset:+.2g}", QUIET) if offset else ("0", INK)
        middle = (layout.column(block, number) + layout.side // 2, layout.top - 8)
        pen.text(middle, text, ink, font(NAME_SIZE), anchor="ms")


def _paint_frame(pen: ImageDraw.ImageDraw, layout: Layout, block: int, dims: int) -> None:
    """A frame around the column that adds 0."""
    first = block * layout.block_rows
    last = min(first + layout.block_rows, dims) - 1
    left, top = layout.place(first, COLUMNS // 2)
    _, bottom = layout.place(last, COLUMNS // 2)
    corners = [left - 3, top - 3, left + layout.side + 2, bottom + layout.side + 2]
    pen.rectangle(corners, outline=INK, width=2)
