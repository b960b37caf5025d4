"""Who may do what, over every route of the API: tokens, scopes, owners."""

import importlib
import json
import logging
import pkgutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text, update
from sqlalchemy.exc import OperationalError

import service.api
from service.api import token_examples
from service.api.gate import REMEMBERED_S
from service.api.services import ForCaller, Given
from service.api.token_views import CreatedTokenView, TokenPage, TokenRequest, TokenView
from service.app import create_app, main
from service.queue.job import State
from service.queue.store import NewEvent
from service.queue.tables import clock
from service.queue.tables import tokens as table
from service.settings import Settings
from service.tokens import Caller, Scope, id_of, new_token
from support.api import refused
from support.guarded import CALLERS, GuardedApi, Idle
from support.searches import SEARCH, start, write_trials
from workers.attempt import AttemptFolder
from workers.specs import PRESETS

DOCUMENT = create_app(Settings(home=Path(gettempdir())), probes={}, background=Idle()).openapi()
"""Of the API; nothing is started for it."""
OPERATIONS = sorted(
    (method.upper(), path)
    for path, operations in DOCUMENT["paths"].items()
    for method in operations
)
GUARDED = [(method, path) for method, path in OPERATIONS if path.startswith("/v1/")]
OF_JOBS = [(m, p) for m, p in GUARDED if "{job_id}" in p or "{search_id}" in p]
BODIES: dict[str, Any] = {
    "TrainSpec": {},
    "SearchSpec": SEARCH,
    "Promotion": {},
    "TokenRequest": {"name": "made by a test"},
}


def needed(method: str, path: str) -> Scope:
    """The scope that a route takes, as the documentation has it."""
    if path.startswith("/v1/tokens"):
        return Scope.ADMIN
    return Scope.READ if method == "GET" else Scope.SUBMIT


def asked(http: httpx.Client, method: str, path: str, thing: str = "nope") -> httpx.Response:
    """Ask a route, with a good body where it takes one."""
    operation = DOCUMENT["paths"][path][method.lower()]
    body = None
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        body = BODIES[schema["$ref"].rpartition("/")[2]]
    names = {"job_id": thing, "search_id": thing, "token_id": thing, "number": "0"}
    return http.request(method, path.format(**names), json=body)


@pytest.fixture(params=["ann-reads", "ann", "root"])
def caller(request: pytest.FixtureRequest) -> str:
    """One of each scope."""
    return str(request.param)


def a_search(api: GuardedApi, owner: str = "ann") -> str:
    """A search that runs, with trials: every route below /v1/jobs and /v1/searches knows it."""
    with api.client(api.tokens[owner]) as http:
        search = str(http.post("/v1/searches", json=SEARCH).json()["id"])
    start(api.store, search)
    write_trials(AttemptFolder(api.settings.storage_root, search, 1))
    return search


# ------------------------------------------------------------------------------------ all routes


