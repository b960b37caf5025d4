"""Tokens: their form, their table, how they are verified, and the first one."""

import logging
import re
import sqlite3
import stat
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import event, text, update
from sqlalchemy.exc import IntegrityError, OperationalError

from service import tokens as token_forms
from service.admin_token import AdminToken
from service.api.gate import REMEMBERED, Gate
from service.errors import TokenInvalidError, TokenNotFoundError
from service.loopback import is_loopback
from service.queue import tokens as token_tables
from service.queue.job import State
from service.queue.store import JobFilter, Store
from service.queue.tables import clock
from service.queue.tables import tokens as table
from service.queue.tokens import Token
from service.startup import Startup
from service.tokens import Caller, Scope, digest_of, id_of, is_id, matches, new_token
from support.guarded import Idle, until
from workers.specs import PRESETS

ANN = {"name": "laptop", "owner": "ann", "scope": Scope.SUBMIT}

# ------------------------------------------------------------------------------- form and scopes


def test_a_token_is_an_id_and_256_bits() -> None:
    found = {new_token() for _ in range(200)}
    assert len(found) == 200
    for each in found:
        assert re.fullmatch(r"caps_[a-z0-9]{8}_[0-9a-f]{64}", each)
        assert id_of(each) == each.split("_")[1]
    assert len({each.split("_")[2] for each in found}) == 200


@pytest.mark.parametrize(
    "text",
    ["", "caps_", "caps_abcdefgh_", "caps_abcdefgh_" + "0" * 63, "caps_abcdefgh_" + "0" * 65,
     "caps_abcdefgh_" + "A" * 64, "caps_abcdefg_" + "0" * 64, "caps_ABCDEFGH_" + "0" * 64,
     "caps_abcdefgh_" + "0" * 64 + "\n", " caps_abcdefgh_" + "0" * 64, "caps_abcdefg٣_" + "0" * 64,
     "mlf_abcdefgh_" + "0" * 64],
)  # fmt: skip
def test_what_is_no_token_has_no_id(text: str) -> None:
    assert id_of(text) is None


def test_an_id_is_known_by_its_form() -> None:
    assert is_id("abc12345")
    assert not any(is_id(text) for text in ("", "abc1234", "ABC12345", "abc12345\n", "a\x00c12345"))


def test_scopes_are_ordered() -> None:
    allowed = [(a.value, b.value) for a in Scope for b in Scope if a.allows(b)]
    assert allowed == [
        ("read", "read"),
        ("submit", "read"), ("submit", "submit"),
        ("admin", "read"), ("admin", "submit"), ("admin", "admin"),
    ]  # fmt: skip


def test_digests_are_compared_in_constant_time_also_with_nobodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: list[tuple[str, str]] = []
    compare = token_forms.hmac.compare_digest

    def watched(a: str, b: str) -> bool:
        compared.append((a, b))
        return compare(a, b)

    monkeypatch.setattr(token_forms.hmac, "compare_digest", watched)
    ours, other = digest_of(new_token()), digest_of(new_token())
    assert matches(ours, ours)
    assert not matches(ours, other)
    assert not matches(ours, None)
    assert [len(b) for _, b in compared] == [64, 64, 64]
    assert compared[2][1] not in (ours, other)


