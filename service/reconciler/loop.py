"""When to look: one thread, one tick at a time, of all replicas one that ticks.

Any order of crashes is safe: an attempt's row is committed before Ray is called, every change is a
compare-and-set on (attempt, version), and every call to the outside can be repeated. The lock of a
tick spares work that would be done twice; what is safe is so without it.
"""

import logging
import threading
import time
from collections.abc import Callable

from service.cluster import Cluster
from service.queue.job import Job
from service.queue.store import Store
from service.reconciler.aftercare import Aftercare
from service.reconciler.observer import Observer
from service.reconciler.parts import Parts, Runs, Sight, guarded
from service.reconciler.running import RunningJobs
from service.reconciler.sweeper import Sweeper
from service.reconciler.waiting import WaitingJobs
from service.settings import Settings

logger = logging.getLogger(__name__)

BREATH_S = 0.25
"""Between two ticks at least: of a hundred submissions a second each wakes the loop."""
TELL_AFTER_S = 30.0
"""A replica that is kept from ticking for so long says so in its log."""


class ReconcilerLoop:
    """A thread that ticks every `settings.tick_s` seconds, or at once when woken."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        runs: Runs,
        settings: Settings,
        now: Callable[[], float] | None = None,
    ) -> None:
        """Build the parts.

        Args:
            store: The queue, migrated before the first tick.
            cluster: Ray.
            runs: MLflow.
            settings: Where the jobs' folders are, and how often to look.
            now: The clock of all decisions; the database's by default.
        """
        self._settings = settings
        self._wake = threading.Event()
        self._ended = threading.Event()
        self._let_in_at: float | None = None
        self._thread: threading.Thread | None = None
        self._parts = Parts(store, cluster, runs, settings, now or store.now, self._wake.set)
        self._observer = Observer(self._parts)
        self._running = RunningJobs(self._parts)
        self._waiting = WaitingJobs(self._parts)
        self._aftercare = Aftercare(self._parts)
        self._sweeper = Sweeper(self._parts)

    def start(self) -> None:
        """Begin to tick."""
        self._thread = threading.Thread(target=self._run, name="reconciler", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the current tick and end; jobs go on without us."""
        self._ended.set()
        self._wake.set()
        if self._thread:
            self._thread.join(timeout=30)

    def wake(self) -> None:
        """Tick now: something was submitted or cancelled."""
        self._wake.set()

    def _run(self) -> None:
        while not self._ended.is_set():
            self._wake.clear()
            try:
                self.tick()
            except Exception:
                logger.exception("a tick failed; the next one looks again")
            self._ended.wait(BREATH_S)
            self._wake.wait(self._settings.tick_s)

    def tick(self) -> bool:
        """Look at every job that has not ended, once; false where another replica does so now."""
        with self._parts.store.tick_lock() as ours:
            if ours:
                self._look_at_all()
        self._note_turn(ours)
        return ours

    def _note_turn(self, ours: bool) -> None:
        """A replica that is never let in tells so: the one that ticks may stand still."""
        now = time.monotonic()
        if ours or self._let_in_at is None:
            self._let_in_at = now
        elif now - self._let_in_at > TELL_AFTER_S:
            logger.warning(
                "another replica has held the right to tick whenever this one asked for %.0f s; "
                "if jobs stand still, look whether that process does",
                now - self._let_in_at,
            )
            self._let_in_at = now

    def _look_at_all(self) -> None:
        sight = Sight.of(self._parts.cluster)
        running = self._parts.store.running()
        self._observer.begin(self._parts.now(), running)
        for job in running:
            # The folder is read after Ray was asked: a worker that ended in between has left its
            # result by now.
            guarded(self._tick_running, job, sight)
        self._waiting.act(running, sight)
        if sight.seen is not None:
            self._sweeper.sweep(sight.seen)
        self._aftercare.act()

    def _tick_running(self, job: Job, sight: Sight) -> None:
        self._running.act(job, self._observer.look(job, sight))
