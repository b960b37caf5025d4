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
    KILL_AFTER_S,
    MAX_BACKOFF_S,
    MAX_LOSSES,
    OBEYS_KILL_S,
    SESSION_MARGIN_S,
    STOP_GRACE_S,
    Action,
    Dispatch,
    Finish,
    Kill,
    NoteGone,
    NoteResumed,
    NoteSession,
    Nothing,
    Processes,
    RequestStop,
    Requeue,
    Seen,
    StopRay,
    Submit,
    Wait,
    _first_words,
    reconcile_waiting,
)
from service.reconcile import reconcile as reconcile_running
from workers.attempt import Progress, Reason, Result, Resumed
from workers.specs import PRESETS

NOW = 1_000_000.0
START = NOW - 1000
DEMO = PRESETS["demo"]

RUN, PAUSE, CANCEL = Desired.RUN, Desired.PAUSE, Desired.CANCEL
RUNNING, FAILED, MISSING = RayStatus.RUNNING, RayStatus.FAILED, RayStatus.MISSING
UNREACHABLE = RayStatus.UNREACHABLE
RECONNECT_S = 15.0


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
    record = Attempt(
        job_id="j1", number=1, created_at=START, submitted_at=START, session="s1", resumed_step=0
    )
    return replace(record, **fields)


def seen(ray: RayStatus, outcome: str | None = None, **fields: Any) -> Seen:
    reason = fields.pop("reason", Reason.ERROR)
    result = Result(outcome=outcome, reason=reason, evidence="E") if outcome else None
    result_at = fields.pop("result_at", NOW - 1) if outcome else None
    session = None if ray is UNREACHABLE else "s1"
    seen = Seen(RayJob(ray), session, result=result, result_at=result_at)
    return replace(seen, **fields)


def reconcile(job: Job, attempt: Attempt, look: Seen, now: float) -> Action:
    return reconcile_running(job, attempt, look, now, RECONNECT_S)


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
        {"desired": PAUSE, "attempt": 0},
        "",
        Finish(State.PAUSED, Reason.PAUSED, "paused before it ran"),
        id="queued and to pause",
    ),
    pytest.param(
        State.QUEUED,
        {"desired": PAUSE},
        "",
        Finish(State.PAUSED, Reason.PAUSED, "paused while it waited"),
        id="between two attempts and to pause",
    ),
    pytest.param(State.PAUSED, {"desired": PAUSE}, "", Nothing(), id="paused and to stay so"),
    pytest.param(
        State.PAUSED,
        {"errors": 2, "losses": 1},
        "",
        Requeue(Reason.PAUSED, "resumed", 0.0, 2, 0),
        id="resumed",
    ),
]


@pytest.mark.parametrize(("state", "fields", "obstacle", "action"), WAITING)
def test_a_waiting_job(state: State, fields: dict[str, Any], obstacle: str, action: Action) -> None:
    assert reconcile_waiting(a_job(state, **fields), obstacle, NOW) == action


def test_nobody_backs_off_for_longer_than_the_longest_time() -> None:
    """The clock was set back meanwhile."""
    waiting = a_job(State.QUEUED, not_before=NOW + MAX_BACKOFF_S + 1)
    assert reconcile_waiting(waiting, "", NOW) == Dispatch()


def test_a_job_that_was_to_leave_ends_though_ray_is_away() -> None:
    look = seen(UNREACHABLE, processes=SETTLED)
    action = reconcile(a_job(desired=CANCEL), an_attempt(**CONFIRMED), look, NOW)
    assert isinstance(action, Finish)
    assert action.state is State.CANCELLED


def test_a_job_that_backs_off_says_so() -> None:
    action = reconcile_waiting(a_job(State.QUEUED, not_before=NOW + 1), "", NOW)
    assert isinstance(action, Wait)
    assert "backs off" in action.reason


# ------------------------------------------------------------------------- running jobs

UNSENT = {"submitted_at": None}
CONFIRMED = {"gone_since": NOW - CONFIRM_S}
FLAGGED = {"stop_kind": "cancel", "stop_reason": Reason.CANCELLED}
SETTLED = Processes(gone=1)
ALIVE = Processes(living=1)
REMOTE = Processes(mains_elsewhere=1)
REMOTE_TWO = Processes(mains_elsewhere=1, helpers_elsewhere=2)
OTHER = {"session": "s2"}
LOST = {"session_lost_at": NOW - 1}
DIED_OUT = {"session_lost_at": NOW - RECONNECT_S - SESSION_MARGIN_S}
BEGUN = Resumed(attempt=1, epoch=2, step=40)

