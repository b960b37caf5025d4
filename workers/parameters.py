"""A specification as MLflow's parameters: one for every field, by its path."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

PER_BATCH = 100
"""MLflow takes no more parameters in one call."""
LENGTH = 6000
"""MLflow keeps no more characters of a value."""
_IN_TAGS = ("description", "labels", "name", "experiment", "schema_version")


def flatten(spec: BaseModel) -> Iterator[tuple[str, str]]:
    """(field path, value) pairs; labels and descriptions stand in tags."""
    document = spec.model_dump(mode="json", by_alias=True)
    fields = {name: value for name, value in document.items() if name not in _IN_TAGS}
    for path, value in _leaves("", fields):
        yield path, value[:LENGTH]


def _leaves(path: str, node: Any) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, child in node.items():
            yield from _leaves(f"{path}.{name}" if path else name, child)
    elif isinstance(node, list) and any(isinstance(child, dict) for child in node):
        for index, child in enumerate(node):
            yield from _leaves(f"{path}.{index}", child)
    else:
        yield path, str(node)