def test_no_route_is_left_out_of_the_document() -> None:
    """What is documented is walked below; so all there is must be documented."""
    for module in pkgutil.iter_modules(service.api.__path__):
        found = getattr(importlib.import_module(f"service.api.{module.name}"), "router", None)
        for route in found.routes if isinstance(found, APIRouter) else ():
            for method in route.methods:  # type: ignore[attr-defined]
                assert (method, route.path) in OPERATIONS, f"{module.name}: {method} {route.path}"  # type: ignore[attr-defined]
    named = {name for _, path in GUARDED for name in path.split("/") if name.startswith("{")}
    assert named == {"{job_id}", "{search_id}", "{token_id}", "{number}"}, "teach `asked` the rest"
    assert len(OF_JOBS) >= 19
    assert {path for _, path in OPERATIONS if not path.startswith("/v1/")} == {
        "/healthz",
        "/readyz",
    }


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_without_a_token_no_route_answers(guarded_api: GuardedApi, method: str, path: str) -> None:
    with guarded_api.client(None) as http:
        answer = asked(http, method, path)
        problem = refused(answer, 401)
        assert (problem.code, answer.headers["www-authenticate"]) == ("token-missing", "Bearer")
        assert "CAPS_TOKEN" in str(problem.hint)
    with guarded_api.client(new_token()) as http:
        answer = asked(http, method, path)
        problem = refused(answer, 401)
        assert (problem.code, answer.headers["www-authenticate"]) == ("token-invalid", "Bearer")
        assert "CAPS_TOKEN" in str(problem.hint)


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_every_route_takes_its_scope(
    guarded_api: GuardedApi, caller: str, method: str, path: str
) -> None:
    _, scope = CALLERS[caller]
    with guarded_api.client(guarded_api.tokens[caller]) as http:
        answer = asked(http, method, path)
    if scope.allows(needed(method, path)):
        assert answer.status_code not in (401, 403), answer.text
        assert answer.status_code < 500, answer.text
        if "{" in path:
            assert answer.status_code == 404, answer.text
    else:
        problem = refused(answer, 403)
        assert problem.code == "scope-missing"
        assert f"`{needed(method, path)}`" in problem.detail
        assert f"--scope {needed(method, path)}" in str(problem.hint)


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize(("method", "path"), OF_JOBS)
def test_another_owners_job_is_not_there(
    guarded_api: GuardedApi, method: str, path: str, ended: bool
) -> None:
    search = a_search(guarded_api)
    job = guarded_api.store.get(search)
    if ended:
        job = guarded_api.store.update(job, state=State.FAILED)
    told = []
    with guarded_api.client(guarded_api.tokens["bob"]) as http:
        for thing in (search, "0" * len(search)):
            answer = asked(http, method, path, thing)
            refused(answer, 404)
            told.append(
                answer.text.replace(thing, "ID").replace(answer.headers["x-request-id"], "")
            )
    assert told[0] == told[1], "in the same words"
    assert guarded_api.store.get(search) == job, "nothing was done to it"


@pytest.mark.parametrize(("method", "path"), OF_JOBS)
def test_its_owner_and_an_administrator_find_it(
    guarded_api: GuardedApi, method: str, path: str
) -> None:
    for name in ("ann", "root"):
        search = a_search(guarded_api)
        with guarded_api.client(guarded_api.tokens[name]) as http:
            answer = asked(http, method, path, search)
        assert answer.status_code in (200, 202, 409), answer.text


def test_a_route_that_forgot_its_guard_tells_nothing(tmp_path: Path) -> None:
    for with_tokens in (False, True):
        settings = Settings(home=tmp_path, storage=None, database_url=None)
        app = create_app(settings, probes={}, background=Idle(), with_tokens=with_tokens)

        @app.get("/v1/forgotten")
        def forgotten(given: Given) -> str:
            return given.caller.owner

        with TestClient(app, base_url="http://localhost") as http:
            assert refused(http.get("/v1/forgotten"), 500).code == "internal"


def test_endpoints_have_no_way_to_the_store() -> None:
    reachable = {name for name in dir(ForCaller) if not name.startswith("_")}
    assert "store" not in reachable
    with pytest.raises(AttributeError):
        _ = ForCaller.store  # type: ignore[attr-defined]


# -------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("header", "code"),
    [
        ("", "token-missing"),
        ("Bearer", "token-missing"),
        ("Basic YW5uOmFubg==", "token-missing"),
        ("Bearer x", "token-invalid"),
        ("Bearer {token}x", "token-invalid"),
        ("Bearer {token} {token}", "token-invalid"),
        ("Bearer caps_\xff", "token-invalid"),
        ("Bearer " + "a" * 30_000, "token-invalid"),
    ],
)
def test_a_header_that_is_no_token_is_refused(
    guarded_api: GuardedApi, header: str, code: str
) -> None:
    value = header.format(token=guarded_api.tokens["ann"]).encode("latin-1")
    with guarded_api.client(None) as http:
        assert refused(http.get("/v1/jobs", headers={"Authorization": value}), 401).code == code


