"""The store, on a real database: atomicity, fencing, pages, concurrency, migrations."""

import multiprocessing
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config as AlembicConfig
from alembic.migration import MigrationContext
from sqlalchemy import inspect, text

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
from service.queue.job import Desired, Job, Kind, State
from service.queue.schema import MIGRATIONS, is_up_to_date
from service.queue.store import JobFilter, NewEvent, Store
from service.queue.tables import clock, metadata
from support.searches import SEARCH
from workers.attempt import Reason
from workers.search_specs import SearchSpec
from workers.specs import PRESETS, InitFrom, TrainSpec

STARTED = NewEvent("started", "attempt begins")


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
    ids = []
    for _ in range(5):
        ids.append(store.add(spec()).id)
        time.sleep(0.002)
    assert ids == sorted(ids)


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
    jobs = {
        name: store.add(spec(name=name, priority=p)) for name, p in names if not time.sleep(0.002)
    }
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
        time.sleep(0.002)
        store.add(spec())
        cursor = page.next_cursor
        if cursor is None:
            break
    assert read == sorted(before, reverse=True)


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


def test_a_job_that_cannot_be_read_does_not_stop_the_queue(store: Store) -> None:
    jobs = [store.add(spec()) for _ in range(3)]
    plugin = '{"model": {"routing": {"type": "of-a-package-that-is-gone"}}}'
    with store.engine.begin() as connection:
        change = text("UPDATE jobs SET spec = :spec WHERE id = :id")
        connection.execute(change, {"spec": plugin, "id": jobs[1].id})
    left = {jobs[0].id, jobs[2].id}
    assert {job.id for job in store.claimable(store.now())} == left
    first = store.list(JobFilter(), limit=2)
    second = store.list(JobFilter(), first.next_cursor, limit=2)
    assert {job.id for job in first.jobs + second.jobs} == left
    with pytest.raises(JobUnreadableError, match="of-a-package"):
        store.get(jobs[1].id)


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
    # Ids sort by age; those of one millisecond anyhow.
    low.sort(key=lambda job: job.id)
    high.sort(key=lambda job: job.id)
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
