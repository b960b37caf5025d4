"""What several threads ask for at the same time is done in one go, and each gets its own."""

import threading
from collections.abc import Sequence

import pytest

from service.queue.together import Together


class Doubling:
    """Doubles numbers; a negative one is wrong, and holds up until it may go on."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.begun = threading.Event()

    def all(self, numbers: Sequence[int]) -> list[int | BaseException]:
        self.begun.set()
        assert self.may_go_on.wait(10)
        self.batches.append(list(numbers))
        if 1313 in numbers:
            raise LookupError("1313")
        return [ValueError(str(n)) if n < 0 else 2 * n for n in numbers]


def ask(together: Together[int, int], numbers: Sequence[int]) -> dict[int, object]:
    """Each in a thread of its own; the outcomes, also those that were raised."""
    outcomes: dict[int, object] = {}

    def one(number: int) -> None:
        try:
            outcomes[number] = together.one(number)
        except Exception as error:
            outcomes[number] = error

    threads = [threading.Thread(target=one, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return outcomes


def test_one_alone_is_done_at_once() -> None:
    doubling = Doubling()
    assert Together(doubling.all, most=8).one(4) == 8
    assert doubling.batches == [[4]]


def test_those_that_come_meanwhile_are_done_in_one_go() -> None:
    doubling = Doubling()
    doubling.may_go_on.clear()
    together = Together(doubling.all, most=100)
    first = threading.Thread(target=together.one, args=(1,))
    first.start()
    assert doubling.begun.wait(10)
    found: dict[int, object] = {}
    others = threading.Thread(target=lambda: found.update(ask(together, range(2, 30))))
    others.start()
    while len(together._asked) < 28:
        others.join(0.01)
    doubling.may_go_on.set()
    first.join(10)
    others.join(10)
    assert found == {n: 2 * n for n in range(2, 30)}
    assert [len(batch) for batch in doubling.batches] == [1, 28]


def test_no_more_than_so_many_at_once() -> None:
    doubling = Doubling()
    together = Together(doubling.all, most=3)
    assert ask(together, range(1, 40)) == {n: 2 * n for n in range(1, 40)}
    assert max(len(batch) for batch in doubling.batches) <= 3
    assert sorted(n for batch in doubling.batches for n in batch) == list(range(1, 40))


def test_an_error_is_that_of_its_item() -> None:
    outcomes = ask(Together(Doubling().all, most=8), [1, -2, 3])
    assert (outcomes[1], outcomes[3]) == (2, 6)
    with pytest.raises(ValueError, match="-2"):
        raise outcomes[-2]  # type: ignore[misc]


def test_what_fails_as_a_whole_fails_for_all_and_not_for_the_next() -> None:
    together = Together(Doubling().all, most=8)
    with pytest.raises(LookupError):
        together.one(1313)
    assert together.one(1) == 2
