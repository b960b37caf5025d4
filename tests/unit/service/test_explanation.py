"""`explain` as a table: histories as the reconciler writes them, and what is to be read in them."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from capsmodel.checkpoint import CheckpointFolder, save_checkpoint
from service.api import examples
from service.api.views import EventView, JobView
from service.explanation import Explanation, explain
from service.explanation.skipped import TOLD, passed_over
from service.explanation.words import PHRASES, counted, sentence, span
from service.reconcile import FINAL
from workers.attempt import HINTS, Reason, hint_for

NOON = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
ID = examples.ITEM["id"]

Line = tuple[float, int, str, str] | tuple[float, int, str, str, dict[str, Any]]

SUBMITTED: Line = (0, 0, "submitted", "submitted as 'first-run'")
FIRST: list[Line] = [
    SUBMITTED,
    (1, 1, "started", "attempt 1"),
    (1.2, 1, "dispatched", f"Ray has caps-{ID}-1"),
]


def second(at: float, resumed: dict[str, Any] | None = None) -> list[Line]:
    """Another attempt."""
    lines: list[Line] = [
        (at, 2, "started", "attempt 2"),
        (at + 0.2, 2, "dispatched", f"Ray has caps-{ID}-2"),
    ]
    if resumed is not None:
        lines.append((at + 4, 2, "resumed", "goes on from ...", resumed))
    return lines


LOST: list[Line] = [
    (60, 1, "suspect", "Ray says FAILED; no result yet"),
    (63, 1, "requeued", "worker-lost: Job supervisor actor died", {"delay_s": 0.0}),
]
RESUMED = {"attempt": 1, "epoch": 3, "step": 120, "skipped": []}


def told(lines: list[Line], at: float = 100, **job: Any) -> Explanation:
    """What is told of a job `at` seconds after noon."""
    events = [
        EventView(
            id=number, job=ID, attempt=line[1], at=NOON + timedelta(seconds=line[0]),
            type=line[2], message=line[3], data=line[4] if len(line) > 4 else {},
        )
        for number, line in enumerate(lines, start=1)
    ]  # fmt: skip
    state = job.get("state", "RUNNING")
    phase = {"RUNNING": "starting", "QUEUED": "waiting"}.get(state, state.lower())
    bare: dict[str, Any] = {"progress": None, "phase": phase, "result": None}
    if reason := job.get("reason"):
        bare["hint"] = hint_for(Reason(reason), failed=state == "FAILED")
    for name in ("finished_at", "not_before"):
        if name in job:
            job[name] = NOON + timedelta(seconds=job[name])
    view = JobView.model_validate(examples.JOB | bare | job)
    return explain(view, events, NOON + timedelta(seconds=at))


def text(found: Explanation) -> str:
    """All of it, as one text."""
    return "\n".join([found.summary, *found.details, found.hint or ""])


def commands(found: Explanation) -> list[str]:
    """The verbs of what can be done next."""
    return [step.command.split()[1] for step in found.next]


# ------------------------------------------------------------------------------- it waits


def test_a_job_that_waits_tells_its_place_and_what_holds_the_room() -> None:
    reason = "needs 2 CPUs on one node; 0 CPUs free, running or earlier jobs hold the rest"
    found = told(
        [SUBMITTED], state="QUEUED", phase="waiting", attempt=0, position=3, waiting_reason=reason
    )
    assert found.summary == "It waits at position 3 of the queue for its first attempt."
    assert f"N{reason[1:]}." in found.details
    assert found.attempts == []
    assert "capsctl jobs --state running" in [step.command for step in found.next]
    assert {"pause", "cancel"} <= set(commands(found))


def test_a_job_that_backs_off_tells_until_when_and_why() -> None:
    lines = [*FIRST, (90, 1, "requeued", "out-of-memory: CUDA out of memory", {"delay_s": 40.0})]
    found = told(
        lines, state="QUEUED", phase="waiting-to-retry", attempt=1, position=1, not_before=130,
        reason="out-of-memory", evidence="CUDA out of memory", waiting_reason="waits until ...",
    )  # fmt: skip
    assert found.summary == "It waits until 12:02:10, for 30 s more, before attempt 2."
    assert "Attempt 1 ended: memory ran out: CUDA out of memory." in found.details
    assert "waits until ..." not in text(found)
    assert found.attempts[0].ended == ("memory ran out: CUDA out of memory; tried again after 40 s")
    assert found.attempts[0].reason is Reason.OUT_OF_MEMORY
    assert commands(found)[0] == "logs"


def test_a_time_of_another_day_is_told_with_the_day() -> None:
    found = told(
        [SUBMITTED], state="QUEUED", phase="waiting-to-retry", attempt=0, not_before=86_400
    )
    assert "until 2026-11-23 12:00:00" in found.summary


@pytest.mark.parametrize(("desired", "word"), [("cancel", "cancelled"), ("pause", "paused")])
def test_a_wish_of_a_waiting_job_is_told(desired: str, word: str) -> None:
    found = told(
        [SUBMITTED], state="QUEUED", attempt=0, desired=desired, phase="waiting",
        waiting_reason=f"is about to be {word}",
    )  # fmt: skip
    assert word in found.summary


# -------------------------------------------------------------------------------- it runs


@pytest.mark.parametrize(
    ("phase", "lines", "tells"),
    [
        ("dispatching", FIRST[:2], "being handed to Ray"),
        ("starting", FIRST, "is starting"),
        ("suspect", [*FIRST, *LOST[:1]], "seems to have ended without a result"),
        ("cancelling", [*FIRST, (97, 1, "stop-requested", "the worker is asked to leave")],
         "for 3.0 s (cancelling)"),
        ("pausing", [*FIRST, (97, 1, "stop-requested", "the worker is asked to leave")],
         "for 3.0 s (pausing)"),
    ],
)  # fmt: skip
def test_a_running_job_tells_its_phase(phase: str, lines: list[Line], tells: str) -> None:
    found = told(lines, phase=phase)
    assert tells in found.summary
    assert found.attempts[0].ended_at is None
    assert found.attempts[0].duration_s == 99


def test_a_training_job_tells_how_far_it_is() -> None:
    found = told(FIRST, phase="training", progress=examples.ITEM["progress"])
    assert found.summary == (
        "Attempt 1 is training, epoch 3 of 10, step 395 of 1130, about 16 s left."
    )
    assert commands(found) == ["watch", "logs", "pause", "cancel"]
    assert commands(told(FIRST, phase="training", desired="pause"))[2:] == ["resume", "cancel"]


def test_a_search_that_runs_tells_of_its_trials() -> None:
    trials = {"total": 12, "running": 2, "succeeded": 4, "failed": 1, "waiting": 5}
    progress = examples.ITEM["progress"] | {"trials": trials, "eta_s": None}
    found = told(FIRST, kind="search", phase="searching", progress=progress)
    assert found.summary == "Attempt 1 is searching, 5 of 12 trials have ended."
    assert found.kind == "search"


def test_a_restarted_cluster_is_told() -> None:
    lines = [*FIRST, (95, 1, "cluster-restarted", "the Ray head is another one now")]
    found = told(lines, phase="training", progress=examples.ITEM["progress"])
    assert "At 12:01:35 the Ray head was another one" in text(found)
    assert "head was restarted" in found.attempts[0].ended


def heartbeat(age_s: float | None, **progress: Any) -> dict[str, Any]:
    """Progress of which the worker last told so long ago."""
    return examples.ITEM["progress"] | progress | {"heartbeat_age_s": age_s}


@pytest.mark.parametrize(("age_s", "silent"), [(None, False), (9.9, False), (10.0, True)])
def test_of_a_silent_worker_no_time_left_is_promised(age_s: float | None, silent: bool) -> None:
    found = told(FIRST, phase="training", progress=heartbeat(age_s))
    assert ("left" in found.summary) != silent
    assert ("nothing was heard of it for 10 s" in found.summary) == silent
    assert ("another one starts once nothing of it can be alive" in text(found)) == silent
    assert ("nothing was heard" in found.attempts[0].ended) == silent
    if silent:
        assert found.summary.startswith("Attempt 1 was training, epoch 3 of 10, step 395 of 1130;")


def test_a_silent_search_is_told_as_well() -> None:
    trials = {"total": 12, "running": 2, "succeeded": 4, "failed": 1, "waiting": 5}
    found = told(FIRST, kind="search", phase="searching", progress=heartbeat(75, trials=trials))
    assert found.summary == (
        "Attempt 1 was searching, 5 of 12 trials have ended; nothing was heard of it for "
        "1 min 15 s."
    )


@pytest.mark.parametrize(("age_s", "silent"), [(59, False), (60, True)])
def test_a_worker_may_be_silent_for_longer_while_it_starts(age_s: float, silent: bool) -> None:
    found = told(FIRST, phase="starting", progress=heartbeat(age_s, step=0, steps=0))
    assert ("nothing was heard of it for 1 min" in found.summary) == silent
    assert (found.summary == "Attempt 1 is starting.") != silent


def test_what_is_known_of_a_silent_attempt_is_told_instead_of_what_may_be() -> None:
    lines = [*FIRST, (95, 1, "cluster-restarted", "the Ray head is another one now")]
    found = told(lines, phase="training", progress=heartbeat(12))
    assert "nothing was heard of it for 12 s" in found.summary
    assert "the Ray head was another one" in text(found)
    assert "may live all the same" not in text(found)
    asked: Line = (97, 1, "stop-requested", "the worker is asked to leave")
    found = told([*FIRST, asked], phase="pausing", progress=heartbeat(12))
    assert "another one starts" not in text(found)


def test_processes_that_were_killed_are_told() -> None:
    kill = "SIGKILL to worker (process 71): the attempt is over, and this was left of it"
    found = told([*FIRST, (95, 1, "killed", kill, {"killed": [{"pid": 71}]})], phase="suspect")
    assert f"At 12:01:35: {kill}." in found.details


# ------------------------------------------------------------------------------ it was retried


def test_a_retried_job_tells_each_attempt() -> None:
    lines = [*FIRST, *LOST, *second(64, RESUMED)]
    found = told(lines, attempt=2, phase="training", progress=examples.ITEM["progress"])
    assert "It was begun 2 times, after 1 loss." in found.details
    first, now = found.attempts
    assert (first.number, first.duration_s, first.began) == (1, 62, "from the beginning")
    assert first.ended == (
        "its process died without a word: Job supervisor actor died; tried again at once"
    )
    assert now.began == "from step 120 (epoch 3), the checkpoint of attempt 1"
    assert now.ended == "goes on: training"


FOLDER = f"jobs/{ID}/1/checkpoints"
DAMAGED = (
    f"{FOLDER}/step-00000160.pt is damaged or another file: its sha256 is {'a1' * 32}, expected "
    f"{'b2' * 32}"
)


@pytest.mark.parametrize(
    ("problem", "tells"),
    [
        (DAMAGED, "step-00000160.pt of attempt 1 (damaged)"),
        (f"{FOLDER}/best.pt was swapped with another training's: it is j9's, expected {ID}'s",
         "best.pt of attempt 1 (another job's)"),
        (f"{FOLDER}/last.pt has no sidecar last.pt.json",
         "last.pt of attempt 1 (its sidecar is missing)"),
        (f"{FOLDER}/last.pt.json is damaged: its sidecar_sha256 does not fit",
         "last.pt of attempt 1 (its sidecar is damaged)"),
        (f"{FOLDER}/last.pt.json has schema_version 9, this release reads 2",
         "last.pt of attempt 1 (written by another release)"),
        (f"{FOLDER}/last.pt cannot be read: [Errno 2] No such file or directory: 'last.pt'",
         "last.pt of attempt 1 (missing)"),
        (f"{FOLDER}/last.pt cannot be read: [Errno 5] Input/output error",
         "last.pt of attempt 1 (it can't be read)"),
        (f"{FOLDER}/step-00000007.pt is another checkpoint under this name: it was saved at step 8",
         "step-00000007.pt of attempt 1 (another checkpoint under this name)"),
        (f"last.pt: its digest is {'c' * 64}", "last.pt (its digest is ...)"),
        (f"nobody knows {'c' * 64}", "nobody knows ..."),
    ],
)  # fmt: skip
def test_a_checkpoint_that_was_passed_over_is_told_in_short(problem: str, tells: str) -> None:
    assert passed_over([problem]) == f"1 checkpoint was passed over: {tells}"


def test_the_words_on_checkpoints_are_those_of_the_library(tmp_path: Path) -> None:
    """What a checkpoint's reader says of real files is understood."""
    folder = CheckpointFolder(tmp_path, keep_newest=9, owner=ID)
    for step in range(1, 6):
        folder.save({"step": step}, 0, step)
    first, second_, third, fourth, fifth = sorted(tmp_path.glob("*.pt"))
    first.write_bytes(b"damaged")
    second_.unlink()
    third.with_name(f"{third.name}.json").unlink()
    fourth.with_name(f"{fourth.name}.json").write_text("{")
    save_checkpoint(fifth, {}, 0, 5, "another")
    newest, problems = folder.newest_verified()
    assert newest is None
    assert passed_over(problems) == (
        "5 checkpoints were passed over: step-00000005.pt (another job's); "
        "step-00000004.pt (its sidecar is damaged); step-00000003.pt (its sidecar is missing); "
        "step-00000002.pt (missing); step-00000001.pt (damaged)"
    )


