"""Affine MNIST against transforms computed by numpy, and the ranges of what is drawn."""

import hashlib
from itertools import product

import numpy as np
import pytest
import torch

from capsmodel.config import AffineMnistConfig
from capsmodel.datasets import load_dataset
from capsmodel.datasets.affine_mnist import (
    MAX_ANGLE,
    MAX_SHEAR,
    MAX_SHIFT,
    SCALES,
    Transformed,
    inverse_maps,
    transform_images,
)
from capsmodel.datasets.composition import Part
from capsmodel.datasets.expanded_mnist import Placed

IDENTITY = [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]


def parameters(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def bar(height: int = 16, width: int = 4) -> torch.Tensor:
    """An upright bar about the middle of one picture."""
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    top, left = 14 - height // 2, 14 - width // 2
    image[:, :, top : top + height, left : left + width] = 240
    return image


def noise(pictures: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(256, (pictures, 1, 28, 28), generator=generator, dtype=torch.uint8)


def forward_matrix(row: np.ndarray) -> np.ndarray:
    """Scale, then shear, then rotation of (x, y), y pointing down."""
    angle, shear, scale_y, scale_x, _, _ = row
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    rotation = np.array([[cos, -sin], [sin, cos]])
    return rotation @ np.array([[1, shear], [0, 1]]) @ np.diag([scale_x, scale_y])


def transformed_by_numpy(image: np.ndarray, row: np.ndarray, canvas: int = 40) -> np.ndarray:
    """One picture `[S, S]` on a canvas, pixel by pixel, before rounding."""
    side = len(image)
    inverse = np.linalg.inv(forward_matrix(row))
    result = np.zeros((canvas, canvas))
    for i, j in product(range(canvas), range(canvas)):
        centred = np.array([j, i]) - (canvas - 1) / 2 - row[[5, 4]]
        x, y = inverse @ centred + (side - 1) / 2
        for m in (int(np.floor(y)), int(np.floor(y)) + 1):
            for n in (int(np.floor(x)), int(np.floor(x)) + 1):
                if 0 <= m < side and 0 <= n < side:
                    result[i, j] += (1 - abs(y - m)) * (1 - abs(x - n)) * image[m, n]
    return result


def moments(image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Centre of mass (x, y) from the middle, and the covariance of the mass, of one picture."""
    mass = image[0].double().numpy()
    place = np.arange(len(mass)) - (len(mass) - 1) / 2
    x, y = np.meshgrid(place, place)
    centre = np.array([(mass * x).sum(), (mass * y).sum()]) / mass.sum()
    covariance = np.cov(np.stack([x.ravel(), y.ravel()]), aweights=mass.ravel(), bias=True)
    return centre, covariance


class TestTransforms:
    def test_identity_is_the_padded_picture(self) -> None:
        images = noise(3)
        drawn = transform_images(images, parameters(*[IDENTITY] * 3), 40)
        assert torch.equal(drawn, torch.nn.functional.pad(images, [6] * 4))

    @pytest.mark.parametrize(("down", "right"), [(2, 0), (0, -1), (-2, 1)])
    def test_whole_pixels_of_shift_move_it(self, down, right) -> None:
        images = noise(1)
        drawn = transform_images(images, parameters([0, 0, 1, 1, down, right]), 40)
        padded = torch.nn.functional.pad(images, [6 + right, 6 - right, 6 + down, 6 - down])
        assert torch.equal(drawn, padded)

    def test_equals_numpy(self) -> None:
        images = noise(4)
        drawn = Transformed().draw(4, torch.Generator().manual_seed(2))
        actual = transform_images(images, drawn, 40)[:, 0].double().numpy()
        for image, row, result in zip(images[:, 0].numpy(), drawn.numpy(), actual, strict=True):
            np.testing.assert_array_equal(result, transformed_by_numpy(image, row).round())

    def test_a_bar_turns_clockwise_by_the_angle(self) -> None:
        drawn = transform_images(bar(), parameters([20, 0, 1, 1, 0, 0]), 40)
        centre, covariance = moments(drawn[0])
        np.testing.assert_allclose(centre, 0, atol=0.05)
        _, axes = np.linalg.eigh(covariance)
        x, y = axes[:, 1] * -np.sign(axes[1, 1])  # the long axis, its upper end
        assert np.degrees(np.arctan2(x, -y)) == pytest.approx(20, abs=0.5)

    def test_a_shear_leans_a_bar_to_the_left_at_its_top(self) -> None:
        drawn = transform_images(bar(), parameters([0, 0.2, 1, 1, 0, 0]), 40)
        _, covariance = moments(drawn[0])
        assert covariance[0, 1] / covariance[1, 1] == pytest.approx(0.2, abs=0.01)

    @pytest.mark.parametrize("row", [[0, 0, 1.2, 0.8, 0, 0], [0, 0, 0.8, 1.2, -1.5, 0.5]])
    def test_scales_and_shifts_by_the_moments_of_a_bar(self, row) -> None:
        picture = bar(height=12, width=12)
        _, before = moments(picture[0])
        centre, after = moments(transform_images(picture, parameters(row), 40)[0])
        _, _, scale_y, scale_x, down, right = row
        np.testing.assert_allclose(centre, [right, down], atol=0.05)
        stretched = np.sqrt(after.diagonal() / before.diagonal())
        np.testing.assert_allclose(stretched, [scale_x, scale_y], rtol=0.03)

    def test_the_maps_are_the_inverses(self) -> None:
        drawn = Transformed().draw(20, torch.Generator().manual_seed(3))
        for row, inverse in zip(drawn.numpy(), inverse_maps(drawn).numpy(), strict=True):
            matrix = forward_matrix(row)
            np.testing.assert_allclose(inverse[:, :2] @ matrix, np.eye(2), atol=1e-12)
            np.testing.assert_allclose(inverse @ [row[5], row[4], 1], 0, atol=1e-12)

    def test_the_box_of_a_digit_stays_on_the_canvas_in_every_corner_of_the_ranges(self) -> None:
        ranges = [(-MAX_ANGLE, MAX_ANGLE), (-MAX_SHEAR, MAX_SHEAR), SCALES, SCALES]
        corners = parameters(*map(list, product(*ranges, *[(-MAX_SHIFT, MAX_SHIFT)] * 2)))
        box = torch.zeros(len(corners), 1, 28, 28, dtype=torch.uint8)
        box[:, :, 4:24, 4:24] = 255
        large = transform_images(box, corners, 60)
        inside = transform_images(box, corners, 40)
        assert torch.equal(large.long().sum(dim=(1, 2, 3)), inside.long().sum(dim=(1, 2, 3)))


class TestDraws:
    def test_parameters_fill_their_ranges(self) -> None:
        draws = Transformed().draw(20_000, torch.Generator().manual_seed(4)).numpy()
        low = np.array([-20, -0.2, 0.8, 0.8, -2, -2])
        high = np.array([20, 0.2, 1.2, 1.2, 2, 2])
        assert (draws >= low).all()
        assert (draws <= high).all()
        for column in ((draws - low) / (high - low)).T:
            counts, _ = np.histogram(column, bins=20, range=(0, 1))
            assert ((counts - 1000) ** 2 / 1000).sum() < 19 + 5 * 38**0.5

    def test_parameters_are_independent(self) -> None:
        draws = Transformed().draw(20_000, torch.Generator().manual_seed(5)).numpy()
        correlation = np.corrcoef(draws.T) - np.eye(6)
        assert np.abs(correlation).max() < 5 / 20_000**0.5


class TestHeldOutImages:
    def part(self) -> Part:
        return Part(noise(10), torch.arange(10))

    def test_every_picture_has_copies(self) -> None:
        part, transformed = self.part(), Transformed(copies=3)
        assert transformed.fixed_count(part) == 30
        batch = transformed.fixed_batch(part, torch.arange(30))
        assert (batch.images.shape, batch.images.dtype) == ((30, 1, 40, 40), torch.uint8)
        assert batch.labels.tolist() == list(range(10)) * 3
        copies = batch.images.view(3, -1)
        assert not torch.equal(copies[0], copies[1])

    def test_they_do_not_depend_on_the_batch(self) -> None:
        part = self.part()
        whole = Transformed(copies=3).fixed_batch(part, torch.arange(30)).images
        transformed = Transformed(copies=3)
        for indices in torch.randperm(30).split(7):
            assert torch.equal(transformed.fixed_batch(part, indices).images, whole[indices])

    def test_they_are_the_same_in_every_process(self) -> None:
        images = Transformed(copies=2).fixed_batch(self.part(), torch.arange(20)).images
        digest = hashlib.sha256(images.numpy().tobytes()).hexdigest()
        assert digest == "d35bb3eb0586cc9ad56e637cb56871f40eb327dcf52f20afddaf857d22e2ef57"

    def test_the_generator_decides_training_images(self) -> None:
        part, indices = self.part(), torch.arange(10)
        batches = [
            Transformed().training_batch(part, indices, torch.Generator().manual_seed(seed)).images
            for seed in (1, 1, 2)
        ]
        assert torch.equal(batches[0], batches[1])
        assert not torch.equal(batches[0], batches[2])

    def test_the_copies_are_in_the_identity(self) -> None:
        assert Transformed(1).identity != Transformed(2).identity


def test_mnist_keeps_its_mass_times_the_scales(mnist_folder) -> None:
    data = load_dataset(AffineMnistConfig(max_shift=4, test_copies=2), mnist_folder)
    assert (data.name, data.image_shape) == ("affine-mnist", (1, 40, 40))
    assert isinstance(data.composition, Placed)
    assert data.composition.max_shift == 4
    part, transformed = data.test_part, data.test_composition
    assert isinstance(transformed, Transformed)
    assert transformed.fixed_count(part) == 20_000
    indices = torch.arange(10_000, 11_000)
    batch = transformed.fixed_batch(part, indices)
    assert torch.equal(batch.labels, data.test_labels[:1000])
    mass = batch.images.double().sum(dim=(1, 2, 3))
    before = data.test_images[:1000].double().sum(dim=(1, 2, 3))
    scales = transformed.fixed_round(1, 10_000)[:1000, 2:4].prod(dim=1)
    ratio = mass / (before * scales)
    assert float(ratio.mean()) == pytest.approx(1, abs=0.001)
    assert (ratio - 1).abs().max() < 0.06
