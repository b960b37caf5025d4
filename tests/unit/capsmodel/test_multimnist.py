"""MultiMNIST: what a pair is made of, which partners are drawn, held-out pairs, overlap."""

import hashlib
from itertools import product

import pytest
import torch

from capsmodel.batch import Batch
from capsmodel.config import MultiMnistConfig
from capsmodel.datasets import DataMissingError, load_dataset, multimnist
from capsmodel.datasets.composition import KEPT_ROUNDS, Part
from capsmodel.datasets.multimnist import Overlaid, add_clipped, mean_overlap

SIZES = [60, 30, 20, 10]
"""Pictures of each class in the part `marked()`, which lie in no order."""


def marked(first: int = 1) -> Part:
    """120 pictures of which number k has a single pixel, of brightness first + k."""
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor(SIZES))
    labels = labels[torch.randperm(120, generator=torch.Generator().manual_seed(2))]
    images = torch.zeros(120, 1, 28, 28, dtype=torch.uint8)
    images[:, 0, 14, 14] = first + torch.arange(120, dtype=torch.uint8)
    return Part(images, labels)


def noise(pictures: int = 12, classes: int = 3) -> Part:
    """Pictures of random bytes, 20x20 pixels within 28x28."""
    generator = torch.Generator().manual_seed(3)
    images = torch.zeros(pictures, 1, 28, 28, dtype=torch.uint8)
    images[:, :, 4:24, 4:24] = torch.randint(256, (pictures, 1, 20, 20), generator=generator)
    return Part(images, torch.arange(pictures) % classes)


def pairs_of_one_class(batch: Batch) -> int:
    return int((batch.labels[:, 0] == batch.labels[:, 1]).sum())


def pictures_shown(batch: Batch, first: int = 1) -> torch.Tensor:
    """Numbers `[B, 2]` of the pictures of `marked()` that a batch shows."""
    assert batch.parts is not None
    return batch.parts.amax(dim=(2, 3, 4)).long() - first


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


class TestPairs:
    def batch(self, part: Part, max_shift: int = 4) -> Batch:
        generator = torch.Generator().manual_seed(1)
        return Overlaid(max_shift).training_batch(part, torch.arange(len(part)), generator)

    def test_shapes_and_types(self) -> None:
        images, labels, parts = self.batch(noise())
        assert parts is not None
        assert (images.shape, images.dtype) == ((12, 1, 36, 36), torch.uint8)
        assert (labels.shape, labels.dtype) == ((12, 2), torch.int64)
        assert (parts.shape, parts.dtype) == ((12, 2, 1, 36, 36), torch.uint8)
        assert Overlaid().image_shape((1, 28, 28)) == (1, 36, 36)

    def test_an_image_is_the_sum_of_its_parts_clipped_at_255(self) -> None:
        batch = self.batch(noise())
        assert batch.parts is not None
        total = batch.parts.long().sum(dim=1)
        assert total.max() > 255
        assert torch.equal(batch.images.long(), total.clamp(max=255))

    def test_all_sums_of_two_bytes_are_clipped(self) -> None:
        byte = torch.arange(256)
        first, second = torch.meshgrid(byte, byte, indexing="ij")
        added = add_clipped(first.to(torch.uint8), second.to(torch.uint8))
        assert torch.equal(added.long(), (first + second).clamp(max=255))

    def test_each_part_is_its_picture_moved_and_labelled(self) -> None:
        part, overlaid = noise(), Overlaid(max_shift=4)
        indices = torch.tensor([5, 0, 7])
        drawn = overlaid.draw(3, torch.Generator().manual_seed(6))
        batch = overlaid.compose(part, indices, drawn)
        partners = multimnist.choose_partners(part, indices, drawn[:, 0])
        assert batch.parts is not None
        for pair in range(3):
            for digit, picture in enumerate((indices[pair], partners[pair])):
                down, right = drawn[pair, 1 + 2 * digit : 3 + 2 * digit].tolist()
                expected = torch.zeros(36, 36, dtype=torch.uint8)
                top, left = 4 + 4 + down, 4 + 4 + right
                expected[top : top + 20, left : left + 20] = part.images[picture, 0, 4:24, 4:24]
                assert torch.equal(batch.parts[pair, digit, 0], expected)
                assert batch.labels[pair, digit] == part.labels[picture]

    def test_a_shift_beyond_the_margin_pushes_pixels_over_the_edge(self) -> None:
        full = Part(torch.full((2, 1, 28, 28), 9, dtype=torch.uint8), torch.tensor([0, 1]))
        drawn = torch.tensor([[0, 6, 0, 0, -5]])
        batch = Overlaid(max_shift=6).compose(full, torch.tensor([0]), drawn)
        assert batch.parts is not None
        first, second = (batch.parts[0, :, 0] > 0).nonzero(as_tuple=False).split([26 * 28, 28 * 27])
        assert (first[:, 1].min(), first[:, 1].max()) == (10, 35)
        assert (second[:, 2].min(), second[:, 2].max()) == (0, 26)

    def test_shifts_are_uniform_and_independent(self) -> None:
        shifts = Overlaid(max_shift=1).draw(8100, torch.Generator().manual_seed(5))[:, 1:] + 1
        cells = (shifts * torch.tensor([27, 9, 3, 1])).sum(dim=1)
        counts = torch.bincount(cells, minlength=81)
        assert chi_square(counts, torch.full((81,), 100.0)) < 150  # 80 expected, 12.6 its deviation


