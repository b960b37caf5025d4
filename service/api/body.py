"""Reads a request's body, with limits, before anything trusts it."""

from fastapi import Request
from starlette.requests import ClientDisconnect

from service.errors import BodyInvalidError, BodyTooLargeError, MediaTypeError

MAX_BODY = 256 * 1024


async def optional_json_body(request: Request) -> bytes:
    """The body as `json_body` reads it; an empty object where there is none."""
    if request.headers.get("content-length", "0") == "0" and (
        "transfer-encoding" not in request.headers
    ):
        return b"{}"
    return await json_body(request)


async def json_body(request: Request) -> bytes:
    """The body, if it is declared to be JSON and not too long.

    Only `application/json` is taken: a browser asks leave (CORS) before it posts that across sites.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not (
        media_type.startswith("application/") and media_type.endswith("+json")
    ):
        raise MediaTypeError
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 19 and int(declared) > MAX_BODY:
        raise BodyTooLargeError
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise BodyTooLargeError
    except ClientDisconnect:
        raise BodyInvalidError("the connection was cut before the body's end") from None
    return bytes(body)
