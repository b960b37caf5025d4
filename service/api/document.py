"""The OpenAPI document: FastAPI's own, with the specification's schemas and without its 422."""

from typing import Any

from fastapi import FastAPI

from service.api.promotion import Promotion
from service.api.token_views import TokenRequest
from service.api.views import Problem
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec

REFERENCES = "#/components/schemas/{model}"
_NOT_OURS = ("HTTPValidationError", "ValidationError")


def complete(app: FastAPI) -> None:
    """Make `app.openapi()` tell also of what the endpoints read and raise by themselves."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(generate())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for name in _NOT_OURS:
        schemas.pop(name, None)
    for model in (TrainSpec, SearchSpec, Promotion, TokenRequest, Problem):
        schema = model.model_json_schema(ref_template=REFERENCES)
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    for operations in document["paths"].values():
        for operation in operations.values():
            _drop_validation_error(operation["responses"])
    return document


def _drop_validation_error(responses: dict[str, Any]) -> None:
    """FastAPI documents an answer of its own for bad parameters; ours are problems."""
    content = responses.get("422", {}).get("content", {})
    if "HTTPValidationError" in str(content.get("application/json")):
        del responses["422"]
