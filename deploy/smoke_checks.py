"""What smoke.sh asks of a deployment that is up: `smoke_checks.py ready|jobs`.

Stands on the standard library alone, so that it sees the service as any client does: CAPS_API,
CAPS_MLFLOW and CAPS_TOKEN say where and as whom.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

API = os.environ["CAPS_API"]
MLFLOW = os.environ["CAPS_MLFLOW"]
READY_S = 240.0
JOB_S = 420.0
PNG = b"\x89PNG\r\n\x1a\n"
ENDED = ("SUCCEEDED", "FAILED", "CANCELLED")

TINY: dict[str, Any] = {
    "experiment": "smoke",
    "dataset": {"type": "mnist-5k"},
    "model": {"conv_channels": 32, "primary_types": 4, "decoder": {"hidden": [64, 128]}},
    "optimizer": {"learning_rate": 0.003},
    "batch_size": 50,
    "epochs": 2,
    "resources": {"cpus_per_worker": 1},
}
SEARCH: dict[str, Any] = {
    "name": "smoke-search",
    "experiment": "smoke",
    "base": {key: value for key, value in TINY.items() if key != "experiment"},
    "space": {
        "model.routing.iterations": {"type": "choice", "values": [1, 2, 3]},
        "loss.reconstruction_weight": {"type": "loguniform", "low": 1e-5, "high": 1e-3},
    },
    "trials": 3,
    "concurrency": 2,
}


def call(
    url: str, body: object = None, token: str | None = None, method: str | None = None
) -> tuple[int, bytes]:
    """Status and body of an answer, also of a refusal."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, method=method)
    if data is not None:
        request.add_header("Content-Type", "application/json")
    if token is not None:
        request.add_header("Authorization", f"Bearer {token}")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def expect(condition: object, what: str) -> None:
    """End with `what` unless it holds."""
    if not condition:
        sys.exit(f"smoke: {what}")


def ready() -> None:
    """Wait until the API says that all its parts answer, and MLflow too by its published port."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            if call(f"{API}/readyz")[0] == 200 and call(f"{MLFLOW}/health")[0] == 200:
                return
        except OSError:
            pass
        expect(time.monotonic() < deadline, f"not ready after {READY_S:.0f} s")
        time.sleep(0.5)


def get(path: str) -> dict[str, Any]:
    """A document of the API."""
    status, content = call(API + path, token=os.environ["CAPS_TOKEN"])
    expect(status == 200, f"GET {path} answered {status}: {content[:300]!r}")
    found: dict[str, Any] = json.loads(content)
    return found


def submit(path: str, spec: dict[str, Any]) -> str:
    """Queue something; its id."""
    status, content = call(API + path, spec, token=os.environ["CAPS_TOKEN"])
    expect(status == 202, f"POST {path} answered {status}: {content[:500]!r}")
    return str(json.loads(content)["id"])


def ended(job_id: str) -> dict[str, Any]:
    """The job when it is over."""
    deadline = time.monotonic() + JOB_S
    while (job := get(f"/v1/jobs/{job_id}"))["state"] not in ENDED:
        expect(time.monotonic() < deadline, f"job {job_id} is {job['state']} after {JOB_S:.0f} s")
        time.sleep(1)
    expect(job["state"] == "SUCCEEDED", f"job {job_id} is {job['state']}: {job.get('evidence')}")
    return job


def mlflow(call_path: str, **parameters: str) -> dict[str, Any]:
    """A document of MLflow."""
    query = urllib.parse.urlencode(parameters)
    status, content = call(f"{MLFLOW}/api/2.0/mlflow/{call_path}?{query}")
    expect(status == 200, f"MLflow's {call_path} answered {status}: {content[:300]!r}")
    found: dict[str, Any] = json.loads(content)
    return found


def finished_run(run_id: str) -> dict[str, Any]:
    """The run once it is closed."""
    deadline = time.monotonic() + 60
    while True:
        run: dict[str, Any] = mlflow("runs/get", run_id=run_id)["run"]
        if run["info"]["status"] == "FINISHED":
            return run
        expect(time.monotonic() < deadline, f"run {run_id} is {run['info']['status']}")
        time.sleep(1)


def check_training(job: dict[str, Any]) -> None:
    """Its run has metrics, a sheet that is a picture, and the model."""
    run_id = job["mlflow"]["run_id"]
    run = finished_run(run_id)
    metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
    expect(
        metrics.get("test/accuracy", 0) > 0.5, f"test/accuracy is {metrics.get('test/accuracy')}"
    )
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    expect(tags.get("caps.tracking") == "complete", f"tracking: {tags.get('caps.tracking')}")
    sheets = [
        file["path"] for file in mlflow("artifacts/list", run_id=run_id, path="sheets")["files"]
    ]
    sheet = next((path for path in sheets if "reconstruction-sheet-test" in path), None)
    expect(sheet, f"no reconstruction sheet among {sheets}")
    query = urllib.parse.urlencode({"path": sheet, "run_uuid": run_id})
    status, picture = call(f"{MLFLOW}/get-artifact?{query}")
    expect(status == 200 and picture.startswith(PNG), f"{sheet} answered {status}")
    expect(run["outputs"]["model_outputs"], "the run has no model")
    model_id = run["outputs"]["model_outputs"][0]["model_id"]
    model = mlflow(f"logged-models/{model_id}")["model"]["info"]
    expect(model["status"].endswith("READY"), f"the model is {model['status']}")
    accuracy = metrics["test/accuracy"]
    print(f"training: accuracy {accuracy:.4f}, sheet of {len(picture)} bytes, model {model_id}")


def check_search(search: dict[str, Any]) -> None:
    """Each trial has a run of its own below the search's."""
    run = finished_run(search["mlflow"]["run_id"])
    trials = get(f"/v1/searches/{search['id']}/trials")["trials"]
    expect(len(trials) == SEARCH["trials"], f"{len(trials)} trials")
    experiment = run["info"]["experiment_id"]
    status, content = call(
        f"{MLFLOW}/api/2.0/mlflow/runs/search",
        {
            "experiment_ids": [experiment],
            "filter": f"tags.`mlflow.parentRunId` = '{run['info']['run_id']}'",
        },
    )
    expect(status == 200, f"MLflow's search answered {status}")
    children = json.loads(content).get("runs", [])
    states = [child["info"]["status"] for child in children]
    expect(states == ["FINISHED"] * len(trials), f"the trials' runs are {states}")
    print(f"search: {len(trials)} trials, a finished run each")


def jobs() -> None:
    """A training and a search, through the published port, with a token."""
    status, content = call(f"{API}/v1/jobs")
    expect(status == 401, f"without a token the API answered {status}: {content[:200]!r}")
    training = submit("/v1/jobs", {"name": "smoke-training", **TINY})
    search = submit("/v1/searches", SEARCH)
    check_training(ended(training))
    check_search(ended(search))


if __name__ == "__main__":
    {"ready": ready, "jobs": jobs}[sys.argv[1]]()
