"""What is left to do for ended jobs: to close MLflow's run, to prune or remove the folder."""

import logging
import shutil
import time

from service.errors import StaleJobError, TrackingUnavailableError
from service.queue.job import Job
from service.reconciler.orders import with_run
from service.reconciler.parts import Parts
from service.reconciler.retention import prune
from workers.crash import crashing

logger = logging.getLogger(__name__)

CLOSE_AGAIN_S = 10.0
SLICE_S = 2.0
"""For so long at most runs are closed, or folders removed, in one tick: other jobs wait."""


class Aftercare:
    """Can be repeated from any point; MLflow may be away for as long as it likes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._away_since: float | None = None

    def act(self) -> None:
        """Do some of what is due. A deleted job's run is closed before its rows and files go."""
        now = self._parts.now()
        if self._away_since is None or abs(now - self._away_since) >= CLOSE_AGAIN_S:
            self._away_since = None if self._close_runs() else now
        begun = time.monotonic()
        for job_id in self._parts.store.deleted():
            if time.monotonic() - begun > SLICE_S:
                self._parts.wake()
                return
            try:
                self._remove(job_id)
            except OSError:
                logger.exception("job %s: its folder can't be removed just now", job_id)

    def _close_runs(self) -> bool:
        """False where MLflow is away."""
        begun = time.monotonic()
        for job in self._parts.store.unclosed():
            if time.monotonic() - begun > SLICE_S:
                self._parts.wake()
                return True
            try:
                self._close(job)
            except TrackingUnavailableError as error:
                logger.warning("runs are closed later: %s", error)
                return False
            except StaleJobError:
                continue
            except Exception:
                logger.exception("job %s: its run is not closed", job.id)
        return True

    def _close(self, job: Job) -> None:
        if job.run_id is None:  # somebody died while it was made: it is found, or made now
            job = with_run(self._parts, job)
        folder = self._parts.folder(job) if job.attempt else None
        if self._parts.runs.close(job, folder):
            prune(self._parts.settings.storage_root, job)
            self._parts.store.update(job, run_closed=True)
        else:
            self._parts.wake()

    def _remove(self, job_id: str) -> None:
        """The folder first: rows without one are found again, a folder without rows is not."""
        folder = self._parts.settings.storage_root / "jobs" / job_id
        with crashing("folder.remove"):
            if folder.exists():
                shutil.rmtree(folder)
        self._parts.store.remove(job_id)
