"""Reasons, times and spans as people say them."""

import re
from collections.abc import Sequence
from datetime import datetime

from workers.attempt import Reason

PHRASES: dict[Reason, str] = {
    Reason.COMPLETED: "it came to its end",
    Reason.CANCELLED: "it was cancelled",
    Reason.PAUSED: "it was paused",
    Reason.DEADLINE: "it ran for longer than max_runtime_s allows",
    Reason.DIVERGED: "the training diverged",
    Reason.OUT_OF_MEMORY: "memory ran out",
    Reason.DATA_MISSING: "its data were not there",
    Reason.BAD_CHECKPOINT: "the checkpoint that it was to begin with can't be used",
    Reason.VERSION_MISMATCH: "the node and the control plane run different releases",
    Reason.ERROR: "the training raised an error",
    Reason.WORKER_LOST: "its process died without a word",
    Reason.NODE_LOST: "it was lost with its node, or with the head of the cluster",
    Reason.INTERRUPTED: "it was stopped from outside, after a checkpoint",
    Reason.BUDGET: "the search's budget was used up",
    Reason.TRIALS_FAILED: "more trials failed than the search tolerates",
}
"""A clause for each reason."""

_WORD = re.compile(r"[A-Za-z]+(?=[ ,;.']|$)(?!\.\S)")
"""An ordinary word, and neither the name of a field, as `init_from:`, nor of a file."""


def reason_of(text: object) -> Reason | None:
    """The reason that `text` names, if it names one."""
    try:
        return Reason(str(text))
    except ValueError:
        return None


def because(reason: Reason | None, evidence: str) -> str:
    """A clause and the line of evidence, whichever there are."""
    told = [] if reason is None else [PHRASES.get(reason, str(reason))]
    if evidence and evidence != reason:
        told.append(evidence)
    return ": ".join(told) or "no reason is known"


def clock(moment: datetime, now: datetime) -> str:
    """When, in the time zone of `now`: the time of today, else with the day."""
    there = moment.astimezone(now.tzinfo)
    same_day = there.date() == now.date()
    return there.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S")


def span(seconds: float) -> str:
    """As `3.2 s`, `2 min 10 s` or `3 h 5 min`."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"


def counted(number: int, noun: str) -> str:
    """As `1 error`, `2 errors`; `losses` of a noun in -s."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def listed(parts: Sequence[str]) -> str:
    """As `a`, `a and b` or `a, b and c`."""
    *before, last = parts
    return f"{', '.join(before)} and {last}" if before else last


def sentence(text: str) -> str:
    """With a full stop at its end and, where it begins with an ordinary word, a capital."""
    first = text[:1].upper() if _WORD.match(text) else text[:1]
    return f"{first}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"
