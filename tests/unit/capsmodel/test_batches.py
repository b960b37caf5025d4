"""Holding out, sampling and shifting."""

import pytest
import torch

from capsmodel.datasets.augmentation import RandomShift, shift_images
from capsmodel.datasets.sampler import Sampler
from capsmodel.datasets.split import hold_out

LABELS = torch.tensor([0] * 40 + [1] * 20 + [2] * 10)


class TestHoldOut:
    def test_every_class_gives_its_share(self) -> None:
        kept, held_out = hold_out(LABELS, 0.1, seed=3)
        assert torch.bincount(LABELS[held_out]).tolist() == [4, 2, 1]
        assert torch.cat([kept, held_out]).sort().values.tolist() == list(range(70))

    def test_not_stratified(self) -> None:
        kept, held_out = hold_out(LABELS, 0.5, seed=3, stratified=False)
        assert len(kept) == len(held_out) == 35

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


class TestRandomShift:
    def test_moves_down_and_right_and_fills_with_zeros(self) -> None:
        images = torch.arange(1, 10, dtype=torch.uint8).reshape(1, 1, 3, 3).repeat(3, 1, 1, 1)
        shifts = torch.tensor([[1, 0], [0, -2], [-1, 1]])
        down, left, up_right = shift_images(images, shifts, 2)[:, 0].tolist()
        assert down == [[0, 0, 0], [1, 2, 3], [4, 5, 6]]
        assert left == [[3, 0, 0], [6, 0, 0], [9, 0, 0]]
        assert up_right == [[0, 4, 5], [0, 7, 8], [0, 0, 0]]

    def test_all_shifts_occur_independently_of_each_other(self) -> None:
        images = torch.zeros(2000, 2, 7, 7, dtype=torch.uint8)
        images[:, :, 3, 3] = 200
        shifted = RandomShift(2, seed=1)(images)
        assert shifted.dtype == torch.uint8
        assert torch.equal(shifted[:, 0], shifted[:, 1])
        _, rows, columns = shifted[:, 0].nonzero(as_tuple=True)
        counts = torch.bincount(5 * (rows - 1) + columns - 1, minlength=25)
        assert counts.sum() == 2000
        assert counts.min() > 40  # 80 expected of each of 25 shifts

    def test_without_shifts_images_stay_as_they_are(self) -> None:
        images = torch.ones(2, 1, 5, 5)
        assert RandomShift(0, seed=1)(images) is images

    def test_goes_on_from_its_state(self) -> None:
        images = torch.randint(256, (20, 1, 9, 9), dtype=torch.uint8)
        shift, other = RandomShift(2, seed=1), RandomShift(2, seed=8)
        shift(images)
        other.load_state_dict(shift.state_dict())
        assert torch.equal(shift(images), other(images))