def test_a_checkpoint_is_told_once_and_without_digests() -> None:
    lines = [
        *FIRST, *LOST, *second(64, RESUMED | {"skipped": [DAMAGED]}),
        (70, 2, "requeued", "worker-lost: gone", {"delay_s": 0.0}),
        (71, 3, "started", "attempt 3"),
        (74, 3, "resumed", "goes on from ...", RESUMED | {"skipped": [DAMAGED]}),
    ]  # fmt: skip
    found = told(lines, attempt=3, phase="training", progress=examples.ITEM["progress"])
    assert [attempt.skipped for attempt in found.attempts] == [[], [DAMAGED], [DAMAGED]]
    assert "1 checkpoint was passed over: step-00000160.pt of attempt 1 (damaged)." in found.details
    assert text(found).count("step-00000160.pt") == 1
    assert "a1a1" not in text(found)


def test_of_many_checkpoints_a_few_are_named() -> None:
    many = [f"{FOLDER}/step-0000{n:04}.pt has no sidecar x" for n in range(TOLD + 2)]
    short = passed_over(many)
    assert short.startswith(f"{TOLD + 2} checkpoints were passed over: ")
    assert short.count(".pt") == TOLD
    assert short.endswith("; and 2 more")
    assert passed_over([]) == ""


@pytest.mark.parametrize(
    ("resumed", "progress", "began"),
    [
        ({"attempt": None, "epoch": 0, "step": 0, "skipped": ["a", "b"]}, None,
         "from the beginning: no checkpoint was whole"),
        (None, None, "from where is not known yet"),
        (None, examples.ITEM["progress"], "from the beginning: no checkpoint was left"),
    ],
)  # fmt: skip
def test_where_an_attempt_began(
    resumed: dict[str, Any] | None, progress: dict[str, Any] | None, began: str
) -> None:
    found = told([*FIRST, *LOST, *second(64, resumed)], attempt=2, progress=progress)
    assert found.attempts[1].began == began