GOES_ON = [
    pytest.param(RUN, UNSENT, seen(MISSING), Submit(), id="not submitted"),
    pytest.param(RUN, UNSENT, seen(UNREACHABLE), Nothing(), id="not submitted, Ray is away"),
    pytest.param(RUN, UNSENT, seen(RUNNING), Submit(), id="submitted, but nobody noted it"),
    pytest.param(RUN, UNSENT, seen(FAILED), Submit(), id="over before anybody noted it"),
    pytest.param(CANCEL, UNSENT, seen(RUNNING), Submit(), id="cancelled, but Ray has it"),
    pytest.param(CANCEL, UNSENT, seen(UNREACHABLE), Nothing(), id="cancelled, Ray is away"),
    pytest.param(RUN, {}, seen(RUNNING), Nothing(), id="runs"),
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
    pytest.param(
        RUN, CONFIRMED, seen(UNREACHABLE), NoteGone(gone=False), id="gone, then Ray is away"
    ),
    pytest.param(RUN, {}, seen(MISSING), NoteGone(gone=True), id="forgotten in the same session"),
    pytest.param(
        RUN, CONFIRMED, seen(FAILED, watched_s=CONFIRM_S - 1), Nothing(), id="looked but a moment"
    ),
    pytest.param(
        RUN, {}, seen(RUNNING, node_dead=True), NoteGone(gone=True), id="its node has died"
    ),
    pytest.param(
        RUN, {}, seen(RUNNING, processes=SETTLED), NoteGone(gone=True), id="its process is gone"
    ),
    pytest.param(
        RUN,
        {"gone_since": NOW},
        seen(RUNNING, processes=SETTLED),
        Nothing(),
        id="its process is gone, what does Ray say?",
    ),
    pytest.param(
        RUN, {}, seen(MISSING, **OTHER), NoteSession(lost=True), id="the head is another one"
    ),
    pytest.param(
        RUN,
        LOST | {"killed_at": NOW},
        seen(MISSING, processes=REMOTE, **OTHER),
        Nothing(),
        id="an orphan may live yet",
    ),
    pytest.param(RUN, LOST, seen(MISSING, **OTHER), Nothing(), id="nobody knows what was started"),
    pytest.param(
        RUN, {"session": None}, seen(MISSING), NoteSession(lost=True), id="session unknown"
    ),
    pytest.param(
        RUN, {}, seen(UNREACHABLE, processes=SETTLED), Nothing(), id="gone, perhaps with the head"
    ),
    pytest.param(
        CANCEL,
        UNSENT,
        seen(MISSING, processes=ALIVE),
        NoteGone(gone=True),
        id="cancelled, and lives though Ray never answered",
    ),
    pytest.param(
        RUN,
        UNSENT,
        seen(MISSING, **OTHER),
        NoteSession(lost=True),
        id="whether Ray had it nobody can tell",
    ),
    pytest.param(RUN, LOST, seen(UNREACHABLE), Nothing(), id="another head, which is away now"),
    pytest.param(RUN, LOST, seen(RUNNING), NoteSession(lost=False), id="the head is back"),
    pytest.param(
        RUN,
        {"resumed_step": None},
        seen(RUNNING, progress=Progress(resumed=BEGUN)),
        NoteResumed(BEGUN),
        id="says where it begins",
    ),
    pytest.param(RUN, {}, seen(RUNNING, progress=Progress(resumed=BEGUN)), Nothing(), id="said"),
    pytest.param(
        RUN, {"gone_since": NOW + 3600}, seen(FAILED), NoteGone(gone=True), id="clock set back"
    ),
    pytest.param(
        RUN,
        {"session_lost_at": NOW + 3600},
        seen(MISSING, **OTHER),
        NoteSession(lost=True),
        id="clock set back in a lost session",
    ),
    pytest.param(
        CANCEL,
        FLAGGED | {"stop_requested_at": NOW + 3600},
        seen(RUNNING),
        RequestStop("cancel", Reason.CANCELLED),
        id="clock set back after the flag",
    ),
    pytest.param(RUN, {}, seen(RUNNING, "succeeded"), Nothing(), id="result, about to exit"),
    pytest.param(RUN, {}, seen(UNREACHABLE, "cancelled"), Nothing(), id="result, Ray is away"),
    pytest.param(
        RUN,
        {},
        seen(FAILED, "failed", processes=ALIVE),
        Nothing(),
        id="result, and Ray sees it gone before we do",
    ),
    pytest.param(
        CANCEL,
        {"killed_at": NOW - OBEYS_KILL_S + 1},
        seen(FAILED, "cancelled", processes=REMOTE_TWO),
        Nothing(),
        id="result; the others are told to die",
    ),
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


KILLS = [
    pytest.param(UNSENT | CONFIRMED, seen(MISSING, processes=ALIVE), id="Ray's answer was lost"),
    pytest.param(LOST, seen(MISSING, processes=ALIVE, **OTHER), id="an orphan here"),
    pytest.param(LOST, seen(MISSING, processes=REMOTE, **OTHER), id="an orphan elsewhere"),
    pytest.param(CONFIRMED, seen(FAILED, processes=ALIVE), id="survives its job in Ray"),
    pytest.param(CONFIRMED, seen(FAILED, processes=REMOTE_TWO), id="workers elsewhere"),
    pytest.param(
        {},
        seen(FAILED, "succeeded", result_at=NOW - EXIT_GRACE_S - 1, processes=ALIVE),
        id="hangs after its result",
    ),
    pytest.param(
        {},
        seen(RUNNING, "succeeded", result_at=NOW - 2 * EXIT_GRACE_S - 1, processes=ALIVE),
        id="hangs after its result, and Ray can't end it",
    ),
    pytest.param(
        FLAGGED | {"stop_requested_at": NOW - KILL_AFTER_S - 0.1},
        seen(RUNNING, processes=ALIVE),
        id="deaf to the flag and to SIGTERM",
    ),
    pytest.param(
        FLAGGED | {"stop_requested_at": NOW - KILL_AFTER_S - 0.1, "killed_at": NOW - 2},
        seen(UNREACHABLE, processes=ALIVE),
        id="and again, Ray is away",
    ),
]


@pytest.mark.parametrize(("attempt", "look"), KILLS)
def test_what_is_left_is_killed(attempt: dict[str, Any], look: Seen) -> None:
    assert isinstance(reconcile(a_job(desired=CANCEL), an_attempt(**attempt), look, NOW), Kill)


LOSSES_PROVEN = [
    pytest.param(DIED_OUT, seen(MISSING, **OTHER), Reason.NODE_LOST, id="has died out"),
    pytest.param(
        LOST, seen(MISSING, processes=SETTLED, **OTHER), Reason.NODE_LOST, id="seen dead here"
    ),
    pytest.param(
        DIED_OUT | {"killed_at": NOW - 5},
        seen(MISSING, processes=REMOTE_TWO, **OTHER),
        Reason.NODE_LOST,
        id="has died out elsewhere",
    ),
    pytest.param(
        UNSENT | DIED_OUT, seen(MISSING, **OTHER), Reason.NODE_LOST, id="perhaps never had"
    ),
    pytest.param(
        DIED_OUT | {"session": None}, seen(MISSING), Reason.NODE_LOST, id="session unknown"
    ),
    pytest.param(
        UNSENT | CONFIRMED, seen(MISSING, processes=SETTLED), Reason.WORKER_LOST, id="it had it"
    ),
    pytest.param(CONFIRMED, seen(MISSING), Reason.WORKER_LOST, id="forgotten, same session"),
    pytest.param(CONFIRMED, seen(RUNNING, node_dead=True), Reason.NODE_LOST, id="with its node"),
    pytest.param(
        {"gone_since": NOW}, seen(FAILED, processes=SETTLED), Reason.WORKER_LOST, id="both say so"
    ),
    pytest.param(
        CONFIRMED, seen(RUNNING, processes=SETTLED), Reason.WORKER_LOST, id="Ray does not notice"
    ),
    pytest.param(
        CONFIRMED | {"killed_at": NOW - OBEYS_KILL_S},
        seen(FAILED, processes=REMOTE_TWO),
        Reason.WORKER_LOST,
        id="the others were told to die",
    ),
    pytest.param(
        CONFIRMED,
        replace(seen(FAILED), ray=RayJob(FAILED, "killed: the node was low on memory")),
        Reason.OUT_OF_MEMORY,
        id="out of memory, by Ray",
    ),
]


@pytest.mark.parametrize(("attempt", "look", "reason"), LOSSES_PROVEN)
def test_a_new_attempt_needs_a_proof_of_death(
    attempt: dict[str, Any], look: Seen, reason: Reason
) -> None:
    action = reconcile(a_job(), an_attempt(**attempt), look, NOW)
    assert isinstance(action, Requeue)
    assert (action.reason, action.delay_s) == (reason, 0.0)


def test_a_result_counts_in_the_end_though_ray_stays_away() -> None:
    look = seen(UNREACHABLE, "succeeded", result_at=NOW - EXIT_GRACE_S - 1)
    action = reconcile(a_job(), an_attempt(), look, NOW)
    assert action == Finish(State.SUCCEEDED, Reason.COMPLETED, "E")


def test_the_heads_death_makes_no_poison() -> None:
    look = seen(MISSING, processes=SETTLED, **OTHER)
    action = reconcile(a_job(losses=MAX_LOSSES - 1), an_attempt(**LOST), look, NOW)
    assert isinstance(action, Requeue)
    assert action.losses == MAX_LOSSES - 1
    gained = replace(look, has_checkpoint=True)
    action = reconcile(a_job(losses=MAX_LOSSES - 1), an_attempt(**LOST), gained, NOW)
    assert isinstance(action, Requeue)
    assert action.losses == 0, "what comes then begins anew"


def test_a_clock_set_forward_proves_nobodys_death() -> None:
    elsewhere = Processes(mains_elsewhere=1)
    long_ago = an_attempt(session_lost_at=NOW - 3600, killed_at=NOW - 3600)
    look = seen(MISSING, processes=elsewhere, watched_s=RECONNECT_S + SESSION_MARGIN_S - 1, **OTHER)
    assert reconcile(a_job(), long_ago, look, NOW) == Nothing()
    seen_long = replace(look, watched_s=RECONNECT_S + SESSION_MARGIN_S)
    assert isinstance(reconcile(a_job(), long_ago, seen_long, NOW), Requeue)


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


@pytest.mark.parametrize("ray", [s for s in RayStatus if s.over or s is MISSING])
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
    (2, True, Requeue(Reason.WORKER_LOST, "", 0.0, 1, 0)),
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
    desired=st.sampled_from([RUN, PAUSE, CANCEL]),
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
    session_lost_at=MAYBE_TIME,
    killed_at=MAYBE_TIME,
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
    session=st.sampled_from([None, "s1", "s2"]),
    node_dead=st.booleans(),
    processes=st.builds(
        Processes, *(st.integers(0, 2) for _ in ("living", "gone", "mains", "helpers"))
    ),
    watched_s=st.floats(0, 100),
    has_checkpoint=st.booleans(),
)


