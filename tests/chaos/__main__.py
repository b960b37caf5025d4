"""`make chaos`: storms on SQLite and on PostgreSQL, about 20 minutes in all.

Exit status 1 if anything was lost, doubled or stuck. Whether the times keep their goals is told,
and decides nothing: they are the machine's as much as ours.
"""

import argparse
import json
import random
import secrets
import sys
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.machine import describe_machine
from chaos.figures import Times, table
from chaos.kills import PLAN, Kind, plan
from chaos.storm import Storm, Verdict
from support.postgres import programs, running

DATABASES = ("sqlite", "postgresql")


def main() -> int:
    """Rage, judge, tell."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--database", choices=DATABASES, action="append")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--share", type=float, default=1.0, help="of the planned kills")
    parser.add_argument("--kind", choices=list(PLAN), action="append", help="only these")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    kinds = arguments.kind or list(PLAN)
    verdicts = rage(arguments.database or DATABASES, arguments.seed, arguments.share, kinds)
    report = summarize(verdicts)
    print(report)
    if arguments.out:
        arguments.out.write_text(json.dumps(document(verdicts), indent=2) + "\n")
        print(f"written to {arguments.out}")
    return int(any(verdict.wrong for verdict in verdicts))


def rage(
    databases: Sequence[str], seed: int, share: float, kinds: Collection[Kind]
) -> list[Verdict]:
    """One storm on each database, with the same plan of kills."""
    say(f"seed {seed}")
    verdicts = []
    for database in databases:
        if database == "postgresql" and programs() is None:
            say("no PostgreSQL on this machine: its storm is left out")
            continue
        with ExitStack() as resources:
            url = database
            if database == "postgresql":
                url = resources.enter_context(running()).new_database()
            say(f"a storm on {database}")
            verdicts.append(Storm(url, seed, say).run(plan(random.Random(seed), share, kinds)))
            say(f"the storm on {database} is over\n{summarize(verdicts[-1:])}")
    return verdicts


def say(line: str) -> None:
    """Tell at once, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


def document(verdicts: list[Verdict]) -> dict[str, object]:
    """All figures, for machines."""
    return {
        "machine": describe_machine(),
        "times": _all_times(verdicts).rows(),
        "storms": [verdict.summary() for verdict in verdicts],
    }


def summarize(verdicts: list[Verdict]) -> str:
    """All figures, for people."""
    lines = []
    for each in verdicts:
        kills = ", ".join(f"{count} {kind}" for kind, count in sorted(each.kills.items()))
        jobs = ", ".join(f"{count} {state}" for state, count in sorted(each.jobs.items()))
        lines += [
            f"{each.database}, seed {each.seed}: {each.kills.total()} kills ({kills}) in "
            f"{each.seconds / 60:.1f} min; {each.jobs.total()} jobs ({jobs}) in {each.attempts} "
            f"attempts; {each.unanswered} calls without an answer; {each.points} metric points",
            *(f"  WRONG: {what}" for what in each.wrong or []),
        ]
        if not each.wrong:
            lines.append("  no job lost, doubled or stuck; every run closed, every point once")
    times = _all_times(verdicts)
    return "\n".join([*lines, "", table(times.rows()), f"({times.left_out} hits left out)"])


def _all_times(verdicts: list[Verdict]) -> Times:
    times = Times()
    for verdict in verdicts:
        times.add(verdict.times)
    return times


if __name__ == "__main__":
    sys.exit(main())
