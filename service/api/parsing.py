"""Parses a specification, for the API and the command line alike. Imports no web framework."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from service.api.fields import explain
from service.errors import BodyInvalidError, FieldError, SpecInvalidError
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec

Document = TypeVar("Document", bound=BaseModel)

SEARCH_HINT = "`capsctl schema search` or GET /v1/schema/search tells every field and its range"


def parse_spec(body: bytes) -> TrainSpec:
    """Raises BodyInvalidError where the body is not JSON, SpecInvalidError with every field."""
    return parse(body, TrainSpec)


def parse_search(body: bytes) -> SearchSpec:
    """Raises BodyInvalidError where the body is not JSON, SpecInvalidError with every field."""
    return parse(body, SearchSpec, hint=SEARCH_HINT)


def parse(body: bytes, model: type[Document], hint: str | None = None) -> Document:
    """The body as a `model`; `hint` goes with the error that names its wrong fields."""
    try:
        document = model.model_validate_json(body)
    except ValidationError as error:
        if error.errors(include_input=False)[0]["type"] == "json_invalid":
            raise BodyInvalidError(str(error.errors(include_input=False)[0]["msg"])[:500]) from None
        fields = explain(error, from_json(body), model)
        raise invalid_spec(fields, error.error_count(), hint) from None
    _refuse_duplicates(body)
    return document


def invalid_spec(
    fields: Sequence[FieldError], count: int, hint: str | None = None
) -> SpecInvalidError:
    """The error that names the wrong fields, `count` in all."""
    noun = "field is" if count == 1 else "fields are"
    return SpecInvalidError(f"{count} {noun} not valid", hint=hint, errors=fields)


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
