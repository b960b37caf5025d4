"""Submissions of many at once, and places in the queue: on both databases."""

import threading
import time
from collections.abc import Sequence

import pytest
from sqlalchemy import select

from service.errors import JobDeletedError, KeyReusedError
from service.queue import places as places_module
from service.queue.adding import Submission, Submitted
from service.queue.job import Job, State
from service.queue.places import Places
from service.queue.store import JobFilter, NewEvent, Store
from service.queue.tables import idempotency_keys
from workers.specs import PRESETS, TrainSpec


def spec(**fields: object) -> TrainSpec:
    return PRESETS["demo"].model_copy(update=fields)


def submission(name: str, key: str | None = None, owner: str = "local") -> Submission:
    return Submission(spec(name=name, labels={"n": name}), owner, key)


def jobs_of(outcomes: Sequence[object]) -> list[str]:
    return [each.job.id for each in outcomes if isinstance(each, Submitted)]


def test_several_are_queued_in_their_order_with_all_that_belongs_to_them(store: Store) -> None:
    outcomes = store._submit_all(
        [submission(f"n{n}", f"k{n}" if n % 2 else None) for n in range(9)]
    )
    ids = jobs_of(outcomes)
    assert ids == sorted(ids)
    assert len(set(ids)) == 9
    for number, outcome in enumerate(outcomes):
        assert isinstance(outcome, Submitted)
        assert outcome == Submitted(store.get(outcome.job.id), replayed=False)
        assert outcome.job.spec.name == f"n{number}"
        assert [e.type for e in store.events(outcome.job.id)] == ["submitted"]
        assert store.list(JobFilter(labels={"n": f"n{number}"})).jobs == [outcome.job]
    with store.engine.connect() as connection:
        keys = connection.execute(select(idempotency_keys.c.key)).scalars().all()
    assert sorted(keys) == ["k1", "k3", "k5", "k7"]


def test_a_key_that_comes_twice_at_once_queues_one_job(store: Store) -> None:
    before = store.submit(spec(name="old"), owner="local", idempotency_key="old").job
    outcomes = store._submit_all(
        [
            submission("a", "k"),
            submission("a", "k"),
            submission("b", "k"),
            submission("a", "k", owner="another"),
            Submission(spec(name="old"), "local", "old"),
            submission("new", "old"),
        ]
    )
    first, again, other, anothers, known, reused = outcomes
    assert isinstance(first, Submitted)
    assert not first.replayed
    assert again == Submitted(first.job, replayed=True)
    assert isinstance(other, KeyReusedError)
    assert isinstance(anothers, Submitted)
    assert anothers.job.id != first.job.id
    assert known == Submitted(before, replayed=True)
    assert isinstance(reused, KeyReusedError)
    assert len(store.list(JobFilter()).jobs) == 3


def test_the_key_of_a_deleted_job_runs_nothing_again(store: Store) -> None:
    job = store.submit(spec(), owner="local", idempotency_key="k").job
    store.update(job, state=State.SUCCEEDED)
    store.request_delete(job.id)
    outcomes = store._submit_all([Submission(spec(), "local", "k"), submission("a")])
    assert isinstance(outcomes[0], JobDeletedError)
    assert isinstance(outcomes[1], Submitted)
    store.remove(job.id)
    with pytest.raises(JobDeletedError):
        store.add(spec(), idempotency_key="k")


def test_what_is_wrong_with_one_does_not_hurt_the_others(store: Store) -> None:
    wrong = submission("wrong")
    object.__setattr__(wrong, "text", "\ud800")  # no database takes half a character
    outcomes = store._submit_all([submission("a"), wrong, submission("b", "k")])
    assert [type(each) for each in outcomes] == [Submitted, type(outcomes[1]), Submitted]
    assert isinstance(outcomes[1], Exception)
    assert [job.spec.name for job in store.list(JobFilter()).jobs] == ["b", "a"]


def test_threads_with_the_same_keys_queue_each_job_once(store: Store) -> None:
    found: list[tuple[str, str, bool]] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        for number in range(12):
            told = store.submit(spec(name=f"n{number}"), owner="o", idempotency_key=f"k{number}")
            found.append((f"k{number}", told.job.id, told.replayed))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 96
    assert len({(key, job) for key, job, _ in found}) == 12
    assert sum(not replayed for _, _, replayed in found) == 12
    assert len(store.list(JobFilter()).jobs) == 12


# ------------------------------------------------------------------------------------- places


def queue(store: Store, priorities: Sequence[int]) -> list[Job]:
    submissions = [Submission(spec(priority=p), "local", None) for p in priorities]
    return [each.job for each in store._submit_all(submissions) if isinstance(each, Submitted)]


def in_order(jobs: Sequence[Job]) -> dict[str, int]:
    """Every place, by the rule itself."""
    ordered = sorted(jobs, key=lambda job: (-job.spec.priority, job.id))
    return {job.id: place for place, job in enumerate(ordered, start=1)}


def test_every_place_is_that_of_the_queue(store: Store) -> None:
    jobs = queue(store, [0, 5, 0, -3, 5, 0, 7, 0, -3, 0])
    expected = in_order(jobs)
    assert store.positions([job.id for job in jobs]) == expected
    for job in jobs:
        assert store.positions([job.id]) == {job.id: expected[job.id]}
    some = [jobs[n].id for n in (7, 3, 1)]
    assert store.positions(some) == {job_id: expected[job_id] for job_id in some}


def test_who_is_not_queued_has_no_place(store: Store) -> None:
    jobs = queue(store, [0, 0, 0])
    store.start_attempt(jobs[0], NewEvent("started", "attempt 1"))
    asked = [*(job.id for job in jobs), "nobody"]
    assert store.positions(asked) == {jobs[1].id: 1, jobs[2].id: 2}
    assert store.positions([]) == {}


def test_far_from_the_head_places_are_remembered_for_a_moment(store: Store, monkeypatch) -> None:
    monkeypatch.setattr(places_module, "EXACT", 3)
    jobs = queue(store, [0, 1] * 8)
    expected = in_order(jobs)
    now = 100.0
    places = Places(clock=lambda: now)
    last = jobs[-2]

    def ask(*asked: Job) -> dict[str, int]:
        with store.engine.connect() as connection:
            return places.of(connection, [job.id for job in asked])

    assert ask(jobs[8]) == {jobs[8].id: 13}  # remembered
    for job in jobs[1:4:2]:
        store.start_attempt(job, NewEvent("started", "attempt 1"))
    assert ask(last) == {last.id: expected[last.id]}  # counted from there
    assert ask(jobs[0], jobs[5]) == {jobs[0].id: 7, jobs[5].id: 1}  # near the head: counted
    now += places_module.FRESH_S
    assert ask(last) == {last.id: expected[last.id] - 2}


def test_the_time_for_display_follows_that_of_the_database(store: Store) -> None:
    assert abs(store.about_now() - store.now()) < 1
    first = store.about_now()
    time.sleep(0.02)
    assert 0.01 < store.about_now() - first < 1
