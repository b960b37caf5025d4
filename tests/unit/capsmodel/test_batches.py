"""Holding out, choosing, sampling and shifting."""

import pytest
import torch

from capsmodel.datasets.composition import Part, Shifted, draw_shifts, shift_images
from capsmodel.datasets.sampler import Sampler
from capsmodel.datasets.split import choose_per_class, hold_out

LABELS = torch.tensor([0] * 40 + [1] * 20 + [2] * 10)


class TestHoldOut:
    def test_every_class_gives_its_share(self) -> None:
        kept, held_out = hold_out(LABELS, 0.1, seed=3)
        assert torch.bincount(LABELS[held_out]).tolist() == [4, 2, 1]
        assert torch.cat([kept, held_out]).sort().values.tolist() == list(range(70))

    def test_the_seed_decides(self) -> None:
        parts = [hold_out(LABELS, 0.3, seed)[1].tolist() for seed in (3, 3, 4)]
        assert parts[0] == parts[1] != parts[2]

    def test_nothing_is_held_out_at_0(self) -> None:
        kept, held_out = hold_out(LABELS, 0, seed=3)
        assert (len(kept), len(held_out)) == (70, 0)

    @pytest.mark.parametrize("fraction", [-0.1, 1, float("nan")])
    def test_other_fractions_are_refused(self, fraction) -> None:
        with pytest.raises(ValueError, match="expected 0 <= fraction < 1"):
            hold_out(LABELS, fraction, seed=3)


class TestChoosePerClass:
    INDICES = torch.arange(0, 70, 2)  # 20, 10 and 5 of the three classes

    def test_so_many_of_each_class_from_the_indices_given(self) -> None:
        chosen = choose_per_class(LABELS, self.INDICES, 4, seed=3)
        assert torch.bincount(LABELS[chosen]).tolist() == [4, 4, 4]
        assert chosen.dtype == torch.int64
        assert chosen.tolist() == sorted(set(chosen.tolist()) & set(self.INDICES.tolist()))

    def test_the_seed_decides(self) -> None:
        choices = [choose_per_class(LABELS, self.INDICES, 4, seed).tolist() for seed in (3, 3, 4)]
        assert choices[0] == choices[1] != choices[2]

    def test_every_example_is_chosen_equally_often(self) -> None:
        counts = torch.zeros(70)
        for seed in range(400):
            counts[choose_per_class(LABELS, torch.arange(70), 5, seed)] += 1
        for group, share in ((counts[:40], 5 / 40), (counts[40:60], 5 / 20), (counts[60:], 0.5)):
            assert (group / 400 - share).abs().max() < 5 * (share * (1 - share) / 400) ** 0.5

    def test_a_smaller_choice_is_part_of_a_larger_one(self) -> None:
        small, large = (set(choose_per_class(LABELS, self.INDICES, n, 3).tolist()) for n in (2, 5))
        assert small < large

    def test_a_class_with_too_few_is_named(self) -> None:
        message = "per_class is 6, but class 2 has only 5 images.*at most that many"
        with pytest.raises(ValueError, match=message):
            choose_per_class(LABELS, self.INDICES, 6, seed=3)

    def test_a_class_with_none_is_named(self) -> None:
        with pytest.raises(ValueError, match="class 1 has only 0 images"):
            choose_per_class(LABELS, torch.tensor([0, 1, 60, 61]), 1, seed=3)

    def test_less_than_one_is_refused(self) -> None:
        with pytest.raises(ValueError, match="per_class is 0, expected at least 1"):
            choose_per_class(LABELS, self.INDICES, 0, seed=3)


class TestSampler:
    def sampler(self, seed: int = 5) -> Sampler:
        return Sampler(torch.arange(100, 110), batch_size=4, seed=seed)

    def epoch(self, sampler: Sampler) -> list[list[int]]:
        batches = []
        while not sampler.exhausted:
            batches.append(sampler.next_batch().tolist())
        return batches

    def test_an_epoch_holds_every_example_once(self) -> None:
        sampler = self.sampler()
        batches = self.epoch(sampler)
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert len(sampler) == 3
        assert sorted(index for batch in batches for index in batch) == list(range(100, 110))

    def test_an_epoch_ends(self) -> None:
        sampler = self.sampler()
        self.epoch(sampler)
        with pytest.raises(StopIteration):
            sampler.next_batch()

    def test_every_epoch_has_an_order_of_its_own_that_the_seed_decides(self) -> None:
        sampler, twin = self.sampler(), self.sampler()
        first = self.epoch(sampler)
        sampler.start_epoch()
        assert first == self.epoch(twin)
        assert first != self.epoch(sampler)
        assert first != self.epoch(self.sampler(seed=6))

    @pytest.mark.parametrize("dealt", [0, 1, 2, 3])
    def test_goes_on_from_the_middle_of_an_epoch(self, dealt) -> None:
        sampler = self.sampler()
        self.epoch(sampler)
        sampler.start_epoch()
        for _ in range(dealt):
            sampler.next_batch()
        other = self.sampler(seed=99)
        other.load_state_dict(sampler.state_dict())
        for _ in range(2):
            assert self.epoch(sampler) == self.epoch(other)
            sampler.start_epoch()
            other.start_epoch()


