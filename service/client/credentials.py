"""Where the client's token comes from."""

import os
import re
from pathlib import Path

from service.errors import InputError
from service.tokens import ADMIN_FILE

LONGEST = 8_000
"""Characters; ours have 78, those of somebody's gateway may have more."""

_PLAIN = re.compile(r"[\x21-\x7e]+")
_HINT = "a token is one word, caps_ID_SECRET, as `capsctl token create` prints it"


def authorization(token: str | None, *, to_this_machine: bool) -> dict[str, str]:
    """The header that shows who calls; none where there is no token.

    The argument comes before CAPS_TOKEN, that before the file CAPS_TOKEN_PATH. The token of this
    machine's administrator is the last, and goes to this machine alone. Raises InputError, which
    never repeats a token.
    """
    text = _given(token)
    if text is None and to_this_machine:
        text = _administrators()
    return {} if text is None else {"Authorization": f"Bearer {text}"}


def _given(token: str | None) -> str | None:
    if token is not None:
        return _checked(token, "the argument `token`")
    if text := os.environ.get("CAPS_TOKEN"):
        return _checked(text, "CAPS_TOKEN")
    if name := os.environ.get("CAPS_TOKEN_PATH"):
        return _checked(_content(name).strip(), f"the file of CAPS_TOKEN_PATH, {name},")
    return None


def _content(name: str) -> str:
    try:
        return _read(Path(name))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no name of a file"
        raise InputError(
            f"CAPS_TOKEN_PATH: {name[:200]!r} can't be read: {why}",
            hint="name a file that holds a token and nothing else, or give the token in CAPS_TOKEN",
        ) from None


def _administrators() -> str | None:
    """Of the API that runs in CAPS_HOME, if it asks for tokens and we may read its file."""
    try:
        text = _read(Path(os.environ.get("CAPS_HOME", ".caps")) / ADMIN_FILE).strip()
    except (OSError, ValueError):
        return None
    return text if _usable(text) else None


def _read(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(LONGEST + 2).decode(errors="replace")


def _checked(text: str, source: str) -> str:
    if _usable(text):
        return text
    problem = "is longer than any token" if len(text) > LONGEST else "is no token"
    if not text:
        problem = "is empty"
    elif not _PLAIN.fullmatch(text):
        problem = "holds a space, a line break or another character that no token has"
    raise InputError(f"{source} {problem}", hint=_HINT)


def _usable(text: str) -> bool:
    return len(text) <= LONGEST and _PLAIN.fullmatch(text) is not None
