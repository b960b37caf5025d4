"""The decision over a job: every branch as a table, and what must hold for any input."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.cluster import RayJob, RayStatus
from service.queue.job import Attempt, Desired, Job, State
from service.reconcile import (
    BACKOFF_S,
    CONFIRM_S,
    EXIT_GRACE_S,
    FINAL,
    FORGOTTEN_S,
    MAX_BACKOFF_S,
    MAX_LOSSES,
    STOP_GRACE_S,
    Action,
    Dispatch,
    Finish,
    NoteGone,
    Nothing,
    RequestStop,
    Requeue,
    Seen,
    StopRay,
    Submit,
    Wait,
    _first_words,
    reconcile,
    reconcile_waiting,
)
from workers.attempt import Reason, Result
from workers.specs import PRESETS

NOW = 1_000_000.0
START = NOW - 1000
DEMO = PRESETS["demo"]

RUN, PAUSE, CANCEL = Desired.RUN, Desired.PAUSE, Desired.CANCEL
RUNNING, FAILED, MISSING = RayStatus.RUNNING, RayStatus.FAILED, RayStatus.MISSING
UNREACHABLE = RayStatus.UNREACHABLE


def a_job(state: State = State.RUNNING, spec: dict[str, Any] | None = None, **fields: Any) -> Job:
    record = Job(
        id="j1",
        spec=DEMO.model_copy(update=spec or {}),
        desired=RUN,
        state=state,
        attempt=1,
        version=3,
        created_at=START,
        updated_at=START,
    )
    return replace(record, **fields)


def an_attempt(**fields: Any) -> Attempt:
    record = Attempt(job_id="j1", number=1, created_at=START, submitted_at=START)
    return replace(record, **fields)


def seen(ray: RayStatus, outcome: str | None = None, **fields: Any) -> Seen:
    reason = fields.pop("reason", Reason.ERROR)
    result = Result(outcome=outcome, reason=reason, evidence="E") if outcome else None
    result_at = fields.pop("result_at", NOW - 1) if outcome else None
    return Seen(RayJob(ray), result, result_at, **fields)


# ------------------------------------------------------------------------- waiting jobs

WAITING = [
    pytest.param(State.QUEUED, {}, "", Dispatch(), id="free to start"),
    pytest.param(State.QUEUED, {}, "no room", Wait("no room"), id="an obstacle"),
    pytest.param(State.QUEUED, {"not_before": NOW}, "", Dispatch(), id="has backed off"),
    pytest.param(
        State.QUEUED,
        {"desired": CANCEL},
        "no room",
        Finish(State.CANCELLED, Reason.CANCELLED, "cancelled while it was not running"),
        id="queued and cancelled",
    ),
    pytest.param(
        State.PAUSED,
        {"desired": CANCEL},
        "",
        Finish(State.CANCELLED, Reason.CANCELLED, "cancelled while it was not running"),
        id="paused and cancelled",
    ),
    pytest.param(
        State.QUEUED,
        {"desired": PAUSE},
        "",
        Finish(State.PAUSED, Reason.PAUSED, "paused before it ran"),
        id="queued and to pause",
    ),
    pytest.param(State.PAUSED, {"desired": PAUSE}, "", Nothing(), id="paused and to stay so"),
    pytest.param(
        State.PAUSED,
        {"errors": 2, "losses": 1},
        "",
        Requeue(Reason.PAUSED, "resumed", 0.0, 2, 1),
        id="resumed",
    ),
]


@pytest.mark.parametrize(("state", "fields", "obstacle", "action"), WAITING)
def test_a_waiting_job(state: State, fields: dict[str, Any], obstacle: str, action: Action) -> None:
    assert reconcile_waiting(a_job(state, **fields), obstacle, NOW) == action


def test_a_job_that_backs_off_says_so() -> None:
    action = reconcile_waiting(a_job(State.QUEUED, not_before=NOW + 1), "", NOW)
    assert isinstance(action, Wait)
    assert "backs off" in action.reason


# ------------------------------------------------------------------------- running jobs

UNSENT = {"submitted_at": None}
CONFIRMED = {"gone_since": NOW - CONFIRM_S}
FLAGGED = {"stop_kind": "cancel", "stop_reason": Reason.CANCELLED}
FRESH = {"heartbeat": NOW - 1}
LONG_AGO = {"heartbeat": NOW - FORGOTTEN_S}

GOES_ON = [
    pytest.param(RUN, UNSENT, seen(MISSING), Submit(), id="not submitted"),
    pytest.param(RUN, UNSENT, seen(UNREACHABLE), Nothing(), id="not submitted, Ray is away"),
    pytest.param(RUN, UNSENT, seen(RUNNING), Submit(), id="submitted, but nobody noted it"),
    pytest.param(RUN, UNSENT, seen(FAILED), Submit(), id="over before anybody noted it"),
    pytest.param(CANCEL, UNSENT, seen(RUNNING), Submit(), id="cancelled, but Ray has it"),
    pytest.param(CANCEL, UNSENT, seen(UNREACHABLE), Nothing(), id="cancelled, Ray is away"),
    pytest.param(RUN, {}, seen(RUNNING, **FRESH), Nothing(), id="runs"),
    pytest.param(RUN, {}, seen(RUNNING, heartbeat=START), Nothing(), id="runs, a late heartbeat"),
    pytest.param(RUN, {}, seen(RayStatus.PENDING), Nothing(), id="pending in Ray"),
    pytest.param(RUN, {}, seen(UNREACHABLE), Nothing(), id="Ray is away"),
    pytest.param(
        CANCEL, {}, seen(RUNNING), RequestStop("cancel", Reason.CANCELLED), id="to cancel"
    ),
    pytest.param(PAUSE, {}, seen(RUNNING), RequestStop("pause", Reason.PAUSED), id="to pause"),
    pytest.param(
        CANCEL,
        {},
        seen(UNREACHABLE),
        RequestStop("cancel", Reason.CANCELLED),
        id="the flag needs no Ray",
    ),
    pytest.param(
        CANCEL,
        FLAGGED | {"stop_requested_at": NOW - STOP_GRACE_S},
        seen(RUNNING),
        Nothing(),
        id="within the grace",
    ),
    pytest.param(
        CANCEL,
        FLAGGED | {"stop_requested_at": NOW - STOP_GRACE_S - 1},
        seen(UNREACHABLE),
        Nothing(),
        id="the grace is over, Ray is away",
    ),
    pytest.param(
        CANCEL,
        {"stop_kind": "pause", "stop_reason": Reason.PAUSED, "stop_requested_at": NOW - 60},
        seen(RUNNING),
        RequestStop("cancel", Reason.CANCELLED),
        id="pause, then cancel",
    ),
    pytest.param(RUN, {}, seen(FAILED), NoteGone(gone=True), id="FAILED for the first time"),
    pytest.param(RUN, {}, seen(RayStatus.STOPPED), NoteGone(gone=True), id="STOPPED"),
    pytest.param(RUN, {}, seen(RayStatus.SUCCEEDED), NoteGone(gone=True), id="ended wordless"),
    pytest.param(
        RUN, {"gone_since": NOW - CONFIRM_S + 0.1}, seen(FAILED), Nothing(), id="FAILED just now"
    ),
    pytest.param(RUN, CONFIRMED, seen(RUNNING), NoteGone(gone=False), id="comes back alive"),
    pytest.param(RUN, CONFIRMED, seen(UNREACHABLE), Nothing(), id="gone, then Ray is away"),
    pytest.param(RUN, {}, seen(MISSING, **FRESH), NoteGone(gone=True), id="forgotten by Ray"),
    pytest.param(
        RUN,
        {"gone_since": NOW - 10 * FORGOTTEN_S},
        seen(MISSING, **FRESH),
        Nothing(),
        id="forgotten long ago, yet its heart beats",
    ),
    pytest.param(
        RUN,
        {"gone_since": NOW - FORGOTTEN_S + 1},
        seen(MISSING, heartbeat=NOW - FORGOTTEN_S + 1),
        Nothing(),
        id="forgotten, silent for not quite long enough",
    ),
    pytest.param(
        RUN,
        {"submitted_at": NOW - 10, "gone_since": NOW - 9},
        seen(MISSING),
        Nothing(),
        id="forgotten just after it was submitted",
    ),
    pytest.param(
        CANCEL,
        CONFIRMED,
        seen(MISSING, **FRESH),
        RequestStop("cancel", Reason.CANCELLED),
        id="forgotten and alive: the flag reaches it",
    ),
    pytest.param(RUN, {}, seen(RUNNING, "succeeded"), Nothing(), id="result, about to exit"),
]


@pytest.mark.parametrize(("desired", "attempt", "look", "action"), GOES_ON)
def test_a_job_that_goes_on(
    desired: Desired, attempt: dict[str, Any], look: Seen, action: Action
) -> None:
    assert reconcile(a_job(desired=desired), an_attempt(**attempt), look, NOW) == action


@pytest.mark.parametrize(
    ("attempt", "look"),
    [
        pytest.param(
            FLAGGED | {"stop_requested_at": NOW - STOP_GRACE_S - 0.1}, seen(RUNNING), id="flag"
        ),
        pytest.param({}, seen(RUNNING, "succeeded", result_at=NOW - EXIT_GRACE_S - 1), id="result"),
    ],
)
def test_a_process_that_stays_is_killed(attempt: dict[str, Any], look: Seen) -> None:
    action = reconcile(a_job(desired=CANCEL), an_attempt(**attempt), look, NOW)
    assert isinstance(action, StopRay)


ENDED = [
    (RUN, {}, "succeeded", Reason.COMPLETED, State.SUCCEEDED, Reason.COMPLETED),
    (CANCEL, {}, "succeeded", Reason.COMPLETED, State.SUCCEEDED, Reason.COMPLETED),
    (CANCEL, FLAGGED, "cancelled", Reason.CANCELLED, State.CANCELLED, Reason.CANCELLED),
    (PAUSE, {}, "paused", Reason.PAUSED, State.PAUSED, Reason.PAUSED),
    (RUN, {}, "paused", Reason.PAUSED, State.PAUSED, Reason.PAUSED),
    (CANCEL, {}, "failed", Reason.ERROR, State.CANCELLED, Reason.CANCELLED),
    (RUN, {}, "failed", Reason.ERROR, State.FAILED, Reason.ERROR),
    (RUN, UNSENT, "succeeded", Reason.COMPLETED, State.SUCCEEDED, Reason.COMPLETED),
]


@pytest.mark.parametrize("ray", [s for s in RayStatus if not s.alive])
@pytest.mark.parametrize(("desired", "attempt", "outcome", "why", "state", "reason"), ENDED)
def test_a_result_decides_once_the_process_is_gone(
    ray: RayStatus,
    desired: Desired,
    attempt: dict[str, Any],
    outcome: str,
    why: Reason,
    state: State,
    reason: Reason,
) -> None:
    action = reconcile(
        a_job(desired=desired), an_attempt(**attempt), seen(ray, outcome, reason=why), NOW
    )
    assert action == Finish(state, reason, "E")


@pytest.mark.parametrize(
    "attempt",
    [
        pytest.param({"stop_reason": Reason.DEADLINE}, id="noted"),
        pytest.param({}, id="a crash came between the flag and its note"),
    ],
)
def test_a_worker_stopped_by_the_deadline_has_failed(attempt: dict[str, Any]) -> None:
    late = a_job(spec={"max_runtime_s": 60})
    action = reconcile(late, an_attempt(**attempt), seen(FAILED, "cancelled"), NOW)
    assert action == Finish(State.FAILED, Reason.DEADLINE, "stopped after max_runtime_s = 60")


def test_the_deadline_counts_from_the_submission() -> None:
    limited = a_job(spec={"max_runtime_s": 60})
    at_limit = an_attempt(submitted_at=NOW - 60)
    assert reconcile(limited, at_limit, seen(RUNNING), NOW) == Nothing()
    past = an_attempt(submitted_at=NOW - 60.1)
    expected = RequestStop("cancel", Reason.DEADLINE)
    assert reconcile(limited, past, seen(RUNNING), NOW) == expected
    assert reconcile(limited, past, seen(UNREACHABLE), NOW) == expected


@pytest.mark.parametrize(
    ("errors", "delay"), [(0, BACKOFF_S), (1, 2 * BACKOFF_S), (9, MAX_BACKOFF_S)]
)
def test_an_error_with_retries_left_is_tried_again_later(errors: int, delay: float) -> None:
    retried = a_job(spec={"max_retries": 10}, errors=errors, losses=2)
    action = reconcile(retried, an_attempt(), seen(FAILED, "failed"), NOW)
    assert action == Requeue(Reason.ERROR, "E", delay, errors + 1, 0)


def test_an_error_without_retries_left_is_final() -> None:
    spent = a_job(spec={"max_retries": 1}, errors=1)
    action = reconcile(spent, an_attempt(), seen(FAILED, "failed"), NOW)
    assert action == Finish(State.FAILED, Reason.ERROR, "E")


@pytest.mark.parametrize("reason", FINAL)
def test_an_error_that_would_come_again_is_not_retried(reason: Reason) -> None:
    retried = a_job(spec={"max_retries": 10})
    action = reconcile(retried, an_attempt(), seen(FAILED, "failed", reason=reason), NOW)
    assert action == Finish(State.FAILED, reason, "E")


LOSSES = [
    (0, False, Requeue(Reason.WORKER_LOST, "", 0.0, 1, 1)),
    (1, False, Requeue(Reason.WORKER_LOST, "", BACKOFF_S, 1, 2)),
    (2, True, Requeue(Reason.WORKER_LOST, "", 0.0, 1, 1)),
]


@pytest.mark.parametrize(("losses", "checkpoint", "action"), LOSSES)
def test_a_lost_worker_is_replaced_at_nobodys_expense(
    losses: int, checkpoint: bool, action: Requeue
) -> None:
    look = seen(FAILED, has_checkpoint=checkpoint)
    found = reconcile(a_job(losses=losses, errors=1), an_attempt(**CONFIRMED), look, NOW)
    assert isinstance(found, Requeue)
    assert replace(found, evidence="") == action
    assert "FAILED" in found.evidence


def test_a_poison_job_fails() -> None:
    look = seen(FAILED)
    action = reconcile(a_job(losses=MAX_LOSSES - 1), an_attempt(**CONFIRMED), look, NOW)
    assert isinstance(action, Finish)
    assert (action.state, action.reason) == (State.FAILED, Reason.WORKER_LOST)
    assert f"lost {MAX_LOSSES} times" in action.evidence


def test_a_forgotten_and_silent_worker_is_lost() -> None:
    action = reconcile(a_job(), an_attempt(**CONFIRMED), seen(MISSING, **LONG_AGO), NOW)
    assert isinstance(action, Requeue)
    assert action.reason is Reason.WORKER_LOST


@pytest.mark.parametrize(
    ("desired", "attempt", "state", "reason"),
    [
        (CANCEL, {}, State.CANCELLED, Reason.CANCELLED),
        (PAUSE, {}, State.PAUSED, Reason.PAUSED),
        (RUN, {"stop_reason": Reason.DEADLINE}, State.FAILED, Reason.DEADLINE),
    ],
)
def test_a_worker_that_was_to_leave_is_not_missed(
    desired: Desired, attempt: dict[str, Any], state: State, reason: Reason
) -> None:
    gone = an_attempt(**CONFIRMED, **attempt)
    action = reconcile(a_job(desired=desired), gone, seen(FAILED), NOW)
    assert isinstance(action, Finish)
    assert (action.state, action.reason) == (state, reason)


def test_a_job_cancelled_before_ray_was_called_is_over_at_once() -> None:
    action = reconcile(a_job(desired=CANCEL), an_attempt(**UNSENT), seen(MISSING), NOW)
    assert isinstance(action, Finish)
    assert action.state is State.CANCELLED


# --------------------------------------------------------------------------- any input

TIMES = st.floats(min_value=NOW - 10_000, max_value=NOW + 100)
MAYBE_TIME = st.none() | TIMES
SPECS = st.sampled_from(
    [
        DEMO.model_copy(update={"max_runtime_s": limit, "max_retries": retries})
        for limit in (None, 1, 5000)
        for retries in (0, 2, 10)
    ]
)
JOBS = st.builds(
    a_job,
    state=st.just(State.RUNNING),
    desired=st.sampled_from(Desired),
    errors=st.integers(0, 20),
    losses=st.integers(0, 5),
    not_before=MAYBE_TIME,
).flatmap(lambda job: SPECS.map(lambda spec: replace(job, spec=spec)))
ATTEMPTS = st.builds(
    an_attempt,
    submitted_at=MAYBE_TIME,
    stop_kind=st.sampled_from([None, "cancel", "pause"]),
    stop_reason=st.sampled_from([None, Reason.CANCELLED, Reason.PAUSED, Reason.DEADLINE]),
    stop_requested_at=MAYBE_TIME,
    gone_since=MAYBE_TIME,
)
RESULTS = st.builds(
    Result,
    outcome=st.sampled_from(["succeeded", "failed", "cancelled", "paused"]),
    reason=st.sampled_from(Reason),
)
LOOKS = st.builds(
    Seen,
    ray=st.builds(RayJob, st.sampled_from(RayStatus)),
    result=st.none() | RESULTS,
    result_at=MAYBE_TIME,
    heartbeat=MAYBE_TIME,
    has_checkpoint=st.booleans(),
)


@settings(max_examples=500, deadline=None)
@given(JOBS, ATTEMPTS, LOOKS)
def test_whatever_is_seen_the_decision_is_safe(job: Job, attempt: Attempt, look: Seen) -> None:
    action = reconcile(job, attempt, look, NOW)
    assert isinstance(action, Action)
    ray = look.ray.status
    if isinstance(action, Finish | Requeue):
        never_ran = attempt.submitted_at is None and ray is MISSING and job.desired is CANCEL
        lost = attempt.gone_since is not None and NOW - attempt.gone_since >= CONFIRM_S
        assert look.result is not None or never_ran or (lost and (ray.over or ray is MISSING))
        assert not ray.alive, "a process of the attempt may be running"
    if isinstance(action, StopRay):
        assert ray.alive
        assert attempt.stop_requested_at is not None or look.result is not None
    if isinstance(action, RequestStop | Submit):
        assert look.result is None


@settings(max_examples=300, deadline=None)
@given(JOBS, ATTEMPTS, LOOKS, MAYBE_TIME)
def test_a_heartbeat_alone_kills_nothing(
    job: Job, attempt: Attempt, look: Seen, heartbeat: float | None
) -> None:
    """Only where Ray has forgotten the attempt does it matter when the heart beat last."""
    other = replace(look, heartbeat=heartbeat)
    if look.ray.status is not MISSING:
        assert reconcile(job, attempt, other, NOW) == reconcile(job, attempt, look, NOW)
    alive = replace(look, result=None, heartbeat=NOW)
    if attempt.submitted_at is not None and look.ray.status is MISSING:
        assert not isinstance(reconcile(job, attempt, alive, NOW), Finish | Requeue | StopRay)


@settings(max_examples=300, deadline=None)
@given(JOBS, st.sampled_from([State.QUEUED, State.PAUSED]), st.sampled_from(["", "no room"]), TIMES)
def test_whatever_waits_the_decision_is_safe(
    job: Job, state: State, obstacle: str, now: float
) -> None:
    action = reconcile_waiting(replace(job, state=state), obstacle, now)
    assert isinstance(action, Nothing | Wait | Dispatch | Finish | Requeue)
    if isinstance(action, Dispatch):
        assert job.desired is RUN
        assert state is State.QUEUED
        assert not obstacle
    if isinstance(action, Finish) and action.state.terminal:
        assert job.desired is CANCEL


def test_the_evidence_is_a_line_and_not_rays_log() -> None:
    message = (
        "Job entrypoint command failed with exit code -9, last available logs "
        "(truncated to 20,000 chars):\n2026-11-22 INFO job_manager.py:581\n"
    )
    assert _first_words(message) == "Job entrypoint command failed with exit code -9"