def part_of(images: torch.Tensor) -> Part:
    return Part(images, torch.arange(len(images)) % 3)


class TestShifted:
    def test_moves_down_and_right_and_fills_with_zeros(self) -> None:
        images = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).repeat(3, 1, 1, 1)
        shifts = torch.tensor([[1, 0], [0, -2], [-1, 1]])
        down, left, up_right = shift_images(images, shifts, 2)[:, 0].tolist()
        assert down == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
        assert left == [[3, 0, 0], [6, 0, 0], [9, 0, 0]]
        assert up_right == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]

    def test_a_margin_gives_room(self) -> None:
        images = torch.arange(1, 5, dtype=torch.uint8).reshape(1, 1, 2, 2).repeat(3, 1, 1, 1)
        shifts = torch.tensor([[0, 0], [1, -1], [-2, 0]])
        middle, corner, over_the_edge = shift_images(images, shifts, 2, margin=1)[:, 0].tolist()
        assert middle == [[0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0]]
        assert corner == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 2, 0, 0], [3, 4, 0, 0]]
        assert over_the_edge == [[0, 3, 4, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]

    def test_all_shifts_occur_independently_of_each_other(self) -> None:
        images = torch.zeros(2000, 2, 7, 7, dtype=torch.uint8)
        images[:, :, 3, 3] = 200
        generator = torch.Generator().manual_seed(1)
        batch = Shifted(2).training_batch(part_of(images), torch.arange(2000), generator)
        assert batch.images.dtype == torch.uint8
        assert torch.equal(batch.images[:, 0], batch.images[:, 1])
        _, rows, columns = batch.images[:, 0].nonzero(as_tuple=True)
        counts = torch.bincount(5 * (rows - 1) + columns - 1, minlength=25)
        assert counts.sum() == 2000
        assert counts.min() > 40  # 80 expected of each of 25 shifts

    def test_the_pictures_asked_for_come_with_their_labels(self) -> None:
        images = torch.arange(1, 7, dtype=torch.uint8).reshape(6, 1, 1, 1).repeat(1, 1, 5, 5)
        indices = torch.tensor([4, 0, 3])
        batch = Shifted(2).training_batch(part_of(images), indices, torch.Generator())
        assert batch.images.amax(dim=(1, 2, 3)).tolist() == [5, 1, 4]
        assert batch.labels.tolist() == [1, 0, 0]
        assert batch.parts is None

    def test_without_shifts_images_stay_as_they_are_and_nothing_is_drawn(self) -> None:
        images = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8)
        generator = torch.Generator().manual_seed(1)
        before = generator.get_state()
        batch = Shifted(0).training_batch(part_of(images), torch.arange(4), generator)
        assert torch.equal(batch.images, images)
        assert torch.equal(generator.get_state(), before)

    def test_held_out_images_stay_as_they_are(self) -> None:
        images = torch.randint(256, (4, 1, 5, 5), dtype=torch.uint8)
        shifted, part = Shifted(2), part_of(images)
        batch = shifted.fixed_batch(part, torch.tensor([3, 1]))
        assert torch.equal(batch.images, images[[3, 1]])
        assert batch.labels.tolist() == [0, 1]
        assert shifted.fixed_count(part) == 4

    def test_goes_on_from_the_state_of_the_generator(self) -> None:
        part = part_of(torch.randint(256, (20, 1, 9, 9), dtype=torch.uint8))
        generator, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(8)
        draw_shifts(20, 2, generator)
        other.set_state(generator.get_state())
        batches = [Shifted(2).training_batch(part, torch.arange(20), g) for g in (generator, other)]
        assert torch.equal(batches[0].images, batches[1].images)