@pytest.mark.parametrize(
    ("source", "began"),
    [
        ({"job": "6ak", "checkpoint": "last"}, "with the last weights of job 6ak"),
        ({"path": "jobs/6ak/1/checkpoints/best.pt"}, "with the weights of jobs/6ak/1/"),
    ],
)
def test_initial_weights_are_told(source: dict[str, Any], began: str) -> None:
    found = told(FIRST, spec=examples.SPEC | {"init_from": source})
    assert found.attempts[0].began.startswith(began)


@pytest.mark.parametrize(
    ("resumed", "message"),
    [("unpaused", "back in the queue"), ("requeued", "paused: resumed")],
    ids=["now", "of an earlier release"],
)
def test_what_ended_attempts_is_counted_apart(resumed: str, message: str) -> None:
    lines = [
        *FIRST, *LOST, *second(64, RESUMED),
        (70, 2, "requeued", "error: ValueError: 7", {"delay_s": 10.0}),
        (80, 3, "started", "attempt 3"),
        (85, 3, "paused", "", {"step": 200, "took_s": 2.1, "killed": False}),
        (90, 3, resumed, message, {"delay_s": 0.0}),
        (91, 4, "started", "attempt 4"),
        (92, 4, "cancelled", "cancelled", {"step": 210, "took_s": 1.0, "killed": False}),
        (95, 4, "retry-requested", "asked to try again"),
        (96, 5, "started", "attempt 5"),
    ]  # fmt: skip
    found = told(lines, attempt=5, phase="starting")
    why = "1 loss, 1 pause, 1 cancellation and 1 error"
    assert f"It was begun 5 times, after {why}." in found.details
    assert [attempt.reason for attempt in found.attempts] == [
        "worker-lost", "error", "paused", "cancelled", None,
    ]  # fmt: skip
    assert found.attempts[2].ended == (
        "paused: gone 2.1 s after it was asked to leave, at step 200; it left by itself"
    )


