"""Tables as Markdown and as a page of HTML that stands by itself."""

from collections.abc import Sequence
from html import escape

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; color: #212529; background: #fff; margin: 24px; }
h1 { font-size: 20px; font-weight: 600; margin: 0 0 4px; }
p { color: #6c757d; margin: 0 0 16px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 12px; border-bottom: 1px solid #dee2e6; }
th, td { text-align: left; white-space: nowrap; }
th { color: #6c757d; font-weight: 500; vertical-align: bottom; }
td.number, th.number { text-align: right; }
tr.best td, td.best { color: #196e3c; font-weight: 600; }
tr:hover td { background: #f8f9fa; }
"""


class Table:
    """Rows of text below a head.

    Attributes:
        head: Names of the columns.
        rows: Each as long as the head.
        numbers: Indices of the columns that stand at the right.
    """

    def __init__(
        self, head: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()
    ) -> None:
        self.head = head
        self.rows = rows
        self.numbers = frozenset(numbers)

    def markdown(self) -> str:
        """As in GitHub's Markdown, which MLflow's notes show."""
        rule = ["--:" if column in self.numbers else "---" for column in range(len(self.head))]
        return "\n".join(_line(cells) for cells in (self.head, rule, *self.rows))

    def html(self, best: Sequence[int] = ()) -> str:
        """The element `<table>`; the rows `best` are highlighted."""
        lines = [self._html_row("th", self.head)]
        for index, row in enumerate(self.rows):
            lines.append(self._html_row("td", row, "best" if index in best else ""))
        return "<table>\n" + "\n".join(lines) + "\n</table>"

    def _html_row(self, tag: str, cells: Sequence[str], style: str = "") -> str:
        inner = "".join(
            f"<{tag}{_class('number' if column in self.numbers else '')}>{escape(text)}</{tag}>"
            for column, text in enumerate(cells)
        )
        return f"<tr{_class(style)}>{inner}</tr>"


def page(title: str, about: str, body: str) -> str:
    """A whole page of HTML around a body's elements."""
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{escape(title)}</title>'
        f"\n<style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n<p>{escape(about)}</p>\n{body}\n"
        "</html>\n"
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in cells) + " |"


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
