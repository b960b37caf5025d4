"""/v1/schema: the JSON Schemas of the specifications."""

from typing import Any

from fastapi import APIRouter

from service.api import examples, search_examples
from service.api.described import answer
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec

router = APIRouter(prefix="/v1/schema", tags=["schema"])


@router.get("/train", responses={200: answer(examples.SCHEMA, "JSON Schema 2020-12")})
def train_schema() -> dict[str, Any]:
    """Tell every field of a training job's specification, with its range."""
    return TrainSpec.model_json_schema()


@router.get("/search", responses={200: answer(search_examples.SCHEMA, "JSON Schema 2020-12")})
def search_schema() -> dict[str, Any]:
    """Tell every field of a search's specification, with its range."""
    return SearchSpec.model_json_schema()
