"""One example of every answer, for the OpenAPI document; a test holds them against the views."""

from typing import Any

SPEC: dict[str, Any] = {
    "name": "first-run",
    "experiment": "demo",
    "labels": {"team": "vision"},
    "dataset": {"type": "mnist-5k"},
    "model": {"type": "capsnet", "conv_channels": 64, "primary_types": 8},
    "optimizer": {"learning_rate": 0.003},
    "epochs": 10,
    "batch_size": 32,
}

ITEM: dict[str, Any] = {
    "id": "6ak2kq782ntq",
    "kind": "train",
    "name": "first-run",
    "experiment": "demo",
    "labels": {"team": "vision"},
    "priority": 0,
    "owner": "ann",
    "state": "RUNNING",
    "phase": "training",
    "desired": "run",
    "reason": None,
    "evidence": "",
    "hint": None,
    "waiting_reason": None,
    "position": None,
    "attempt": 1,
    "progress": {
        "epoch": 3,
        "epochs": 10,
        "step": 395,
        "steps": 1130,
        "fraction": 0.35,
        "images_per_s": 1490.2,
        "eta_s": 15.8,
        "train_loss": 0.0412,
        "train_accuracy": 0.981,
        "val_accuracy": 0.9775,
        "trials": None,
        "best_score": None,
        "heartbeat_age_s": 0.4,
    },
    "result": None,
    "mlflow": {
        "experiment_id": "1",
        "run_id": "7f0c2b6e9d8a4f51a3f6c1d2e3b4a596",
        "url": "http://127.0.0.1:5000/#/experiments/1/runs/7f0c2b6e9d8a4f51a3f6c1d2e3b4a596",
    },
    "created_at": "2026-11-22T18:42:06.185000Z",
    "updated_at": "2026-11-22T18:42:09.201000Z",
    "started_at": "2026-11-22T18:42:06.995000Z",
    "finished_at": None,
    "not_before": None,
    "links": {
        "self": "/v1/jobs/6ak2kq782ntq",
        "cancel": "/v1/jobs/6ak2kq782ntq/cancel",
        "pause": "/v1/jobs/6ak2kq782ntq/pause",
        "resume": "/v1/jobs/6ak2kq782ntq/resume",
        "retry": "/v1/jobs/6ak2kq782ntq/retry",
        "logs": "/v1/jobs/6ak2kq782ntq/logs",
        "events": "/v1/jobs/6ak2kq782ntq/events",
        "attempts": "/v1/jobs/6ak2kq782ntq/attempts",
        "search": None,
    },
}

JOB = ITEM | {"spec": SPEC}

ACCEPTED = JOB | {
    "state": "QUEUED",
    "phase": "waiting",
    "waiting_reason": "3 jobs are ahead in the queue",
    "position": 4,
    "attempt": 0,
    "progress": None,
    "mlflow": None,
    "started_at": None,
}

CANCELLING = JOB | {"phase": "cancelling", "desired": "cancel"}

PAUSING = JOB | {"phase": "pausing", "desired": "pause"}

ATTEMPT_PAGE = {
    "attempts": [
        {
            "number": 1,
            "created_at": "2026-11-22T18:42:06.990000Z",
            "submitted_at": "2026-11-22T18:42:07.120000Z",
            "ended_at": "2026-11-22T18:44:31.402000Z",
            "duration_s": 144.4,
            "resumed_step": 0,
            "reason": "worker-lost",
            "evidence": "Ray says FAILED, and the worker left no result",
            "hint": "the worker's process died without a word; look at the node",
            "stop_reason": None,
            "stop_requested_at": None,
            "killed_at": None,
            "node_id": "0a4f0c7be2b1",
            "logs": "/v1/jobs/6ak2kq782ntq/logs?attempt=1",
        }
    ]
}

JOB_PAGE = {"jobs": [ITEM], "next_cursor": "NmFrMmtxNzgybnRx"}

EVENT_PAGE = {
    "events": [
        {
            "id": 1,
            "job": "6ak2kq782ntq",
            "attempt": 0,
            "at": "2026-11-22T18:42:06.188000Z",
            "type": "submitted",
            "message": "submitted as 'first-run'",
            "data": {},
        }
    ],
    "next_after": 1,
}

LOG = "epoch 3/10: loss 0.0412, accuracy 98.1 %, validation 97.75 %\n"

HEALTH = {"status": "ok", "version": "0.1.0", "stack": "5f2c"}

READY = {
    "status": "ready",
    "checks": {
        "database": {"ok": True, "detail": None},
        "ray": {"ok": True, "detail": None},
        "mlflow": {"ok": True, "detail": None},
    },
}

NOT_READY = {
    "status": "not-ready",
    "checks": READY["checks"] | {"ray": {"ok": False, "detail": "connection refused"}},  # type: ignore[operator]
}

SCHEMA = {"title": "TrainSpec", "type": "object", "properties": {"epochs": {"type": "integer"}}}

FIELD_ERRORS = [
    {
        "pointer": "/model/routing/iterations",
        "detail": "Input should be greater than or equal to 1",
        "value": 0,
        "accepted": "a whole number, 1 to 10",
        "hint": None,
    }
]