@pytest.mark.parametrize(
    ("lines", "counted_as"),
    [
        (LOST, "1 loss"),
        ([(63, 1, "requeued", "node-lost: the Ray head was restarted", {"delay_s": 0.0})],
         "1 loss"),
        ([(63, 1, "requeued", "interrupted: stopped at step 7", {"delay_s": 0.0})], "1 loss"),
        ([(60, 1, "suspect", "Ray says FAILED; no result yet"),
          (63, 1, "requeued", "out-of-memory: the node was low on memory", {"delay_s": 0.0})],
         "1 loss"),
        ([(60, 1, "suspect", "Ray says FAILED; no result yet"),
          (63, 1, "requeued", "out-of-memory: the node was low on memory", {"delay_s": 10.0})],
         "1 loss"),
        ([(63, 1, "requeued", "out-of-memory: worker 1 of 2 died; low on memory",
           {"delay_s": 0.0})], "1 loss"),
        ([(63, 1, "requeued", "out-of-memory: OutOfMemoryError: CUDA", {"delay_s": 10.0})],
         "1 error"),
        ([(63, 1, "requeued", "error: ValueError: 7", {"delay_s": 10.0})], "1 error"),
        ([(63, 1, "failed", "lost 3 times", {"reason": "worker-lost"})], "1 loss"),
        ([(63, 1, "failed", "stopped after max_runtime_s = 9", {"reason": "deadline"})],
         "1 deadline"),
        ([(63, 1, "failed", "the loss is nan", {"reason": "diverged"})], "1 error"),
        ([(63, 1, "succeeded", "best accuracy 0.9", {"reason": "completed"})], "1 success"),
    ],
)  # fmt: skip
def test_an_end_counts_as_it_does_in_the_queue(lines: list[Line], counted_as: str) -> None:
    found = told([*FIRST, *lines, *second(70)], attempt=2, phase="starting")
    assert f"It was begun 2 times, after {counted_as}." in found.details
    assert found.attempts[0].lost == (counted_as == "1 loss")


