"""/v1/schema/train: the JSON Schema of a specification."""

from typing import Any

from fastapi import APIRouter

from service.api import examples
from service.api.jobs import answer
from workers.specs import TrainSpec

router = APIRouter(prefix="/v1/schema", tags=["schema"])


@router.get("/train", responses={200: answer(examples.SCHEMA, "JSON Schema 2020-12")})
def train_schema() -> dict[str, Any]:
    """Tell every field of a training job's specification, with its range."""
    return TrainSpec.model_json_schema()