def test_the_schemes_name_may_be_written_in_any_way(guarded_api: GuardedApi) -> None:
    token = guarded_api.tokens["ann"]
    for value in (f"bearer {token}", f"BEARER {token}"):
        with guarded_api.client(None) as http:
            assert http.get("/v1/jobs", headers={"Authorization": value}).status_code == 200


def test_unknown_wrong_expired_and_revoked_say_the_same(guarded_api: GuardedApi) -> None:
    tokens = guarded_api.store.tokens
    token, secret = tokens.create(name="n", owner="ann", scope=Scope.ADMIN)
    expired = tokens.create(name="n", owner="ann", scope=Scope.ADMIN, expires_in_s=100)
    with guarded_api.store.engine.begin() as connection:
        past = update(table).where(table.c.id == expired[0].id).values(expires_at=clock() - 1)
        connection.execute(past)
    revoked = tokens.create(name="n", owner="ann", scope=Scope.ADMIN)
    tokens.revoke(revoked[0].id)
    said = set()
    for text_ in (new_token(), f"caps_{token.id}_{'0' * 64}", expired[1], revoked[1]):
        with guarded_api.client(text_) as http:
            answer = http.get("/v1/jobs")
            said.add(answer.text.replace(answer.headers["x-request-id"], ""))
    assert len(said) == 1
    with guarded_api.client(secret) as http:
        assert http.get("/v1/jobs").status_code == 200


def test_health_and_the_document_are_open(guarded_api: GuardedApi) -> None:
    with guarded_api.client(None) as http:
        for path in ("/healthz", "/readyz", "/openapi.json", "/docs"):
            assert http.get(path).status_code == 200, path


