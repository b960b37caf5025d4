"""The fields of a specification by path: what one takes, and what a mistyped one may have meant."""

import types
from collections.abc import Container, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel
from pydantic.fields import FieldInfo

_NOUNS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
}


def known_fields(spec: BaseModel, below: str = "") -> Iterator[str]:
    """Every field of a specification, as `model.routing.iterations`."""
    for name, field in type(spec).model_fields.items():
        path = below + (field.alias or name)
        yield path
        for inner in _models(field.annotation, getattr(spec, name, None)):
            yield from known_fields(inner, f"{path}.")


def _models(annotation: Any, value: Any) -> list[BaseModel]:
    """The model that a field holds; where it holds None, those that it could (their fields)."""
    if isinstance(value, BaseModel):
        return [value]
    options = [each for each in _options(annotation) if _is_model(each)]
    return [each.model_construct() for each in options] if value is None else []


def did_you_mean(path: str, spec: BaseModel, leave_out: Container[str] = ()) -> str:
    """A hint for a path that leads to no field of the specification.

    Args:
        path: The path.
        spec: A valid specification, whose fields are known.
        leave_out: First names of fields that are no help.
    """
    known = [each for each in known_fields(spec) if each.partition(".")[0] not in leave_out]
    parent, _, name = path.rpartition(".")
    beside = [each.rpartition(".")[2] for each in known if each.rpartition(".")[0] == parent]
    if close := get_close_matches(name, beside, n=1):
        return f"did you mean {'.'.join(filter(None, (parent, close[0])))!r}?"
    if elsewhere := [each for each in known if each.rpartition(".")[2] == name]:
        return f"that field stands at {' and '.join(elsewhere)}"
    if beside:
        return f"{parent or 'a training'} has the fields {', '.join(beside)}"
    close = get_close_matches(path, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"{parent} has no fields"


def accepted(spec: BaseModel, path: str) -> str | None:
    """What a field takes, as `a whole number, 1 to 10`; None where that does not fit in a line."""
    *parents, name = path.split(".")
    place: Any = spec
    for parent in parents:
        found = _field(place, parent)
        if found is None:
            return None
        place = getattr(place, found[0])
    found = _field(place, name)
    return None if found is None else _in_words(found[1])


def _field(place: Any, name: str) -> tuple[str, FieldInfo] | None:
    """A field by its name in documents: the attribute it is kept in, and what is declared."""
    if not isinstance(place, BaseModel):
        return None
    for attribute, field in type(place).model_fields.items():
        if name == (field.alias or attribute):
            return attribute, field
    return None


def _in_words(field: FieldInfo) -> str | None:
    options = _options(field.annotation)
    optional = type(None) in options
    kinds = [each for each in options if each is not type(None)]
    if len(kinds) != 1:
        return None
    if get_origin(kinds[0]) is Literal:
        words = "one of " + ", ".join(map(str, get_args(kinds[0])))
    elif kinds[0] in _NOUNS:
        words = ", ".join(filter(None, (_NOUNS[kinds[0]], _range(field.metadata))))
    else:
        return None
    return f"{words}, or null" if optional else words


def _options(annotation: Any) -> list[Any]:
    """What a field may hold: the members of a union, without annotations."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for each in get_args(annotation) for option in _options(each)]
    return [annotation]


def _is_model(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _range(constraints: list[Any]) -> str:
    """Bounds in words: `1 to 10`, or `more than 0 and at most 10`."""
    low = high = None
    parts = []
    for each in constraints:
        if isinstance(each, Ge):
            low = each.ge
            parts.append(f"at least {low:.12g}")
        elif isinstance(each, Gt):
            parts.append(f"more than {each.gt:.12g}")
        elif isinstance(each, Le):
            high = each.le
            parts.append(f"at most {high:.12g}")
        elif isinstance(each, Lt):
            parts.append(f"less than {each.lt:.12g}")
    if low is not None and high is not None:
        return f"{low:.12g} to {high:.12g}"
    return " and ".join(parts)
