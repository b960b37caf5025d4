"""The library as a whole: what it imports, its open sets, and the example."""

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, ValidationError

import capsmodel
from capsmodel import open_set
from capsmodel.config import (
    DATASETS,
    LOSSES,
    MODELS,
    ROUTINGS,
    SCHEDULES,
    CapsNetConfig,
    Config,
    RoutingConfig,
)
from capsmodel.open_set import Member, OpenSet

REPOSITORY = Path(__file__).parents[3]


def run_python(code: str) -> str:
    """Output of Python code in a fresh process, in the repository's folder, on one thread."""
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_configuration_needs_no_torch() -> None:
    code = "import sys, capsmodel.config; print('torch' in sys.modules, 'numpy' in sys.modules)"
    assert run_python(code).split() == ["False", "False"]


def test_the_public_names_can_be_had() -> None:
    for name in capsmodel.__all__:
        assert getattr(capsmodel, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'CapsNot'"):
        _ = capsmodel.CapsNot


def test_every_member_has_an_implementation() -> None:
    for table in (ROUTINGS, MODELS, LOSSES, DATASETS, SCHEDULES):
        for name in table.members:
            assert callable(table.implementation(name))


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValidationError, match="'dynamic', 'uniform'"):
        CapsNetConfig.model_validate({"routing": {"type": "telepathy"}})


class EchoConfig(RoutingConfig):
    """A member that a package of somebody else's brings."""

    type: Literal["echo"] = "echo"
    volume: int = 3


ECHO = Member(EchoConfig, "capsmodel.routing.uniform:UniformRouting")


@pytest.fixture
def routings(monkeypatch) -> OpenSet:
    """The routings and an installed package's `echo`; two other packages are broken."""

    class Point(EntryPoint):
        def load(self) -> object:
            if self.name == "broken":
                raise ImportError("not installed")
            return ECHO if self.name == "echo" else "no member"

    names = ("echo", "broken", "nonsense")
    points = EntryPoints(Point(name, f"package:{name}", "capsmodel.routings") for name in names)
    monkeypatch.setattr(open_set, "entry_points", lambda group: points.select(group=group))
    return OpenSet("capsmodel.routings", default="dynamic", members=dict(ROUTINGS._own))


def test_an_installed_package_adds_a_member(routings) -> None:
    class Net(Config):
        routing: Annotated[RoutingConfig, routings]

    assert list(routings.members) == ["dynamic", "uniform", "self-attention", "echo"]
    net = Net.model_validate({"routing": {"type": "echo", "volume": 5}})
    assert net.routing == EchoConfig(volume=5)
    assert routings.implementation("echo").__name__ == "UniformRouting"
    assert net.model_dump() == {"routing": {"type": "echo", "volume": 5}}


def test_a_package_that_imports_what_it_needs_from_the_configuration_is_loaded(tmp_path) -> None:
    """In a process of its own, with metadata as pip writes it, whichever module comes first."""
    (tmp_path / "echo_routing.py").write_text(
        "from typing import Literal\n"
        "from capsmodel.config import LossConfig, RoutingConfig\n"
        "from capsmodel.open_set import Member\n"
        "class EchoConfig(RoutingConfig):\n"
        "    type: Literal['echo'] = 'echo'\n"
        "class NamelessConfig(RoutingConfig):\n"
        "    type: Literal['other'] = 'other'\n"
        "MEMBER = Member(EchoConfig, 'capsmodel.routing.uniform:UniformRouting')\n"
        "MISNAMED = Member(NamelessConfig, 'capsmodel.routing.uniform:UniformRouting')\n"
    )
    metadata = tmp_path / "echo_routing-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-routing\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[capsmodel.routings]\necho = echo_routing:MEMBER\nnameless = echo_routing:MISNAMED\n"
    )
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from capsmodel.config import TrainingConfig, ROUTINGS\n"
        "spec = TrainingConfig.model_validate({'model': {'routing': {'type': 'echo'}}})\n"
        "print(spec.model.routing.type, *ROUTINGS.members)"
    )
    assert run_python(code).split() == ["echo", "dynamic", "uniform", "self-attention", "echo"]


class LoudConfig(RoutingConfig):
    """A member that a script registers."""

    type: Literal["loud"] = "loud"
    volume: int = Field(default=3, ge=1, le=11)


class Net(Config):
    routing: Annotated[RoutingConfig, ROUTINGS] = LoudConfig()


@pytest.fixture
def loud() -> Iterator[type]:
    class Loud:
        pass

    ROUTINGS.register("loud", LoudConfig, Loud)
    yield Loud
    ROUTINGS._registered.clear()


def test_a_script_registers_a_member(loud) -> None:
    net = Net.model_validate({"routing": {"type": "loud", "volume": 11}})
    assert net.routing == LoudConfig(volume=11)
    assert ROUTINGS.implementation("loud") is loud
    assert Net.model_validate_json(net.model_dump_json()) == net
    assert net.model_dump() == {"routing": {"type": "loud", "volume": 11}}
    with pytest.raises(ValidationError, match="less than or equal to 11") as refused:
        Net.model_validate({"routing": {"type": "loud", "volume": 12}})
    assert refused.value.errors()[0]["loc"] == ("routing", "volume")
    with pytest.raises(ValidationError, match="'uniform', 'self-attention', 'loud'"):
        Net.model_validate({"routing": {"type": "quiet"}})


def test_a_member_is_registered_under_a_name_of_its_own() -> None:
    with pytest.raises(ValueError, match="'dynamic' is taken"):
        ROUTINGS.register("dynamic", LoudConfig, object)
    with pytest.raises(ValueError, match='needs the field `type: Literal\\["quiet"\\]'):
        ROUTINGS.register("quiet", LoudConfig, object)
