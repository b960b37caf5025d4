"""docker-compose.yml is valid, keeps to its own rules, and is what its documents say."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docker-compose.yml").read_text()
EXAMPLE = (REPOSITORY / ".env.example").read_text()

Compose = dict[str, Any]
Policy = Callable[[Compose], Iterator[str]]

VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::-((?:[^${}]|\$\{[^{}]*\})*))?\}")
"""`${NAME}` or `${NAME:-default}`; a default may hold another one of these."""
SECRET = re.compile(r"PASSWORD|TOKEN|SECRET", re.IGNORECASE)
LOGIN = re.compile(r"://[^/@\s]*:[^/@\s]+@")
"""A password in an address."""
LOOPBACK_PORT = re.compile(r"127\.0\.0\.1:\$\{CAPS_\w+_PORT:-\d+\}:\d+")

SVG = "{http://www.w3.org/2000/svg}"
ENDS_BY_ITSELF = {"secrets"}
KEEPS_CAPABILITIES = {"postgres"}
"""PostgreSQL's image begins as root, to own its folder, and then goes on as another user."""
PUBLISHED = {"api", "mlflow"}
SECRETS_OF = {
    "postgres": {"postgres-secrets"},
    "mlflow": {"tracking-secrets"},
    "ray-head": {"ray-secrets"},
    "ray-worker": {"ray-secrets"},
    "ray-worker-gpu": {"ray-secrets"},
    "api": {"queue-secrets", "ray-secrets"},
}
"""Who needs which volume of secrets; `secrets` writes all of them."""
SHOWN_AS_EXAMPLES = {
    "CAPS_MLFLOW_ALLOWED_ORIGINS",
    "CAPS_MLFLOW_PUBLIC_URL",
    "CAPS_ALLOWED_HOSTS",
    "CAPS_MLFLOW_ALLOWED_HOSTS",
    "CAPS_DATA",
    "CAPS_OFFLINE",
}
"""Variables of .env.example that show what one could set; all others show the default."""


@pytest.fixture
def compose() -> Compose:
    found: Compose = yaml.safe_load(TEXT)
    return found


# ------------------------------------------------------------------------------- the schema


