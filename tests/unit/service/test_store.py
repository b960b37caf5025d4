"""The store, on a real database: atomicity, fencing, pages, concurrency, migrations."""

import multiprocessing
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from sqlalchemy import event, inspect, text

from service.errors import (
    CursorInvalidError,
    JobActiveError,
    JobConflictError,
    JobDeletedError,
    JobEndedError,
    JobNotFoundError,
    JobUnreadableError,
    KeyReusedError,
    StaleJobError,
)
from service.queue import looks
from service.queue.adding import Submission, Submitted
from service.queue.job import Desired, Job, Kind, State
from service.queue.rows import _Growing, new_id, new_ids
from service.queue.schema import MIGRATIONS, is_up_to_date
from service.queue.store import JobFilter, NewEvent, Store
from service.queue.tables import clock, metadata
from support.searches import SEARCH
from workers.attempt import Reason
from workers.search_specs import SearchSpec
from workers.specs import PRESETS, InitFrom, TrainSpec

STARTED = NewEvent("started", "attempt begins")
NOW = 1_800_000_000.0


def spec(**fields: object) -> TrainSpec:
    return PRESETS["demo"].model_copy(update=fields)


def end(store: Store, job: Job, state: State = State.SUCCEEDED) -> Job:
    return store.update(job, NewEvent("ended", "done"), state=state, finished_at=clock())


def types(store: Store, job: Job) -> list[str]:
    return [event.type for event in store.events(job.id)]


def test_a_job_comes_back_as_it_was_submitted(store: Store) -> None:
    job = store.add(spec(labels={"team": "vision"}))
    assert re.fullmatch(r"[a-z0-9-]{12}", job.id)
    assert store.get(job.id) == job
    assert job.spec == spec(labels={"team": "vision"})
    assert (job.state, job.desired, job.attempt) == (State.QUEUED, Desired.RUN, 0)
    assert types(store, job) == ["submitted"]


def test_ids_sort_by_age(store: Store) -> None:
    ids = [store.add(spec()).id for _ in range(5)]
    assert ids == sorted(ids)


def test_ids_of_one_millisecond_stand_in_their_order() -> None:
    ids = [*new_ids(NOW, 500), *(new_id(NOW) for _ in range(500)), new_id(NOW + 0.001)]
    assert ids == sorted({*ids})
    assert all(re.fullmatch(r"[0-9a-z]{12}", each) for each in ids)


def test_a_millisecond_that_is_used_up_goes_on_in_the_next() -> None:
    numbers = _Growing()
    found = [numbers.next(7) for _ in range(40_000)]  # some 32 apart, of 2**20
    assert found[0] >> 20 == 7
    assert found[-1] >> 20 in (8, 9)
    found += [numbers.next(8), numbers.next(6), numbers.next(12)]
    assert found == sorted({*found})


def test_a_clock_that_was_set_back_begins_anew() -> None:
    numbers = _Growing()
    assert [numbers.next(moment) >> 20 for moment in (900_000, 5_000, 5_001)] == [
        900_000, 5_000, 5_001
    ]  # fmt: skip


