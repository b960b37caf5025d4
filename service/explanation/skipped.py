"""Checkpoints that attempts passed over, in few words: which files, and what is wrong with each."""

import re
from collections.abc import Iterable

from service.explanation.words import counted

TOLD = 5
"""Files that are named; of more only the number is told."""

_FILE = re.compile(r"(?P<file>/?(?:[^\s/]+/)*(?P<name>[^\s/]+\.pt))(?:\.json)?\b:?")
_ATTEMPT = re.compile(r"(?:^|/)jobs/[^/]+/(\d+)/checkpoints/")
_DIGEST = re.compile(r"\b[0-9a-f]{32,}\b")

_WRONG: list[tuple[str, str]] = [
    # As `capsmodel.checkpoint` says it, the particular before the general.
    ("swapped with another training's", "another job's"),
    ("another checkpoint under this name", "another checkpoint under this name"),
    ("has no sidecar", "its sidecar is missing"),
    (".pt.json is damaged", "its sidecar is damaged"),
    (".pt.json has schema_version", "written by another release"),
    ("No such file", "missing"),
    ("cannot be read", "it can't be read"),
    ("is damaged or another file", "damaged"),
]


def passed_over(problems: Iterable[str]) -> str:
    """One sentence on all files, each told once; empty where there were none.

    Args:
        problems: What the attempts said of them, the first one first.
    """
    told: dict[str, str] = {}
    for problem in problems:
        found = _FILE.match(problem)
        told.setdefault(found["file"] if found else problem, _in_short(problem))
    if not told:
        return ""
    named = "; ".join([*told.values()][:TOLD])
    more = f"; and {len(told) - TOLD} more" if len(told) > TOLD else ""
    were = "was" if len(told) == 1 else "were"
    return f"{counted(len(told), 'checkpoint')} {were} passed over: {named}{more}"


def _in_short(problem: str) -> str:
    """As `step-00000301.pt of attempt 1 (damaged)`."""
    found = _FILE.match(problem)
    if found is None:
        return _DIGEST.sub("...", problem)
    attempt = _ATTEMPT.search(found["file"])
    whose = f" of attempt {attempt[1]}" if attempt else ""
    rest = _DIGEST.sub("...", problem[found.end() :].strip())
    wrong = next((words for said, words in _WRONG if said in problem), rest)
    return f"{found['name']}{whose}" + (f" ({wrong})" if wrong else "")
