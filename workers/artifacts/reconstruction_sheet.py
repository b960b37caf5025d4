"""The reconstruction sheet (figure 3 of the paper): images above what their capsules draw.

A column is headed (l, p, r): the label, the prediction, and the class whose capsule was drawn. On
the left classes that were recognised; on the right failures, each once with r = p and once with
r = l.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from workers.artifacts import Artifact, View, evaluating
from workers.specs import ReconstructionSheetConfig

SIDE = 84
GAP = 6
MARGIN = 16
TITLE_HEIGHT = 40
HEADER_HEIGHT = 64
ROW_LABEL_WIDTH = 118
FAILURE_GAP = 26
BAND_COLUMNS = 7
MIN_WIDTH = 420

PAPER = (255, 255, 255)
INK = (33, 37, 41)
QUIET = (108, 117, 125)
GOOD = (25, 110, 60)
BAD = (176, 42, 55)

PREDICT_BATCH = 250


@dataclass(frozen=True)
class Column:
    """One column of the sheet."""

    image: Tensor
    """uint8 `[C, H, W]`."""
    label: int
    prediction: int
    drawn: int

    @property
    def failure(self) -> bool:
        """Whether the prediction is wrong."""
        return self.label != self.prediction


class ReconstructionSheet(Artifact):
    """Composes the sheet; see `workers.specs.ReconstructionSheetConfig`."""

    name = "reconstruction-sheet"

    def __init__(self, config: ReconstructionSheetConfig) -> None:
        self.config = config

    def due(self, epoch: int) -> bool:
        """After every `every_epochs`-th epoch."""
        return epoch % self.config.every_epochs == 0

    def make(self, view: View) -> Image.Image:
        """The sheet of a part of the data, as the model sees it now."""
        with evaluating(view.model):
            predictions = _predict(view)
            columns = self._choose(view, predictions)
            drawings = _draw(view, columns)
        wrong = int((predictions != view.labels).sum())
        title = (
            f"{view.part} · epoch {view.epoch} · "
            f"{len(view.labels) - wrong} of {len(view.labels)} recognised"
        )
        return compose(columns, drawings, title)

    def _choose(self, view: View, predictions: Tensor) -> list[Column]:
        """Examples of as many classes as fit, then failures, at most a third of the columns."""
        correct = predictions == view.labels
        failed = _class_by_class(view.labels, ~correct)[: max(1, self.config.columns // 6)]
        room = max(0, self.config.columns - 2 * len(failed))
        shown = _class_by_class(view.labels, correct)[:room]
        columns = [_column(view, predictions, i, drawn="p") for i in shown]
        for index in failed:
            columns += [_column(view, predictions, index, drawn=drawn) for drawn in ("p", "l")]
        return columns


def _class_by_class(labels: Tensor, chosen: Tensor) -> list[int]:
    """Indices of the chosen images: the first of each class, then the second of each, ..."""
    seen: dict[int, int] = {}
    ranked = []
    for index in torch.nonzero(chosen).flatten().tolist():
        label = int(labels[index])
        seen[label] = seen.get(label, 0) + 1
        ranked.append((seen[label], label, index))
    return [index for _, _, index in sorted(ranked)]


def _column(view: View, predictions: Tensor, index: int, drawn: str) -> Column:
    label, prediction = int(view.labels[index]), int(predictions[index])
    return Column(view.images[index], label, prediction, prediction if drawn == "p" else label)


@torch.no_grad()
def _predict(view: View) -> Tensor:
    batches = torch.split(view.images, PREDICT_BATCH)
    lengths = [view.model(batch.float() / 255).lengths for batch in batches]
    return torch.cat(lengths).argmax(dim=1)


@torch.no_grad()
def _draw(view: View, columns: list[Column]) -> Tensor | None:
    """uint8 `[columns, C, H, W]`; None where the model has no decoder."""
    images = torch.stack([column.image for column in columns]).float() / 255
    target = torch.tensor([column.drawn for column in columns], device=images.device)
    drawings: Tensor | None = view.model(images, target).reconstruction
    if drawings is None:
        return None
    as_bytes: Tensor = (drawings.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    return as_bytes


def compose(columns: list[Column], drawings: Tensor | None, title: str) -> Image.Image:
    """Lay the sheet out, enlarged so that a pixel of a 28x28 image is seen."""
    layout = Layout(columns, rows=1 if drawings is None else 2)
    sheet = Image.new("RGB", layout.size, PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, 12), title, INK, _font(18))
    for band in range(layout.bands):
        _paint_names(pen, layout, band)
    if layout.line is not None:
        pen.line([(layout.line, TITLE_HEIGHT), (layout.line, layout.size[1] - MARGIN)], BAD)
    for index, (column, place) in enumerate(zip(columns, layout.places, strict=True)):
        drawing = drawings[index] if drawings is not None else None
        _paint_column(sheet, pen, place, column, drawing)
    return sheet


class Layout:
    """Where each column stands: in bands below each other, failures at the right of each.

    Bands keep the sheet about as high as wide, which is the room that viewers give a picture.
    """

    def __init__(self, columns: list[Column], rows: int) -> None:
        """Lay out recognised columns, then failures in pairs; `rows` of images in a band."""
        failures = sum(column.failure for column in columns)
        hits = len(columns) - failures
        self.rows = rows
        self.bands = max(1, ceil(len(columns) / BAND_COLUMNS))
        hits_a_band = ceil(hits / self.bands)
        failures_a_band = 2 * ceil(failures / 2 / self.bands)
        left_of_failures = ROW_LABEL_WIDTH + hits_a_band * (SIDE + GAP)
        self.line = left_of_failures + FAILURE_GAP // 2 - GAP if hits and failures else None
        left_of_failures += FAILURE_GAP if self.line is not None else 0
        self.places = [
            *_grid(hits, hits_a_band, ROW_LABEL_WIDTH, self.top),
            *_grid(failures, failures_a_band, left_of_failures, self.top),
        ]
        width = left_of_failures + failures_a_band * (SIDE + GAP) + MARGIN
        self.size = (max(width, MIN_WIDTH), self.top(self.bands) + MARGIN)

    def top(self, band: int) -> int:
        """Upper edge of a band, in pixels."""
        return TITLE_HEIGHT + band * (HEADER_HEIGHT + self.rows * (SIDE + GAP) + GAP)


def _grid(
    count: int, a_band: int, left: int, top: Callable[[int], int]
) -> Iterator[tuple[int, int]]:
    for index in range(count):
        yield left + index % a_band * (SIDE + GAP), top(index // a_band)


def _paint_names(pen: ImageDraw.ImageDraw, layout: Layout, band: int) -> None:
    top = layout.top(band)
    for line, name in enumerate(("label  l", "predicted  p", "drawn from  r")):
        pen.text((MARGIN, top + 6 + 19 * line), name, QUIET, _font(13))
    for row, name in enumerate(["input", "reconstruction"][: layout.rows]):
        middle = top + HEADER_HEIGHT + row * (SIDE + GAP) + SIDE // 2
        pen.text((MARGIN, middle), name, QUIET, _font(13), anchor="lm")


def _paint_column(
    sheet: Image.Image,
    pen: ImageDraw.ImageDraw,
    place: tuple[int, int],
    column: Column,
    drawing: Tensor | None,
) -> None:
    left, top = place
    colour = BAD if column.failure else GOOD
    for line, value in enumerate((column.label, column.prediction, column.drawn)):
        ink = INK if line == 0 else colour
        middle = (left + SIDE // 2, top + 4 + 19 * line)
        pen.text(middle, str(value), ink, _font(16), anchor="ma")
    sheet.paste(_picture(column.image.cpu()), (left, top + HEADER_HEIGHT))
    if drawing is not None:
        sheet.paste(_picture(drawing), (left, top + HEADER_HEIGHT + SIDE + GAP))


def _picture(image: Tensor) -> Image.Image:
    """An enlarged picture from uint8 `[C, H, W]`: grey, or colour with three channels."""
    array = image.numpy()
    picture = Image.fromarray(array.transpose(1, 2, 0) if len(array) == 3 else array[0])
    return picture.resize((SIDE, SIDE), Image.Resampling.NEAREST).convert("RGB")


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
