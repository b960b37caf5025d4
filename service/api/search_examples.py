"""One example of every answer about searches; a test holds them against the views."""

from typing import Any

from service.api import examples

SPEC: dict[str, Any] = {
    "name": "routing",
    "experiment": "demo",
    "labels": {"team": "vision"},
    "base": examples.SPEC | {"name": "trial", "labels": {}, "epochs": 9},
    "space": {
        "model.routing.iterations": {"type": "choice", "values": [1, 2, 3, 5]},
        "loss.reconstruction_weight": {"type": "loguniform", "low": 1e-5, "high": 1e-2},
        "loss.m_minus": {"type": "uniform", "low": 0.05, "high": 0.3},
    },
    "metric": "val/accuracy",
    "scheduler": {"type": "asha", "grace_epochs": 1, "reduction_factor": 3},
    "trials": 12,
    "concurrency": 2,
}

GRID: dict[str, Any] = {
    "name": "two-by-two",
    "base": {"dataset": {"type": "mnist-5k"}, "epochs": 5},
    "space": {
        "model.routing.iterations": {"type": "grid", "values": [1, 3]},
        "loss.reconstruction_weight": {"type": "grid", "values": [0, 0.0005]},
    },
    "algorithm": {"type": "grid"},
    "seeds": 3,
}

PROMOTION: dict[str, Any] = {"set": {"epochs": 30}, "name": "best-for-30-epochs"}

_VALUES = {
    "model.routing.iterations": 3,
    "loss.reconstruction_weight": 0.00041,
    "loss.m_minus": 0.117,
}

LINKS = {
    "self": "/v1/searches/6ak4ztb3v1xk",
    "cancel": "/v1/searches/6ak4ztb3v1xk/cancel",
    "pause": "/v1/searches/6ak4ztb3v1xk/pause",
    "resume": "/v1/searches/6ak4ztb3v1xk/resume",
    "retry": "/v1/jobs/6ak4ztb3v1xk/retry",
    "logs": "/v1/jobs/6ak4ztb3v1xk/logs",
    "events": "/v1/jobs/6ak4ztb3v1xk/events",
    "attempts": "/v1/jobs/6ak4ztb3v1xk/attempts",
    "search": "/v1/searches/6ak4ztb3v1xk",
    "trials": "/v1/searches/6ak4ztb3v1xk/trials",
    "configurations": "/v1/searches/6ak4ztb3v1xk/configurations",
    "retry_failed": "/v1/searches/6ak4ztb3v1xk/retry-failed",
    "promote": "/v1/searches/6ak4ztb3v1xk/promote",
}

COUNTS = {
    "total": 12,
    "waiting": 5,
    "running": 2,
    "succeeded": 1,
    "pruned": 3,
    "failed": 1,
    "cancelled": 0,
}

CONFIGURATION: dict[str, Any] = {
    "rank": 1,
    "configuration": 4,
    "values": _VALUES,
    "mean": 0.9765,
    "deviation": None,
    "trials": [4],
    "scored": 1,
    "states": {"SUCCEEDED": 1},
    "epoch": 9,
    "epochs": 9,
    "best_trial": 4,
}

ITEM: dict[str, Any] = examples.ITEM | {
    "id": "6ak4ztb3v1xk",
    "kind": "search",
    "name": "routing",
    "phase": "searching",
    "progress": examples.ITEM["progress"]
    | {
        "epoch": 0,
        "epochs": 0,
        "step": 0,
        "steps": 0,
        "fraction": 0.42,
        "images_per_s": None,
        "eta_s": None,
        "train_loss": None,
        "train_accuracy": None,
        "val_accuracy": None,
        "trials": COUNTS,
        "best_score": 0.9765,
    },
    "links": LINKS,
}

SEARCH: dict[str, Any] = ITEM | {
    "spec": SPEC,
    "metric": "val/accuracy",
    "mode": "max",
    "counts": COUNTS,
    "best": CONFIGURATION,
}

ACCEPTED = SEARCH | {
    "state": "QUEUED",
    "phase": "waiting",
    "waiting_reason": "next in the queue; it is about to be looked at",
    "position": 1,
    "attempt": 0,
    "progress": None,
    "mlflow": None,
    "started_at": None,
    "counts": dict.fromkeys(COUNTS, 0) | {"total": 12, "waiting": 12},
    "best": None,
}

CANCELLING = SEARCH | {"phase": "cancelling", "desired": "cancel"}

PAUSING = SEARCH | {"phase": "pausing", "desired": "pause"}

PAGE = {"searches": [ITEM], "next_cursor": None}

PROMOTED = examples.ACCEPTED | {
    "name": "best-for-30-epochs",
    "labels": {"team": "vision", "search": "6ak4ztb3v1xk"},
}

TRIAL: dict[str, Any] = {
    "number": 4,
    "configuration": 4,
    "seed": 0,
    "values": _VALUES,
    "state": "SUCCEEDED",
    "score": 0.9765,
    "score_epoch": 8,
    "epoch": 9,
    "epochs": 9,
    "metrics": {"train/loss": 0.0127, "val/accuracy": 0.976},
    "reason": "completed",
    "evidence": "",
    "hint": None,
    "losses": 0,
    "attempt": 1,
    "started_at": "2026-11-22T18:42:31.002000Z",
    "ended_at": "2026-11-22T18:43:14.518000Z",
    "duration_s": 43.5,
    "checkpoint": "jobs/6ak4ztb3v1xk/trials/00004/1/checkpoints/best.pt",
    "checkpoint_sha256": "0f343b0931126a20f133d67c2b018a3b5d1b8a1e3c4f5a6b7c8d9e0f1a2b3c4d",
    "checkpoint_epoch": 8,
    "checkpoint_step": 904,
    "mlflow": {
        "experiment_id": "1",
        "run_id": "19e5b7a2c3d44f7f8a6b5c4d3e2f1a09",
        "url": "http://127.0.0.1:5000/#/experiments/1/runs/19e5b7a2c3d44f7f8a6b5c4d3e2f1a09",
    },
    "links": {
        "search": "/v1/searches/6ak4ztb3v1xk",
        "logs": "/v1/searches/6ak4ztb3v1xk/trials/4/logs",
    },
}

TRIAL_PAGE = {"trials": [TRIAL], "total": 7, "next_offset": 1}

CONFIGURATION_PAGE = {
    "metric": "val/accuracy",
    "mode": "max",
    "configurations": [CONFIGURATION],
    "total": 7,
    "next_offset": 1,
}

PREVIEW: dict[str, Any] = {
    "configurations": 12,
    "trials": 12,
    "points": [_VALUES],
    "epochs": 108,
    "training_images": 388_800,
    "validation_images": 43_200,
    "flops": 38_639_075_328_000,
    "estimated": False,
    "unknown": [],
    "notes": ["the scheduler 'asha' ends trials early: the sums are upper bounds"],
}

SCHEMA = {"title": "SearchSpec", "type": "object", "properties": {"trials": {"type": "integer"}}}
