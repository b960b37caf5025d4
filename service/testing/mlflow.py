"""An MLflow tracking server in memory: experiments, runs, and being away."""

import re
import threading
from dataclasses import dataclass, field
from typing import Any

_CONDITION = re.compile(r"(tags|attributes)\.`?([\w./-]+?)`? = '([^']*)'")

Point = tuple[str, float, int, int]
"""Name, value, time in milliseconds, step."""


class MlflowAwayError(ConnectionError):
    """The server does not answer."""


class MlflowRefusalError(Exception):
    """The server says no, and will say so again."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass
class FakeRun:
    """A run."""

    id: str
    experiment: str
    name: str = ""
    status: str = "RUNNING"
    start_time: int = 0
    end_time: int | None = None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: set[Point] = field(default_factory=set)
    """The same point twice is one, as in MLflow."""
    deleted: bool = False

    def document(self) -> dict[str, Any]:
        """As the REST API describes it."""
        return {
            "info": {
                "run_id": self.id,
                "run_uuid": self.id,
                "run_name": self.name,
                "experiment_id": self.experiment,
                "user_id": "",
                "status": self.status,
                "start_time": self.start_time,
                "end_time": self.end_time,
                "artifact_uri": f"mlflow-artifacts:/{self.experiment}/{self.id}/artifacts",
                "lifecycle_stage": "deleted" if self.deleted else "active",
            },
            "data": {
                "tags": [{"key": k, "value": v} for k, v in self.tags.items()],
                "params": [{"key": k, "value": v} for k, v in self.params.items()],
            },
        }


class FakeMlflow:
    """The server. Every method raises MlflowAwayError while it is away."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        """Ids by name."""
        self.runs: dict[str, FakeRun] = {}
        self.away = False
        self._lock = threading.RLock()

    def ping(self) -> None:
        """Answer, or be away."""
        if self.away:
            raise MlflowAwayError("MLflow does not answer")

    def create_experiment(self, name: str) -> str:
        """Its id."""
        with self._lock:
            self.ping()
            if name in self.experiments:
                message = f"Experiment '{name}' already exists."
                raise MlflowRefusalError(400, "RESOURCE_ALREADY_EXISTS", message)
            return self.experiments.setdefault(name, str(len(self.experiments) + 1))

    def create_run(self, experiment: str, name: str, tags: dict[str, str], at: int) -> FakeRun:
        """A run that is RUNNING."""
        with self._lock:
            self.ping()
            run = FakeRun(f"{len(self.runs) + 1:032x}", experiment, name, start_time=at, tags=tags)
            self.runs[run.id] = run
            return run

    def run(self, id: str) -> FakeRun:
        """Raises MlflowRefusalError where there is none."""
        with self._lock:
            self.ping()
            if id not in self.runs:
                message = f"Run with id={id} not found"
                raise MlflowRefusalError(404, "RESOURCE_DOES_NOT_EXIST", message)
            return self.runs[id]

    def change(self, id: str) -> FakeRun:
        """The same, for a change: a deleted run takes none."""
        run = self.run(id)
        if run.deleted:
            message = f"The run {id} must be in the 'active' state. Current state is deleted."
            raise MlflowRefusalError(400, "INVALID_PARAMETER_VALUE", message)
        return run

    def search(self, experiments: list[str], filter: str) -> list[FakeRun]:
        """Runs by equality of tags and attributes, the newest first."""
        with self._lock:
            self.ping()
            conditions = _CONDITION.findall(filter)
            if len(conditions) != len([part for part in filter.split(" AND ") if part]):
                raise MlflowRefusalError(400, "INVALID_PARAMETER_VALUE", f"filter {filter!r}")
            found = [
                run
                for run in self.runs.values()
                if run.experiment in experiments
                and not run.deleted
                and all(_holds(run, *condition) for condition in conditions)
            ]
            return found[::-1]


def _holds(run: FakeRun, kind: str, name: str, value: str) -> bool:
    if kind == "tags":
        return run.tags.get(name) == value
    return str(getattr(run, {"run_id": "id"}.get(name, name))) == value
