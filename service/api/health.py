"""/healthz: the process lives. /readyz: all that it needs answers."""

from fastapi import APIRouter, Response

from service.api import examples
from service.api.described import answer
from service.api.services import Parts, Probe
from service.api.views import CheckView, HealthView, ReadyView
from service.errors import CapsError
from service.version import package_version

router = APIRouter(tags=["health"])


@router.get("/healthz", responses={200: answer(examples.HEALTH, "Alive")})
async def healthz(parts: Parts) -> HealthView:
    """Tell that the process lives, whatever else is away."""
    return HealthView(version=package_version(), stack=parts.settings.stack_id)


@router.get(
    "/readyz",
    responses={
        200: answer(examples.READY, "All parts answer"),
        503: answer(examples.NOT_READY, "A part does not answer") | {"model": ReadyView},
    },
)
def readyz(parts: Parts, response: Response) -> ReadyView:
    """Ask the database, Ray and MLflow whether they answer."""
    checks = {name: _check(probe) for name, probe in parts.probes.items()}
    ready = all(check.ok for check in checks.values())
    response.status_code = 200 if ready else 503
    return ReadyView(status="ready" if ready else "not-ready", checks=checks)


def _check(probe: Probe) -> CheckView:
    try:
        probe.ping()
    except CapsError as error:
        return CheckView(ok=False, detail=error.detail)
    except Exception as error:  # a driver's own: its text may hold addresses and names
        return CheckView(ok=False, detail=type(error).__name__)
    return CheckView(ok=True)
