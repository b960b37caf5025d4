"""The storm as a test: the whole of it, and a short form of four kills."""

import random
import secrets

import pytest

from chaos.__main__ import say, summarize
from chaos.figures import ONE, SERVING
from chaos.kills import Kind, plan
from chaos.storm import Storm
from support.postgres import running

SHORT: list[list[Kind]] = [["control plane", "worker", "together"], ["head"]]
"""Blows that fall together, one after the other."""


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.long
def test_four_kills_lose_nothing() -> None:
    storm = Storm("sqlite", secrets.randbelow(10**6), say)
    verdict = storm.run_short(SHORT)
    print(summarize([verdict]))
    assert not verdict.wrong, verdict.wrong
    assert verdict.kills.total() == 4
    assert verdict.jobs.keys() == {"SUCCEEDED"}
    assert verdict.times.seconds[SERVING]
    assert verdict.points > 100


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_storm_loses_nothing(database: str, request: pytest.FixtureRequest) -> None:
    seed = secrets.randbelow(10**6)
    say(f"seed {seed}")
    if database == "postgresql":
        request.getfixturevalue("postgresql")  # skips without one
        with running() as server:
            verdict = Storm(server.new_database(), seed, say).run(plan(random.Random(seed)))
    else:
        verdict = Storm("sqlite", seed, say).run(plan(random.Random(seed)))
    print(summarize([verdict]))
    assert not verdict.wrong, verdict.wrong
    assert verdict.kills.total() >= 25
    assert verdict.times.seconds[ONE]
