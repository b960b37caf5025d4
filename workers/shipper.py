"""A courier in a process of its own: what it does costs the training nothing but a share of a CPU.

In the training's own process, importing mlflow alone would stop the training thread for up to a
tenth of a second at a time, whatever thread did it. The process lives as long as its parent.
"""

import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe

from workers.courier import Courier, Errand, Finish, Task
from workers.process import die_with_parent

logger = logging.getLogger(__name__)

NICE = 5
"""The training goes first where both want the same core."""
LOOK_EVERY_S = 0.1
ANSWER_S = 1.0
"""For the answer, after the patience has been spent on MLflow."""


class Shipper:
    """The parent's side; the same methods as a `Courier`."""

    def __init__(self, errand: Errand) -> None:
        self._waiting: deque[Errand | Task | Finish] = deque([errand])
        self._problem = ""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process. The thread that calls this must live as long as it is needed."""
        self._connection, theirs = Pipe()
        # Ray's signals go to the whole group, and the parent leads: the process inherits that they
        # wait, so that none can come before it is ready.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        try:
            with theirs:
                end = theirs.fileno()
                command = [sys.executable, "-P", "-m", __name__, str(end), str(os.getpid())]
                self._process = subprocess.Popen(command, pass_fds=[end], stdin=subprocess.DEVNULL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._pass_on()

    def submit(self, task: Task) -> None:
        """Have a call made in turn; it must be picklable."""
        self._waiting.append(task)
        self._pass_on()

    def finish(self, patience_s: float, hurry: Callable[[], object] = lambda: None) -> str:
        """Send all that is left; see `Courier.finish`."""
        if self._process is None:
            return "incomplete: nothing was sent"
        try:
            return self._finish(patience_s, hurry)
        finally:
            self._process.kill()
            self._process.wait()
            self._connection.close()

    def _finish(self, patience_s: float, hurry: Callable[[], object]) -> str:
        until = time.monotonic() + patience_s + ANSWER_S
        self._waiting.append(Finish(patience_s))
        while time.monotonic() < until:
            self._pass_on()
            try:
                if self._connection.poll(LOOK_EVERY_S):
                    answer = str(self._connection.recv())
                    return self._problem if self._problem and answer == "complete" else answer
            except (EOFError, OSError):
                return "incomplete: the process that sends to MLflow died"
            if hurry():
                return "incomplete: the job was stopped while its last words were sent"
        return "incomplete: the process that sends to MLflow did not come to an end in time"

    def _pass_on(self) -> None:
        """Hand over what the process takes without delay; the rest waits for the next call."""
        while self._process and self._waiting and self._takes_more():
            message = self._waiting.popleft()
            try:
                self._connection.send_bytes(pickle.dumps(message))
            except OSError:  # it died; `finish` tells
                self._waiting.clear()
            except Exception as error:  # what can't be pickled
                what = message.what if isinstance(message, Task) else str(message)
                logger.exception("%s is not sent", what)
                self._problem = f"incomplete: {what}: {error}"[:500]

    def _takes_more(self) -> bool:
        # A socket counts as writable while three quarters of its buffer are free.
        return bool(select.select([], [self._connection], [], 0)[1])


def main() -> None:
    """The process: `python -m workers.shipper DESCRIPTOR PARENT`."""
    connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    die_with_parent()
    if os.getppid() != parent:
        return
    os.nice(NICE)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # the courier tells of an outage, once
    try:
        answer = serve(connection)
    except EOFError:  # the parent is gone
        return
    connection.send(answer)


def serve(connection: Connection) -> str:
    """Do as the messages say; the answer to the last one. Raises EOFError when they break off."""
    courier = Courier(pickle.loads(connection.recv_bytes()))
    courier.start()
    problem = ""
    while True:
        content = connection.recv_bytes()
        try:
            message = pickle.loads(content)
        except Exception as error:
            logger.exception("a call is not understood")
            problem = f"incomplete: {error}"[:500]
            continue
        if isinstance(message, Finish):
            answer = courier.finish(message.patience_s)
            return problem if problem and answer == "complete" else answer
        courier.submit(message)


if __name__ == "__main__":
    main()
    logging.shutdown()
    # A thread that waits for MLflow keeps nobody up.
    os._exit(0)