def test_a_restarted_head_is_a_loss_in_fitting_words() -> None:
    evidence = "the Ray head was restarted, and the worker left no result"
    lines = [
        *FIRST, (60, 1, "cluster-restarted", "the Ray head is another one now"),
        (90, 1, "requeued", f"node-lost: {evidence}", {"delay_s": 0.0}),
    ]  # fmt: skip
    found = told(lines, state="QUEUED", phase="waiting", attempt=1, reason="node-lost",
                 evidence=evidence)  # fmt: skip
    words = f"it was lost with its node, or with the head of the cluster: {evidence}"
    assert f"Attempt 1 ended: {words}." in found.details
    assert found.attempts[0].ended == f"{words}; tried again at once"


def test_while_ray_is_away_nothing_is_said_in_its_name() -> None:
    lines = [*FIRST, (60, 1, "suspect", "the worker's processes are gone")]
    found = told(lines, phase="suspect")
    assert found.attempts[0].ended == "it seems to be over; it is being made sure"
    assert "Ray" not in text(found)


# --------------------------------------------------------------------------------- it ended


def failed(reason: str, evidence: str, **job: Any) -> Explanation:
    lines = [*FIRST, (50, 1, "failed", evidence or reason, {"step": 7, "took_s": None})]
    return told(lines, state="FAILED", reason=reason, evidence=evidence, finished_at=50, **job)


def test_a_failed_job_tells_reason_evidence_hint_and_what_can_be_done() -> None:
    found = failed("diverged", "the loss is nan at step 7")
    assert found.summary == "It failed at 12:00:50: the training diverged."
    assert "The loss is nan at step 7." in found.details
    assert found.hint == HINTS[Reason.DIVERGED]
    assert "A retry goes on from the newest checkpoint" in text(found)
    assert commands(found) == ["logs", "retry", "delete"]
    assert found.next[0].command == f"capsctl logs {ID}"
    assert "mended" in found.next[1].what
    assert found.attempts[0].ended == "failed: the loss is nan at step 7"
    assert found.attempts[0].reason == "diverged"


def test_a_failed_search_leads_to_its_trials() -> None:
    found = failed("trials-failed", "3 of 12 trials failed", kind="search")
    assert f"capsctl trials --state failed {ID}" in [step.command for step in found.next]


def test_a_poison_job_tells_of_all_its_losses() -> None:
    lost = "lost 3 times in a row without a new checkpoint; the last time: gone"
    lines: list[Line] = [SUBMITTED]
    for number in (1, 2, 3):
        lines.append((number * 20.0, number, "started", f"attempt {number}"))
        if number < 3:
            lines.append((number * 20.0 + 5, number, "requeued", "worker-lost: gone", {}))
    lines.append((65, 3, "failed", lost, {"reason": "worker-lost", "loss": True}))
    found = told(lines, state="FAILED", attempt=3, reason="worker-lost", evidence=lost)
    assert "in attempt 3: its process died without a word" in found.summary
    assert "It was begun 3 times, after 2 losses." in found.details
    assert commands(found) == ["logs", "retry", "delete"]
    assert text(found).count("without a word") == 1, "the hint does not repeat it"
    assert "lost 3 times" in text(found).lower()
    assert "lost 3 times" not in found.attempts[2].ended
    assert found.next[1].what == "runs it from the beginning"
    assert "checkpoint that is whole" not in text(found)


