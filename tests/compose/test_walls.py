"""What can be reached, as whom, and where secrets are not."""

import contextlib
import json
import socket
import subprocess
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from service.queue.job import State
from support.compose import OURS, REPOSITORY, VERSION, Deployment, published
from support.stack import ENDLESS, TINY, until

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

PORTS = (5000, 5432, 6379, 8000, 8265, 10001, 52365)
"""Where the parts listen inside."""


def _connects(host: str, port: int) -> bool:
    with closing(socket.socket()) as probe:
        probe.settimeout(2)
        return probe.connect_ex((host, port)) == 0


def _all(deployment: Deployment) -> list[str]:
    return [name for service in OURS for name in deployment.containers(service)]


def test_only_two_ports_are_published_and_on_loopback(
    deployment: Deployment, published_before: set[tuple[str, int]]
) -> None:
    expected = {("127.0.0.1", deployment.api_port), ("127.0.0.1", deployment.mlflow_port)}
    bound = set()
    for container in _all(deployment):
        ports = deployment.inspect(container)["NetworkSettings"]["Ports"] or {}
        for bindings in ports.values():
            bound |= {(each["HostIp"], int(each["HostPort"])) for each in bindings or []}
    assert bound == expected
    assert published() - published_before == expected
    for address in _addresses_of_this_host():
        for _, port in expected:
            assert _connects(address, port) == address.startswith("127."), f"{address}:{port}"


def _addresses_of_this_host() -> list[str]:
    """Its own; those of the containers' bridges are among them."""
    interfaces = psutil.net_if_addrs().values()
    return [each.address for i in interfaces for each in i if each.family == socket.AF_INET]


def test_a_container_outside_reaches_nobody(deployment: Deployment) -> None:
    """Another project's container knows neither the names nor a way to the addresses.

    Docker keeps networks apart by itself; podman does where both are told to be (`isolate`).
    """
    addresses = {
        network["IPAddress"]
        for container in _all(deployment)
        for network in deployment.inspect(container)["NetworkSettings"]["Networks"].values()
        if network["IPAddress"]
    }
    assert len(addresses) >= len(OURS)
    program = (
        "import json, socket, sys\n"
        "hosts, ports = json.loads(sys.argv[1])\n"
        "def answers(host, port):\n"
        "    s = socket.socket(); s.settimeout(0.5)\n"
        "    try: return s.connect_ex((host, port)) == 0\n"
        "    except OSError: return False\n"
        "print(json.dumps([[h, p] for h in hosts for p in ports if answers(h, p)]))\n"
    )
    asked = json.dumps([[*sorted(addresses), *OURS], PORTS])
    foreign = f"{deployment.project}-foreign"
    options = ["--opt", "isolate=true"] if deployment.engine == "podman" else []
    deployment.run("network", "create", *options, foreign)
    try:
        found = deployment.run(
            "run", "--rm", "--network", foreign, "--entrypoint", "python",
            f"capsnet-service:{VERSION}", "-c", program, asked,
        )  # fmt: skip
    finally:
        deployment.run("network", "rm", foreign)
    assert json.loads(found) == []
    # The same program, from a place that is let in, does see what is there.
    inside = deployment.inside(deployment.container("api"), "python", "-c", program, asked)
    assert {port for _, port in json.loads(inside)} >= {5000, 5432, 6379, 8000, 8265}


def test_the_database_is_out_of_reach_for_the_workers(deployment: Deployment) -> None:
    program = "import socket; socket.create_connection(('postgres', 5432), timeout=2)"
    for service in ("ray-head", "ray-worker"):
        for container in deployment.containers(service):
            with pytest.raises(subprocess.CalledProcessError):
                deployment.inside(container, "python", "-c", program)
    deployment.inside(deployment.container("api"), "python", "-c", program)


def test_ray_and_the_api_want_a_token(deployment: Deployment) -> None:
    program = (
        "import urllib.request as u, urllib.error as e, sys\n"
        "for path in ('/api/jobs/', '/api/v0/nodes', '/api/cluster_status'):\n"
        "    for headers in ({}, {'Authorization': 'Bearer wrong'}):\n"
        "        asked = u.Request('http://ray-head:8265' + path, headers=headers)\n"
        "        try: u.urlopen(asked, timeout=5)\n"
        "        except e.HTTPError as error: print(error.code)\n"
        "        else: print(200)\n"
    )
    codes = deployment.inside(deployment.container("api"), "python", "-c", program).split()
    assert codes[0::2] == ["401"] * 3
    assert all(code in ("401", "403") for code in codes[1::2])
    assert httpx.get(f"{deployment.api_url}/v1/jobs").status_code == 401
    assert httpx.post(f"{deployment.api_url}/v1/jobs", json=TINY).status_code == 401
    assert httpx.get(f"{deployment.api_url}/healthz").status_code == 200
    worker = deployment.containers("ray-worker")[0]
    without_token = ("env", "-u", "RAY_AUTH_TOKEN_PATH", "HOME=/tmp")
    asked = ("ray", "status", "--address=ray-head:6379")
    assert "Node status" in deployment.inside(worker, *asked)
    with pytest.raises(subprocess.CalledProcessError):
        deployment.inside(worker, *without_token, *asked)


