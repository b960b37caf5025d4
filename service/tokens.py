"""API tokens: their form, what is kept of them, what each allows. Pure.

A token is `caps_<id>_<secret>`: an id of 8 characters that anybody may know, and 256 random bits in
hex. Kept is the SHA-256 digest of the whole text. A slow digest would add nothing: nobody guesses
256 random bits, however quickly a guess is tried.
"""

import hashlib
import hmac
import re
import secrets
import string
from dataclasses import dataclass
from enum import StrEnum

LOCAL = "local"
"""The owner of what is submitted where no tokens are asked for."""
ADMIN_FILE = "admin-token"
"""In CAPS_HOME: the first token, an administrator's."""
OWNER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$"

_ID_LENGTH = 8
_ID_CHARACTERS = string.ascii_lowercase + string.digits
_SECRET_BYTES = 32
_FORM = re.compile(r"caps_([a-z0-9]{8})_[0-9a-f]{64}", re.ASCII)
_ID = re.compile(r"[a-z0-9]{8}", re.ASCII)
_NOBODYS = hashlib.sha256(secrets.token_bytes(_SECRET_BYTES)).hexdigest()
"""Compared with where an id is unknown, so that this takes no less time."""


class Scope(StrEnum):
    """What a token allows; each scope allows what those before it allow."""

    READ = "read"
    """Look at the owner's jobs."""
    SUBMIT = "submit"
    """Submit, steer and delete them."""
    ADMIN = "admin"
    """All of that with everybody's jobs, and tokens."""

    def allows(self, needed: "Scope") -> bool:
        """Whether it is enough where `needed` is asked for."""
        ascending = list(Scope)
        return ascending.index(self) >= ascending.index(needed)


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may do."""

    owner: str
    scope: Scope

    @property
    def sees_only(self) -> str | None:
        """Whose jobs there are, as far as this caller can tell; None for everybody's."""
        return None if self.scope is Scope.ADMIN else self.owner


ANYBODY = Caller(LOCAL, Scope.ADMIN)
"""Who asks where no tokens are asked for."""


def new_token() -> str:
    """A token that nobody has yet; that its id is free is for the table to say."""
    token_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_ID_LENGTH))
    return f"caps_{token_id}_{secrets.token_hex(_SECRET_BYTES)}"


def id_of(text: str) -> str | None:
    """The public part; None for what has not the form of a token."""
    found = _FORM.fullmatch(text)
    return found[1] if found else None


def is_id(text: str) -> bool:
    """Whether a token could have this id."""
    return _ID.fullmatch(text) is not None


def digest_of(text: str) -> str:
    """What is kept of a token."""
    return hashlib.sha256(text.encode()).hexdigest()


def matches(digest: str, kept: str | None) -> bool:
    """Whether a token's digest is the one that is kept; None where its id is unknown.

    Takes the same time however much of them is the same, and where there is none to compare with.
    """
    same = hmac.compare_digest(digest, _NOBODYS if kept is None else kept)
    return same and kept is not None