def test_a_poison_job_may_have_a_checkpoint_of_its_better_days() -> None:
    """The first of four attempts left one, since else the third would have been the last."""
    lost = "lost 3 times in a row without a new checkpoint; the last time: gone"
    lines: list[Line] = [SUBMITTED]
    for number in (1, 2, 3, 4):
        lines.append((number * 20.0, number, "started", f"attempt {number}"))
        if number < 4:
            lines.append((number * 20.0 + 5, number, "requeued", "out-of-memory: x", {}))
    lines.append((85, 4, "failed", lost, {"reason": "out-of-memory", "loss": True}))
    found = told(lines, state="FAILED", attempt=4, reason="out-of-memory", evidence=lost)
    assert found.next[1].what.endswith("if it left one")
    assert found.hint == HINTS[Reason.OUT_OF_MEMORY]


@pytest.mark.parametrize("reason", ["worker-lost", "node-lost", "interrupted"])
def test_a_job_that_was_given_up_is_not_said_to_go_on(reason: str) -> None:
    found = failed(reason, "lost 3 times in a row without a new checkpoint; the last time: gone")
    assert found.hint
    assert "goes on" not in found.hint
    assert PHRASES[Reason(reason)] not in found.hint


def test_what_was_cancelled_before_it_ran_begins_from_the_beginning() -> None:
    ended: Line = (9, 0, "cancelled", "cancelled while it was not running", {"reason": "cancelled"})
    for kind in ("train", "search"):
        found = told([SUBMITTED, ended], state="CANCELLED", attempt=0, kind=kind)
        assert found.next[0].what == "runs it from the beginning"
        assert "checkpoint" not in text(found)


def test_a_retry_by_the_user_begins_another_chapter() -> None:
    lines = [
        *FIRST, (50, 1, "failed", "disk full", {}),
        (70, 1, "retry-requested", "asked to try again"),
        *second(71, RESUMED),
        (95, 2, "succeeded", "completed", {"step": 900, "took_s": None, "killed": False}),
    ]  # fmt: skip
    found = told(
        lines, state="SUCCEEDED", reason="completed", attempt=2, finished_at=95, result=a_result(2)
    )
    assert found.summary == "It succeeded at 12:01:35, in attempt 2."
    assert [attempt.ended for attempt in found.attempts] == ["failed: disk full", "succeeded"]
    kept = f"Its best checkpoint is of epoch 9, step 800: jobs/{ID}/2/checkpoints/best.pt."
    assert kept in found.details
    assert found.hint is None


def a_result(attempt: int, tracking: str = "complete") -> dict[str, Any]:
    """What an attempt left."""
    path = f"jobs/{ID}/{attempt}/checkpoints/best.pt"
    best = {"path": path, "sha256": "0", "epoch": 9, "step": 800}
    return {"checkpoints": {"best": best}, "tracking": tracking}


@pytest.mark.parametrize(
    ("state", "attempt", "told_of"),
    [
        ("SUCCEEDED", 1, True),
        ("CANCELLED", 1, True),
        ("FAILED", 1, True),
        ("FAILED", 2, False),
        ("CANCELLED", 2, False),
        ("RUNNING", 1, False),
        ("RUNNING", 2, False),
        ("QUEUED", 1, False),
        ("PAUSED", 1, False),
    ],
)
def test_only_what_the_end_left_is_told_of(state: str, attempt: int, told_of: bool) -> None:
    """The first attempt's files may have been damaged or removed while another one ran."""
    found = told(FIRST, state=state, attempt=attempt, result=a_result(1, "incomplete: refused"))
    assert ("best.pt" in text(found)) == told_of
    assert ("MLflow had not got everything" in text(found)) == told_of
    ended_otherwise = state in ("FAILED", "CANCELLED") and not told_of
    assert ("newest checkpoint that is whole" in text(found)) == ended_otherwise


@pytest.mark.parametrize(
    ("first", "second_end", "told_of"),
    [
        (True, {"result": True}, True),
        (True, {"result": False}, False),
        (True, {}, False),
        (None, {}, False),
    ],
)
def test_an_earlier_attempts_tracking_is_not_told_as_the_last_ones(
    first: bool | None, second_end: dict[str, Any], told_of: bool
) -> None:
    """Paused before its first checkpoint, resumed, and failed: the result may be the pause's."""
    paused = {} if first is None else {"result": first}
    lines = [
        *FIRST, (50, 1, "paused", "paused", paused), (60, 1, "unpaused", "back in the queue"),
        *second(61), (90, 2, "failed", "lost", second_end),
    ]  # fmt: skip
    for kind in ("train", "search"):
        found = told(
            lines, state="FAILED", attempt=2, kind=kind, reason="worker-lost",
            result={"checkpoints": {}, "tracking": "incomplete: refused"},
        )  # fmt: skip
        assert ("MLflow had not got everything" in text(found)) == told_of


