"""Parameters of the query that several resources share."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Query, Request

from service.errors import FieldError, ParameterInvalidError
from service.queue.job import State
from service.queue.store import JobFilter
from service.tokens import OWNER_PATTERN

Label = Annotated[str, Query(pattern=r"^[^=\x00]{1,63}=[^\x00]{0,200}$")]
Cursor = Annotated[str | None, Query(max_length=100, examples=["NmFrMmtxNzgybnRx"])]
Limit = Annotated[int, Query(ge=1, le=200, examples=[50])]

Owner = Annotated[
    str | None,
    Query(
        pattern=OWNER_PATTERN,
        description="Of this owner alone; without the scope `admin` there are one's own only.",
        examples=["ann"],
    ),
]

FILTERS = ("experiment", "label", "state", "owner", "cursor", "limit")


def only(*names: str) -> Callable[[Request], Awaitable[None]]:
    """Refuses a parameter that would silently be ignored, and with it the filter that was meant."""

    async def known_parameters(request: Request) -> None:
        unknown = [name for name in request.query_params if name not in names]
        if unknown:
            accepted = f"one of {', '.join(names)}"
            raise ParameterInvalidError(
                f"unknown parameter {unknown[0][:100]!r}",
                errors=[
                    FieldError(f"/query/{n[:100]}", "unknown parameter", accepted=accepted)
                    for n in unknown
                ],
            )

    return known_parameters


async def _filter(
    experiment: Annotated[
        str | None, Query(max_length=100, pattern=r"^[^\x00]*$", examples=["demo"])
    ] = None,
    label: Annotated[
        list[Label],
        Query(max_length=32, description="`key=value`; repeated: all hold.", examples=["team=a"]),
    ] = [],  # noqa: B006 - FastAPI copies defaults
    state: Annotated[
        list[State], Query(max_length=10, description="Repeated: any.", examples=["RUNNING"])
    ] = [],  # noqa: B006
    owner: Owner = None,
) -> JobFilter:
    labels = {key: value for key, _, value in (text.partition("=") for text in label)}
    return JobFilter(experiment, labels, tuple(state), owner=owner)


Filter = Annotated[JobFilter, Depends(_filter)]
