"""Verifies tokens, and remembers for a moment which ones are good.

A remembered token costs neither a thread nor a question to the database. The price: one that was
revoked through another replica is good for up to `REMEMBERED_S` more. Expiry is kept to exactly.
"""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy.exc import SQLAlchemyError

from service.errors import TokenInvalidError
from service.queue.tokens import Token, TokenStore
from service.tokens import Caller, digest_of, id_of, matches

logger = logging.getLogger(__name__)

REMEMBERED_S = 5.0
REMEMBERED = 1_000
"""So many good tokens at most. Others are not remembered: anybody can make them up."""
LOOKUPS = 8
"""Questions to the database at once: made-up tokens must not take the threads of the endpoints."""


@dataclass(frozen=True)
class _Known:
    """A good token."""

    token_id: str
    caller: Caller
    until: float
    """By our clock."""


class Gate:
    """Tells who calls; `clock` gives seconds that never go back."""

    def __init__(self, tokens: TokenStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()
        """By the tokens' digests: the texts themselves stay in no table."""
        self._revocations = 0
        self._lock = threading.Lock()
        self._lookups = CapacityLimiter(LOOKUPS)
        self._notes = ThreadPoolExecutor(1, thread_name_prefix="tokens")
        self._noting: set[str] = set()

    async def caller(self, text: str) -> Caller:
        """Whose token it is. Raises TokenInvalidError."""
        token_id = id_of(text)
        if token_id is None:
            raise TokenInvalidError
        digest = digest_of(text)
        if caller := self._remembered(digest):
            return caller
        return await run_sync(self._look_up, token_id, digest, limiter=self._lookups)

    def forget(self, token_id: str) -> None:
        """It was revoked: ask the database from now on."""
        with self._lock:
            self._revocations += 1
            for digest in [d for d, known in self._known.items() if known.token_id == token_id]:
                del self._known[digest]

    def close(self) -> None:
        """Note nothing more."""
        self._notes.shutdown(wait=True, cancel_futures=True)

    def _remembered(self, digest: str) -> Caller | None:
        with self._lock:
            known = self._known.get(digest)
            if known is None:
                return None
            if self._clock() >= known.until:
                del self._known[digest]
                return None
            return known.caller

    def _look_up(self, token_id: str, digest: str) -> Caller:
        """Ask the database. Unknown, wrong, expired and revoked are all the same to the caller."""
        if caller := self._remembered(digest):  # somebody else has asked while this one waited
            return caller
        asked_at, revocations = self._clock(), self._revocations
        token = self._tokens.find(token_id)
        genuine = matches(digest, None if token is None else token.digest)
        if token is None or not genuine or token.left_s <= 0:
            raise TokenInvalidError
        caller = Caller(token.owner, token.scope)
        until = asked_at + min(REMEMBERED_S, token.left_s)
        with self._lock:
            if self._revocations != revocations:  # what was read may be older than that
                return caller
            self._known[digest] = _Known(token_id, caller, until)
            self._known.move_to_end(digest)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        self._note_use(token)
        return caller

    def _note_use(self, token: Token) -> None:
        """Have it written down, by a thread that nobody waits for."""
        with self._lock:
            if not token.use_is_old or token.id in self._noting:
                return
            self._noting.add(token.id)
        try:
            self._notes.submit(self._touch, token.id)
        except RuntimeError:  # closed meanwhile
            self._noting.discard(token.id)

    def _touch(self, token_id: str) -> None:
        try:
            self._tokens.touch(token_id)
        except SQLAlchemyError as error:
            logger.warning("the use of token %s is not noted: %s", token_id, type(error).__name__)
        finally:
            self._noting.discard(token_id)