def test_threads_never_make_the_same_id() -> None:
    numbers, found = _Growing(), list[list[int]]()
    threads = [
        threading.Thread(target=lambda: found.append([numbers.next(3) for _ in range(2000)]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(each == sorted(each) for each in found)
    assert len({number for each in found for number in each}) == 8000


def test_the_clock_is_the_databases_and_has_milliseconds(store: Store) -> None:
    first = store.now()
    time.sleep(0.02)
    second = store.now()
    assert 0.01 < second - first < 1
    assert abs(second - time.time()) < 1


@pytest.mark.parametrize("job_id", ["nope", "", "../x", "a\x00b", "A" * 5000, "é"])
def test_an_unknown_job_is_not_found(store: Store, job_id: str) -> None:
    with pytest.raises(JobNotFoundError):
        store.get(job_id)


def test_an_attempt_begins_with_its_row_and_its_event(store: Store) -> None:
    job = store.update(store.add(spec()), waiting_reason="no room", not_before=1.0)
    job = store.start_attempt(job, STARTED)
    assert (job.state, job.attempt, job.waiting_reason, job.not_before) == ("RUNNING", 1, "", None)
    assert job.started_at is not None
    assert job.current is not None
    assert job.current.submission_id == f"caps-{job.id}-1"
    assert store.events(job.id)[-1].attempt == 1
    second = store.start_attempt(store.update(job, state=State.QUEUED), STARTED)
    assert second.attempt == 2
    assert second.started_at == job.started_at


def test_an_update_changes_job_attempt_and_history_together(store: Store) -> None:
    job = store.start_attempt(store.add(spec()), STARTED)
    event = NewEvent("lost", "the worker is gone", {"node": "n1"})
    changed = store.update(
        job, event, {"gone_since": 5.0}, reason=Reason.WORKER_LOST, result={"metrics": {"a": 1.5}}
    )
    assert changed.version == job.version + 1
    assert changed.reason is Reason.WORKER_LOST
    assert changed.result == {"metrics": {"a": 1.5}}
    assert changed.current is not None
    assert changed.current.gone_since == 5.0
    assert store.events(job.id)[-1].data == {"node": "n1"}


def test_a_record_of_before_changes_nothing(store: Store) -> None:
    old = store.add(spec())
    store.start_attempt(old, STARTED)
    for write in (
        lambda: store.update(old, NewEvent("late", "late"), {"ended_at": 1.0}, evidence="late"),
        lambda: store.start_attempt(old, NewEvent("late", "late")),
    ):
        with pytest.raises(StaleJobError):
            write()
    assert "late" not in types(store, old)
    assert store.get(old.id).evidence == ""


def test_a_failed_write_leaves_nothing_behind(store: Store) -> None:
    job = store.start_attempt(store.add(spec()), STARTED)
    with pytest.raises(TypeError):
        store.update(job, NewEvent("bad", "data is no JSON", {"x": object()}), {"gone_since": 1.0})
    assert store.get(job.id) == job
    assert store.get(job.id).current == job.current
    assert types(store, job) == ["submitted", "started"]


def test_only_fields_that_may_change_are_changed(store: Store) -> None:
    job = store.add(spec())
    with pytest.raises(ValueError, match="spec"):
        store.update(job, spec="{}")
    with pytest.raises(ValueError, match="number"):
        store.update(job, attempt={"number": 9})


def test_of_eight_threads_exactly_one_wins(store: Store) -> None:
    job = store.add(spec())
    barrier, won = threading.Barrier(8), []

    def race(number: int) -> None:
        barrier.wait()
        try:
            store.start_attempt(job, NewEvent("won", str(number)))
            won.append(number)
        except StaleJobError:
            pass

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [e.message for e in store.events(job.id)][1:] == [str(won[0])]


def test_the_queue_goes_by_priority_then_age(store: Store) -> None:
    names = [("old", 0), ("urgent", 5), ("new", 0), ("ended", 9)]
    jobs = {name: store.add(spec(name=name, priority=p)) for name, p in names}
    end(store, jobs["ended"])
    assert [job.spec.name for job in store.claimable(store.now())] == ["urgent", "old", "new"]
    places = store.positions([job.id for job in jobs.values()])
    assert places == {jobs["urgent"].id: 1, jobs["old"].id: 2, jobs["new"].id: 3}


def test_unclosed_are_ended_jobs_with_an_open_run(store: Store) -> None:
    open_run = store.update(store.add(spec()), run_id="r1", experiment_id="1")
    assert store.unclosed() == []
    end(store, store.add(spec()))
    ended = end(store, open_run)
    assert store.unclosed() == [ended]
    store.update(ended, run_closed=True)
    assert store.unclosed() == []


def test_cancel_is_final_and_idempotent(store: Store) -> None:
    job = store.add(spec())
    asked = store.set_desired(job.id, Desired.CANCEL)
    assert store.set_desired(job.id, Desired.CANCEL) == asked
    with pytest.raises(JobEndedError):
        store.set_desired(job.id, Desired.RUN)
    cancelled = end(store, asked, State.CANCELLED)
    assert store.set_desired(job.id, Desired.CANCEL) == cancelled
    assert types(store, job) == ["submitted", "cancel-requested", "ended"]
    with pytest.raises(JobEndedError):
        store.set_desired(end(store, store.add(spec())).id, Desired.CANCEL)
    with pytest.raises(JobNotFoundError):
        store.set_desired("nope", Desired.CANCEL)


def test_a_cancel_makes_the_reconcilers_record_stale(store: Store) -> None:
    job = store.add(spec())
    store.set_desired(job.id, Desired.CANCEL)
    with pytest.raises(StaleJobError):
        store.start_attempt(job, STARTED)


def test_lists_are_filtered(store: Store) -> None:
    a = store.add(spec(experiment="a", labels={"k": "1", "l": "x"}))
    b = store.add(spec(experiment="b", labels={"k": "1"}))
    end(store, b)

    def ids(**conditions: object) -> set[str]:
        return {job.id for job in store.list(JobFilter(**conditions)).jobs}  # type: ignore[arg-type]

    assert ids() == {a.id, b.id}
    assert ids(experiment="a") == {a.id}
    assert ids(labels={"k": "1"}) == {a.id, b.id}
    assert ids(labels={"k": "1", "l": "x"}) == {a.id}
    assert ids(states=(State.SUCCEEDED, State.FAILED)) == ids(experiment="b") == {b.id}
    assert ids(labels={"k": "2"}) == set()


def test_pages_stay_stable_while_jobs_are_added(store: Store) -> None:
    before = [store.add(spec()).id for _ in range(7)]
    read: list[str] = []
    cursor: str | None = None
    while True:
        page = store.list(JobFilter(), cursor, limit=3)
        read += [job.id for job in page.jobs]
        store.add(spec())
        cursor = page.next_cursor
        if cursor is None:
            break
    assert read == before[::-1]


@pytest.mark.parametrize("cursor", ["zzz!", "é", "AAAA", "a", "x" * 3000])
def test_a_foreign_cursor_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(CursorInvalidError):
        store.list(JobFilter(), cursor)


def test_events_are_read_on_from_any_of_them(store: Store) -> None:
    job = store.add(spec())
    for number in range(5):
        job = store.update(job, NewEvent("n", str(number)))
    first = store.events(job.id, limit=2)
    rest = store.events(job.id, after=first[-1].id)
    assert [e.message for e in rest] == ["1", "2", "3", "4"]


def _add_many(url: str, count: int) -> None:
    store = Store(url)
    store.migrate()  # all processes at once, the first time
    for _ in range(count):
        store.add(PRESETS["demo"])


@pytest.mark.slow
def test_four_processes_migrate_and_add_at_once(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new' / 'queue.db'}"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add_many, args=(url, 50)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert len(Store(url).list(JobFilter(), limit=1000).jobs) == 200


def test_sqlite_is_durable_and_does_not_block_readers(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'queue.db'}")
    with store.engine.connect() as connection:
        pragmas = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert pragmas == {
        "journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 10_000
    }  # fmt: skip


def test_the_migrated_schema_is_that_of_the_tables(store: Store) -> None:
    with store.engine.connect() as connection:
        sqlite = connection.dialect.name == "sqlite"
        options = {
            "compare_type": True,
            # SQLite does not tell that a column of an index is in descending order.
            "include_object": lambda thing, name, *_: not (sqlite and name == "ix_jobs_queue"),
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_migrations_can_be_taken_back(store: Store) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    with store.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
    with store.engine.connect() as connection:
        assert set(inspect(connection).get_table_names()) <= {"alembic_version"}
        assert not is_up_to_date(connection)
    store.migrate()
    with store.engine.connect() as connection:
        assert is_up_to_date(connection), "nothing is left to be done"
    store.add(PRESETS["demo"])


def spoil(store: Store, jobs: Sequence[Job]) -> None:
    """Have their specifications need a package that is gone."""
    plugin = '{"model": {"routing": {"type": "of-a-package-that-is-gone"}}}'
    with store.engine.begin() as connection:
        change = text("UPDATE jobs SET spec = :spec WHERE id = :id")
        connection.execute(change, [{"spec": plugin, "id": job.id} for job in jobs])


def test_a_job_that_cannot_be_read_does_not_stop_the_queue(store: Store) -> None:
    jobs = [store.add(spec()) for _ in range(3)]
    spoil(store, jobs[1:2])
    left = {jobs[0].id, jobs[2].id}
    assert {job.id for job in store.claimable(store.now())} == left
    first = store.list(JobFilter(), limit=2)
    second = store.list(JobFilter(), first.next_cursor, limit=2)
    assert {job.id for job in first.jobs + second.jobs} == left
    with pytest.raises(JobUnreadableError, match="of-a-package"):
        store.get(jobs[1].id)


def submitted(store: Store, specs: Sequence[TrainSpec]) -> list[Job]:
    """In one transaction."""
    outcomes = store._submit_all([Submission(each, "local", None) for each in specs])
    return [each.job for each in outcomes if isinstance(each, Submitted)]


@pytest.mark.parametrize("longer", [20, looks.LONGER])
def test_the_queue_goes_on_behind_many_jobs_that_cannot_be_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, longer: int
) -> None:
    monkeypatch.setattr(looks, "LONGER", longer)
    jobs = submitted(store, [spec(priority=9 - n // 20) for n in range(60)])
    spoil(store, jobs)
    good = submitted(store, [spec()] * 3)
    now = store.now()
    assert store.claimable(now) == good
    assert store.claimable(now, limit=2) == good[:2]
    assert store.claimable(now, good[1], limit=2) == good[2:]
    assert store.claimable(now, good[2]) == []
    spoil(store, good)
    assert store.claimable(now) == []


def test_pages_are_full_whatever_lies_between(store: Store) -> None:
    jobs = submitted(store, [spec()] * 12)
    spoil(store, jobs[1::2])
    now = store.now()
    first = store.claimable(now, limit=4)
    assert [*first, *store.claimable(now, first[-1], limit=4)] == jobs[::2]
    assert len(first) == 4


def test_a_run_is_closed_behind_many_jobs_that_cannot_be_read(store: Store) -> None:
    jobs = submitted(store, [spec()] * 61)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET state = 'FAILED', experiment_id = '1'"))
    spoil(store, jobs[:60])
    assert [job.id for job in store.unclosed()] == [jobs[60].id]


def test_users_are_heard_behind_many_jobs_that_cannot_be_read(store: Store) -> None:
    jobs = submitted(store, [spec()] * 62)
    with store.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET desired = 'pause'"))
        resumed = text("UPDATE jobs SET state = 'PAUSED', desired = 'run' WHERE id = :id")
        connection.execute(resumed, {"id": jobs[61].id})
    spoil(store, jobs[:60])
    assert [job.id for job in store.unsettled(limit=50)] == [jobs[60].id, jobs[61].id]


def test_a_job_that_cannot_be_read_is_told_of_once(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = submitted(store, [spec()] * 2)
    spoil(store, jobs)
    for _ in range(3):
        assert store.claimable(store.now()) == store.list(JobFilter()).jobs == []
    told = [record.exc_text or "" for record in caplog.records]
    assert len(told) == 2
    assert [job.id in each for job, each in zip(jobs, told, strict=True)] == [True, True]


# ---------------------------------------------------------------------------------- searches


def search(**fields: object) -> SearchSpec:
    return SearchSpec.model_validate({**SEARCH, **fields}, strict=False)


def test_a_search_comes_back_as_it_was_submitted(store: Store) -> None:
    job = store.add(search(labels={"team": "vision"}))
    assert store.get(job.id) == job
    assert (job.kind, job.spec) == (Kind.SEARCH, search(labels={"team": "vision"}))
    assert (job.max_runtime_s, job.max_retries, job.retry_through) == (None, 0, 0)
    assert job.training.epochs == 4
    assert store.add(spec(max_retries=2)).max_retries == 2


def test_lists_are_filtered_by_kind(store: Store) -> None:
    train, other = store.add(spec()), store.add(search())

    def ids(*kinds: Kind) -> set[str]:
        return {job.id for job in store.list(JobFilter(kinds=kinds)).jobs}

    assert ids() == {train.id, other.id} == ids(Kind.TRAIN, Kind.SEARCH)
    assert (ids(Kind.TRAIN), ids(Kind.SEARCH)) == ({train.id}, {other.id})
    assert [job.id for job in store.claimable(store.now())] == [train.id, other.id]


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.FAILED, State.CANCELLED])
def test_an_ended_search_is_opened_again(store: Store, state: State) -> None:
    job = store.start_attempt(store.add(search()), STARTED)
    job = store.set_desired(job.id, Desired.CANCEL)
    job = store.update(
        end(store, job, state), reason=Reason.TRIALS_FAILED, evidence="6 failed", errors=1,
        losses=2, run_closed=True, run_id="r",
    )  # fmt: skip
    opened = store.reopen(job.id)
    assert (opened.state, opened.desired, opened.retry_through) == ("QUEUED", "run", 1)
    assert (opened.reason, opened.evidence, opened.finished_at) == (None, "", None)
    assert (opened.errors, opened.losses, opened.run_closed, opened.run_id) == (0, 0, False, "r")
    assert opened.version == job.version + 1
    assert types(store, job)[-1] == "retry-failed"
    assert store.start_attempt(opened, STARTED).attempt == 2


def test_only_an_ended_search_is_opened_again(store: Store) -> None:
    with pytest.raises(JobConflictError, match="is QUEUED"):
        store.reopen(store.add(search()).id)
    with pytest.raises(JobConflictError, match="training"):
        store.reopen(end(store, store.add(spec())).id)
    with pytest.raises(JobNotFoundError):
        store.reopen("nope")


def search_from(job_id: str) -> SearchSpec:
    base = {**SEARCH["base"], "init_from": {"job": job_id}}
    return search(base=base)


def migrated(store: Store, step: str) -> None:
    config = AlembicConfig()
    config.set_main_option("script_location", str(MIGRATIONS))
    with store.engine.begin() as connection:
        config.attributes["connection"] = connection
        (command.upgrade if step == "head" else command.downgrade)(config, step)


def test_jobs_of_the_release_before_stay_and_searches_go_with_the_way_back(store: Store) -> None:
    train = store.start_attempt(store.add(spec(labels={"team": "a"})), STARTED)
    other = store.start_attempt(store.add(search(labels={"team": "a"})), STARTED)
    migrated(store, "0001")
    with store.engine.connect() as connection:
        for table in ("attempts", "events", "job_labels"):
            query = text(f"SELECT DISTINCT job_id FROM {table}")
            assert connection.execute(query).scalars().all() == [train.id], table
    migrated(store, "head")
    assert store.get(train.id) == train
    assert store.get(train.id).current == train.current
    assert types(store, train) == ["submitted", "started"]
    assert [job.id for job in store.list(JobFilter(labels={"team": "a"})).jobs] == [train.id]
    with pytest.raises(JobNotFoundError):
        store.get(other.id)


def test_the_way_back_from_recovery_keeps_jobs_and_drops_what_was_to_be_deleted(
    store: Store,
) -> None:
    kept = store.start_attempt(store.add(spec(), idempotency_key="k"), STARTED, "session-1")
    doomed = end(store, store.add(spec()))
    store.request_delete(doomed.id)
    before = store.queue_id()
    migrated(store, "0002")
    migrated(store, "head")
    again = store.get(kept.id)
    assert again == kept
    assert again.current is not None
    assert (again.current.number, again.current.session) == (1, None)
    assert store.current([kept.id, doomed.id]) == {kept.id: (State.RUNNING, 1)}
    assert store.queue_id() != before


# ------------------------------------------------------------- keys, retries, deletion


def test_the_same_key_and_spec_are_one_job(store: Store) -> None:
    job = store.add(spec(name="one"), idempotency_key="k")
    assert store.add(spec(name="one"), idempotency_key="k") == job
    assert store.find_keyed("local", "k", spec(name="one").model_dump_json()) == job
    assert store.add(spec(name="one"), owner="ann", idempotency_key="k") != job
    with pytest.raises(KeyReusedError, match=job.id):
        store.add(spec(name="two"), idempotency_key="k")
    labelled = store.add(spec(labels={"a": "1", "b": "2"}), idempotency_key="l")
    assert store.add(spec(labels={"b": "2", "a": "1"}), idempotency_key="l") == labelled
    asked = {"owner": "local", "idempotency_key": "p", "request": "promote s"}
    promoted = store.submit(spec(name="best"), **asked)
    assert store.submit(spec(name="another best"), **asked) == replace(promoted, replayed=True)
    assert store.find_keyed("local", "m", spec(name="one").model_dump_json()) is None


def test_of_eight_submissions_with_one_key_one_is_accepted(store: Store) -> None:
    found: list[str] = []
    start = threading.Barrier(8)

    def submit() -> None:
        start.wait()
        found.append(store.add(spec(), idempotency_key="k").id)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len({*found}) == 1
    assert len(store.list(JobFilter()).jobs) == 1


def test_a_deleted_job_is_found_no_more_and_its_key_runs_nothing(store: Store) -> None:
    job = store.add(spec(), idempotency_key="k")
    with pytest.raises(JobActiveError):
        store.request_delete(job.id)
    store.remove(job.id)
    assert store.get(job.id) == job, "nobody asked for it"
    ended = end(store, job)
    store.request_delete(job.id)
    for look in (store.get, store.attempts, store.request_delete, store.retry):
        with pytest.raises(JobNotFoundError):
            look(job.id)
    assert store.list(JobFilter()).jobs == []
    assert store.deleted() == [job.id]
    store.remove(job.id)
    assert store.deleted() == []
    assert store.events(ended.id) == []
    with pytest.raises(JobDeletedError, match=job.id):
        store.add(spec(), idempotency_key="k")


def test_a_job_whose_weights_are_waited_for_is_not_deleted(store: Store) -> None:
    origin = end(store, store.add(spec()))
    heir = store.add(spec(init_from=InitFrom(job=origin.id)))
    with pytest.raises(JobConflictError, match=heir.id):
        store.request_delete(origin.id)
    end(store, heir)
    store.request_delete(origin.id)
    assert store.deleted() == [origin.id]


def test_a_search_whose_base_begins_from_a_job_keeps_it(store: Store) -> None:
    origin = end(store, store.add(spec()))
    heir = store.add(search_from(origin.id))
    with pytest.raises(JobConflictError, match=heir.id):
        store.request_delete(origin.id)


def test_a_label_or_a_path_makes_no_heir(store: Store) -> None:
    origin = end(store, store.add(spec()))
    store.add(spec(labels={"job": origin.id}))
    store.add(spec(init_from=InitFrom(path=f"jobs/{origin.id}/1/checkpoints/best.pt")))
    store.request_delete(origin.id)
    assert store.deleted() == [origin.id]


def test_heirs_are_found_by_an_index(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'queue.db'}")
    store.migrate()
    origin = end(store, store.add(spec()))
    asked: list[tuple[str, Any]] = []

    def listen(connection, cursor, statement, parameters, *_) -> None:  # type: ignore[no-untyped-def]
        asked.append((statement, parameters))

    event.listen(store.engine, "before_cursor_execute", listen)
    store.request_delete(origin.id)
    event.remove(store.engine, "before_cursor_execute", listen)
    ((statement, parameters),) = [each for each in asked if "init_job = " in each[0]]
    with store.engine.connect() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    assert [row.detail for row in plan] == ["SEARCH jobs USING INDEX ix_jobs_init_job (init_job=?)"]
    store.close()


def origins(store: Store) -> dict[str, str | None]:
    """From whose checkpoint each job begins, as it stands in the table."""
    with store.engine.connect() as connection:
        rows = connection.execute(text("SELECT id, init_job FROM jobs")).all()
    return {row.id: row.init_job for row in rows}


def test_the_migration_finds_the_origins_of_jobs_that_are_there(store: Store) -> None:
    heir = store.add(spec(init_from=InitFrom(job="first", checkpoint="last")))
    heirs_search = store.add(search_from("second"))
    labelled = store.add(spec(labels={"job": "third"}))
    by_path = store.add(spec(init_from=InitFrom(path="jobs/fourth/1/checkpoints/best.pt")))
    of_a_plugin, *odd = [store.add(spec()) for _ in range(6)]
    texts = [
        '{"init_from": {"job": "fifth"}, "model": {"routing": {"type": "gone"}}}',
        'no JSON, but with "job"',
        '["job"]',
        '{"init_from": "job", "x": {"job": 1}}',
        '{"init_from": {"job": "\\u0000"}}',
        '{"init_from": {"job": "%s"}}' % ("x" * 65),
    ]
    with store.engine.begin() as connection:
        change = text("UPDATE jobs SET spec = :spec WHERE id = :id")
        for job, content in zip((of_a_plugin, *odd), texts, strict=True):
            connection.execute(change, {"spec": content, "id": job.id})
    expected = {job.id: None for job in (labelled, by_path, *odd)} | {
        heir.id: "first", heirs_search.id: "second", of_a_plugin.id: "fifth"
    }  # fmt: skip
    migrated(store, "0003")
    with store.engine.connect() as connection:
        columns = {column["name"] for column in inspect(connection).get_columns("jobs")}
    assert "init_job" not in columns
    migrated(store, "head")
    assert origins(store) == expected
    assert store.get(heir.id) == heir


def test_jobs_are_added_with_their_origin(store: Store) -> None:
    jobs = [
        store.add(spec(init_from=InitFrom(job="first"))),
        store.add(search_from("second")),
        store.add(spec(labels={"job": "third"})),
    ]
    assert [origins(store)[job.id] for job in jobs] == ["first", "second", None]


@pytest.mark.parametrize("state", [State.FAILED, State.CANCELLED])
def test_what_failed_or_was_cancelled_is_tried_again(store: Store, state: State) -> None:
    job = store.update(store.add(spec()), errors=2, losses=1, run_closed=True)
    again = store.retry(end(store, job, state).id)
    assert (again.state, again.desired, again.finished_at) == (State.QUEUED, Desired.RUN, None)
    assert (again.errors, again.losses, again.run_closed) == (0, 0, False)
    assert types(store, job)[-1] == "retry-requested"
    with pytest.raises(JobConflictError):
        store.retry(job.id)


def test_attempts_are_listed_with_why_they_ended(store: Store) -> None:
    job = store.start_attempt(store.add(spec()), STARTED, "s1")
    lost = {"ended_at": 5.0, "reason": Reason.NODE_LOST, "evidence": "gone"}
    job = store.update(job, attempt=lost, state=State.QUEUED)
    store.start_attempt(job, STARTED, "s2")
    first, second = store.attempts(job.id)
    assert (first.number, first.session, first.reason, first.evidence) == (
        1,
        "s1",
        Reason.NODE_LOST,
        "gone",
    )
    assert (second.number, second.session, second.ended_at) == (2, "s2", None)


def test_the_head_of_the_queue_is_read_by_pages(store: Store) -> None:
    low = [store.add(spec(priority=-1)) for _ in range(2)]
    high = [store.add(spec(priority=3)) for _ in range(3)]
    late = store.update(store.add(spec(priority=9)), not_before=store.now() + 60)
    paused = store.set_desired(store.add(spec(priority=9)).id, Desired.PAUSE)
    now = store.now()
    first = store.claimable(now, limit=2)
    second = store.claimable(now, first[-1], limit=9)
    assert [*first, *second] == [*high, *low]
    assert late not in first
    assert store.claimable(now + 61, limit=1) == [late]
    assert store.unsettled() == [paused]
    everything = store.positions([job.id for job in (*low, *high)])
    assert [everything[job.id] for job in (*high, *low)] == [3, 4, 5, 6, 7]
    assert store.positions([high[1].id]) == {high[1].id: 4}


def test_the_tick_belongs_to_one(store: Store) -> None:
    with store.tick_lock() as first, store.tick_lock() as second:
        assert (first, second) == (True, False)
        store.add(spec())
    with store.tick_lock() as again:
        assert again