def test_no_process_is_root(deployment: Deployment) -> None:
    for container in _all(deployment):
        pid = deployment.main_process(container)
        first = psutil.Process(pid)
        for process in [first, *first.children(recursive=True)]:
            assert process.uids().real != 0, f"{container}: {process.cmdline()[:3]} is root"
            assert process.uids().effective != 0


@pytest.fixture(scope="module")
def secrets(deployment: Deployment) -> list[str]:
    """All that there are, a user's token among them."""
    volumes = ("postgres-secrets", "queue-secrets", "tracking-secrets", "ray-secrets")
    files = [path for name in volumes for path in deployment.volume(name).iterdir()]
    files.append(deployment.volume("home") / "admin-token")
    found = {path.read_text().strip().rpartition(":")[2] for path in files}
    assert len(found) == 5, "three passwords, Ray's token, the administrator's"
    return [*found, deployment.token]


def test_no_process_and_no_job_is_told_a_secret(deployment: Deployment, secrets: list[str]) -> None:
    """Environments and command lines while a job trains, and what Ray's API says of the job."""
    with deployment.client() as client:
        job = client.submit(ENDLESS | {"resources": {"cpus_per_worker": 1}})
        until(lambda: client.job(job.id).phase == "training", 180, "it trains")
        places = _processes(deployment)
        assert any(f"workers {job.id} 1" in text for text in places.values())
        program = (
            "import urllib.request as u\n"
            "token = open('/secrets/ray/token').read().strip()\n"
            "asked = u.Request('http://ray-head:8265/api/jobs/')\n"
            "asked.add_header('Authorization', 'Bearer ' + token)\n"
            "print(u.urlopen(asked).read().decode())\n"
        )
        api = deployment.container("api")
        places["Ray's list of jobs"] = deployment.inside(api, "python", "-c", program)
        assert job.id in places["Ray's list of jobs"]
        client.cancel(job.id)
        assert client.wait(job.id, timeout=120).state is State.CANCELLED
        places["the job's log"] = client.logs(job.id).text
    _tell_none(places, secrets)


def test_images_inspections_and_logs_tell_no_secret(
    deployment: Deployment, secrets: list[str]
) -> None:
    places = {}
    for stage in ("service", "mlflow", "worker", "postgres"):
        image = f"capsnet-{stage}:{VERSION}"
        history = ("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
        places[f"history of {image}"] = deployment.run(*history)
        places[f"image {image}"] = deployment.run("image", "inspect", image)
    for container in _all(deployment):
        places[f"inspection of {container}"] = deployment.run("inspect", container)
        logs = [deployment.engine, "logs", container]
        said = subprocess.run(logs, capture_output=True, text=True)
        places[f"log of {container}"] = said.stdout + said.stderr
    assert all(places.values())
    _tell_none(places, secrets)


def test_databases_and_volumes_hold_no_secret(deployment: Deployment, secrets: list[str]) -> None:
    """Of tokens the queue's database has digests; MLflow, checkpoints and logs have nothing."""
    spec = TINY | {"name": "canary", "resources": {"cpus_per_worker": 1}}
    with deployment.client() as client:
        job = client.wait(client.submit(spec).id, timeout=240)
    assert job.state is State.SUCCEEDED, job.evidence
    postgres = deployment.container("postgres")
    dump = ("pg_dump", "--username=postgres")
    places = {name: deployment.inside(postgres, *dump, name) for name in ("caps", "mlflow")}
    assert all("canary" in text for text in places.values())
    _tell_none(places, secrets)
    for volume in ("storage", "artifacts"):
        folder = deployment.volume(volume)
        assert _somewhere(folder, "mnist-5k")
        for secret in secrets:
            assert not _somewhere(folder, secret), f"volume {volume} holds a secret"


def _processes(deployment: Deployment) -> dict[str, str]:
    """Command line and environment of every process but PostgreSQL's, which keeps its password."""
    found = {}
    for container in _all(deployment):
        first = psutil.Process(deployment.main_process(container))
        for process in [first, *first.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                told = " ".join(process.cmdline())
                if container not in deployment.containers("postgres"):
                    told += json.dumps(process.environ())
                found[f"{container} {process.pid}"] = told
    return found


def _tell_none(places: dict[str, str], secrets: list[str]) -> None:
    for name, text in places.items():
        assert not any(secret in text for secret in secrets), f"{name} tells a secret"


def _somewhere(folder: Path, text: str) -> bool:
    return subprocess.run(["grep", "-rqF", text, str(folder)]).returncode == 0


def test_every_part_is_healthy_by_its_own_check(deployment: Deployment) -> None:
    """Engines that run health checks run these commands; podman may not, so they are run here."""
    services = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    for service in OURS:
        kind, *command = services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        for container in deployment.containers(service):
            healthy = partial(_succeeds, deployment, container, command)
            until(healthy, 60, f"{container} is healthy")


def _succeeds(deployment: Deployment, container: str, command: list[str]) -> bool:
    try:
        deployment.inside(container, *command)
    except subprocess.CalledProcessError:
        return False
    return True
