"""One storm: a stack, a stream of jobs, kills at random instants, and the verdict afterwards."""

import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from chaos.figures import Times, measure
from chaos.kills import ANY_TIME, PAUSE_S, Kill, Killer, Kind
from chaos.stream import ACTIVE, ONE, SEARCH, TWO, Mix, Stream
from chaos.verdict import Books, judge_queue, judge_tracking
from chaos.watchers import Overlap, until_served
from support.stack import Stack, until

MIX = [Mix("two", TWO, 1), Mix("one", ONE, 1)]
CPUS = 4
"""Room for all of them and a search: nobody who was killed waits for a place."""
SEARCH_EVERY = 8
"""A search is submitted before every so many kills."""
UP_AGAIN_S = (0.2, 3.0)
"""From the death of `capsctl up` to the next one."""
SERVED_WITHIN_S = 60.0
TRAINING_S = 240.0
"""For jobs to train; some 10 s where nothing else runs."""
SETTLE_S = 600.0
"""For all jobs to end after the last kill."""
VICTIM_S = 180.0
"""For a victim of the kind that is wanted to turn up."""

Say = Callable[[str], None]


@dataclass
class Verdict:
    """What a storm left."""

    database: str
    seed: int
    kills: Counter[str]
    jobs: Counter[str]
    """By state."""
    attempts: int
    unanswered: int
    points: int
    """Of metrics, compared between the workers' files and MLflow."""
    times: Times
    seconds: float
    wrong: list[str] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """For the JSON."""
        return {
            "database": self.database,
            "seed": self.seed,
            "kills": dict(self.kills),
            "jobs": dict(self.jobs),
            "attempts": self.attempts,
            "calls_without_answer": self.unanswered,
            "metric_points_compared": self.points,
            "seconds": round(self.seconds),
            "wrong": self.wrong,
            "times": self.times.rows(),
            "hits_left_out": self.times.left_out,
        }


