"""/v1/tokens: make, list, revoke. All of it takes the scope `admin`."""

import logging
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from service.api import token_examples as examples
from service.api.body import json_body
from service.api.described import answer, body_of
from service.api.parameters import Owner, only
from service.api.parsing import parse
from service.api.problems import documented
from service.api.rendered import rendered
from service.api.services import Given
from service.api.token_views import CreatedTokenView, TokenPage, TokenRequest, TokenView
from service.errors import (
    BodyInvalidError,
    BodyTooLargeError,
    DatabaseUnavailableError,
    MediaTypeError,
    ParameterInvalidError,
    SpecInvalidError,
    TokenNotFoundError,
)
from service.queue.tokens import Token

logger = logging.getLogger(__name__)

router = APIRouter(prefix="/v1/tokens", tags=["tokens"])

TokenId = Annotated[
    str, Path(description="The token's id, no part of its secret.", examples=["k3v9x2mq"])
]
_BODY = body_of("TokenRequest", {"laptop": {"summary": "For a month", "value": examples.REQUEST}})
_HINT = "a token takes `name`, and may have `owner`, `scope` and `expires_in_s`"


@router.post(
    "",
    status_code=201,
    response_model=CreatedTokenView,
    openapi_extra=_BODY,
    responses={
        201: answer(examples.CREATED, "Made: no other answer will ever tell the token")
        | {
            "headers": {
                "Location": {
                    "schema": {"type": "string"},
                    "example": f"/v1/tokens/{examples.TOKEN['id']}",
                },
                "Cache-Control": {"schema": {"type": "string"}, "example": "no-store"},
            }
        },
        **documented(
            BodyInvalidError,
            BodyTooLargeError,
            MediaTypeError,
            SpecInvalidError,
            DatabaseUnavailableError,
        ),
    },
)
def create_token(body: Annotated[bytes, Depends(json_body)], given: Given) -> Response:
    """Make a token. The answer tells it; afterwards there is its digest alone."""
    wanted = parse(body, TokenRequest, hint=_HINT)
    token, text = given.tokens.create(
        name=wanted.name,
        owner=wanted.owner or given.caller.owner,
        scope=wanted.scope,
        expires_in_s=wanted.expires_in_s,
    )
    logger.info(
        "token %s (owner %s, scope %s) was made by %s",
        token.id,
        token.owner,
        token.scope,
        given.caller.owner,
    )
    view = CreatedTokenView(**dict(_view(token)), token=text)
    headers = {"Location": f"/v1/tokens/{token.id}", "Cache-Control": "no-store"}
    return rendered(view, 201, headers)


@router.get(
    "",
    dependencies=[Depends(only("owner", "offset", "limit"))],
    responses={
        200: answer(examples.PAGE, "A page of tokens, the newest first"),
        **documented(ParameterInvalidError, DatabaseUnavailableError),
    },
)
def list_tokens(
    given: Given,
    owner: Owner = None,
    offset: Annotated[int, Query(ge=0, le=10**6, examples=[0])] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, examples=[100])] = 100,
) -> TokenPage:
    """List tokens, also those that have expired or were revoked; never a secret."""
    found = given.tokens.list(owner=owner, offset=offset, limit=limit + 1)
    more = len(found) > limit
    shown = [_view(token) for token in found[:limit]]
    return TokenPage(tokens=shown, next_offset=offset + limit if more else None)


@router.get(
    "/{token_id}",
    responses={
        200: answer(examples.TOKEN, "The token"),
        **documented(TokenNotFoundError, DatabaseUnavailableError),
    },
)
def get_token(token_id: TokenId, given: Given) -> TokenView:
    """Look at a token: whose it is, what it allows, when it was used last."""
    return _view(given.tokens.get(token_id))


@router.delete(
    "/{token_id}",
    status_code=204,
    response_class=Response,
    responses={
        204: {"description": "Revoked: within 5 s nobody takes it any more"},
        **documented(TokenNotFoundError, DatabaseUnavailableError),
    },
)
def revoke_token(token_id: TokenId, given: Given) -> None:
    """Revoke a token, for ever. To repeat this changes nothing."""
    given.revoke_token(token_id)
    logger.info("token %s was revoked by %s", token_id, given.caller.owner)


def _view(token: Token) -> TokenView:
    return TokenView(
        id=token.id,
        name=token.name,
        owner=token.owner,
        scope=token.scope,
        state=token.state,
        created_at=_time(token.created_at),
        expires_at=None if token.expires_at is None else _time(token.expires_at),
        revoked_at=None if token.revoked_at is None else _time(token.revoked_at),
        last_used_at=None if token.last_used_at is None else _time(token.last_used_at),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
