"""`FakeRay` over HTTP, on those routes of Ray's dashboard that `service.cluster` calls."""

from contextlib import AbstractContextManager
from typing import Any

from service.demand import DRIVER_SLOT, Bundle
from service.testing.http import Answer, HangUpError, serving
from service.testing.ray import FakeNode, FakeRay, RayAwayError

JOBS = "/api/jobs/"


def serve_ray(ray: FakeRay) -> AbstractContextManager[str]:
    """Serve in threads of this process; the value is the head's address."""

    def answer(method: str, path: str, fields: dict[str, Any]) -> Answer:
        try:
            return _answer(ray, method, path, fields)
        except RayAwayError as error:
            raise HangUpError from error

    return serving(answer)


def _answer(ray: FakeRay, method: str, path: str, fields: dict[str, Any]) -> Answer:
    ray.ping()
    if path == "/api/version":
        return 200, {"version": "4", "ray_version": "2.60.0", "session_name": ray.session}
    if path == "/api/v0/nodes":
        rows = [_row(node) for node in ray.nodes]
        return 200, {"result": True, "msg": "", "data": {"result": {"result": rows}}}
    if path == JOBS and method == "POST":
        return _submit(ray, fields)
    if path == JOBS:
        return 200, [submission.document() for submission in list(ray.submissions.values())]
    id = path.removeprefix(JOBS).removesuffix("/stop")
    submission = ray.submissions.get(id)
    if submission is None:
        return 404, f"Job {id} does not exist"
    if method == "POST":
        return 200, {"stopped": ray.stop(id)}
    return 200, submission.document()


def _submit(ray: FakeRay, fields: dict[str, Any]) -> Answer:
    custom = dict(fields.get("entrypoint_resources") or {})
    need = Bundle(
        cpus=fields.get("entrypoint_num_cpus") or 0.0,
        gpus=fields.get("entrypoint_num_gpus") or 0.0,
        driver_slots=custom.get(DRIVER_SLOT, 0.0),
    )
    id = fields["submission_id"]
    try:
        ray.submit(id, fields["entrypoint"], fields.get("metadata") or {}, need)
    except KeyError as error:  # so Ray answers to a duplicate
        return 500, f"Traceback (most recent call last):\n  ...\nValueError: {error.args[0]}"
    return 200, {"job_id": id, "submission_id": id}


def _row(node: FakeNode) -> dict[str, Any]:
    state = "ALIVE" if node.alive else "DEAD"
    return {"node_id": node.id, "state": state, "resources_total": node.resources}