def check_schema(file: Path) -> subprocess.CompletedProcess[str]:
    """Compare with the Compose Specification's JSON schema, which the program carries."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60)


def test_it_is_valid_by_the_compose_specification() -> None:
    found = check_schema(REPOSITORY / "docker-compose.yml")
    assert found.returncode == 0, found.stdout + found.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "named"),
    [
        ("restart: on-failure", "restarts: on-failure", "restarts"),
        ("network_mode: none", "network_mode: [none]", "network_mode"),
        ("stop_grace_period: 30s", "stop_grace_period: [30s]", "stop_grace_period"),
    ],
)
def test_a_broken_copy_is_refused(right: str, wrong: str, named: str, tmp_path: Path) -> None:
    assert right in TEXT
    broken = tmp_path / "docker-compose.yml"
    broken.write_text(TEXT.replace(right, wrong, 1))
    found = check_schema(broken)
    assert found.returncode == 1
    assert named in found.stdout + found.stderr


# ------------------------------------------------------------------------------- its rules


def ports_are_published_on_loopback_alone(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        ports = service.get("ports", [])
        if bool(ports) != (name in PUBLISHED):
            yield f"{name} publishes {ports}"
        yield from (f"{name}: {port}" for port in ports if not LOOPBACK_PORT.fullmatch(str(port)))
        if service.get("network_mode") not in (None, "none"):
            yield f"{name} uses the network of {service['network_mode']}"


def what_goes_on_is_restarted_and_watched(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        if name in ENDS_BY_ITSELF:
            continue
        if service.get("restart") != "unless-stopped":
            yield f"{name}: restart is {service.get('restart')}"
        if not service.get("healthcheck", {}).get("test"):
            yield f"{name} has no health check"


def our_services_have_no_privileges(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        if "no-new-privileges:true" not in service.get("security_opt", []):
            yield f"{name} may gain privileges"
        if name not in KEEPS_CAPABILITIES and service.get("cap_drop") != ["ALL"]:
            yield f"{name} keeps capabilities"
        for key in ("privileged", "cap_add", "devices", "pid", "ipc", "userns_mode", "user"):
            if key in service:
                yield f"{name} sets {key}"


def nothing_of_the_host_is_mounted(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        for mount in service.get("volumes", []):
            if source(mount) not in compose["volumes"]:
                yield f"{name} mounts {mount}"


def no_secret_is_in_the_file(compose: Compose) -> Iterator[str]:
    for name, service in compose["services"].items():
        for key, value in service.get("environment", {}).items():
            is_path = key.endswith(("_FILE", "_PATH")) and str(value).startswith("/secrets/")
            if SECRET.search(key) and not is_path:
                # This one names a way to log in, and is no secret itself.
                if (key, value) == ("RAY_AUTH_MODE", "token"):
                    continue
                yield f"{name}: {key}"
            if LOGIN.search(str(value)):
                yield f"{name}: {key} holds a password"
    for variable in interpolated(yaml.safe_dump(compose)):
        if SECRET.search(variable):
            yield f"${{{variable}}} would hold a secret"


def secrets_are_mounted_where_they_are_needed(compose: Compose) -> Iterator[str]:
    volumes = {name for name in compose["volumes"] if name.endswith("-secrets")}
    for name, service in compose["services"].items():
        mounted = {source(mount): mount for mount in service.get("volumes", [])}
        found = volumes & set(mounted)
        if found != (volumes if name == "secrets" else SECRETS_OF[name]):
            yield f"{name} mounts {sorted(found)}"
        for volume in found:
            if name != "secrets" and not mounted[volume].endswith(":ro"):
                yield f"{name} may write to {volume}"


def the_database_is_out_of_reach(compose: Compose) -> Iterator[str]:
    if not compose["networks"]["database"].get("internal"):
        yield "the network database is not internal"
    for name, service in compose["services"].items():
        expected = name in ("postgres", "mlflow", "api")
        if ("database" in service.get("networks", [])) != expected:
            yield f"{name}: networks are {service.get('networks')}"


def change(service: str, **settings: Any) -> Callable[[Compose], object]:
    return lambda compose: compose["services"][service].update(settings)


def environment(service: str, **settings: str) -> Callable[[Compose], object]:
    return lambda compose: compose["services"][service]["environment"].update(settings)


SPOILED: list[tuple[Policy, Callable[[Compose], object]]] = [
    (ports_are_published_on_loopback_alone, change("api", ports=["8000:8000"])),
    (ports_are_published_on_loopback_alone, change("postgres", ports=["127.0.0.1:5432:5432"])),
    (ports_are_published_on_loopback_alone, change("ray-worker", network_mode="host")),
    (what_goes_on_is_restarted_and_watched, change("mlflow", restart="no")),
    (what_goes_on_is_restarted_and_watched, change("ray-head", healthcheck={})),
    (our_services_have_no_privileges, change("api", security_opt=[])),
    (our_services_have_no_privileges, change("ray-worker", cap_drop=["NET_RAW"])),
    (our_services_have_no_privileges, change("postgres", privileged=True)),
    (
        nothing_of_the_host_is_mounted,
        change("api", volumes=["/var/run/docker.sock:/var/run/docker.sock"]),
    ),
    (nothing_of_the_host_is_mounted, change("postgres", volumes=["./deploy:/deploy:ro"])),
    (no_secret_is_in_the_file, environment("mlflow", POSTGRES_PASSWORD="example")),
    (no_secret_is_in_the_file, environment("api", CAPS_TOKEN="${CAPS_TOKEN:-}")),
    (
        no_secret_is_in_the_file,
        environment("api", CAPS_DATABASE_URL="postgresql://caps:pw@db/caps"),
    ),
    (no_secret_is_in_the_file, environment("mlflow", MLFLOW_URI="${CAPS_DB_PASSWORD}")),
    (
        secrets_are_mounted_where_they_are_needed,
        change("ray-worker", volumes=["queue-secrets:/secrets/queue:ro"]),
    ),
    (
        secrets_are_mounted_where_they_are_needed,
        change("mlflow", volumes=["tracking-secrets:/secrets/tracking"]),
    ),
    (the_database_is_out_of_reach, change("ray-worker", networks=["cluster", "database"])),
    (the_database_is_out_of_reach, lambda compose: compose["networks"]["database"].clear()),
]


def name_of(policy: object) -> str:
    return getattr(policy, "__name__", "spoiled")


@pytest.mark.parametrize("policy", dict.fromkeys(policy for policy, _ in SPOILED), ids=name_of)
def test_it_keeps_its_rules(policy: Policy, compose: Compose) -> None:
    assert list(policy(compose)) == []


@pytest.mark.parametrize(("policy", "spoil"), SPOILED, ids=name_of)
def test_a_rule_that_is_broken_is_seen(
    policy: Policy, spoil: Callable[[Compose], object], compose: Compose
) -> None:
    spoil(compose)
    assert list(policy(compose))


# ------------------------------------------------------------------------------- .env.example


def interpolated(text: str) -> dict[str, set[str]]:
    """Variables that a text takes from the environment, and their defaults."""
    found: dict[str, set[str]] = {}
    for name, default in VARIABLE.findall(text):
        found.setdefault(name, set()).add(default)
        for inner, defaults in interpolated(default).items():
            found.setdefault(inner, set()).update(defaults)
    return found


def shown_variables() -> dict[str, str]:
    """Variables of .env.example with the values that stand there."""
    return dict(re.findall(r"^#(\w+)=(.*)$", EXAMPLE, re.MULTILINE))


def test_every_variable_is_shown_and_every_one_that_is_shown_is_used() -> None:
    assert set(shown_variables()) == set(interpolated(TEXT))


def test_what_is_shown_is_the_default_unless_it_is_an_example() -> None:
    used = interpolated(TEXT)
    assert {name: used[name] for name in used if len(used[name]) > 1} == {}
    for name, value in shown_variables().items():
        (default,) = used[name]
        assert (value == default) == (name not in SHOWN_AS_EXAMPLES), f"{name}: {value}, {default}"


def test_a_copy_of_the_example_changes_nothing() -> None:
    assert [line for line in EXAMPLE.splitlines() if line and not line.startswith("#")] == []


def test_every_variable_that_is_shown_has_a_comment_above() -> None:
    for paragraph in EXAMPLE.split("\n\n"):
        lines = paragraph.strip().splitlines()
        assert lines[0].startswith("# "), f"no comment above {lines[0]}"
    assert not any(SECRET.search(name) for name in shown_variables())


# ------------------------------------------------------------------------------- deploy/README.md


def sections() -> dict[str, dict[str, str]]:
    """What deploy/README.md says of each service, by the first words of its points."""
    text = (REPOSITORY / "deploy" / "README.md").read_text()
    found = {}
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        points = re.findall(r"^- ([A-Z][\w ]+): (.*(?:\n  .*)*)", body, re.MULTILINE)
        if "Command" in dict(points):
            found[heading.strip()] = dict(points)
    return found


def quoted(point: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", point)


def source(mount: str) -> str:
    """The volume of a mount; of `${NAME:-volume}:/path` the default."""
    return VARIABLE.sub(lambda found: found[2], mount).partition(":")[0]


def test_every_service_has_a_section_and_every_section_a_service(compose: Compose) -> None:
    assert set(sections()) == set(compose["services"])


@pytest.mark.parametrize("name", yaml.safe_load(TEXT)["services"])
def test_a_section_says_what_the_file_says(name: str, compose: Compose) -> None:
    service, section = compose["services"][name], sections()[name]
    assert section["Command"] == f"`{shlex.join(service['command'])}`"
    assert quoted(section["Image"])[0].partition(":")[0] == source(service["image"])
    assert quoted(section["Networks"]) == service.get("networks", [])
    named = {source(mount) for mount in service["volumes"]}
    assert named <= set(quoted(section["Volumes"])) <= named | {"CAPS_DATA"}
    needs = service.get("environment", {}).get("CAPS_AWAIT", "").split()
    assert quoted(section["Waits for"]) == needs


# ------------------------------------------------------------------------------- docs/


def test_the_picture_shows_every_part(compose: Compose) -> None:
    picture = ElementTree.parse(REPOSITORY / "docs" / "images" / "topology.svg").getroot()
    shown = [(text.text or "").partition(":")[0] for text in picture.iter(f"{SVG}text")]
    parts = {*compose["services"], *compose["networks"], *compose["volumes"]}
    assert parts - set(shown) == set()
    mounts = [source(mount) for each in compose["services"].values() for mount in each["volumes"]]
    for volume in compose["volumes"]:
        assert shown.count(volume) == mounts.count(volume), volume


@pytest.mark.parametrize("document", ["docs/deploy.md", "deploy/README.md"])
def test_documents_name_variables_that_are_read(document: str) -> None:
    places = [TEXT, (REPOSITORY / "README.md").read_text()]
    places += [path.read_text() for path in (REPOSITORY / "deploy" / "container").iterdir()]
    named = set(re.findall(r"CAPS_\w+", (REPOSITORY / document).read_text()))
    assert {name for name in named if not any(name in place for place in places)} == set()


def test_documents_call_services_that_there_are(compose: Compose) -> None:
    text = (REPOSITORY / "docs" / "deploy.md").read_text()
    called = re.findall(r"docker compose (?:exec|logs|run|start|stop|restart) (.*)", text)
    words = [re.sub(r"[|`#].*", "", arguments).split() for arguments in called]
    first = [next((word for word in each if word[0] != "-"), None) for each in words]
    assert len(first) > 20
    assert {word for word in first if word} <= {*compose["services"], "SERVICE", "tar"}
