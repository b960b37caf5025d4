"""The first token: an administrator's, in a file that only the API's user can read.

Who can read the file can administrate, so it takes no token to make one. The file stays over
restarts, and is registered anew in a database that was emptied. A token that was revoked stays so:
the next start puts another one into the file.
"""

import logging
import os
import secrets
import socket
import stat
from contextlib import suppress
from pathlib import Path

from sqlalchemy.exc import IntegrityError

from service.queue.tokens import TokenStore
from service.tokens import Scope, digest_of, id_of, new_token

logger = logging.getLogger(__name__)

OWNER = "admin"
LONGEST = 1_000
"""Bytes that are read: a token has 78."""
LONGEST_NAME = 100


class AdminToken:
    """Keeps `file` and the table in step; several replicas may share either."""

    def __init__(self, file: Path, tokens: TokenStore) -> None:
        self._file = file
        self._tokens = tokens

    def prepare(self) -> None:
        """Make the file where there is none, and register its token where the table has it not.

        What is wrong with the file is logged, with the remedy, and the API goes on without: tokens
        that are in the table are good all the same. Raises SQLAlchemyError while the database is
        away.
        """
        try:
            self._make()
            text = self._read()
            if text is not None and self._is_revoked(text):
                logger.warning("the token in %s was revoked: it is replaced", self._file)
                self._replace()
                text = self._read()
        except OSError as error:
            logger.error(
                "%s can't be read or made: %s; make it a file, and its folder one, that the API's "
                "user may read and write, and start again",
                self._file,
                error.strerror,
            )
            return
        if text is not None and self._register(text):
            logger.info("administrator's token: %s", self._file)

    def _make(self) -> None:
        """A new file, unless there is one; it never exists without its whole content."""
        if self._file.exists():
            return
        if not self._file.parent.exists():
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._draft()
        try:
            with suppress(FileExistsError):  # another replica was quicker
                os.link(draft, self._file)
        finally:
            draft.unlink()

    def _replace(self) -> None:
        os.replace(self._draft(), self._file)

    def _draft(self) -> Path:
        """A file with a new token beside the real one."""
        draft = self._file.with_name(f".{self._file.name}.{secrets.token_hex(8)}")
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w", encoding="ascii") as file:
            file.write(f"{new_token()}\n")
            file.flush()
            os.fsync(file.fileno())
        return draft

    def _read(self) -> str | None:
        """The token in the file; None, with a line in the log, where it holds none."""
        with self._file.open("rb") as file:
            text = file.read(LONGEST).decode(errors="replace").strip()
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        if mode & 0o077:
            logger.warning("others may read %s: chmod 600 %s", self._file, self._file)
        if id_of(text) is None:
            logger.error(
                "%s holds no token (caps_ID_SECRET, 78 characters): remove it, and start again; "
                "the API then makes another one",
                self._file,
            )
            return None
        return text

    def _is_revoked(self, text: str) -> bool:
        token_id = id_of(text)
        found = None if token_id is None else self._tokens.find(token_id)
        return found is not None and found.digest == digest_of(text) and found.left_s <= 0

    def _register(self, text: str) -> bool:
        """Whether the table has the token, now or since long."""
        token_id = id_of(text)
        assert token_id is not None
        found = self._tokens.find(token_id)
        if found is None:
            name = f"admin-token of {socket.gethostname()}"[:LONGEST_NAME]
            with suppress(IntegrityError):  # another replica was quicker
                self._tokens.add(text, name=name, owner=OWNER, scope=Scope.ADMIN)
            found = self._tokens.get(token_id)
        if found.digest == digest_of(text):
            return True
        logger.error(
            "%s holds a token whose id %s is that of another one: remove the file, and start "
            "again; the API then makes another one",
            self._file,
            token_id,
        )
        return False