class TestPartners:
    def draw(self, indices: torch.Tensor, part: Part | None = None, first: int = 1) -> Batch:
        generator = torch.Generator().manual_seed(7)
        return Overlaid(max_shift=0).training_batch(part or marked(first), indices, generator)

    def test_two_classes_in_every_pair(self) -> None:
        batch = self.draw(torch.arange(120).repeat(200))
        assert pairs_of_one_class(batch) == 0

    def test_that_check_catches_partners_drawn_from_all_pictures(self, monkeypatch) -> None:
        def from_all(part: Part, pictures: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
            return draws % len(part)

        monkeypatch.setattr(multimnist, "choose_partners", from_all)
        assert pairs_of_one_class(self.draw(torch.arange(120).repeat(10))) > 0

    def test_labels_are_those_of_the_pictures_shown(self) -> None:
        batch = self.draw(torch.arange(120))
        shown = pictures_shown(batch)
        assert shown[:, 0].tolist() == list(range(120))
        assert torch.equal(batch.labels, marked().labels[shown])

    @pytest.mark.parametrize("first", [1, 121])
    def test_partners_come_from_the_same_part(self, first) -> None:
        shown = pictures_shown(self.draw(torch.arange(120).repeat(20), first=first), first)
        assert shown.min() == 0
        assert shown.max() == 119

    @pytest.mark.parametrize("label", [0, 1, 2, 3])
    def test_every_picture_of_another_class_is_as_likely(self, label) -> None:
        part = marked()
        picture = int((part.labels == label).nonzero()[0])
        draws = 9000
        batch = self.draw(torch.full((draws,), picture), part)
        others = 120 - SIZES[label]
        by_class = torch.bincount(batch.labels[:, 1], minlength=4)
        expected = torch.tensor(SIZES) * draws / others
        assert by_class[label] == 0
        remaining = torch.arange(4) != label
        assert chi_square(by_class[remaining], expected[remaining]) < 14  # 2 expected of 3 classes
        by_picture = torch.bincount(pictures_shown(batch)[:, 1], minlength=120)
        by_picture = by_picture[part.labels != label]
        bound = others + 5 * (2 * others) ** 0.5
        assert chi_square(by_picture, torch.full((others,), draws / others)) < bound

    def test_a_class_without_pictures_is_no_partner(self) -> None:
        part = Part(torch.zeros(6, 1, 28, 28, dtype=torch.uint8), torch.tensor([1, 7, 7, 1, 4, 1]))
        batch = self.draw(torch.arange(6).repeat(50), part)
        assert set(batch.labels.flatten().tolist()) == {1, 4, 7}
        assert pairs_of_one_class(batch) == 0

    def test_a_part_of_one_class_is_refused(self) -> None:
        part = Part(torch.zeros(5, 1, 28, 28, dtype=torch.uint8), torch.full((5,), 3))
        with pytest.raises(ValueError, match="all 5 pictures of this part are of class 3"):
            self.draw(torch.arange(5), part)
        with pytest.raises(ValueError, match="expected two classes at least"):
            Overlaid().fixed_batch(part, torch.arange(5))

    def test_the_state_of_the_generator_brings_the_same_pairs_again(self) -> None:
        part, indices, overlaid = noise(), torch.arange(12), Overlaid()
        generator = torch.Generator().manual_seed(4)
        overlaid.training_batch(part, indices, generator)
        state = generator.get_state()
        expected = overlaid.training_batch(part, indices, generator)
        later = overlaid.training_batch(part, indices, generator)
        generator.set_state(state)
        again = Overlaid().training_batch(part, indices, generator)
        assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))
        assert not torch.equal(expected.images, later.images)