class Storm:
    """The stack under test, and all that shakes it.

    Args:
        database: `sqlite`, or the URL of an empty PostgreSQL database.
        seed: Decides what is killed, and the pauses in between. When exactly a blow falls depends
            on the machine as well.
        say: Hears what goes on.
    """

    def __init__(self, database: str, seed: int, say: Say) -> None:
        self.seed = seed
        self.say = say
        self.chance = random.Random(seed)
        # A short path: Ray's sockets lie below it.
        self.home = Path(tempfile.mkdtemp(prefix="caps-ch-", dir="/tmp"))
        self.stack = Stack(self.home)
        self.database = f"sqlite:///{self.home / 'queue.db'}" if database == "sqlite" else database
        self.stack.environment["CAPS_DATABASE_URL"] = self.database
        self.killer = Killer(self.stack, self.chance)
        self.stream = Stream(self.stack.client, seed, MIX)
        self.overlap = Overlap(self.stack)
        self._begun = time.monotonic()

    @property
    def kind(self) -> str:
        """The kind of database."""
        return self.database.partition(":")[0].partition("+")[0]

    def run(self, kinds: list[Kind]) -> Verdict:
        """All these kills, with pauses as the chance has it."""
        with self._raging() as verdicts:
            self.stream.start()
            until(self._training, TRAINING_S, "the first jobs to train")
            for number, kind in enumerate(kinds):
                if number % SEARCH_EVERY == 2:
                    self._submit_search()
                self.blow(kind)
                time.sleep(self.chance.uniform(*PAUSE_S[kind]))
            self.stream.stop()
            verdicts.append(self.settle())
        return verdicts[0]

    def run_short(self, volleys: list[list[Kind]]) -> Verdict:
        """A job of each kind, and volleys of kills, each when both train again."""
        with self._raging() as verdicts:
            with self.stack.client() as client:
                for mix in MIX:
                    self.stream.submit(client, mix.kind, mix.spec)
            hit: set[tuple[str, int]] = set()
            for volley in volleys:
                until(partial(self._training, hit), TRAINING_S, "both jobs to train")
                for kind in volley:
                    hit |= {(each.job, each.attempt) for each in self.blow(kind).hits}
            verdicts.append(self.settle())
        return verdicts[0]

    @contextmanager
    def _raging(self) -> Iterator[list[Verdict]]:
        """The stack, up. Its home is removed afterwards if all is well, and kept if not."""
        verdicts: list[Verdict] = []
        try:
            self._up()
            self.overlap.start()
            yield verdicts
        except BaseException:
            self.say(f"the storm broke off; all of it lies in {self.home}")
            self._stop_threads()
            self.stack.capsctl("down")
            raise
        try:
            self.stack.down()
        except AssertionError as error:
            verdicts[0].wrong.append(str(error))
        if verdicts[0].wrong:
            self.say(f"all of it lies in {self.home}")
        else:
            shutil.rmtree(self.home)

    def blow(self, kind: Kind) -> Kill:
        """Kill one of a kind, wait for one if need be, and mend what only a person would."""
        kill: Kill | None = None
        spare = self.chance.random() > ANY_TIME

        def struck() -> bool:
            nonlocal kill
            kill = self.killer.strike(kind, spare)
            return kill is not None

        until(struck, VICTIM_S, f"a victim of the kind {kind!r}")
        assert kill is not None
        told = ", ".join(f"{hit.job}/{hit.attempt}" for hit in kill.hits)
        self.say(f"killed {kind} {kill.pids}{f' of {told}' if told else ''}")
        if kind == "control plane":
            kill.serving_again_s = until_served(self.stack.state.api_url, SERVED_WITHIN_S)
            assert kill.serving_again_s is not None, "the API does not come back"
            self.say(f"  serves again after {kill.serving_again_s:.2f} s")
        if kind == "up":
            self.stack.process.wait()
            time.sleep(self.chance.uniform(*UP_AGAIN_S))
            self._up()
        return kill

    def settle(self) -> Verdict:
        """Let all jobs end, and judge."""
        wrong = []
        with self.stack.client() as client:

            def ended() -> bool:
                self.stream.resume_all(client)
                return not list(client.jobs(states=ACTIVE))

            try:
                until(ended, SETTLE_S, "all jobs ended")
                until(self._closed, 60, "all runs closed")
            except AssertionError as error:
                wrong.append(str(error))
        self.overlap.stop()
        wrong += [f"two attempts at once: {what}" for what in self.overlap.found]
        wrong += self._left()
        books, storage = Books(self.database), self.home / "storage"
        kills = self.killer.kills
        wrong += judge_queue(books, self.stream.accepted, self.stream.keys, kills, storage)
        untracked, points = judge_tracking(books, self.home / "mlflow" / "mlflow.db", storage)
        return Verdict(
            database=self.kind,
            seed=self.seed,
            kills=Counter(kill.kind for kill in kills),
            jobs=Counter(row.state for row in books.jobs.values()),
            attempts=sum(map(len, books.attempts.values())),
            unanswered=self.stream.unanswered,
            points=points,
            times=measure(kills, books.events, storage),
            seconds=time.monotonic() - self._begun,
            wrong=wrong + untracked,
        )

    def _up(self) -> None:
        self.stack.up("--cpus", str(CPUS))

    def _training(self, but: Set[tuple[str, int]] = frozenset()) -> bool:
        """Whether two jobs train, in attempts that were not hit."""
        return len(self.killer.training() - but) >= 2

    def _submit_search(self) -> None:
        with self.stack.client() as client:
            self.stream.submit(client, "search", SEARCH)

    def _closed(self) -> bool:
        return all(row.run_closed or not row.run_id for row in Books(self.database).jobs.values())

    def _left(self) -> list[str]:
        """Processes of jobs, though all jobs have ended."""

        def there() -> list[str]:
            found = [*self.stack.job_processes(), *self.stack.train_workers()]
            return [f"{process.pid} {process.name()}" for process in found]

        try:
            until(lambda: not there(), 20, "no process of a job")
        except AssertionError:
            return [f"left behind: {there()}"]
        return []

    def _stop_threads(self) -> None:
        for thread in (self.stream, self.overlap):
            try:
                thread.stop()
            except BaseException as error:
                self.say(f"  and: {error!r}")
