"""The tokens' table. Times are those of the database's clock, as in all tables."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import Engine, Row, and_, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from service.errors import TokenNotFoundError
from service.queue.engine import reading, writing
from service.queue.tables import clock, tokens
from service.tokens import Scope, digest_of, id_of, is_id, new_token

TOUCH_EVERY_S = 60.0
"""No more often is it written down that a token was used."""

TokenState = Literal["valid", "expired", "revoked"]


@dataclass(frozen=True)
class Token:
    """One row; times in seconds since 1970."""

    id: str
    name: str
    owner: str
    scope: Scope
    digest: str = field(repr=False)
    created_at: float
    expires_at: float | None
    """None: never."""
    revoked_at: float | None
    last_used_at: float | None
    read_at: float = field(compare=False)
    """When the row was read, by the same clock."""

    @property
    def left_s(self) -> float:
        """For how many seconds it is still good; 0 once it has expired or was revoked."""
        if self.revoked_at is not None:
            return 0.0
        return math.inf if self.expires_at is None else max(0.0, self.expires_at - self.read_at)

    @property
    def state(self) -> TokenState:
        """What a list says of it."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if self.left_s > 0 else "expired"

    @property
    def use_is_old(self) -> bool:
        """Whether it is to be written down that the token is used now."""
        last = self.last_used_at
        return last is None or not 0 <= self.read_at - last < TOUCH_EVERY_S


Tokens = list[Token]  # a name that `TokenStore.list` does not hide


class TokenStore:
    """Tokens in the queue's database. It never sees more of a secret than `add` is handed."""

    def __init__(self, engine: Engine) -> None:
        self._reader = reading(engine)
        self._writer = writing(engine)

    def create(
        self, *, name: str, owner: str, scope: Scope, expires_in_s: float | None = None
    ) -> tuple[Token, str]:
        """A new token: its row, and its text, which is nowhere else."""
        for _ in range(9):
            text = new_token()
            try:
                added = self.add(
                    text, name=name, owner=owner, scope=scope, expires_in_s=expires_in_s
                )
            except IntegrityError:  # another one has the same random id
                continue
            return added, text
        raise RuntimeError("no free token id in 9 tries")

    def add(
        self,
        text: str,
        *,
        name: str,
        owner: str,
        scope: Scope,
        expires_in_s: float | None = None,
    ) -> Token:
        """Register a token; kept is its digest.

        Raises ValueError where it has not the form, IntegrityError where another one has its id.
        """
        token_id = id_of(text)
        if token_id is None:
            raise ValueError("it has not the form of a token")
        values = {
            "id": token_id,
            "name": name,
            "owner": owner,
            "scope": scope.value,
            "digest": digest_of(text),
            "created_at": clock(),
            "expires_at": None if expires_in_s is None else clock() + expires_in_s,
        }
        with self._writer.begin() as connection:
            connection.execute(insert(tokens).values(values))
            return _token(connection.execute(_TOKEN.where(tokens.c.id == token_id)).one())

    def find(self, token_id: str) -> Token | None:
        """One token, also one that is no longer good."""
        if not is_id(token_id):
            return None
        with self._reader.connect() as connection:
            row = connection.execute(_TOKEN.where(tokens.c.id == token_id)).one_or_none()
        return None if row is None else _token(row)

    def get(self, token_id: str) -> Token:
        """The same. Raises TokenNotFoundError."""
        found = self.find(token_id)
        if found is None:
            raise TokenNotFoundError(f"there is no token {token_id[:40]!r}")
        return found

    def list(self, *, owner: str | None = None, offset: int = 0, limit: int = 100) -> Tokens:
        """Tokens, the newest first, also those that are no longer good."""
        query = _TOKEN.order_by(tokens.c.created_at.desc(), tokens.c.id)
        if owner is not None:
            query = query.where(tokens.c.owner == owner)
        with self._reader.connect() as connection:
            return [_token(row) for row in connection.execute(query.offset(offset).limit(limit))]

    def revoke(self, token_id: str) -> None:
        """From now on it is good for nothing; to repeat this changes nothing.

        Raises TokenNotFoundError.
        """
        self.get(token_id)
        revoked = func.coalesce(tokens.c.revoked_at, clock())
        with self._writer.begin() as connection:
            change = update(tokens).where(tokens.c.id == token_id)
            connection.execute(change.values(revoked_at=revoked))

    def touch(self, token_id: str) -> None:
        """Note that a token is used, unless that was noted less than a minute ago."""
        last = tokens.c.last_used_at
        old = or_(last.is_(None), last <= clock() - TOUCH_EVERY_S, last > clock())
        with self._writer.begin() as connection:
            change = update(tokens).where(and_(tokens.c.id == token_id, old))
            connection.execute(change.values(last_used_at=clock()))


_TOKEN = select(tokens, clock().label("read_at"))


def _token(row: Row[Any]) -> Token:
    return Token(**{**row._mapping, "scope": Scope(row.scope)})