class TestHeldOutPairs:
    def test_every_picture_comes_once_a_round(self) -> None:
        part, overlaid = marked(), Overlaid(partners=3)
        assert overlaid.fixed_count(part) == 360
        batch = overlaid.fixed_batch(part, torch.arange(360))
        assert pairs_of_one_class(batch) == 0
        first, partners = pictures_shown(batch).unbind(dim=1)
        assert first.tolist() == list(range(120)) * 3
        rounds = partners.view(3, 120)
        assert not torch.equal(rounds[0], rounds[1])
        assert not torch.equal(rounds[1], rounds[2])

    def test_they_do_not_depend_on_the_batch(self) -> None:
        part, partners = noise(), KEPT_ROUNDS + 3
        count = partners * 12
        whole = Overlaid(partners=partners).fixed_batch(part, torch.arange(count))
        order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
        overlaid = Overlaid(partners=partners)
        for indices in order.split(17):
            batch = overlaid.fixed_batch(part, indices)
            assert torch.equal(batch.images, whole.images[indices])
            assert torch.equal(batch.labels, whole.labels[indices])
        assert len(overlaid._kept) == KEPT_ROUNDS

    def test_more_partners_leave_the_first_pairs_as_they_are(self) -> None:
        indices = torch.arange(24)
        few, many = (Overlaid(partners=count).fixed_batch(noise(), indices) for count in (2, 9))
        assert torch.equal(few.images, many.images)

    def test_a_part_of_another_size_has_pairs_of_its_own(self) -> None:
        overlaid, alone = Overlaid(partners=2), Overlaid(partners=2)
        overlaid.fixed_batch(noise(12), torch.arange(24))
        second = overlaid.fixed_batch(noise(20), torch.arange(40))
        assert torch.equal(second.images, alone.fixed_batch(noise(20), torch.arange(40)).images)

    def test_a_round_is_drawn_once_for_all_its_batches(self, monkeypatch) -> None:
        part, overlaid = noise(), Overlaid(partners=2)
        drawn = []
        draw = overlaid.draw

        def counted(count: int, generator: torch.Generator) -> torch.Tensor:
            drawn.append(count)
            return draw(count, generator)

        monkeypatch.setattr(overlaid, "draw", counted)
        for indices in torch.arange(24).split(5):
            overlaid.fixed_batch(part, indices)
        assert drawn == [12, 12]

    def test_they_are_the_same_in_every_process(self) -> None:
        batch = Overlaid(partners=2).fixed_batch(noise(), torch.arange(24))
        digest = hashlib.sha256(batch.images.numpy().tobytes() + batch.labels.numpy().tobytes())
        expected = "bc9632c6ddb12b2ab8aaf04a7bbb6b804209dfce1bc0d4a3605af884b5a9166c"
        assert digest.hexdigest() == expected

    @pytest.mark.parametrize("index", [-1, 24])
    def test_others_than_there_are_are_refused(self, index) -> None:
        with pytest.raises(IndexError, match=f"{index} are asked for, expected 0 to 23"):
            Overlaid(partners=2).fixed_batch(noise(), torch.tensor([index]))


