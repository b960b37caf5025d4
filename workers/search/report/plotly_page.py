"""A page of HTML around one Plotly figure; it opens by itself, offline, in a sandbox too.

MLflow shows a page in a frame that can load nothing beside it: Plotly stands in the page itself.
"""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from workers.search.report import style

FONT = "system-ui, -apple-system, 'Segoe UI', sans-serif"
Trace = dict[str, Any]


class Page:
    """What stands around the figure."""

    def __init__(self, title: str, about: str) -> None:
        self.title = title
        self.about = about

    def write(self, traces: Sequence[Trace], layout: dict[str, Any], path: Path) -> Path:
        """Write the figure of these traces; `layout` adds to what all figures share."""
        from plotly.io import to_html

        figure = {"data": list(traces), "layout": {**self._layout(), **layout}}
        settings = {"displaylogo": False, "responsive": True}
        body = to_html(
            figure,
            config=settings,
            include_plotlyjs=True,
            full_html=False,
            validate=False,
            default_height="94vh",
        )
        path.write_text(
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
            f'<title>{escape(self.title)}</title>\n<body style="margin: 0">\n{body}\n</html>\n'
        )
        return path

    def _layout(self) -> dict[str, Any]:
        heading = f"{escape(self.title)}<br><sup style='color:{style.QUIET}'>{self.about}</sup>"
        return {
            "title": {"text": heading, "x": 0, "xref": "paper", "font": {"size": 19}},
            "font": {"family": FONT, "size": 13, "color": style.INK},
            "paper_bgcolor": style.PAPER,
            "plot_bgcolor": style.PAPER,
            "margin": {"l": 80, "r": 40, "t": 90, "b": 60},
            "template": {},
            "hoverlabel": {"align": "left"},
        }
