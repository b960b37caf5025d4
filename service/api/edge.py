"""The outermost layer: request ids, the Host header, and what is left when all else failed.

Not Starlette's TrustedHostMiddleware: that answers in plain text, and knows no IPv6 literal.
"""

import logging
import secrets
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import internal_problem, problem, problem_response
from service.errors import HostRefusedError

logger = logging.getLogger(__name__)

HEADER = "X-Request-ID"


class Edge:
    """ASGI middleware around all others.

    A foreign Host header is refused: with one, a web page in the user's browser would reach a
    service on loopback (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, allowed_hosts: Sequence[str]) -> None:
        self.app = app
        self.allowed_hosts = tuple(host.lower() for host in allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(6)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        if not self._allowed(Headers(scope=scope).get("host", "")):
            refusal = problem_response(problem(HostRefusedError(), request_id))
            await refusal(scope, receive, send_with_id)
            return
        try:
            await self.app(scope, receive, send_with_id)
        except Exception:
            if started:
                raise
            logger.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            await problem_response(internal_problem(request_id))(scope, receive, send_with_id)

    def _allowed(self, header: str) -> bool:
        host = _without_port(header).lower()
        return any(
            pattern in ("*", host) or (pattern.startswith("*.") and host.endswith(pattern[1:]))
            for pattern in self.allowed_hosts
        )


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0].removeprefix("[")
    return host.partition(":")[0]
