"""Jobs that come, are steered and go, for as long as the storm lasts."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from chaos.aside import Aside
from service.client import ApiError, CapsClient
from support.stack import TINY

EXPERIMENT = "storm"
QUICK: dict[str, Any] = {"experiment": EXPERIMENT, "artifacts": [], "checkpoint_every_s": 1}
ONE = TINY | QUICK | {"name": "one", "epochs": 20, "resources": {"cpus_per_worker": 1}}
"""Some 10 s of training where nothing else runs."""
TWO = ONE | {"name": "two", "epochs": 15, "resources": {"workers": 2, "cpus_per_worker": 1}}
SEARCH: dict[str, Any] = {
    "name": "search",
    "experiment": EXPERIMENT,
    "base": {k: v for k, v in ONE.items() if k not in ("name", "experiment")} | {"epochs": 2},
    "space": {"model.routing.iterations": {"type": "grid", "values": [1, 2]}},
    "algorithm": {"type": "grid"},
    "concurrency": 1,
}

VERBS = {"cancel": 1, "pause": 1, "resume": 6, "retry": 2, "nothing": 50}
"""What is asked every second of a job that can be asked so, by weight: of the jobs that are
cancelled or paused, most have trained for a while."""
FITTING = {
    "cancel": ("QUEUED", "RUNNING", "PAUSED"),
    "pause": ("QUEUED", "RUNNING"),
    "resume": ("PAUSED",),
    "retry": ("CANCELLED",),
}
ACTIVE = ("QUEUED", "RUNNING", "PAUSED")
BETWEEN_S = 1.0


@dataclass
class Accepted:
    """A job that the API said it had."""

    id: str
    kind: str
    """`one`, `two` or `search`."""
    asked: list[str] = field(default_factory=list)
    """Verbs to which the API said yes, in order."""
    unsure: list[str] = field(default_factory=list)
    """Verbs that got no answer: they may have come through."""


@dataclass
class Mix:
    """How many jobs of a kind are wanted at once."""

    kind: str
    spec: dict[str, Any]
    at_once: int


class Stream(Aside):
    """A user who always has some jobs in the queue, and changes his mind now and then."""

    def __init__(self, client: Callable[[], CapsClient], seed: int, mix: list[Mix]) -> None:
        super().__init__("stream", BETWEEN_S)
        self._new_client = client
        self._chance = random.Random(seed)
        self._mix = mix
        self.accepted: dict[str, Accepted] = {}
        self.keys: set[str] = set()
        """Of submissions that were answered, or may have been: no more jobs than these exist."""
        self.unanswered = 0
        """Calls that got no answer, and were asked again."""

    def submit(self, client: CapsClient, kind: str, spec: dict[str, Any]) -> str:
        """Submit until there is an answer, always with the same key."""
        key = f"{kind}-{len(self.keys)}"
        self.keys.add(key)
        while True:
            try:
                # The same call in the same words: the second one must find the first one's job.
                document = spec | {"name": key}
                submit = client.submit_search if kind == "search" else client.submit
                job = submit(document, key=key).id
            except ApiError as error:
                if not error.passing:
                    raise
                self.unanswered += 1
                self._ended.wait(0.2)
                continue
            self.accepted[job] = Accepted(job, kind)
            return job

    def look(self) -> None:
        """Submit what is missing, and change one's mind perhaps."""
        with self._new_client() as client:
            try:
                self._top_up(client)
                self._steer(client)
            except ApiError as error:
                if not error.passing:
                    raise
                self.unanswered += 1

    def _top_up(self, client: CapsClient) -> None:
        there = [self.accepted[j.id].kind for j in client.jobs(states=ACTIVE)]
        for mix in self._mix:
            for _ in range(mix.at_once - there.count(mix.kind)):
                self.submit(client, mix.kind, mix.spec)

    def _steer(self, client: CapsClient) -> None:
        """Ask one job for one thing, perhaps."""
        (verb,) = self._chance.choices(list(VERBS), list(VERBS.values()))
        if verb == "nothing":
            return
        fitting = list(client.jobs(states=FITTING[verb], experiment=EXPERIMENT))
        if verb == "retry":  # of a search that is retry-failed, which has tests of its own
            fitting = [job for job in fitting if job.kind == "train"]
        if fitting:
            self.ask(client, self._chance.choice(fitting).id, verb)

    def ask(self, client: CapsClient, job: str, verb: str) -> None:
        """Ask once; a refusal means that the job has ended meanwhile."""
        try:
            getattr(client, verb)(job)
        except ApiError as error:
            if error.passing:
                self.accepted[job].unsure.append(verb)
                self.unanswered += 1
        else:
            self.accepted[job].asked.append(verb)

    def resume_all(self, client: CapsClient) -> None:
        """Nothing stays paused."""
        for job in client.jobs(states=["PAUSED"]):
            self.ask(client, job.id, "resume")
