"""Specifications as people write them: YAML or JSON files, presets, `--set` on top."""

import json
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from capsmodel.config.training import FROM_DATASET
from service.cli.output import InputError
from workers.specs import PRESETS, TrainSpec


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its traps: `1e-3` is a number, `2026-11-22` and `12:30` are text."""


_TRAPS = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*)$")
_FLOAT = re.compile(
    r"[-+]?(?:\d[\d_]*\.\d*(?:e[-+]?\d+)?|\.\d+(?:e[-+]?\d+)?|\d[\d_]*e[-+]?\d+|\.inf|\.nan)$",
    re.IGNORECASE,
)

_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _TRAPS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, [*"-+0123456789"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, [*"-+.0123456789"])


def load(source: str, settings: Sequence[str], *, presets: bool = True) -> dict[str, Any]:
    """The document that `source` (a file, `-` or a preset) names, with `--set` applied."""
    document = _read(source, presets=presets)
    parsed = [_parse_setting(text) for text in settings]
    # A changed `type` starts from that type's defaults, so it goes before its other fields.
    for path, value in sorted(parsed, key=lambda setting: setting[0][-1] != "type"):
        _set(document, path, value)
    return document


def setting(text: str) -> tuple[str, Any]:
    """What `--set` says: a path and a value."""
    path, value = _parse_setting(text)
    return ".".join(path), value


def dump(document: Any) -> str:
    """As YAML, in the order of the fields."""
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True)


def encode(document: dict[str, Any]) -> bytes:
    """As JSON; what JSON does not know becomes text, and is refused by its field."""
    return json.dumps(document, default=str).encode()


def _read(source: str, *, presets: bool) -> dict[str, Any]:
    if source == "-":
        return _parse(sys.stdin.read(), "standard input")
    if Path(source).is_file():
        return _parse(Path(source).read_text(errors="replace"), source)
    if not presets:
        raise InputError(f"{source!r} is no file", hint="`capsctl schema search` tells its fields")
    if source in PRESETS:
        return _preset(PRESETS[source])
    close = get_close_matches(source, PRESETS, n=1)
    guess = f"did you mean {close[0]!r}? " if close else ""
    raise InputError(
        f"{source!r} is neither a file nor a preset", hint=f"{guess}presets: {', '.join(PRESETS)}"
    )


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        document = yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{where} is neither YAML nor JSON: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{where} must hold a mapping of fields")
    return document


def _parse_setting(setting: str) -> tuple[list[str], Any]:
    name, equals, value = setting.partition("=")
    if not equals or not all(name.split(".")):
        raise InputError(f"--set {setting!r}: write it as model.routing.iterations=1")
    try:
        return name.split("."), yaml.load(value, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"--set {setting!r}: {error}") from None


def _set(document: dict[str, Any], path: list[str], value: Any) -> None:
    place: Any = document
    for part in path[:-1]:
        place = _enter(place, part, path)
    key = _key(place, path[-1], path)
    if key == "type" and place.get("type") != value:
        place.clear()
    place[key] = value


def _enter(place: Any, part: str, path: list[str]) -> Any:
    key = _key(place, part, path)
    inner = place.get(key) if isinstance(place, dict) else place[int(key)]
    if not isinstance(inner, dict | list):  # absent or null: a mapping comes into being
        inner = place[key] = {}
    return inner


def _key(place: Any, part: str, path: list[str]) -> str | int:
    if isinstance(place, dict):
        return part
    if not part.isdecimal() or int(part) >= len(place):
        raise InputError(f"--set {'.'.join(path)}: the list has {len(place)} items, from 0")
    return int(part)


def _preset(spec: TrainSpec) -> dict[str, Any]:
    """A preset as a document on which `--set dataset.type=...` works.

    What the data set decides (its own defaults, the images' shape) is left out.
    """
    document = spec.model_dump(mode="json", by_alias=True)
    stated = spec.dataset.model_dump(mode="json", by_alias=True, exclude_defaults=True)
    document["dataset"] = {"type": spec.dataset.type, **stated}
    for name in FROM_DATASET:
        document["model"].pop(name)
    if spec.loss == TrainSpec(model=spec.model, dataset=spec.dataset).loss:
        document.pop("loss")  # the model's default, which another model's may not be
    return document