def test_of_a_job_cancelled_while_paused_the_pauses_tracking_is_told() -> None:
    lines = [
        *FIRST, (50, 1, "paused", "paused", {"result": True}),
        (60, 1, "cancelled", "cancelled while it was not running", {"reason": "cancelled"}),
    ]  # fmt: skip
    result = {"checkpoints": {}, "tracking": "incomplete: refused"}
    found = told(lines, state="CANCELLED", result=result)
    assert "MLflow had not got everything" in text(found)


def test_of_a_search_the_best_trials_checkpoint_is_told() -> None:
    path = f"jobs/{ID}/trials/3/1/checkpoints/best.pt"
    best = {"path": path, "sha256": "0", "epoch": 9, "step": 800}
    found = told(FIRST, state="SUCCEEDED", attempt=2, kind="search",
                 result={"checkpoints": {"best": best}})  # fmt: skip
    assert path in text(found)


@pytest.mark.parametrize(
    ("tracking", "closed", "tells"),
    [
        ("complete", False, ""),
        ("complete", True, ""),
        ("incomplete: metrics: refused", False,
         "The control plane sends the metrics before it closes the run"),
        ("incomplete: metrics: refused", None,
         "The control plane sends the metrics before it closes the run"),
        ("incomplete: metrics: refused", True, "The control plane has sent the metrics since"),
    ],
)  # fmt: skip
def test_what_mlflow_lacks_is_told_as_it_is_now(
    tracking: str, closed: bool | None, tells: str
) -> None:
    mlflow = examples.ITEM["mlflow"] | {"closed": closed}
    found = told(FIRST, state="CANCELLED", result=a_result(1, tracking), mlflow=mlflow)
    if not tells:
        assert "MLflow" not in text(found)
        return
    assert "When its worker ended, MLflow had not got everything: metrics: refused." in (
        found.details
    )
    assert f"{tells}; pictures, models and other files may be missing in MLflow." in found.details


@pytest.mark.parametrize(
    ("data", "tells"),
    [
        ({"step": 118, "took_s": 3.2, "killed": False},
         "It was gone 3.2 s after it was asked to leave, at step 118; it left by itself."),
        ({"step": 118, "took_s": 14.0, "killed": True},
         "It was gone 14 s after it was asked to leave, at step 118; what was left of it had to be "
         "killed."),
        ({"step": None, "took_s": 3.2, "killed": False},
         "It was gone 3.2 s after it was asked to leave; it left by itself."),
        ({}, "Cancelled while it was not running."),
    ],
)  # fmt: skip
def test_a_cancelled_job_shows_its_receipt(data: dict[str, Any], tells: str) -> None:
    lines = [
        *FIRST, (40, 1, "cancel-requested", "asked to cancel"),
        (50, 1, "cancelled", "cancelled while it was not running", data),
    ]  # fmt: skip
    found = told(lines, state="CANCELLED", reason="cancelled", finished_at=50)
    assert found.summary == "It was cancelled at 12:00:50."
    assert tells in found.details
    assert commands(found) == ["retry", "delete"]


SIGNALLED: Line = (49, 1, "signalled", "SIGTERM, then SIGKILL: no answer to the stop flag for 8 s")
KILLED: Line = (49.5, 1, "killed", "SIGKILL to worker (process 71): no answer to the stop flag")
SUSPECT: Line = (49.5, 1, "suspect", "Ray says FAILED; no result yet")


@pytest.mark.parametrize("state", ["CANCELLED", "PAUSED"])
@pytest.mark.parametrize(
    ("marks", "killed", "tells"),
    [
        ([], False, "it left by itself"),
        ([SIGNALLED], False, "it had to be ended by signals"),
        ([SIGNALLED, SUSPECT], False, "it had to be ended by signals"),
        ([SIGNALLED, KILLED], True, "what was left of it had to be killed"),
        ([KILLED], True, "what was left of it had to be killed"),
        ([SUSPECT], False, "how it came to its end is not known"),
    ],
)
def test_a_receipt_tells_how_it_left(
    state: str, marks: list[Line], killed: bool, tells: str
) -> None:
    data = {"step": 118, "took_s": 12.4, "killed": killed}
    lines = [
        *FIRST, (40, 1, "stop-requested", "the worker is asked to leave"), *marks,
        (52, 1, state.lower(), "gone", data),
    ]  # fmt: skip
    found = told(lines, state=state, finished_at=52)
    words = f"gone 12 s after it was asked to leave, at step 118; {tells}"
    assert f"It was {words}." in found.details
    assert found.attempts[0].ended == f"{state.lower()}: {words}"


