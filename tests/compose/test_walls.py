"""What can be reached, as whom, and where secrets are not."""

import json
import socket
import subprocess
from contextlib import closing

import httpx
import psutil
import pytest

from service.queue.job import State
from support.compose import OURS, Deployment, published
from support.stack import TINY, until

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
            "capsnet-service:0.1.0", "-c", program, asked,
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


def test_no_secret_is_told_anywhere(deployment: Deployment) -> None:
    """Not in images, inspections, environments, logs, jobs' folders or MLflow."""
    with deployment.client() as client:
        job = client.wait(
            client.submit(TINY | {"name": "canary", "resources": {"cpus_per_worker": 1}}).id,
            timeout=240,
        )
        assert job.state is State.SUCCEEDED, job.evidence
        job_log = client.logs(job.id).text
    secrets = _secrets(deployment)
    assert len(secrets) >= 5
    places = {"the job's log": job_log}
    for image in ("service", "mlflow", "worker"):
        places[f"history of {image}"] = deployment.run(
            "history", "--no-trunc", "--format", "{{.CreatedBy}}", f"capsnet-{image}:0.1.0"
        )
        places[f"image {image}"] = deployment.run("image", "inspect", f"capsnet-{image}:0.1.0")
    for container in _all(deployment):
        places[f"inspection of {container}"] = deployment.run("inspect", container)
        logged = subprocess.run(
            [deployment.engine, "logs", container], capture_output=True, text=True
        )
        places[f"log of {container}"] = logged.stdout + logged.stderr
        pid = deployment.main_process(container)
        for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
            if container in deployment.containers("postgres"):
                continue  # its own image hands its password on to itself
            places[f"{container} {process.pid}"] = json.dumps(
                [process.environ(), process.cmdline()]
            )
    for name, text in places.items():
        for secret in secrets:
            assert secret not in text, f"{name} tells a secret"
    for volume in ("storage", "artifacts"):
        for secret in secrets:
            assert not _holds(deployment, volume, secret), f"volume {volume} holds a secret"
    run = deployment.mlflow().get_run(job.mlflow.run_id if job.mlflow else "")
    assert not any(secret in json.dumps(run.to_dictionary()) for secret in secrets)
    dumped = deployment.inside(
        deployment.container("postgres"), "pg_dump", "--username=postgres", "mlflow"
    )
    dumped += deployment.inside(
        deployment.container("postgres"), "pg_dump", "--username=postgres", "caps"
    )
    assert not any(secret in dumped for secret in secrets)


def _secrets(deployment: Deployment) -> list[str]:
    found = [deployment.token]
    for name in ("postgres-secrets", "queue-secrets", "tracking-secrets", "ray-secrets"):
        for path in deployment.volume(name).iterdir():
            found.append(path.read_text().strip().rpartition(":")[2])
    found.append((deployment.volume("home") / "admin-token").read_text().strip())
    return sorted(set(found))


def _holds(deployment: Deployment, volume: str, secret: str) -> bool:
    folder = deployment.volume(volume)
    found = subprocess.run(["grep", "-rqF", secret, str(folder)])
    return found.returncode == 0


def test_what_the_health_checks_ask_tells_the_truth(deployment: Deployment) -> None:
    """Engines that run health checks run these commands; this one may not, so they are run here."""
    services = {
        "api": "api",
        "mlflow": "mlflow",
        "ray-head": "ray-head",
        "ray-worker": "ray-worker",
    }
    urls = {
        "api": "http://127.0.0.1:8000/healthz",
        "mlflow": "http://127.0.0.1:5000/health",
        "ray-head": "http://127.0.0.1:8265/api/gcs_healthz",
        "ray-worker": "http://127.0.0.1:52365/api/local_raylet_healthz",
    }
    for service in services:
        container = deployment.containers(service)[0]
        until(
            lambda c=container, u=urls[service]: _healthy(deployment, c, u),
            60,
            f"{service} is healthy",
        )
        assert not _healthy(deployment, container, "http://127.0.0.1:9/healthz")
    deployment.inside(deployment.container("postgres"), "pg_isready", "--username=postgres")


def _healthy(deployment: Deployment, container: str, url: str) -> bool:
    try:
        deployment.inside(container, "caps-healthy", url)
    except subprocess.CalledProcessError:
        return False
    return True