class TestOverlap:
    @pytest.mark.parametrize(
        ("max_shift", "both", "expected"), [(4, True, 0.726), (4, False, 0.790), (6, True, 0.616)]
    )
    def test_of_all_possible_shifts_and_of_drawn_ones(self, max_shift, both, expected) -> None:
        steps = range(-max_shift, max_shift + 1)
        second = steps if both else [0]
        possible = torch.tensor(list(product(steps, steps, second, second))).view(-1, 2, 2)
        exact = mean_overlap(possible)
        assert exact == pytest.approx(expected, abs=0.0005)

        pairs = 20_000
        generator = torch.Generator().manual_seed(8)
        drawn = Overlaid(max_shift).draw(pairs, generator)[:, 1:].view(-1, 2, 2)
        if not both:
            drawn[:, 1] = 0
        deviation = 0.15  # of one pair's overlap, at most
        assert mean_overlap(drawn) == pytest.approx(exact, abs=4 * deviation / pairs**0.5)

    def test_boxes_apart_do_not_overlap(self) -> None:
        shifts = torch.tensor([[[0, 0], [0, 20]], [[25, 25], [0, 0]], [[3, -2], [3, -2]]])
        assert mean_overlap(shifts) == pytest.approx(1 / 3)

    def test_of_held_out_pairs_is_that_of_all_rounds(self) -> None:
        overlaid = Overlaid(partners=3)
        rounds = [overlaid.fixed_round(number, 50)[:, 1:].view(-1, 2, 2) for number in range(3)]
        assert overlaid.fixed_overlap(50) == pytest.approx(mean_overlap(torch.cat(rounds)))


class TestLoad:
    def test_mnists_digits_overlap_as_much_as_the_drawn_shifts_say(self, mnist_folder) -> None:
        """The digits' centres of mass, which MNIST has in the middle, tell where they came to."""
        data = load_dataset(MultiMnistConfig(), mnist_folder)
        assert (data.name, data.targets, data.image_shape) == ("multimnist", 2, (1, 36, 36))
        batch = data.test_composition.fixed_batch(data.test_part, torch.arange(10_000))
        assert batch.parts is not None
        assert pairs_of_one_class(batch) == 0
        mass = batch.parts[:, :, 0].double()
        place = torch.arange(36.0, dtype=torch.float64)
        rows = (mass.sum(dim=3) @ place) / mass.sum(dim=(2, 3))
        columns = (mass.sum(dim=2) @ place) / mass.sum(dim=(2, 3))
        seen = mean_overlap(torch.stack([rows, columns], dim=2).round().long())
        assert seen == pytest.approx(0.726, abs=0.01)
        assert data.facts["test_overlap"] == pytest.approx(0.726, abs=0.006)
        assert data.facts["test_overlap"] == pytest.approx(seen, abs=0.01)

    def test_the_5000_digits_may_be_the_source(self, tmp_path) -> None:
        config = MultiMnistConfig(source="mnist-5k", max_shift=6, test_partners=3)
        data = load_dataset(config, tmp_path)
        assert len(data.train_labels) == 4000
        assert data.test_composition.fixed_count(data.test_part) == 3000
        assert data.facts["test_overlap"] == pytest.approx(0.616, abs=0.01)
        assert data.composition is not None
        assert data.composition.fixed_count(data.test_part) == 1000

    def test_what_decides_the_pairs_is_in_the_digest(self, tmp_path) -> None:
        settings = [{}, {"max_shift": 6}, {"test_partners": 2}, {"validation_fraction": 0.2}]
        configs = [MultiMnistConfig(source="mnist-5k", **changes) for changes in settings]
        digests = [load_dataset(config, tmp_path).sha256 for config in configs]
        assert digests[0] == digests[3]
        assert len(set(digests)) == 3

    def test_missing_files_are_named_with_the_other_source(self, tmp_path) -> None:
        with pytest.raises(DataMissingError, match=r"train-images.*`source` may also be 'mnist"):
            load_dataset(MultiMnistConfig(), tmp_path)
