"""Answers written as JSON where they are made.

What an endpoint returns otherwise, FastAPI validates once more and writes in another thread's turn:
of the routes that are asked most, that is a good part of the time.
"""

from collections.abc import Mapping

from fastapi import Response

from service.api.views import View


def rendered(view: View, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """The view as the body."""
    return Response(view.model_dump_json(), status, headers, media_type="application/json")
