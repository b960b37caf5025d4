"""Who may do what: every route below /v1 stands behind `admitted` or `administrator`.

What these let in they note in the request. `Given`, by which endpoints reach anything at all, has
nothing to give where neither has: a route that forgot them fails, and tells nothing.
"""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from service.api.problems import documented
from service.api.services import Services
from service.errors import (
    DatabaseUnavailableError,
    ScopeMissingError,
    TokenInvalidError,
    TokenMissingError,
)
from service.tokens import ANYBODY, Scope

LOOKING = ("GET", "HEAD")
"""Methods that change nothing."""

REFUSALS = documented(
    TokenMissingError, TokenInvalidError, ScopeMissingError, DatabaseUnavailableError
)
"""What every guarded route may answer."""

_bearer = HTTPBearer(
    scheme_name="token",
    bearerFormat="caps_ID_SECRET",
    description="A token of `capsctl token create`. Asked for wherever the API does not listen on "
    "loopback alone, or CAPS_TOKENS is `on`.",
    auto_error=False,
)
Credentials = Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]


async def admitted(request: Request, credentials: Credentials) -> None:
    """Looking takes the scope `read`, all else `submit`."""
    needed = Scope.READ if request.method in LOOKING else Scope.SUBMIT
    await _admit(request, credentials, needed)


async def administrator(request: Request, credentials: Credentials) -> None:
    """Anything takes the scope `admin`."""
    await _admit(request, credentials, Scope.ADMIN)


async def _admit(request: Request, credentials: Credentials, needed: Scope) -> None:
    services = request.app.state.services
    assert isinstance(services, Services)
    caller = ANYBODY
    if services.gate is not None:
        if credentials is None:
            raise TokenMissingError
        caller = await services.gate.caller(credentials.credentials)
    if not caller.scope.allows(needed):
        raise ScopeMissingError(
            f"the token's scope is `{caller.scope}`: the scope `{needed}` is needed",
            hint=f"an administrator makes such a token by `capsctl token create --scope {needed}`; "
            "capsctl and CapsClient take it from CAPS_TOKEN",
        )
    request.state.caller = caller
