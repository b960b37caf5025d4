"""Tokens in the Python client and in `capsctl`: where they come from, and where they go."""

import json
import re
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner
from typer.testing import Result as Answer

from service.cli import app
from service.client import ApiError, ApiUnreachableError, CapsClient
from service.errors import InputError
from service.tokens import id_of, new_token
from support.guarded import GuardedApi, serving
from support.searches import SEARCH

SOURCES = ("CAPS_TOKEN", "CAPS_TOKEN_PATH", "CAPS_URL")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty CAPS_HOME, and no token in the environment."""
    for name in SOURCES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CAPS_HOME", str(tmp_path))
    return tmp_path


def shown(url: str | None = None, **arguments: Any) -> str | None:
    """The token that a client shows."""
    with CapsClient(url, **arguments) as client:
        value = client._http.headers.get("Authorization")
    return None if value is None else value.removeprefix("Bearer ")


# ------------------------------------------------------------------------------ where it is from


def test_the_argument_comes_first_and_the_administrators_file_last(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown() is None
    (home / "admin-token").write_text("caps_of-the-home\n")
    assert shown() == "caps_of-the-home"
    (home / "mine").write_text("  caps_of-a-file\n")
    monkeypatch.setenv("CAPS_TOKEN_PATH", str(home / "mine"))
    assert shown() == "caps_of-a-file"
    monkeypatch.setenv("CAPS_TOKEN", "caps_of-the-environment")
    assert shown() == "caps_of-the-environment"
    assert shown(token="caps_of-the-argument") == "caps_of-the-argument"
    monkeypatch.setenv("CAPS_TOKEN", "")
    assert shown() == "caps_of-a-file", "an empty variable is none"


@pytest.mark.parametrize(
    ("url", "goes"),
    [
        (None, True),
        ("http://127.0.0.1:8000", True),
        ("http://localhost:1", True),
        ("http://[::1]:8000", True),
        ("http://127.8.9.1", True),
        ("http://caps.example", False),
        ("https://127.0.0.1.example", False),
        ("http://10.0.0.1:8000", False),
        ("http://127.0.0.1@caps.example/", False),
    ],
)
def test_the_administrators_token_stays_on_this_machine(
    home: Path, monkeypatch: pytest.MonkeyPatch, url: str | None, goes: bool
) -> None:
    (home / "admin-token").write_text("caps_of-the-home")
    expected = "caps_of-the-home" if goes else None
    assert shown(url) == expected
    if url is not None:
        monkeypatch.setenv("CAPS_URL", url)
        assert shown() == expected
        assert shown(token="caps_mine") == "caps_mine"


def test_a_home_that_tells_nothing_is_no_error(home: Path) -> None:
    for content in (b"", b"two words", b"\xff\xfe", b"x" * 10**6):
        (home / "admin-token").write_bytes(content)
        assert shown() is None
    (home / "admin-token").unlink()
    (home / "admin-token").mkdir()
    assert shown() is None


@pytest.mark.parametrize(
    "token",
    ["", " ", "hunter2\n", "hunter2\r\nX-Evil: 1", "hunter2 hunter2", "hünter2", "hunter2\udcff",
     "hunter2\t", "hunter2" * 2000, "🙂hunter2"],
)  # fmt: skip
def test_a_token_that_can_not_be_one_is_told_without_it(
    monkeypatch: pytest.MonkeyPatch, token: str
) -> None:
    with pytest.raises(InputError, match="the argument `token`") as refused:
        CapsClient(token=token)
    assert "hunter2" not in f"{refused.value!r} {refused.value} {refused.value.hint}"
    assert "caps_ID_SECRET" in str(refused.value.hint)
    if token:
        monkeypatch.setattr("os.environ", {"CAPS_TOKEN": token})
        with pytest.raises(InputError, match=r"^CAPS_TOKEN ") as refused:
            CapsClient()
        assert "hunter2" not in str(refused.value)


def test_a_file_that_can_not_be_read_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPS_TOKEN_PATH", str(home / "none"))
    with pytest.raises(InputError, match=r"CAPS_TOKEN_PATH: .*none.* can't be read: No such file"):
        CapsClient()
    (home / "none").write_text("two words")
    with pytest.raises(InputError, match=r"CAPS_TOKEN_PATH, .* holds a space"):
        CapsClient()
    (home / "none").write_text("\n")
    with pytest.raises(InputError, match="is empty"):
        CapsClient()


def test_no_repr_and_no_error_shows_it(guarded_api: GuardedApi) -> None:
    token = new_token()
    with CapsClient(guarded_api.url, token=token, patience=0) as client:
        told = [repr(client), str(vars(client)), repr(client._http.headers)]
        with pytest.raises(ApiError, match="token-invalid") as refused:
            client.job("x")
        told += [repr(refused.value), str(vars(refused.value))]
    with CapsClient("http://127.0.0.1:9", token=token, patience=0) as client:
        with pytest.raises(ApiUnreachableError) as unreachable:
            client.job("x")
        told.append(f"{unreachable.value!r} {vars(unreachable.value)}")
    assert token.rpartition("_")[2] not in " ".join(told)


def test_a_token_follows_no_redirect(home: Path) -> None:
    heard: list[str] = []

    async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        heard.append(scope["path"])
        start = {"type": "http.response.start", "status": 307, "headers": [(b"location", b"/b")]}
        await send(start)
        await send({"type": "http.response.body", "body": b""})

    with (
        serving(elsewhere) as url,
        CapsClient(url, token="caps_x", patience=0) as client,
        pytest.raises(ApiUnreachableError, match="307"),
    ):
        client.job("x")
    assert heard == ["/v1/jobs/x"]


# --------------------------------------------------------------------------------- the client


def test_a_client_shows_its_token_with_every_call(guarded_api: GuardedApi) -> None:
    with CapsClient(guarded_api.url, token=guarded_api.tokens["ann"]) as client:
        job = client.submit({"experiment": "client"})
        search = client.submit_search(SEARCH | {"experiment": "client"})
        assert (job.owner, search.owner) == ("ann", "ann")
        assert {found.id for found in client.jobs(experiment="client")} == {job.id, search.id}
        assert list(client.jobs(owner="bob")) == []
        assert [found.id for found in client.searches(owner="ann", experiment="client")] == [
            search.id
        ]
        with pytest.raises(ApiError, match="scope-missing"):
            client.create_token("n")
    with CapsClient(guarded_api.url) as client, pytest.raises(ApiError, match="token-missing"):
        client.submit({})


def test_tokens_are_made_listed_and_revoked(guarded_api: GuardedApi) -> None:
    with CapsClient(guarded_api.url, token=guarded_api.tokens["root"]) as client:
        made = client.create_token("n", owner="zoe", scope="read", expires_in_s=60)
        assert client.token(made.id).owner == "zoe"
        others = [client.create_token("n", owner="zoe").id for _ in range(2)]
        found = [token.id for token in client.tokens(owner="zoe", page_size=1)]
        assert sorted(found) == sorted([made.id, *others])
        client.revoke_token(made.id)
        assert client.token(made.id).state == "revoked"
        for token_id in ("nope", "../jobs", ""):
            with pytest.raises(ApiError):
                client.revoke_token(token_id)
    revoked = CapsClient(guarded_api.url, token=made.token)
    with revoked, pytest.raises(ApiError, match="token-invalid"):
        next(revoked.jobs())


# ------------------------------------------------------------------------------------- capsctl


@pytest.fixture
def capsctl(guarded_api: GuardedApi, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("CAPS_URL", guarded_api.url)
    monkeypatch.setenv("CAPS_TOKEN", guarded_api.tokens["root"])

    def run(*arguments: str) -> Answer:
        return CliRunner().invoke(app, list(arguments))

    return run


def test_standard_output_has_the_token_alone(capsctl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made = capsctl("token", "create", "--name", "laptop", "--owner", "ann", "--expires", "30d")
    assert made.exit_code == 0, made.output
    token = made.stdout.removesuffix("\n")
    assert re.fullmatch(r"caps_[a-z0-9]{8}_[0-9a-f]{64}", token)
    assert "owner ann, scope submit, expires" in made.stderr
    assert token not in made.stderr
    monkeypatch.setenv("CAPS_TOKEN", token)
    job = json.loads(capsctl("submit", "demo", "-o", "json").stdout)
    assert job["owner"] == "ann"
    assert "owner: ann" in capsctl("show", job["id"]).stdout


def test_a_token_is_made_with_what_is_left_out(capsctl: Any) -> None:
    made = capsctl("token", "create", "-o", "json")
    document = json.loads(made.stdout)
    assert (document["owner"], document["scope"], document["expires_at"]) == (
        "root", "submit", None,
    )  # fmt: skip
    assert document["name"].startswith("capsctl on ")
    assert id_of(document["token"]) == document["id"]
    assert made.stderr == ""
    assert "never expires" in capsctl("token", "create", "--scope", "read").stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("12h", 43_200), ("30d", 2_592_000),
                          ("2w", 1_209_600)]
)  # fmt: skip
def test_a_life_is_written_with_its_unit(capsctl: Any, text: str, seconds: int) -> None:
    document = json.loads(capsctl("token", "create", "--expires", text, "-o", "json").stdout)
    moments = [time.mktime(time.strptime(document[name][:19], "%Y-%m-%dT%H:%M:%S"))
               for name in ("created_at", "expires_at")]  # fmt: skip
    assert moments[1] - moments[0] == pytest.approx(seconds, abs=1)


@pytest.mark.parametrize(
    ("arguments", "tells"),
    [
        (["create", "--expires", "30"], "s, m, h, d, w"),
        (["create", "--expires", "0d"], "30d is a month"),
        (["create", "--expires", "1e3d"], "s, m, h, d, w"),
        (["create", "--expires", "999999w"], "/expires_in_s"),
        (["create", "--owner", "a b"], "/owner"),
        (["create", "--name", "x" * 101], "1 to 100 characters"),
        (["create", "--scope", "all"], "scope"),
        (["revoke", "nope"], "token-not-found"),
        (["revoke", f"caps_abcdefgh_{'0' * 64}"], "give its id alone"),
    ],
)
def test_bad_input_is_told_and_exits_2(capsctl: Any, arguments: list[str], tells: str) -> None:
    answer = capsctl("token", *arguments)
    assert answer.exit_code == 2, answer.output
    assert tells in answer.stderr
    assert "Traceback" not in answer.output


def test_tokens_are_listed_and_revoked(capsctl: Any) -> None:
    made = json.loads(capsctl("token", "create", "--owner", "kim", "-o", "json").stdout)
    line = capsctl("token", "list", "--owner", "kim").stdout.splitlines()[1]
    assert made["id"] in line
    assert "valid" in line
    assert capsctl("token", "revoke", made["id"]).stdout == f"revoked {made['id']}\n"
    (found,) = json.loads(capsctl("token", "list", "--owner", "kim", "-o", "json").stdout)
    assert (found["id"], found["state"]) == (made["id"], "revoked")
    assert "token" not in found
    again = capsctl("token", "revoke", made["id"], "-o", "json")
    assert json.loads(again.stdout) == {"revoked": made["id"]}
    assert made["token"] not in capsctl("token", "list").output


def test_jobs_are_listed_by_owner(
    capsctl: Any, guarded_api: GuardedApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    headers = {"Authorization": f"Bearer {guarded_api.tokens['bob']}"}
    job = httpx.post(f"{guarded_api.url}/v1/jobs", json={}, headers=headers).json()["id"]
    assert job in capsctl("jobs", "--owner", "bob").stdout
    assert job not in capsctl("jobs", "--owner", "ann").stdout


@pytest.mark.parametrize("output", [[], ["-o", "json"]])
def test_a_refused_token_names_the_variable_and_exits_2(
    capsctl: Any, guarded_api: GuardedApi, monkeypatch: pytest.MonkeyPatch, output: list[str]
) -> None:
    for token, code in (
        (None, "token-missing"),
        (new_token(), "token-invalid"),
        (guarded_api.tokens["ann-reads"], "scope-missing"),
    ):
        if token is None:
            monkeypatch.delenv("CAPS_TOKEN")
        else:
            monkeypatch.setenv("CAPS_TOKEN", token)
        answer = capsctl("submit", "demo", *output)
        assert answer.exit_code == 2, answer.output
        assert code in answer.stderr
        assert "CAPS_TOKEN" in answer.stderr
        if token is not None:
            assert token.rpartition("_")[2] not in answer.output
    monkeypatch.setenv("CAPS_TOKEN", "hunter2\n")
    answer = capsctl("jobs", *output)
    assert (answer.exit_code, "input-invalid" in answer.stderr) == (2, True)
    assert "hunter2" not in answer.output