def test_a_database_that_is_away_is_told_as_such(
    guarded_api: GuardedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(token_id: str) -> None:
        gone = sqlite3.OperationalError("the server closed the connection")
        raise OperationalError("SELECT", {}, gone, connection_invalidated=True)

    monkeypatch.setattr(guarded_api.store.tokens, "find", away)
    with guarded_api.client(new_token()) as http:
        answer = http.get("/v1/jobs")
        assert refused(answer, 503).code == "database-unavailable"
        assert answer.headers["retry-after"]


# ---------------------------------------------------------------------------------------- owners


def listed(http: httpx.Client, path: str = "/v1/jobs", **query: Any) -> list[tuple[str, str]]:
    """Ids and owners."""
    answer = http.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return [(each["id"], each["owner"]) for each in answer.json()[path.rpartition("/")[2]]]


def test_lists_hold_ones_own_jobs(guarded_api: GuardedApi) -> None:
    ids = {}
    for name in ("ann", "bob", "root"):
        with guarded_api.client(guarded_api.tokens[name]) as http:
            job = http.post("/v1/jobs", json={"experiment": "lists"}).json()
            assert job["owner"] == name
            found = http.post("/v1/searches", json=SEARCH | {"experiment": "lists"}).json()
            assert found["owner"] == name
            ids[name] = {"/v1/jobs": {job["id"], found["id"]}, "/v1/searches": {found["id"]}}
    for path in ("/v1/jobs", "/v1/searches"):
        for name, owner in (("ann-reads", "ann"), ("bob", "bob")):
            with guarded_api.client(guarded_api.tokens[name]) as http:
                mine = {(each, owner) for each in ids[owner][path]}
                assert set(listed(http, path, experiment="lists")) == mine
                assert set(listed(http, path, experiment="lists", owner=owner)) == mine
                assert listed(http, path, experiment="lists", owner="root") == []
                states = {each for each, _ in listed(http, path, state="QUEUED", limit=200)}
                assert ids[owner][path] <= states
                assert not states & ids["root"][path]
        with guarded_api.client(guarded_api.tokens["root"]) as http:
            everybody = {(each, owner) for owner in ids for each in ids[owner][path]}
            assert set(listed(http, path, experiment="lists")) == everybody
            anns = {(each, "ann") for each in ids["ann"][path]}
            assert set(listed(http, path, experiment="lists", owner="ann")) == anns
            problem = refused(http.get(path, params={"owner": "a b"}), 422)
            assert problem.errors[0].pointer == "/query/owner"


def test_pages_of_ones_own_jobs_go_on(guarded_api: GuardedApi) -> None:
    mine = []
    for number in range(9):
        name = ("ann", "bob", "bob")[number % 3]
        with guarded_api.client(guarded_api.tokens[name]) as http:
            job = http.post("/v1/jobs", json={"experiment": "pages"}).json()["id"]
        mine += [job] if name == "ann" else []
    read, cursor = [], None
    with guarded_api.client(guarded_api.tokens["ann"]) as http:
        while True:
            query = {"experiment": "pages", "limit": 1} | ({"cursor": cursor} if cursor else {})
            page = http.get("/v1/jobs", params=query).json()
            read += [job["id"] for job in page["jobs"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break
    assert read == mine[::-1]


def test_another_owners_checkpoint_is_not_there(guarded_api: GuardedApi) -> None:
    search = a_search(guarded_api)
    with guarded_api.client(guarded_api.tokens["bob"]) as http:
        bobs = a_search(guarded_api, "bob")
        for where, source in (
            ("/init_from/job", {"job": search}),
            ("/init_from/path", {"path": f"jobs/{search}/1/checkpoints/best.pt"}),
            ("/init_from/path", {"path": f"jobs//{search}/1/checkpoints/best.pt"}),
            ("/init_from/path", {"path": f"jobs/./{search}/1/checkpoints/best.pt"}),
        ):
            told = []
            for thing in (search, "0" * len(search)):
                init_from = json.loads(json.dumps(source).replace(search, thing))
                base = SEARCH["base"] | {"init_from": init_from}
                for path, body, pointer in (
                    ("/v1/jobs", {"init_from": init_from}, where),
                    ("/v1/searches", SEARCH | {"base": base}, f"/base{where}"),
                    ("/v1/searches/preview", SEARCH | {"base": base}, f"/base{where}"),
                    (
                        f"/v1/searches/{bobs}/promote",
                        {"set": {"init_from": init_from}},
                        f"/set{where}",
                    ),
                ):
                    problem = refused(http.post(path, json=body), 422)
                    assert [error.pointer for error in problem.errors] == [pointer], path
                    said = problem.model_dump(exclude={"request_id"})
                    told.append(json.dumps(said).replace(thing, "ID"))
            assert told[:4] == told[4:], "in the same words"
        elsewhere = {"path": "pretrained/best.pt"}
        assert http.post("/v1/jobs", json={"init_from": elsewhere}).status_code == 202
    for name in ("ann", "root"):
        with guarded_api.client(guarded_api.tokens[name]) as http:
            for jobs in ("jobs", "jobs/", "jobs/."):
                path = {"path": f"{jobs}/{search}/1/checkpoints/best.pt"}
                assert http.post("/v1/jobs", json={"init_from": path}).status_code == 202
            assert http.post("/v1/jobs", json={"init_from": {"job": search}}).status_code == 202


def test_an_heir_that_is_not_ones_own_is_not_named(guarded_api: GuardedApi) -> None:
    with guarded_api.client(guarded_api.tokens["ann"]) as http:
        origin = http.post("/v1/jobs", json={}).json()["id"]
    with guarded_api.client(guarded_api.tokens["root"]) as http:
        heir = http.post("/v1/jobs", json={"init_from": {"job": origin}}).json()["id"]
    guarded_api.store.update(guarded_api.store.get(origin), state=State.SUCCEEDED)
    with guarded_api.client(guarded_api.tokens["ann"]) as http:
        problem = refused(http.delete(f"/v1/jobs/{origin}"), 409)
        assert heir not in problem.model_dump_json()
        assert "another owner's job" in problem.detail
    with guarded_api.client(guarded_api.tokens["root"]) as http:
        assert heir in refused(http.delete(f"/v1/jobs/{origin}"), 409).detail


def test_keys_are_each_owners_own(guarded_api: GuardedApi) -> None:
    ids = []
    for name in ("ann", "bob", "ann", "bob"):
        with guarded_api.client(guarded_api.tokens[name]) as http:
            body = {"name": f"of-{name}"}
            answer = http.post("/v1/jobs", json=body, headers={"Idempotency-Key": "nightly"})
            assert answer.status_code == 202, answer.text
            ids.append(answer.json()["id"])
    assert ids[:2] == ids[2:]
    assert ids[0] != ids[1]


def test_a_key_finds_ones_own_job_also_when_it_could_not_be_queued_again(
    guarded_api: GuardedApi,
) -> None:
    headers = {"Idempotency-Key": "continued"}
    with guarded_api.client(guarded_api.tokens["ann"]) as http:
        origin = http.post("/v1/jobs", json={}).json()["id"]
        body = {"init_from": {"job": origin}}
        heir = http.post("/v1/jobs", json=body, headers=headers).json()["id"]
        for job in (heir, origin):
            guarded_api.store.update(guarded_api.store.get(job), state=State.SUCCEEDED)
        assert http.delete(f"/v1/jobs/{origin}").status_code == 204
        again = http.post("/v1/jobs", json=body, headers=headers)
        assert (again.status_code, again.json()["id"]) == (202, heir)
    with guarded_api.client(guarded_api.tokens["bob"]) as http:
        problem = refused(http.post("/v1/jobs", json=body, headers=headers), 422)
        assert heir not in problem.model_dump_json()


def test_a_job_that_cannot_be_read_is_not_there_either(guarded_api: GuardedApi) -> None:
    with guarded_api.client(guarded_api.tokens["ann"]) as http:
        job = http.post("/v1/jobs", json={}).json()["id"]
    with guarded_api.store.engine.begin() as connection:
        connection.execute(text("UPDATE jobs SET spec = '{' WHERE id = :id"), {"id": job})
    with guarded_api.client(guarded_api.tokens["bob"]) as http:
        assert refused(http.get(f"/v1/jobs/{job}"), 404).code == "job-not-found"
    with guarded_api.client(guarded_api.tokens["ann"]) as http:
        assert refused(http.get(f"/v1/jobs/{job}"), 500).code == "job-unreadable"


def test_jobs_of_before_belong_to_local(guarded_api: GuardedApi) -> None:
    job = guarded_api.store.add(PRESETS["demo"]).id
    with guarded_api.client(guarded_api.tokens["ann"]) as http:
        refused(http.get(f"/v1/jobs/{job}"), 404)
    with guarded_api.client(guarded_api.tokens["root"]) as http:
        assert http.get(f"/v1/jobs/{job}").json()["owner"] == "local"


# ---------------------------------------------------------------------------------- /v1/tokens


@pytest.fixture
def root(guarded_api: GuardedApi) -> Iterator[httpx.Client]:
    with guarded_api.client(guarded_api.tokens["root"]) as client:
        yield client


def test_a_token_is_told_once(guarded_api: GuardedApi, root: httpx.Client) -> None:
    answer = root.post("/v1/tokens", json={"name": "ann's", "owner": "ann", "expires_in_s": 60})
    made = CreatedTokenView.model_validate_json(answer.content)
    assert answer.status_code == 201
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["location"] == f"/v1/tokens/{made.id}"
    assert id_of(made.token) == made.id
    assert made.token not in repr(made)
    assert (made.owner, made.scope, made.state) == ("ann", Scope.SUBMIT, "valid")
    assert made.expires_at is not None
    assert (made.expires_at - made.created_at).total_seconds() == pytest.approx(60, abs=1)
    found = root.get(answer.headers["location"])
    assert TokenView.model_validate_json(found.content).model_dump() == made.model_dump(
        exclude={"token"}
    )
    page = root.get("/v1/tokens", params={"limit": 1})
    assert TokenPage.model_validate_json(page.content).tokens[0].id == made.id
    assert page.json()["next_offset"] == 1
    digest = guarded_api.store.tokens.get(made.id).digest
    for answer in (found, page, root.get("/v1/tokens", params={"limit": 1000})):
        assert made.token.rpartition("_")[2] not in answer.text
        assert digest not in answer.text
    with guarded_api.client(made.token) as http:
        assert http.post("/v1/jobs", json={}).json()["owner"] == "ann"


def test_an_owner_is_the_callers_if_none_is_named(root: httpx.Client) -> None:
    made = root.post("/v1/tokens", json={"name": "n", "scope": "read"}).json()
    assert (made["owner"], made["scope"], made["expires_at"]) == ("root", "read", None)
    owners = {
        each["owner"] for each in root.get("/v1/tokens?owner=root&limit=1000").json()["tokens"]
    }
    assert owners == {"root"}


def test_a_revoked_token_opens_nothing(guarded_api: GuardedApi, root: httpx.Client) -> None:
    made = root.post("/v1/tokens", json={"name": "n"}).json()
    with guarded_api.client(made["token"]) as http:
        assert http.get("/v1/jobs").status_code == 200
        for _ in range(2):
            assert root.delete(f"/v1/tokens/{made['id']}").status_code == 204
        assert refused(http.get("/v1/jobs"), 401).code == "token-invalid"
    assert root.get(f"/v1/tokens/{made['id']}").json()["state"] == "revoked"


def test_a_revocation_by_another_replica_holds_within_the_time(
    guarded_api: GuardedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, secret = guarded_api.store.tokens.create(name="n", owner="ann", scope=Scope.READ)
    gate = guarded_api.app.state.services.gate
    real = gate._clock
    with guarded_api.client(secret) as http:
        assert http.get("/v1/jobs").status_code == 200
        guarded_api.store.tokens.revoke(token.id)
        monkeypatch.setattr(gate, "_clock", lambda: real() + REMEMBERED_S)
        assert refused(http.get("/v1/jobs"), 401).code == "token-invalid"


@pytest.mark.parametrize(
    ("body", "status", "pointer", "tells"),
    [
        ({}, 422, "/name", "required"),
        ({"name": ""}, 422, "/name", "1 to 100 characters"),
        ({"name": "x" * 101}, 422, "/name", "1 to 100 characters"),
        ({"name": "a\nb"}, 422, "/name", "pattern"),
        ({"name": "n", "owner": "a b"}, 422, "/owner", "A-Za-z0-9"),
        ({"name": "n", "owner": "-a"}, 422, "/owner", "A-Za-z0-9"),
        ({"name": "n", "owner": "a" * 65}, 422, "/owner", "A-Za-z0-9"),
        ({"name": "n", "scope": "Admin"}, 422, "/scope", "read, submit, admin"),
        ({"name": "n", "expires_in_s": 0}, 422, "/expires_in_s", "1 to 315360000"),
        ({"name": "n", "expires_in_s": 1.5}, 422, "/expires_in_s", "1 to 315360000"),
        ({"name": "n", "expires_in_s": 10**10}, 422, "/expires_in_s", "1 to 315360000"),
        ({"name": "n", "secret": "x"}, 422, "/secret", "known fields: name, owner"),
        ({"name": "n", "expires": 3}, 422, "/expires", "did you mean"),
        ([], 422, "", "an object"),
    ],
)
def test_a_bad_wish_is_refused_at_its_field(
    root: httpx.Client, body: Any, status: int, pointer: str, tells: str
) -> None:
    problem = refused(root.post("/v1/tokens", json=body), status)
    assert [error.pointer for error in problem.errors] == [pointer]
    assert tells in problem.model_dump_json()
    assert "expires_in_s" in str(problem.hint)


@pytest.mark.parametrize("token_id", ["nope", "abcdefgh", "a%00c12345", "A" * 5000, "%C3%A9"])
def test_an_unknown_token_is_not_found(root: httpx.Client, token_id: str) -> None:
    for method in ("GET", "DELETE"):
        answer = root.request(method, f"/v1/tokens/{token_id}")
        assert refused(answer, 404).code == "token-not-found"


_WISHES = st.dictionaries(
    st.sampled_from([*TokenRequest.model_fields, "token"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([*Scope, "ann"]) | st.lists(st.integers(), max_size=2),
    max_size=4,
)  # fmt: skip
_OFTEN = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@_OFTEN
@given(
    body=st.binary(max_size=40)
    | _WISHES.map(lambda wish: json.dumps(wish, ensure_ascii=False).encode(errors="surrogatepass"))
)
def test_no_wish_makes_the_service_fail(root: httpx.Client, body: bytes) -> None:
    answer = root.post("/v1/tokens", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (201, 400, 422), answer.text


@_OFTEN
@given(header=st.binary(max_size=90).filter(lambda b: not set(b) & {0, 10, 13} and b == b.strip()))
def test_no_header_makes_the_service_fail(guarded_api: GuardedApi, header: bytes) -> None:
    with guarded_api.client(None) as http:
        for value in (header, b"Bearer " + header, b"Bearer caps_abcdefgh_" + header):
            try:
                answer = http.get("/v1/jobs", headers={"Authorization": value})
            except httpx.LocalProtocolError:
                continue
            # Bytes that no header may hold are refused before anything of ours sees them.
            assert answer.status_code in (400, 401), answer.text


def test_tokens_are_prepared_where_none_are_asked_for(http: httpx.Client, api: Any) -> None:
    made = http.post("/v1/tokens", json={"name": "for later"}).json()
    assert made["owner"] == "local"
    assert made["id"] in {each["id"] for each in http.get("/v1/tokens").json()["tokens"]}
    assert http.delete(f"/v1/tokens/{made['id']}").status_code == 204
    wrong = {"Authorization": "Bearer nonsense"}
    assert http.get("/v1/jobs", headers=wrong).status_code == 200, "nobody looks at it"


def test_the_examples_are_valid_answers() -> None:
    TokenRequest.model_validate_json(json.dumps(token_examples.REQUEST))
    for example, view in (
        (token_examples.TOKEN, TokenView),
        (token_examples.CREATED, CreatedTokenView),
    ):
        assert view.model_validate(example).model_dump(mode="json") == example
    TokenPage.model_validate(token_examples.PAGE)


# ---------------------------------------------------------------------- the document, the start


def test_the_document_tells_of_tokens() -> None:
    scheme = DOCUMENT["components"]["securitySchemes"]["token"]
    assert (scheme["type"], scheme["scheme"]) == ("http", "bearer")
    for method, path in OPERATIONS:
        operation = DOCUMENT["paths"][path][method.lower()]
        answers = operation["responses"]
        if not path.startswith("/v1/"):
            assert "security" not in operation
            assert not {"401", "403"} & answers.keys()
            continue
        assert operation["security"] == [{"token": []}], path
        examples = answers["401"]["content"]["application/problem+json"]["examples"]
        assert set(examples) == {"token-missing", "token-invalid"}
        assert "WWW-Authenticate" in answers["401"]["headers"]
        assert "scope-missing" in json.dumps(answers["403"])
        assert "503" in answers


@pytest.mark.parametrize(
    ("host", "setting", "expected"),
    [
        ("127.0.0.1", "auto", False),
        ("127.0.0.1", "on", True),
        ("localhost", "auto", False),
        ("0.0.0.0", "auto", True),
        ("::", "auto", True),
        ("10.0.0.7", "on", True),
    ],
)
def test_tokens_are_on_wherever_others_could_call(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: str, setting: str, expected: bool
) -> None:
    served: list[FastAPI] = []
    monkeypatch.setenv("CAPS_HOME", str(tmp_path))
    monkeypatch.setenv("CAPS_TOKENS", setting)
    rays = tmp_path / "ray-token"
    rays.write_text("of-the-cluster")
    monkeypatch.setenv("CAPS_RAY_TOKEN_PATH", str(rays))
    monkeypatch.setattr("sys.argv", ["service.app", "--host", host])
    monkeypatch.setattr("service.app.uvicorn.run", lambda app, **options: served.append(app))
    monkeypatch.setattr("service.app.gc.freeze", lambda: None)
    main()
    assert (served[0].state.services.gate is not None) is expected


def test_a_cluster_that_asks_for_no_token_is_for_loopback_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("CAPS_RAY_TOKEN_PATH", raising=False)
    monkeypatch.setattr("sys.argv", ["service.app", "--host", "0.0.0.0"])
    with pytest.raises(SystemExit):
        main()
    assert "CAPS_RAY_TOKEN_PATH" in capsys.readouterr().err


def test_there_is_no_setting_that_turns_them_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPS_TOKENS", "off")
    with pytest.raises(ValueError, match="tokens"):
        Settings()


def test_the_first_token_opens_everything_and_stays(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", storage=None, database_url=None)
    file = settings.admin_token_file
    secrets = []
    for _ in range(2):
        app = create_app(settings, probes={}, background=Idle(), with_tokens=True)
        with TestClient(app, base_url="http://localhost") as http:
            refused(http.get("/v1/tokens"), 401)
            secrets.append(file.read_text().strip())
            http.headers["Authorization"] = f"Bearer {secrets[-1]}"
            (token,) = http.get("/v1/tokens").json()["tokens"]
            assert (token["owner"], token["scope"]) == ("admin", "admin")
    assert secrets[0] == secrets[1]


def test_without_tokens_no_file_is_made(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", storage=None, database_url=None)
    with TestClient(create_app(settings, probes={}, background=Idle())):
        pass
    assert not settings.admin_token_file.exists()


# --------------------------------------------------------------------------------------- canary


def test_a_secret_is_told_once_and_nowhere_else(
    guarded_api: GuardedApi, root: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    made = root.post("/v1/tokens", json={"name": "canary", "owner": "ann", "scope": "admin"}).json()
    canary = made["token"].rpartition("_")[2]
    search = a_search(guarded_api)
    answers = []
    with guarded_api.client(made["token"]) as http:
        for method, path in GUARDED:
            if (method, path) == ("POST", "/v1/tokens"):
                continue
            for thing in (search, "nope"):
                answers.append(asked(http, method, path, thing))
        answers.append(http.post("/v1/jobs", content=b"{", headers={"Content-Type": "text/x"}))
        answers.append(root.delete(f"/v1/tokens/{made['id']}"))
        answers.append(http.get("/v1/jobs"))
    assert answers[-1].status_code == 401
    for answer in answers:
        told = answer.text + str(answer.headers)
        assert canary not in told
    assert len(caplog.records) > 10
    assert canary not in caplog.text
    with guarded_api.store.engine.connect() as connection:
        for name in ("tokens", "jobs", "events", "idempotency_keys"):
            assert canary not in str(connection.execute(text(f"SELECT * FROM {name}")).all())
    files = [file for file in guarded_api.settings.home.rglob("*") if file.is_file()]
    assert files
    assert not [file for file in files if canary.encode() in file.read_bytes()]


def test_what_started_an_attempt_keeps_its_owner(guarded_api: GuardedApi) -> None:
    with guarded_api.client(guarded_api.tokens["ann"]) as http:
        job = guarded_api.store.get(http.post("/v1/jobs", json={}).json()["id"])
    started = guarded_api.store.start_attempt(job, NewEvent("started", "attempt 1"))
    assert started.owner == "ann"
    assert Caller("ann", Scope.READ).sees_only == "ann"
    with pytest.raises(ValueError, match="owner"):
        guarded_api.store.update(started, owner="bob")
