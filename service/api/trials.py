"""/v1/searches/{id}/trials and configurations: what a search has tried, and how it did."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from service.api import search_examples as examples
from service.api.described import answer
from service.api.logs import LOG_ANSWER, Attempt, Limit, Offset, log_response
from service.api.parameters import only
from service.api.present_search import duration_s, leaderboard
from service.api.problems import documented
from service.api.search_views import ConfigurationPage, TrialPage
from service.api.searches import SearchId
from service.api.services import Given
from service.errors import (
    AttemptNotFoundError,
    DatabaseUnavailableError,
    ParameterInvalidError,
    SearchNotFoundError,
    TrialNotFoundError,
)
from service.queue.job import Job, State
from workers.search_specs import SearchSpec
from workers.trials import Mode, Trial, TrialState, trial_folder

router = APIRouter(prefix="/v1/searches", tags=["searches"])

PageLimit = Annotated[int, Query(ge=1, le=1000, examples=[100])]
PageOffset = Annotated[int, Query(ge=0, le=10**6, examples=[0])]


class Order(StrEnum):
    """By what trials are sorted; a minus turns it round."""

    NUMBER = "number"
    NUMBER_DOWN = "-number"
    SCORE = "score"
    SCORE_DOWN = "-score"
    EPOCH = "epoch"
    EPOCH_DOWN = "-epoch"
    STARTED_AT = "started_at"
    STARTED_AT_DOWN = "-started_at"
    DURATION = "duration"
    DURATION_DOWN = "-duration"


_KEYS: dict[str, Callable[[Trial], float | None]] = {
    "number": lambda trial: trial.number,
    "score": lambda trial: trial.score,
    "epoch": lambda trial: trial.epoch,
    "started_at": lambda trial: trial.started_at,
    "duration": duration_s,
}


@router.get(
    "/{search_id}/trials",
    dependencies=[Depends(only("state", "configuration", "order_by", "offset", "limit"))],
    responses={
        200: answer(examples.TRIAL_PAGE, "A page of trials"),
        **documented(SearchNotFoundError, ParameterInvalidError, DatabaseUnavailableError),
    },
)
def list_trials(
    search_id: SearchId,
    given: Given,
    state: Annotated[
        list[TrialState], Query(max_length=10, description="Repeated: any.", examples=["RUNNING"])
    ] = [],  # noqa: B006 - FastAPI copies defaults
    configuration: Annotated[int | None, Query(ge=0, le=10**6, examples=[3])] = None,
    order_by: Annotated[
        Order | None,
        Query(description="The best score first if left out.", examples=["-duration"]),
    ] = None,
    offset: PageOffset = 0,
    limit: PageLimit = 100,
) -> TrialPage:
    """List a search's trials; those without the value that orders come last."""
    job = given.search(search_id)
    fitting = [
        trial
        for trial in given.trials(job)
        if (not state or trial.state in state)
        and (configuration is None or trial.configuration == configuration)
    ]
    chosen = _ordered(fitting, order_by, _mode(job))[offset : offset + limit]
    presenter = given.search_presenter([job])
    return TrialPage(
        trials=[presenter.trial(job, trial) for trial in chosen],
        total=len(fitting),
        next_offset=_next(offset + limit, len(fitting)),
    )


@router.get(
    "/{search_id}/configurations",
    dependencies=[Depends(only("offset", "limit"))],
    responses={
        200: answer(examples.CONFIGURATION_PAGE, "The leaderboard"),
        **documented(SearchNotFoundError, ParameterInvalidError, DatabaseUnavailableError),
    },
)
def list_configurations(
    search_id: SearchId, given: Given, offset: PageOffset = 0, limit: PageLimit = 100
) -> ConfigurationPage:
    """List configurations, the best mean over their seeds first."""
    job = given.search(search_id)
    assert isinstance(job.spec, SearchSpec)
    board = leaderboard(given.trials(job), job.spec.mode)
    return ConfigurationPage(
        metric=job.spec.metric,
        mode=job.spec.mode,
        configurations=board[offset : offset + limit],
        total=len(board),
        next_offset=_next(offset + limit, len(board)),
    )


@router.get(
    "/{search_id}/trials/{number}/logs",
    response_class=Response,
    responses={
        200: LOG_ANSWER,
        **documented(
            SearchNotFoundError,
            TrialNotFoundError,
            AttemptNotFoundError,
            ParameterInvalidError,
            DatabaseUnavailableError,
        ),
    },
)
def read_trial_log(
    search_id: SearchId,
    number: Annotated[int, Path(ge=0, le=10**6, description="The trial's.", examples=[4])],
    given: Given,
    attempt: Attempt = None,
    offset: Offset = 0,
    limit: Limit = 256 * 1024,
) -> Response:
    """Read the log of a trial, as it ran in an attempt of its search."""
    job = given.search(search_id)
    trial = next((t for t in given.trials(job) if t.number == number), None)
    if trial is None:
        raise TrialNotFoundError(f"search {job.id} has no trial {number}")
    if attempt is not None and attempt > job.attempt:
        raise AttemptNotFoundError(f"search {job.id} has {job.attempt} attempts, not {attempt}")
    root = given.settings.storage_root
    chosen = attempt or trial.attempt or job.attempt
    over = trial.state.ended or chosen < job.attempt or job.state is not State.RUNNING
    log = trial_folder(root, job.id, number, chosen).log
    return log_response(log, chosen, offset, limit, over=over)


def _ordered(trials: list[Trial], order: Order | None, mode: Mode) -> list[Trial]:
    name = order.value if order else ("-score" if mode == "max" else "score")
    key = _KEYS[name.removeprefix("-")]
    sign = -1 if name.startswith("-") else 1
    keyed = [(value if (value := key(trial)) is None else sign * value, trial) for trial in trials]
    keyed.sort(key=lambda pair: (pair[0] is None, pair[0] or 0.0, pair[1].number))
    return [trial for _, trial in keyed]


def _mode(job: Job) -> Mode:
    assert isinstance(job.spec, SearchSpec)
    return job.spec.mode


def _next(end: int, total: int) -> int | None:
    return end if end < total else None
