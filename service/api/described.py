"""Entries of the OpenAPI document that the routes write by hand."""

from typing import Any


def answer(example: Any, description: str) -> dict[str, Any]:
    """A JSON answer."""
    content = {"application/json": {"example": example}}
    return {"description": description, "content": content}


def accepted(example: dict[str, Any], description: str) -> dict[str, Any]:
    """An answer with the address of what was made."""
    address = {"schema": {"type": "string"}, "example": example["links"]["self"]}
    replayed = {
        "description": "`true` where the Idempotency-Key had made it before",
        "schema": {"type": "string"},
        "example": "true",
    }
    headers = {"Location": address, "Idempotent-Replayed": replayed}
    return answer(example, description) | {"headers": headers}


def body_of(model: str, examples: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    """A body that the endpoint reads by itself."""
    schema = {"$ref": f"#/components/schemas/{model}"}
    content = {"application/json": {"schema": schema, "examples": examples}}
    return {"requestBody": {"required": required, "content": content}}
