"""Names, values and scores in the short form in which tables and plots show them."""

import json
from collections.abc import Iterable
from typing import Any

LONGEST_VALUE = 40
"""Characters of a value; what is longer is cut off."""


def short_names(paths: Iterable[str]) -> dict[str, str]:
    """The last two parts of each path, and more where two paths would be called the same.

    `model.routing.iterations` becomes `routing.iterations`.
    """
    parts = {path: path.split(".") for path in paths}
    return {path: ".".join(own[-_length(own, parts.values()) :]) for path, own in parts.items()}


def _length(own: list[str], all_parts: Iterable[list[str]]) -> int:
    """The least number of last parts, from 2, that tells a path from the others."""
    for length in range(2, len(own)):
        alike = sum(parts[-length:] == own[-length:] for parts in all_parts)
        if alike == 1 and not own[-length].isdecimal():
            return length
    return len(own)


def value_text(value: Any) -> str:
    """A value of a configuration: `3`, `0.000523`, `dynamic(iterations=3)`."""
    text = _text(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, float):
        return number_text(value)
    if isinstance(value, dict) and "type" in value:
        settings = ", ".join(f"{k}={_text(v)}" for k, v in value.items() if k != "type")
        return f"{value['type']}({settings})" if settings else str(value["type"])
    if isinstance(value, dict | list | tuple):
        return json.dumps(value)
    return str(value)


def number_text(number: float) -> str:
    """Four significant digits; small powers of ten as `1e-05`."""
    return f"{number:.4g}"


def cell(value: Any) -> Any:
    """A value as a table's cell: what is no number, word or truth value, as JSON."""
    return json.dumps(value) if isinstance(value, dict | list | tuple) else value


class ScoreText:
    """How scores of a metric are written: accuracies as per cent with two decimals.

    Attributes:
        label: The metric's name with its unit.
    """

    def __init__(self, metric: str) -> None:
        self.per_cent = metric.endswith("accuracy")
        self.label = f"{metric} (%)" if self.per_cent else metric

    def number(self, score: float | None) -> str:
        """Without the unit, for below a head that names it; a dash where there is none."""
        if score is None:
            return "–"
        return f"{score * 100:.2f}" if self.per_cent else number_text(score)

    def mark(self, score: float) -> str:
        """For an axis: as short as it can be."""
        return f"{score * 100:.6g}" if self.per_cent else number_text(score)

    def spread(self, mean: float | None, deviation: float | None) -> str:
        """`98.51 ± 0.12`; the mean alone where there is no deviation."""
        if mean is None or deviation is None:
            return self.number(mean)
        written = f"{deviation * 100:.2f}" if self.per_cent else f"{deviation:.2g}"
        return f"{self.number(mean)} ± {written}"

    def whole(self, mean: float | None, deviation: float | None = None) -> str:
        """With the unit: `98.51 ± 0.12 %`."""
        unit = " %" if self.per_cent and mean is not None else ""
        return self.spread(mean, deviation) + unit
