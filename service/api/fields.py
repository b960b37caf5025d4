"""Turns Pydantic's validation errors into `FieldError`s: where, what, what is accepted, a hint.

Ranges, names and choices are read from the JSON Schema of the specification, walked along the
error's location beside the document, whose `type` fields choose the members of open sets.
"""

import math
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from service.errors import FieldError, Scalar
from workers.search_space import Choice
from workers.search_specs import SearchSpec
from workers.specs import TrainSpec

MAX_ERRORS = 50
MAX_TEXT = 500
MAX_VALUE = 100

Schema = dict[str, Any]
Location = Sequence[str | int]


def explain(
    error: ValidationError, document: Any, spec: type[BaseModel] = TrainSpec
) -> list[FieldError]:
    """What is wrong with `document`, which should have been a `spec`."""
    lines = error.errors(include_url=False, include_context=True)
    return [_explain(line, document, spec) for line in lines[:MAX_ERRORS]]


def pointer(location: Location) -> str:
    """JSON pointer (RFC 6901) of a location; very long names are cut."""
    parts = (_cut(str(part), MAX_VALUE) for part in location if part != "[key]")
    return "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in parts)


def scalar(value: Any) -> Scalar | None:
    """`value` if it is short enough to be repeated; NaN and infinity as words."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):  # also bool
        return value if abs(value) < 2**63 else None
    return value if isinstance(value, str) and len(value) <= MAX_VALUE else None


def _explain(line: Any, document: Any, spec: type[BaseModel]) -> FieldError:
    location, kind, value = line["loc"], line["type"], line["input"]
    parent, node = _Schema(spec).walk(location, document)
    accepted = _accepted(node) if node is not None else None
    detail, hint = _cut(line["msg"].removeprefix("Value error, "), MAX_TEXT), None
    if kind == "union_tag_invalid":
        location, value = (*location, "type"), line["ctx"]["tag"]
        names = [name.strip("' ") for name in line["ctx"]["expected_tags"].split(",")]
        detail, accepted = f"unknown type {_cut(str(value), MAX_VALUE)!r}", f"one of {_and(names)}"
        hint = _did_you_mean(str(value), names)
    elif kind == "extra_forbidden":
        detail, hint = "unknown field", _hint_for_unknown(location, parent, spec)
    elif kind == "value_error":  # a rule on several fields: the message tells what is accepted
        accepted = None
    elif kind == "missing":
        detail = "a required field is missing"
    elif kind == "int_type" and isinstance(value, float) and value.is_integer():
        hint = f"write {value:.0f}, without point or exponent" if abs(value) < 1e15 else None
    elif kind == "literal_error" and isinstance(value, str):
        hint = _did_you_mean(value, [str(choice) for choice in _choices(node or {})])
    return FieldError(pointer(location), detail, scalar(value), accepted, hint)


# ------------------------------------------------------------------------------ the schema's side


@cache
def _json_schema(spec: type[BaseModel]) -> Schema:
    return spec.model_json_schema()


class _Schema:
    """The JSON Schema of a specification, walked along a document."""

    def __init__(self, spec: type[BaseModel]) -> None:
        self._root = _json_schema(spec)

    def walk(self, location: Location, document: Any) -> tuple[Schema | None, Schema | None]:
        """The schema of the object or list around `location`, and that of the place itself."""
        parent, node, value = None, self._resolve(self._root, document), document
        for part in location:
            value = _step(value, part)
            parent, child = node, _child(node, part)
            if child is None:
                return parent, None
            node = self._resolve(child, value)
        return parent, node

    def _resolve(self, node: Schema, value: Any) -> Schema:
        """Follow references, options and the choice of a member by its `type`."""
        if "$ref" in node:
            name = node["$ref"].rpartition("/")[2]
            return self._resolve(self._root["$defs"][name], value)
        if "anyOf" in node:
            options = [option for option in node["anyOf"] if option.get("type") != "null"]
            return self._resolve(options[0], value) if len(options) == 1 else node
        if "discriminator" in node:
            members = node["discriminator"]["mapping"]
            default = node.get("default", {}).get("type", next(iter(members)))
            chosen = value.get("type", default) if isinstance(value, dict) else default
            return self._resolve({"$ref": members.get(str(chosen), members[default])}, value)
        return node


def _step(value: Any, part: str | int) -> Any:
    if isinstance(value, dict):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _child(node: Schema, part: str | int) -> Schema | None:
    if isinstance(part, int):
        items = node.get("prefixItems", [])
        found = items[part] if part < len(items) else node.get("items")
    else:
        patterns = node.get("patternProperties", {})
        found = node.get("properties", {}).get(part) or next(iter(patterns.values()), None)
    return found if isinstance(found, dict) else None


def _choices(node: Schema) -> list[Any]:
    return [node["const"]] if "const" in node else list(node.get("enum", []))


def _accepted(node: Schema) -> str | None:
    """The accepted values in words, e.g. `1 to 10`."""
    if choices := _choices(node):
        return f"one of {_and(choices)}" if len(choices) > 1 else str(choices[0])
    kind = node.get("type")
    if kind in ("integer", "number"):
        noun = "a whole number" if kind == "integer" else "a number"
        return f"{noun}, {_range(node)}".rstrip(", ")
    if kind == "string":
        pattern = f", matching {node['pattern']}" if "pattern" in node else ""
        return f"{_length(node, 'Length', 'characters')}{pattern}".strip(", ") or "a string"
    if kind == "array":
        return _length(node, "Items", "items") or "a list"
    return {"object": "an object", "boolean": "true or false"}.get(str(kind))


def _range(node: Schema) -> str:
    low, high = node.get("minimum"), node.get("maximum")
    if low is not None and high is not None:
        return f"{_number(low)} to {_number(high)}"
    words = {
        "minimum": "at least",
        "exclusiveMinimum": "more than",
        "maximum": "at most",
        "exclusiveMaximum": "less than",
    }
    bounds = [(word, node[key]) for key, word in words.items() if key in node]
    return " and ".join(f"{word} {_number(bound)}" for word, bound in bounds)


def _number(bound: float) -> str:
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def _length(node: Schema, suffix: str, noun: str) -> str:
    low, high = node.get(f"min{suffix}", 0), node.get(f"max{suffix}")
    return "" if high is None else f"{low} to {high} {noun}"


# ------------------------------------------------------------------------------------------ hints


def _hint_for_unknown(
    location: Location, parent: Schema | None, spec: type[BaseModel]
) -> str | None:
    name, here = str(location[-1]), ".".join(map(str, location))
    known = list((parent or {}).get("properties", {}))
    if hint := _did_you_mean(name, known):
        return hint
    if elsewhere := [p for p in _paths(spec) if p.rpartition(".")[2] == name and p != here]:
        return f"that field stands at {_and(elsewhere)}"
    return f"known fields: {', '.join(known)}" if known else None


def _did_you_mean(word: str, known: Sequence[str]) -> str | None:
    close = get_close_matches(word[:MAX_VALUE], known, n=1)
    return f"did you mean {close[0]!r}?" if close else None


@cache
def _paths(spec: type[BaseModel]) -> tuple[str, ...]:
    """Every field of a specification, as `model.routing.iterations`."""
    if any(field.is_required() and name != "space" for name, field in spec.model_fields.items()):
        return tuple(spec.model_fields)  # a flat document: it has no defaults to walk along
    any_space = {"space": {"epochs": Choice(values=(1,))}} if spec is SearchSpec else {}
    document = spec(**any_space).model_dump(mode="json", by_alias=True)
    document.pop("space", None)
    return tuple(_below(document, ""))


def _below(document: Any, prefix: str) -> Iterator[str]:
    for name, value in document.items() if isinstance(document, dict) else ():
        yield prefix + name
        yield from _below(value, f"{prefix}{name}.")


def _and(words: Sequence[Any]) -> str:
    return ", ".join(str(word) for word in words)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
