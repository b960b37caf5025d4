"""`FakeMlflow` over HTTP, on those routes of MLflow's REST API that the service calls."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from service.testing.http import Answer, HangUpError, serving
from service.testing.mlflow import FakeMlflow, MlflowAwayError, MlflowRefusalError

ROOT = "/api/2.0/mlflow/"

Fields = dict[str, Any]


def serve_mlflow(mlflow: FakeMlflow) -> AbstractContextManager[str]:
    """Serve in threads of this process; the value is the server's address."""

    def answer(method: str, path: str, fields: Fields) -> Answer:
        try:
            mlflow.ping()
            if path == "/health":
                return 200, "OK"
            route = _ROUTES.get(path.removeprefix(ROOT))
            if route is None:
                return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}
            return 200, route(mlflow, fields)
        except MlflowAwayError as error:
            raise HangUpError from error
        except MlflowRefusalError as error:
            return error.status, {"error_code": error.code, "message": str(error)}

    return serving(answer)


def _get_by_name(mlflow: FakeMlflow, fields: Fields) -> Fields:
    name = fields["experiment_name"]
    if name not in mlflow.experiments:
        raise MlflowRefusalError(
            404, "RESOURCE_DOES_NOT_EXIST", f"Could not find experiment with name '{name}'"
        )
    experiment = {"experiment_id": mlflow.experiments[name], "name": name}
    return {"experiment": {**experiment, "lifecycle_stage": "active", "artifact_location": ""}}


def _create_experiment(mlflow: FakeMlflow, fields: Fields) -> Fields:
    return {"experiment_id": mlflow.create_experiment(fields["name"])}


def _search(mlflow: FakeMlflow, fields: Fields) -> Fields:
    found = mlflow.search(fields["experiment_ids"], fields.get("filter") or "")
    return {"runs": [run.document() for run in found[: fields.get("max_results", 1000)]]}


def _create_run(mlflow: FakeMlflow, fields: Fields) -> Fields:
    tags = _pairs(fields.get("tags"))
    name = fields.get("run_name") or tags.get("mlflow.runName", "")
    run = mlflow.create_run(fields["experiment_id"], name, tags, int(fields.get("start_time", 0)))
    return {"run": run.document()}


def _get_run(mlflow: FakeMlflow, fields: Fields) -> Fields:
    return {"run": mlflow.run(fields["run_id"]).document()}


def _update(mlflow: FakeMlflow, fields: Fields) -> Fields:
    run = mlflow.change(fields["run_id"])
    run.status = fields.get("status") or run.status
    run.end_time = int(fields["end_time"]) if fields.get("end_time") else run.end_time
    return {"run_info": run.document()["info"]}


def _set_tag(mlflow: FakeMlflow, fields: Fields) -> Fields:
    mlflow.change(fields["run_id"]).tags[fields["key"]] = fields["value"]
    return {}


def _log_batch(mlflow: FakeMlflow, fields: Fields) -> Fields:
    run = mlflow.change(fields["run_id"])
    for name, value in _pairs(fields.get("params")).items():
        if run.params.setdefault(name, value) != value:
            raise MlflowRefusalError(
                400, "INVALID_PARAMETER_VALUE", f"Changing param values is not allowed: {name}"
            )
    run.tags |= _pairs(fields.get("tags"))
    run.points |= {
        (m["key"], float(m["value"]), int(m["timestamp"]), int(m.get("step", 0)))
        for m in fields.get("metrics") or []
    }
    return {}


def _pairs(rows: Any) -> dict[str, str]:
    return {row["key"]: row["value"] for row in rows or []}


_ROUTES: dict[str, Callable[[FakeMlflow, Fields], Fields]] = {
    "experiments/get-by-name": _get_by_name,
    "experiments/create": _create_experiment,
    "runs/search": _search,
    "runs/create": _create_run,
    "runs/get": _get_run,
    "runs/update": _update,
    "runs/set-tag": _set_tag,
    "runs/log-batch": _log_batch,
}
