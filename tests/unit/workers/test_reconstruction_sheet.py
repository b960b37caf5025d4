"""The reconstruction sheet: which images it shows, and how it is laid out."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from capsmodel.config import CapsNetConfig
from capsmodel.model import CapsNetOutput, Model
from workers.artifacts import View, build_artifacts
from workers.artifacts.reconstruction_sheet import (
    FAILURE_GAP,
    GAP,
    SIDE,
    Column,
    Layout,
    ReconstructionSheet,
    compose,
)
from workers.specs import ReconstructionSheetConfig

CLASSES = 10


class Teller(Model):
    """Reads the class off the first pixel, and draws the target's number as a grey."""

    def __init__(self, channels: int = 1, draws: bool = True) -> None:
        super().__init__(CapsNetConfig(image_shape=(channels, 28, 28), classes=CLASSES))
        self.draws = draws

    def compute(self, images: Tensor, target: Tensor | None = None) -> CapsNetOutput:
        said = (images[:, 0, 0, 0] * 255).round().long()
        lengths = torch.nn.functional.one_hot(said, CLASSES).float()
        poses = torch.zeros(len(images), CLASSES, 4)
        target = said if target is None else target
        return CapsNetOutput(lengths, poses, self.reconstruct(poses, target))

    def reconstruct(self, poses: Tensor, target: Tensor) -> Tensor | None:
        if not self.draws:
            return None
        grey = target.float() / 255
        return grey[:, None, None, None].expand(-1, *self.image_shape)


def a_view(
    said: list[int], labels: list[int] | None = None, channels: int = 1, draws: bool = True
) -> View:
    images = torch.full((len(said), channels, 28, 28), 200, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(said, dtype=torch.uint8)
    model = Teller(channels, draws)
    return View(model, images, torch.tensor(labels or said), "validation", 3)


def columns_of(sheet: ReconstructionSheet, view: View) -> list[Column]:
    said = view.images[:, 0, 0, 0].long()
    return sheet._choose(view, said)


def a_sheet(columns: int = 14) -> ReconstructionSheet:
    return ReconstructionSheet(ReconstructionSheetConfig(columns=columns))


def test_every_class_is_shown_before_one_is_shown_twice() -> None:
    sorted_by_class = [label for label in range(CLASSES) for _ in range(5)]
    shown = columns_of(a_sheet(14), a_view(sorted_by_class))
    assert [c.label for c in shown] == [*range(10), *range(4)]
    assert all((c.label, c.prediction, c.drawn) == (c.label,) * 3 for c in shown)


def test_failures_stand_at_the_right_drawn_as_predicted_and_as_labelled() -> None:
    labels = [*range(CLASSES)] * 4
    said = [*labels]
    said[3], said[14], said[25] = 8, 9, 0
    shown = columns_of(a_sheet(14), a_view(said, labels))
    assert [c.failure for c in shown] == [False] * 10 + [True] * 4
    assert [(c.label, c.prediction, c.drawn) for c in shown[10:]] == [
        (3, 8, 8),
        (3, 8, 3),
        (4, 9, 9),
        (4, 9, 4),
    ]
    assert torch.equal(shown[10].image, shown[11].image)


@pytest.mark.parametrize("columns", [2, 3, 14, 40])
def test_the_sheet_is_never_wider_than_asked(columns: int) -> None:
    labels = [*range(CLASSES)] * 4
    for said in (labels, [*labels[1:], 0], [*labels[:30], *labels[31:], 0]):
        assert 1 <= len(columns_of(a_sheet(columns), a_view(said, labels))) <= columns


def test_the_picture_grows_with_its_columns_and_then_by_bands() -> None:
    few = a_sheet(6).make(a_view([*range(6)]))
    more = a_sheet(7).make(a_view([*range(7)]))
    assert few.mode == "RGB"
    assert more.width - few.width == SIDE + GAP
    assert more.height == few.height
    failed = a_sheet(6).make(a_view([*range(6)], [*range(5), 7]))
    assert failed.width == few.width + FAILURE_GAP
    two_bands = a_sheet(14).make(a_view([*range(10)] * 2))
    assert two_bands.width == more.width
    assert two_bands.height > 1.7 * more.height


def test_no_two_columns_overlap_and_failures_are_right_of_the_line() -> None:
    image = torch.zeros(1, 28, 28, dtype=torch.uint8)
    for hits in range(20):
        for pairs in range(4):
            columns = [Column(image, 1, 1, 1)] * hits + [Column(image, 1, 2, 2)] * (2 * pairs)
            layout = Layout(columns, rows=2)
            assert len(set(layout.places)) == len(layout.places) == len(columns)
            width, height = layout.size
            assert all(x + SIDE <= width and y + SIDE <= height for x, y in layout.places)
            if layout.line is not None:
                assert all(x + SIDE < layout.line for x, _ in layout.places[:hits])
                assert all(x > layout.line for x, _ in layout.places[hits:])


def test_a_training_model_is_left_training() -> None:
    view = a_view([1, 2, 3])
    view.model.train()
    a_sheet().make(view)
    assert view.model.training


def test_the_drawing_stands_below_its_image() -> None:
    image = torch.full((1, 28, 28), 200, dtype=torch.uint8)
    drawing = torch.full((1, 1, 28, 28), 77, dtype=torch.uint8)
    sheet = compose([Column(image, 1, 1, 1)], drawing, "title")
    colours = {colour for _, colour in sheet.getcolors(100_000)}
    assert {(200, 200, 200), (77, 77, 77)} <= colours


def test_a_model_without_decoder_has_one_row() -> None:
    with_decoder = a_sheet().make(a_view([*range(7)]))
    without = a_sheet().make(a_view([*range(7)], draws=False))
    assert with_decoder.height - without.height == SIDE + GAP


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_number_of_channels_are_shown(channels: int) -> None:
    assert isinstance(a_sheet().make(a_view([1, 2, 3], channels=channels)), Image.Image)


def test_colours_stay_colours() -> None:
    image = torch.zeros(3, 28, 28, dtype=torch.uint8)
    image[0] = 250
    sheet = compose([Column(image, 1, 1, 1)], None, "title")
    assert (250, 0, 0) in {colour for _, colour in sheet.getcolors(100_000)}


@pytest.mark.parametrize("wrong", [0, 3])
def test_a_part_with_only_failures_or_hits_is_shown(wrong: int) -> None:
    said = [1, 2, 3]
    labels = [(label + (index < wrong)) for index, label in enumerate(said)]
    sheet = a_sheet().make(a_view(said, labels))
    assert sheet.height > SIDE


def test_it_is_due_every_so_many_epochs() -> None:
    (sheet,) = build_artifacts([ReconstructionSheetConfig(every_epochs=5)])
    assert [epoch for epoch in range(1, 13) if sheet.due(epoch)] == [5, 10]