def test_the_signals_of_an_earlier_attempt_are_not_those_of_the_last() -> None:
    left = {"step": 9, "took_s": 1.0, "killed": False}
    lines = [*FIRST, SIGNALLED, *LOST, *second(64), (70, 2, "cancelled", "cancelled", left)]
    found = told(lines, state="CANCELLED", attempt=2, finished_at=70)
    assert found.attempts[1].ended.endswith("it left by itself")
    assert "It was gone 1.0 s after it was asked to leave, at step 9; it left by itself." in (
        found.details
    )


@pytest.mark.parametrize(
    ("reason", "printed"),
    [
        ("error", "what it printed, with the traceback"),
        ("diverged", "what it printed, with the traceback"),
        ("data-missing", "what it printed, with the traceback"),
        ("deadline", "what it printed"),
        ("worker-lost", "what it printed"),
        ("node-lost", "what it printed"),
        ("out-of-memory", "what it printed"),
        ("version-mismatch", "what it printed"),
    ],
)
def test_a_traceback_is_promised_where_there_is_one(reason: str, printed: str) -> None:
    assert failed(reason, "the evidence").next[0].what == printed


@pytest.mark.parametrize("reason", [r for r in Reason if r in HINTS])
def test_what_a_retry_can_mend_is_told_as_the_queue_sees_it(reason: Reason) -> None:
    retry = failed(reason, "the evidence").next[1]
    assert ("once what the hint says is mended" in retry.what) == (reason in FINAL)


def test_a_paused_job_tells_since_when_and_how_it_left() -> None:
    left = {"step": 200, "took_s": 2.1, "killed": False}
    found = told([*FIRST, (50, 1, "paused", "paused", left)], state="PAUSED", reason="paused")
    assert found.summary == "It is paused since 12:00:50."
    assert "at step 200" in text(found)
    assert commands(found) == ["resume", "cancel"]


def test_a_cancel_between_attempts_does_not_end_the_last_one_twice() -> None:
    lines = [*FIRST, *LOST, (70, 1, "cancelled", "cancelled while it was not running", {})]
    found = told(lines, state="CANCELLED", finished_at=70)
    assert found.attempts[0].reason == "worker-lost"
    assert found.attempts[0].ended_at == NOON + timedelta(seconds=63)


# --------------------------------------------------------------------------------- words


def test_every_reason_has_its_words() -> None:
    assert set(PHRASES) == set(Reason)


@pytest.mark.parametrize(
    ("said", "told_as"),
    [
        ("it waits", "It waits."),
        ("at 12:00:50: gone", "At 12:00:50: gone."),
        ("lost.", "Lost."),
        ("gone, at last!", "Gone, at last!"),
        ("init_from: job 6ak is RUNNING", "init_from: job 6ak is RUNNING."),
        ("max_runtime_s is 0", "max_runtime_s is 0."),
        ("epochs: at least 1", "epochs: at least 1."),
        ("dataset.type is none", "dataset.type is none."),
        ("jobs/6ak/1/log.txt is gone", "jobs/6ak/1/log.txt is gone."),
        ("step-00000007.pt is damaged", "step-00000007.pt is damaged."),
        ("", "."),
    ],
)
def test_a_sentence_begins_with_a_capital_unless_it_is_a_name(said: str, told_as: str) -> None:
    assert sentence(said) == told_as


def test_a_fields_name_is_told_as_it_is_written() -> None:
    waits = "init_from: job 6ak is RUNNING, it has not ended yet"
    found = told([SUBMITTED], state="QUEUED", attempt=0, waiting_reason=waits)
    assert f"{waits}." in found.details


def test_no_history_is_too_strange() -> None:
    """Events of another release, with other data, in no order."""
    lines: list[Line] = [
        (9, 7, "resumed", "x", {"skipped": [1, None]}),
        (1, 2, "started", ""),
        (2, 2, "resumed", "", {}),
        (3, 2, "requeued", "no-such-reason", {"delay_s": None}),
        (4, 2, "novelty", "", {"killed": "yes"}),
    ]
    for state in ("QUEUED", "RUNNING", "PAUSED", "SUCCEEDED", "FAILED", "CANCELLED"):
        assert told(lines, state=state, phase="starting", attempt=2).attempts[0].number == 2


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-1, "0.0 s"), (3.25, "3.2 s"), (9.99, "10 s"), (59.4, "59 s"), (60, "1 min"),
        (130, "2 min 10 s"), (3600, "1 h"), (11_100, "3 h 5 min"),
    ],
)  # fmt: skip
def test_spans_in_words(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_plurals() -> None:
    assert [counted(n, noun) for n, noun in ((1, "loss"), (2, "loss"), (3, "error"))] == [
        "1 loss", "2 losses", "3 errors",
    ]  # fmt: skip