def test_who_knows_nobodys_digest_is_nobody_all_the_same() -> None:
    assert not matches(token_forms._NOBODYS, None)


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.8.7", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("LocalHost", True), ("0.0.0.0", False), ("::", False), ("", False), ("0", False),
     ("10.0.0.1", False), ("128.0.0.1", False), ("126.255.255.255", False), ("127.1", False),
     ("2130706433", False), ("localhost.example", False), ("127.0.0.1.example", False),
     ("caps", False), ("fe80::1", False), ("::ffff:10.0.0.1", False)],
)  # fmt: skip
def test_loopback_is_told_from_all_else(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


# ----------------------------------------------------------------------------------- the table


def test_a_token_comes_back_without_its_secret(store: Store) -> None:
    token, text_ = store.tokens.create(**ANN)
    assert store.tokens.get(token.id) == token
    assert (token.id, token.name, token.owner, token.scope) == (id_of(text_), "laptop", "ann",
                                                               Scope.SUBMIT)  # fmt: skip
    assert (token.state, token.expires_at, token.last_used_at) == ("valid", None, None)
    assert token.digest == digest_of(text_)
    assert abs(token.created_at - store.now()) < 5
    assert token.digest not in repr(token)
    assert text_.rpartition("_")[2] not in repr(token)


def test_the_database_holds_no_secret(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'queue.db'}")
    store.migrate()
    token, secret = store.tokens.create(**ANN)
    with store.engine.connect() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(FULL)"))
    content = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert token.digest.encode() in content
    assert secret.encode() not in content
    assert secret.rpartition("_")[2].encode() not in content
    store.close()


def test_an_id_is_taken_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    token, text_ = store.tokens.create(**ANN)
    with pytest.raises(IntegrityError):
        store.tokens.add(text_, **ANN)
    fresh = new_token()
    offered = iter([f"caps_{token.id}_{'0' * 64}", fresh])
    monkeypatch.setattr(token_tables, "new_token", lambda: next(offered))
    assert store.tokens.create(**ANN)[1] == fresh
    with pytest.raises(ValueError, match="form"):
        store.tokens.add("caps_no", **ANN)


@pytest.mark.parametrize("token_id", ["nope", "", "a\x00c12345", "é" * 8, "abcdefgh", "A" * 9000])
def test_an_unknown_token_is_not_found(store: Store, token_id: str) -> None:
    assert store.tokens.find(token_id) is None
    for look in (store.tokens.get, store.tokens.revoke):
        with pytest.raises(TokenNotFoundError):
            look(token_id)


def test_a_token_expires_by_the_databases_clock(store: Store) -> None:
    token, _ = store.tokens.create(**ANN, expires_in_s=100)
    assert token.expires_at == pytest.approx(token.created_at + 100, abs=1)
    assert 98 < store.tokens.get(token.id).left_s <= 100
    with store.engine.begin() as connection:
        past = update(table).where(table.c.id == token.id).values(expires_at=clock() - 0.001)
        connection.execute(past)
    again = store.tokens.get(token.id)
    assert (again.state, again.left_s) == ("expired", 0)


def test_a_revocation_is_for_ever_and_can_be_repeated(store: Store) -> None:
    token, _ = store.tokens.create(**ANN)
    store.tokens.revoke(token.id)
    first = store.tokens.get(token.id)
    assert (first.state, first.left_s) == ("revoked", 0)
    assert first.revoked_at == pytest.approx(store.now(), abs=5)
    time.sleep(0.01)
    store.tokens.revoke(token.id)
    assert store.tokens.get(token.id).revoked_at == first.revoked_at


def test_tokens_are_listed_with_the_newest_first(store: Store) -> None:
    made = []
    for owner in ("ann", "bob", "ann"):
        made.append(store.tokens.create(name="n", owner=owner, scope=Scope.READ)[0])
        time.sleep(0.003)
    assert [token.id for token in store.tokens.list()] == [token.id for token in reversed(made)]
    assert [token.id for token in store.tokens.list(owner="ann")] == [made[2].id, made[0].id]
    assert [token.id for token in store.tokens.list(offset=1, limit=1)] == [made[1].id]


def test_the_last_use_is_noted_once_a_minute(store: Store) -> None:
    token, _ = store.tokens.create(**ANN)
    store.tokens.touch(token.id)
    first = store.tokens.get(token.id)
    assert first.last_used_at == pytest.approx(store.now(), abs=5)
    assert (token.use_is_old, first.use_is_old) == (True, False)
    store.tokens.touch(token.id)
    assert store.tokens.get(token.id).last_used_at == first.last_used_at
    for odd in (clock() - 61, clock() + 9):  # long ago, and before the clock was set back
        with store.engine.begin() as connection:
            connection.execute(update(table).values(last_used_at=odd))
        before = store.tokens.get(token.id)
        assert before.use_is_old
        store.tokens.touch(token.id)
        assert store.tokens.get(token.id).last_used_at != before.last_used_at


# ------------------------------------------------------------------------------ jobs by owner


@pytest.mark.parametrize(
    ("filter", "index"),
    [
        (JobFilter(), "ix_jobs_owner_id (owner=?"),
        (JobFilter(states=(State.RUNNING,)), "ix_jobs_owner_state_id (owner=? AND state=?"),
    ],
)
@pytest.mark.parametrize("cursor", [None, "NmFrMmtxNzgybnRx"])
def test_a_list_of_an_owners_jobs_is_read_in_its_order(
    tmp_path: Path, filter: JobFilter, index: str, cursor: str | None
) -> None:
    store = Store(f"sqlite:///{tmp_path / 'queue.db'}")
    store.migrate()
    for number in range(40):
        store.add(PRESETS["demo"], owner=("ann", "bob")[number % 2])
    asked: list[tuple[str, Any]] = []

    def listen(connection, cursor, statement, parameters, *_) -> None:  # type: ignore[no-untyped-def]
        asked.append((statement, parameters))

    event.listen(store.engine, "before_cursor_execute", listen)
    store.list(filter, cursor, sees_only="ann")
    event.remove(store.engine, "before_cursor_execute", listen)
    with store.engine.connect() as connection:
        ((statement, parameters),) = [each for each in asked if "FROM jobs" in each[0]]
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
    details = " | ".join(row.detail for row in plan)
    assert f"USING INDEX {index}" in details
    assert "TEMP B-TREE" not in details
    store.close()


# -------------------------------------------------------------------------------------- the gate


class Watch:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def ask(gate: Gate, *texts: str) -> list[Caller | None]:
    """Who calls with each of these at the same time; None for nobody."""
    found: dict[int, Caller | None] = {}

    async def one(number: int, text_: str) -> None:
        try:
            found[number] = await gate.caller(text_)
        except TokenInvalidError:
            found[number] = None

    async def all_of_them() -> None:
        async with anyio.create_task_group() as group:
            for number, text_ in enumerate(texts):
                group.start_soon(one, number, text_)

    anyio.run(all_of_them)
    return [found[number] for number in range(len(texts))]


@pytest.fixture
def lookups(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids that the table was asked for."""
    asked: list[str] = []
    find = store.tokens.find

    def watched(token_id: str) -> Any:
        asked.append(token_id)
        return find(token_id)

    monkeypatch.setattr(store.tokens, "find", watched)
    return asked


def test_a_good_token_is_remembered_for_a_moment(store: Store, lookups: list[str]) -> None:
    token, secret = store.tokens.create(**ANN)
    watch = Watch()
    gate = Gate(store.tokens, watch)
    ann = Caller("ann", Scope.SUBMIT)
    assert ask(gate, secret) == [ann]
    assert ask(gate, secret) == [ann]
    assert lookups == [token.id]
    watch.time += 4.9
    store.tokens.revoke(token.id)  # by another replica
    lookups.clear()
    assert ask(gate, secret) == [ann], "as yet"
    watch.time += 0.1
    assert ask(gate, secret) == [None]
    assert lookups == [token.id]
    gate.close()


def test_a_revocation_here_holds_at_once(store: Store) -> None:
    token, secret = store.tokens.create(**ANN)
    gate = Gate(store.tokens)
    assert ask(gate, secret) != [None]
    store.tokens.revoke(token.id)
    gate.forget(token.id)
    assert ask(gate, secret) == [None]
    gate.close()


def test_what_was_read_before_a_revocation_is_not_remembered_after_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = store.tokens.create(**ANN)
    gate = Gate(store.tokens)
    find = store.tokens.find

    def slowly(token_id: str) -> Token | None:
        monkeypatch.setattr(store.tokens, "find", find)
        found = find(token_id)
        store.tokens.revoke(token_id)
        gate.forget(token_id)
        return found

    monkeypatch.setattr(store.tokens, "find", slowly)
    assert ask(gate, secret) != [None], "it was good when it was asked for"
    assert ask(gate, secret) == [None]
    gate.close()


def test_an_expiry_is_kept_to_while_the_token_is_remembered(store: Store) -> None:
    _, secret = store.tokens.create(**ANN, expires_in_s=3)
    watch = Watch()
    gate = Gate(store.tokens, watch)
    assert ask(gate, secret) != [None]
    watch.time += 2
    store.tokens.find = lambda token_id: pytest.fail("it is remembered")  # type: ignore[assignment, method-assign]
    assert ask(gate, secret) != [None]
    store.tokens.find = lambda token_id: None  # type: ignore[method-assign]
    watch.time += 1
    assert ask(gate, secret) == [None]
    gate.close()


def test_unknown_wrong_expired_and_revoked_are_all_the_same(store: Store) -> None:
    token, secret = store.tokens.create(**ANN)
    expired = store.tokens.create(**ANN, expires_in_s=100)
    with store.engine.begin() as connection:
        connection.execute(
            update(table).where(table.c.id == expired[0].id).values(expires_at=clock() - 1)
        )
    revoked = store.tokens.create(**ANN)
    store.tokens.revoke(revoked[0].id)
    wrong = f"caps_{token.id}_{'0' * 64}"
    gate = Gate(store.tokens)
    assert (
        ask(gate, new_token(), wrong, expired[1], revoked[1], "caps_x", "\udcff", "") == [None] * 7
    )
    assert not gate._known
    assert ask(gate, secret) == [Caller("ann", Scope.SUBMIT)]
    gate.close()


def test_made_up_tokens_fill_nothing(store: Store) -> None:
    gate = Gate(store.tokens)
    good = [store.tokens.create(**ANN)[1] for _ in range(3)]
    ask(gate, *[new_token() for _ in range(100)], *good)
    assert len(gate._known) == 3
    gate.close()


def test_no_more_good_tokens_than_so_many_are_remembered(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.gate.REMEMBERED", 2)
    gate = Gate(store.tokens)
    made = [store.tokens.create(**ANN) for _ in range(3)]
    for _, secret in made:
        assert ask(gate, secret) != [None]
    assert [known.token_id for known in gate._known.values()] == [made[1][0].id, made[2][0].id]
    assert REMEMBERED > 2
    gate.close()


def test_many_with_one_token_ask_few_times(
    store: Store, lookups: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = store.tokens.create(**ANN)
    gate = Gate(store.tokens)
    find = store.tokens.find

    def slowly(token_id: str) -> Any:
        time.sleep(0.1)
        return find(token_id)

    monkeypatch.setattr(store.tokens, "find", slowly)
    assert ask(gate, *[secret] * 60) == [Caller("ann", Scope.SUBMIT)] * 60
    assert len(lookups) <= 8
    gate.close()


def test_a_slow_database_does_not_hold_the_event_loop(store: Store) -> None:
    _, remembered = store.tokens.create(**ANN)
    gate = Gate(store.tokens)
    ask(gate, remembered)
    released = threading.Event()

    def slow(token_id: str) -> None:
        assert released.wait(10)

    store.tokens.find = slow  # type: ignore[assignment, method-assign]

    async def main() -> None:
        async with anyio.create_task_group() as group:

            async def stranger() -> None:
                with pytest.raises(TokenInvalidError):
                    await gate.caller(new_token())

            for _ in range(20):
                group.start_soon(stranger)
            await anyio.sleep(0.05)
            for _ in range(100):
                assert await gate.caller(remembered) == Caller("ann", Scope.SUBMIT)
            released.set()

    anyio.run(main)
    gate.close()


def test_the_use_of_a_token_is_noted_aside(store: Store) -> None:
    token, secret = store.tokens.create(**ANN)
    gate = Gate(store.tokens)
    ask(gate, secret)
    until(lambda: store.tokens.get(token.id).last_used_at is not None)
    gate.close()


def test_a_note_that_fails_hurts_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, secret = store.tokens.create(**ANN)

    def failing(token_id: str) -> None:
        raise OperationalError("UPDATE", {}, Exception("the disk is full"))

    monkeypatch.setattr(store.tokens, "touch", failing)
    gate = Gate(store.tokens)
    assert ask(gate, secret) == [Caller("ann", Scope.SUBMIT)]
    until(lambda: "is not noted" in caplog.text)
    assert secret not in caplog.text
    assert ask(gate, secret) == [Caller("ann", Scope.SUBMIT)]
    gate.close()


# --------------------------------------------------------------------------------- the first one


def prepared(store: Store, file: Path) -> str:
    """The token in the file, after a start."""
    AdminToken(file, store.tokens).prepare()
    return file.read_text().strip()


def test_the_first_token_lies_in_a_file_of_its_own(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "home" / "admin-token"
    secret = prepared(store, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [each.name for each in file.parent.iterdir()] == ["admin-token"]
    token = store.tokens.get(id_of(secret) or "")
    assert (token.owner, token.scope, token.expires_at) == ("admin", Scope.ADMIN, None)
    assert token.name.startswith("admin-token of ")
    assert str(file) in caplog.text
    assert secret.rpartition("_")[2] not in caplog.text
    assert prepared(store, file) == secret, "it stays over a restart"
    assert len(store.tokens.list()) == 1


def test_it_is_registered_in_a_database_that_was_emptied(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "admin-token"
    secret = prepared(store, file)
    with store.engine.begin() as connection:
        connection.execute(table.delete())
    assert prepared(store, file) == secret
    assert [token.id for token in store.tokens.list()] == [id_of(secret)]


def test_one_that_was_revoked_stays_so_and_is_replaced(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "admin-token"
    first = prepared(store, file)
    store.tokens.revoke(id_of(first) or "")
    second = prepared(store, file)
    assert second != first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    states = {token.id: token.state for token in store.tokens.list()}
    assert states == {id_of(first): "revoked", id_of(second): "valid"}


def test_many_replicas_share_one_file(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "admin-token"
    first = [AdminToken(file, store.tokens) for _ in range(8)]
    threads = [threading.Thread(target=each.prepare) for each in first]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [token.id for token in store.tokens.list()] == [id_of(file.read_text().strip())]
    assert [each.name for each in tmp_path.iterdir() if "token" in each.name] == ["admin-token"]


@pytest.mark.parametrize("content", [b"", b"hunter2\n", b"caps_x\n", b"\xff\x00", b"x" * 10**6])
def test_a_file_that_holds_no_token_is_told_with_the_remedy(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    file = tmp_path / "admin-token"
    file.write_bytes(content)
    file.chmod(0o600)
    AdminToken(file, store.tokens).prepare()
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert str(file) in record.getMessage()
    assert "remove it" in record.getMessage()
    assert "hunter2" not in caplog.text
    assert store.tokens.list() == []
    assert file.read_bytes() == content


def test_a_file_with_another_tokens_id_is_told(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    token, _ = store.tokens.create(**ANN)
    file = tmp_path / "admin-token"
    file.write_text(f"caps_{token.id}_{'0' * 64}")
    file.chmod(0o600)
    AdminToken(file, store.tokens).prepare()
    assert f"{token.id} is that of another one" in caplog.text
    assert [each.owner for each in store.tokens.list()] == ["ann"]


def test_a_file_that_others_may_read_is_warned_of(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "admin-token"
    file.write_text(new_token())
    file.chmod(0o640)
    AdminToken(file, store.tokens).prepare()
    assert f"chmod 600 {file}" in caplog.text
    assert len(store.tokens.list()) == 1


def test_a_place_that_can_not_be_written_is_told(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "home").write_text("a file where a folder should be")
    AdminToken(tmp_path / "home" / "admin-token", store.tokens).prepare()
    assert "can't be read or made" in caplog.text
    (tmp_path / "folder").mkdir()
    AdminToken(tmp_path / "folder", store.tokens).prepare()
    assert str(tmp_path / "folder") in caplog.text


def test_it_is_registered_when_a_database_that_was_away_is_back(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "admin-token"
    migrate, outages = store.migrate, iter(range(2))

    def away_at_first() -> None:
        if next(outages, None) is not None:
            raise OperationalError(
                "SELECT", {}, sqlite3.OperationalError("away"), connection_invalidated=True
            )
        migrate()

    monkeypatch.setattr(store, "migrate", away_at_first)
    monkeypatch.setattr("service.startup.TRY_AGAIN_S", 0.01)
    startup = Startup(store, Idle(), AdminToken(file, store.tokens).prepare)
    startup.begin()
    assert not file.exists()
    until(lambda: bool(store.tokens.list()))
    assert [token.id for token in store.tokens.list()] == [id_of(file.read_text().strip())]
    startup.end()
