"""The composition root: builds the parts, hands each what it needs, serves the API.

`python -m service.app` serves it on loopback; `capsctl up` starts it so. On any other address it
asks for tokens, and nothing switches that off.
"""

import argparse
import gc
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import uvicorn
from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI

from service.admin_token import AdminToken
from service.api import (
    attempts,
    document,
    events,
    health,
    jobs,
    logs,
    problems,
    schema,
    search_verbs,
    searches,
    tokens,
    trials,
    verbs,
)
from service.api.access import REFUSALS, administrator, admitted
from service.api.edge import Edge
from service.api.gate import Gate
from service.api.services import Probe, Services
from service.capacity import Capacity
from service.cluster import RayCluster
from service.deferred_runs import DeferredRuns
from service.errors import InputError
from service.loopback import is_loopback
from service.queue.store import Store
from service.reconciler import ReconcilerLoop
from service.settings import Settings, read_settings
from service.startup import Background, Startup
from service.version import package_version


def create_app(
    settings: Settings | None = None,
    *,
    store: Store | None = None,
    probes: Mapping[str, Probe] | None = None,
    background: Background | None = None,
    capacity: Capacity | None = None,
    with_tokens: bool = False,
) -> FastAPI:
    """Build the service.

    Args:
        settings: Read from the environment by default.
        store: The queue; migrated before the first request, unless its database is away.
        probes: What /readyz asks, by name.
        background: Started and stopped with the application.
        capacity: Knows what the cluster could never hold; asks Ray by default.
        with_tokens: Ask for tokens, and keep the first one in CAPS_HOME.
    """
    settings = settings or Settings()
    store = store or Store(settings.database)
    cluster = RayCluster(settings.ray_address, settings.ray_token)
    runs = DeferredRuns(settings.mlflow_uri)
    loop = background or ReconcilerLoop(store, cluster, runs, settings)
    gate = Gate(store.tokens) if with_tokens else None
    first = AdminToken(settings.admin_token_file, store.tokens)
    startup = Startup(store, loop, first.prepare if with_tokens else None)
    capacity = capacity or Capacity(cluster.nodes, elastic=settings.elastic)
    if probes is None:
        probes = {"database": store, "ray": cluster, "mlflow": runs}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await run_sync(startup.begin)
        yield
        await run_sync(startup.end)
        if gate is not None:
            await run_sync(gate.close)
        cluster.close()
        store.close()

    app = FastAPI(
        title="CapsNet training service",
        description="Train capsule networks: jobs and searches in a durable queue, on Ray, with "
        "their runs in MLflow.",
        version=package_version(),
        lifespan=lifespan,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.services = Services(store, settings, probes, loop.wake, capacity, gate)
    of_jobs = (jobs, verbs, attempts, events, logs)
    of_searches = (searches, search_verbs, trials)
    for module in (*of_jobs, *of_searches, schema):
        app.include_router(module.router, dependencies=[Depends(admitted)], responses=REFUSALS)
    app.include_router(tokens.router, dependencies=[Depends(administrator)], responses=REFUSALS)
    app.include_router(health.router)
    document.complete(app)
    problems.install(app)
    app.add_middleware(Edge, allowed_hosts=settings.allowed_hosts)
    return app


def main() -> None:
    """Serve the API until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m service.app", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)
    try:
        settings = read_settings()
    except InputError as error:
        parser.error(f"{error.detail} ({error.hint})")
    on_loopback = is_loopback(arguments.host)
    if not on_loopback and settings.ray_token_path is None:
        # Ray's API runs any code: one that asks for no token is for a machine of one's own.
        parser.error(
            f"--host {arguments.host} is not loopback, so CAPS_RAY_TOKEN_PATH must name the file "
            "with Ray's token (RAY_AUTH_MODE=token on every node)"
        )
    app = create_app(settings, with_tokens=settings.tokens == "on" or not on_loopback)
    gc.freeze()  # what lives as long as the process need not be searched for garbage
    uvicorn.run(
        app,
        host=arguments.host,
        port=arguments.port,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )


if __name__ == "__main__":
    main()
