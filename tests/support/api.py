"""What tests of the API ask and expect of every route."""

from typing import Any

import httpx

from service.api.views import Problem


def submit(http: httpx.Client, **fields: Any) -> str:
    """Queue a training job; its id."""
    answer = http.post("/v1/jobs", json=fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def refused(answer: httpx.Response, status: int) -> Problem:
    """The problem of an answer, in the form that all problems have."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(answer.content)
    assert problem.status == status
    assert problem.request_id == answer.headers["x-request-id"]
    assert "Traceback" not in answer.text
    return problem
