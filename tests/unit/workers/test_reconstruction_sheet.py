"""The reconstruction sheet: which images it shows, and what stands above and below them."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from capsmodel.batch import Batch
from capsmodel.config import CapsNetConfig
from capsmodel.model import Model, ModelOutput
from workers.artifacts import View, build_artifacts
from workers.artifacts.bands import Column
from workers.artifacts.reconstruction_sheet import ReconstructionSheet
from workers.specs import ReconstructionSheetConfig

CLASSES = 10


class Teller(Model):
    """Reads the class off the first pixel, and draws the target's number as a grey."""

    def __init__(self, channels: int = 1, draws: bool = True, targets: int = 1) -> None:
        shape = (channels, 28, 28)
        super().__init__(CapsNetConfig(image_shape=shape, classes=CLASSES, targets=targets))
        self._draws = draws

    @property
    def draws(self) -> bool:
        return self._draws

    def compute(self, images: Tensor, target: Tensor | None = None) -> ModelOutput:
        said = (images[:, 0, 0, 0] * 255).round().long()
        lengths = torch.nn.functional.one_hot(said, CLASSES).float()
        poses = torch.zeros(len(images), CLASSES, 4)
        target = said if target is None else target
        return ModelOutput(lengths, poses, self.reconstruct(poses, target))

    def reconstruct(self, poses: Tensor, target: Tensor) -> Tensor | None:
        if not self.draws:
            return None
        grey = target.float() / 255
        return grey[:, None, None, None].expand(-1, *self.image_shape)


def a_view(
    said: list[int], labels: list[int] | None = None, channels: int = 1, draws: bool = True
) -> View:
    """Images of which `Teller` says `said`."""
    images = torch.full((len(said), channels, 28, 28), 200, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.tensor(said, dtype=torch.uint8)
    examples = Batch(images, torch.tensor(labels or said))
    return View(Teller(channels, draws), examples, "validation", 3)


def a_sheet(columns: int = 14) -> ReconstructionSheet:
    return ReconstructionSheet(ReconstructionSheetConfig(columns=columns))


def columns_of(sheet: ReconstructionSheet, view: View) -> list[Column]:
    return list(sheet.sheet(view).columns)


def test_every_class_is_shown_before_one_is_shown_twice() -> None:
    sorted_by_class = [label for label in range(CLASSES) for _ in range(5)]
    shown = columns_of(a_sheet(14), a_view(sorted_by_class))
    assert [c.head for c in shown] == [(str(c),) * 3 for c in [*range(10), *range(4)]]
    assert not any(c.failure for c in shown)


def test_failures_stand_at_the_right_drawn_as_predicted_and_as_labelled() -> None:
    labels = [*range(CLASSES)] * 4
    said = [*labels]
    said[3], said[14], said[25] = 8, 9, 0
    shown = columns_of(a_sheet(14), a_view(said, labels))
    assert [c.failure for c in shown] == [False] * 10 + [True] * 4
    heads = [" ".join(c.head) for c in shown[10:]]
    assert heads == ["3 8 8", "3 8 3", "4 9 9", "4 9 4"]
    assert torch.equal(shown[10].pictures[0], shown[11].pictures[0])


def test_images_stand_above_what_was_drawn_from_the_class_named_last() -> None:
    view = a_view([0, 1, 2, 5], [0, 1, 2, 4])
    for column in columns_of(a_sheet(), view):
        image, drawing = column.pictures
        label, prediction, drawn = map(int, column.head)
        index = view.examples.labels.tolist().index(label)
        assert torch.equal(image, view.examples.images[index])
        assert image[0, 0, 0] == prediction
        assert torch.equal(drawing, torch.full_like(drawing, drawn))


@pytest.mark.parametrize("columns", [2, 3, 14, 40])
def test_the_sheet_is_never_wider_than_asked(columns: int) -> None:
    labels = [*range(CLASSES)] * 4
    for said in (labels, [*labels[1:], 0], [*labels[:30], *labels[31:], 0]):
        assert 1 <= len(columns_of(a_sheet(columns), a_view(said, labels))) <= columns


def test_the_title_counts() -> None:
    view = a_view([1, 2, 3, 3], [1, 2, 3, 4])
    assert a_sheet().sheet(view).title == "validation · epoch 3 · 3 of 4 recognised"


def test_a_training_model_is_left_training() -> None:
    view = a_view([1, 2, 3])
    view.model.train()
    a_sheet().make(view)
    assert view.model.training


def test_a_model_without_decoder_has_one_row() -> None:
    sheet = a_sheet().sheet(a_view([*range(7)], draws=False))
    assert len(sheet.rows) == 1
    assert {len(column.pictures) for column in sheet.columns} == {1}
    with_decoder = a_sheet().make(a_view([*range(7)]))
    without = a_sheet().make(a_view([*range(7)], draws=False))
    assert without.width == with_decoder.width
    assert without.height < with_decoder.height


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_number_of_channels_are_shown(channels: int) -> None:
    assert isinstance(a_sheet().make(a_view([1, 2, 3], channels=channels)), Image.Image)


@pytest.mark.parametrize("wrong", [0, 3])
def test_a_part_with_only_failures_or_hits_is_shown(wrong: int) -> None:
    said = [1, 2, 3]
    labels = [(label + (index < wrong)) for index, label in enumerate(said)]
    sheet = a_sheet().make(a_view(said, labels))
    assert sheet.height > 200


@pytest.mark.parametrize("draws", [True, False])
def test_it_suits_models_of_one_class_an_image(draws: bool) -> None:
    assert a_sheet().suits(Teller(draws=draws))
    assert not a_sheet().suits(Teller(draws=draws, targets=2))


def test_it_is_due_every_so_many_epochs() -> None:
    (sheet,) = build_artifacts([ReconstructionSheetConfig(every_epochs=5)])
    assert [epoch for epoch in range(1, 13) if sheet.due(epoch)] == [5, 10]
