"""Parses a specification, for the API and the command line alike. Imports no web framework."""

import json
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from service.api.fields import explain
from service.errors import BodyInvalidError, SpecInvalidError
from workers.specs import TrainSpec


def parse_spec(body: bytes) -> TrainSpec:
    """Raises BodyInvalidError where the body is not JSON, SpecInvalidError with every field."""
    try:
        spec = TrainSpec.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_input=False)[0]["type"] == "json_invalid":
            raise BodyInvalidError(str(error.errors(include_input=False)[0]["msg"])[:500]) from None
        raise invalid_spec(error, from_json(body)) from None
    _refuse_duplicates(body)
    return spec


def invalid_spec(error: ValidationError, document: Any) -> SpecInvalidError:
    """The error that names every wrong field of `document`."""
    fields = explain(error, document)
    count = error.error_count()
    noun = "field is" if count == 1 else "fields are"
    return SpecInvalidError(f"{count} {noun} not valid", errors=fields)


def _refuse_duplicates(body: bytes) -> None:
    """Of a name that stands twice, parsers keep one or the other: refuse to guess."""
    json.loads(body, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise BodyInvalidError(f"the name {twice[:100]!r} stands twice in one object")
    return found
