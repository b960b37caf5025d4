"""What the API takes and answers about tokens. Imports no web framework."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from service.api.views import View
from service.tokens import OWNER_PATTERN, Scope

LONGEST_LIFE_S = 10 * 365 * 86_400


class TokenRequest(BaseModel):
    """A token that is to be made."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )

    name: str = Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]*$")
    """What it is for, or where it is kept: by this it is known in a list."""
    owner: str | None = Field(default=None, pattern=OWNER_PATTERN)
    """Whose jobs it submits and sees; the caller by default."""
    scope: Scope = Scope.SUBMIT
    """`read`: look; `submit`: submit, steer and delete as well; `admin`: everybody's jobs, and
    tokens."""
    expires_in_s: int | None = Field(default=None, ge=1, le=LONGEST_LIFE_S)
    """Seconds for which it is good; for ever by default."""


class TokenView(View):
    """A token; its secret is told by nobody."""

    id: str
    """The part of the token between its underscores."""
    name: str
    owner: str
    scope: Scope
    state: Literal["valid", "expired", "revoked"]
    created_at: datetime
    expires_at: datetime | None = None
    """Null: never."""
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    """Within a minute; null: never yet."""


class CreatedTokenView(TokenView):
    """A token that was just made."""

    token: str = Field(repr=False)
    """The token itself. This is the only answer that ever tells it."""


class TokenPage(View):
    """Tokens, the newest first, also those that have expired or were revoked."""

    tokens: list[TokenView]
    next_offset: int | None = None
    """Pass it as `offset` to read on; null on the last page."""