def _is_proven_dead(attempt: Attempt, look: Seen) -> bool:
    """By Ray's word that holds, by its head's restart that is long ago, or by our own eyes."""
    ray = look.ray.status
    another = look.session not in (None, attempt.session) and not ray.alive
    if look.processes.surely_gone:
        return True
    if another:
        since, enough_s = attempt.session_lost_at, RECONNECT_S + SESSION_MARGIN_S
        return since is not None and min(NOW - since, look.watched_s) >= enough_s
    since = attempt.gone_since
    held = since is not None and min(NOW - since, look.watched_s) >= CONFIRM_S
    return held and (ray.over or ray is MISSING or look.node_dead)


@settings(max_examples=500, deadline=None)
@given(JOBS, ATTEMPTS, LOOKS)
def test_whatever_is_seen_the_decision_is_safe(job: Job, attempt: Attempt, look: Seen) -> None:
    action = reconcile(job, attempt, look, NOW)
    assert isinstance(action, Action)
    ray = look.ray.status
    if isinstance(action, Finish | Requeue):
        never_ran = attempt.submitted_at is None and ray is MISSING and job.desired is CANCEL
        assert look.result is not None or never_ran or _is_proven_dead(attempt, look)
        assert not look.processes.living, "a process of the attempt is running"
        gone = look.processes.surely_gone or look.node_dead
        assert gone or not ray.alive, "a process of the attempt may be running"
    if isinstance(action, StopRay):
        assert ray.alive
        assert attempt.stop_requested_at is not None or look.result is not None
    if isinstance(action, RequestStop | Submit):
        assert look.result is None


@settings(max_examples=300, deadline=None)
@given(JOBS, ATTEMPTS, LOOKS, st.none() | st.builds(Progress, step=st.integers(0, 99)))
def test_a_late_heartbeat_alone_kills_nothing(
    job: Job, attempt: Attempt, look: Seen, progress: Progress | None
) -> None:
    """What the worker tells of itself may make a line of history, and nothing else."""
    other = replace(look, progress=progress)
    assert reconcile(job, attempt, other, NOW) == reconcile(job, attempt, look, NOW)


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
