"""Sets of the hub: a stand-in for it on loopback, asked by the real client in a real process."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import urlsplit

import datasets
import pytest
import torch
from PIL import Image

COMMIT = "0123456789" * 4
GREY = torch.arange(12 * 30).remainder(251).to(torch.uint8).reshape(12, 6, 5)
LABELS = [0, 1] * 6

LOAD = """
import json, sys, time
from pathlib import Path
from capsmodel.config import HuggingFaceConfig
from capsmodel.datasets import load_dataset
from capsmodel.datasets.sources import hub

hub.BATCH_ROWS = 3
for line in sys.stdin:
    hub.PROBE_SECONDS, settings = json.loads(line)
    start = time.monotonic()
    try:
        data = load_dataset(HuggingFaceConfig(image_shape=(1, 6, 5), classes=2, **settings), Path())
        found = {"train": data.train_images.tolist(), "labels": data.train_labels.tolist(),
                 "test": data.test_images.tolist()}
    except Exception as error:
        found = {"error": type(error).__name__, "message": str(error)}
    print(json.dumps({**found, "seconds": time.monotonic() - start}), flush=True)
"""


def parquet(first: int, last: int) -> bytes:
    """A file as the hub has it."""
    rows: dict[str, list[Any]] = {"img": [], "label": LABELS[first:last]}
    for picture in GREY[first:last]:
        file = BytesIO()
        Image.fromarray(picture.numpy()).save(file, "PNG")
        rows["img"].append({"bytes": file.getvalue(), "path": None})
    names = datasets.ClassLabel(names=["even", "odd"])
    features = datasets.Features({"img": datasets.Image(), "label": names})
    file = BytesIO()
    datasets.Dataset.from_dict(rows, features).to_parquet(file)
    return file.getvalue()


class Handler(BaseHTTPRequestHandler):
    """The part of the hub's interface that loading a set asks for."""

    server: "StandIn"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.server.speaks.wait()
        path = urlsplit(self.path).path
        match = re.fullmatch(r"/(?:api/)?datasets/(lab/\w+)(?:/(\w+)/([^/]+))?(?:/(.*))?", path)
        if path == "/":
            self.answer(200, b"the hub")
        elif not match or match[1] not in self.server.sets:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/api/"):
            self.describe(match[1], match[2], match[4] or "")
        else:
            self.resolve(self.server.sets[match[1]].get(match[4]))

    def do_HEAD(self) -> None:
        self.do_GET()

    def describe(self, name: str, what: str | None, folder: str) -> None:
        files = self.server.sets[name]
        if what == "tree":
            listed = [
                {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
                for path, content in files.items()
                if path.rpartition("/")[0] == folder
            ]
            folders = {path.partition("/")[0] for path in files} if not folder else set()
            listed += [
                {"type": "directory", "path": p, "size": 0, "oid": "0" * 40} for p in folders
            ]
            self.answer(200, json.dumps(listed).encode())
        else:
            siblings = [{"rfilename": path} for path in files]
            facts = {"_id": "1", "id": name, "sha": COMMIT, "siblings": siblings, "tags": []}
            self.answer(200, json.dumps({**facts, "private": False, "gated": False}).encode())

    def resolve(self, content: bytes | None) -> None:
        if content is None:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        else:
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            self.answer(200, content, {"ETag": etag, "X-Repo-Commit": COMMIT})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class StandIn(ThreadingHTTPServer):
    """A hub with two sets, one of them damaged."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.speaks = threading.Event()
        """Unless it is set, requests are taken and never answered."""
        self.sets = {
            "lab/tiny": {
                "data/train-00000-of-00001.parquet": parquet(0, 8),
                "data/test-00000-of-00001.parquet": parquet(8, 12),
            },
            "lab/damaged": {"data/train-00000-of-00001.parquet": parquet(0, 8)[:-50]},
        }


@pytest.fixture(scope="module")
def one_hub() -> Iterator[StandIn]:
    with StandIn() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.speaks.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def hub(one_hub: StandIn) -> StandIn:
    """The stand-in, which answers."""
    one_hub.speaks.set()
    return one_hub


class Client:
    """A process that loads sets of one hub, with a cache of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def load(self, path: str, probe_seconds: float = 10, **settings: str) -> dict[str, Any]:
        """The set's tensors as lists, or the error's class and message."""
        assert self._process.stdin
        assert self._process.stdout
        line = json.dumps([probe_seconds, {"path": path, **settings}])
        print(line, file=self._process.stdin, flush=True)
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return found


@pytest.fixture(scope="module")
def client(one_hub: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = inherited | {
        "HF_ENDPOINT": f"http://127.0.0.1:{one_hub.server_port}",
        "HF_HOME": str(tmp_path_factory.mktemp("hf")),
        "OMP_NUM_THREADS": "1",
        "no_proxy": "127.0.0.1",
    }
    command = [sys.executable, "-c", LOAD]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


def assert_is_tiny(found: dict[str, Any]) -> None:
    assert found.get("train") == GREY[:8, None].tolist(), found
    assert found["labels"] == LABELS[:8]
    assert found["test"] == GREY[8:, None].tolist()


@pytest.mark.parametrize("settings", [{}, {"revision": COMMIT, "configuration": "default"}])
def test_a_set_of_the_hub(hub, client, settings) -> None:
    assert_is_tiny(client.load("lab/tiny", **settings))


@pytest.mark.parametrize(
    ("path", "settings", "error", "message"),
    [
        ("lab/none", {}, "DataMissingError", "'lab/none' doesn't exist on the Hub"),
        ("lab/tiny", {"configuration": "other"}, "DataMissingError", "Available: ['default']"),
        ("lab/tiny", {"test_split": "dev"}, "DataMissingError", "has the splits train, test"),
        ("lab/damaged", {}, "DataCorruptError", "its files cannot be read: ArrowInvalid"),
    ],
)
def test_a_set_that_the_hub_does_not_give(hub, client, path, settings, error, message) -> None:
    found = client.load(path, **settings)
    assert found["error"] == error
    assert message in found["message"]


def test_without_a_connection_the_cached_copy_is_taken(hub, client) -> None:
    client.load("lab/tiny")
    hub.speaks.clear()
    assert_is_tiny(client.load("lab/tiny", probe_seconds=0.5))
    assert_is_tiny(client.load("lab/tiny", probe_seconds=0.5, revision=COMMIT))
    found = client.load("lab/tiny", probe_seconds=0.5, revision="9" * 40)
    assert found["error"] == "DataMissingError"
    assert f"another revision than {'9' * 40}" in found["message"]


def test_without_a_connection_and_a_copy_it_fails_soon(hub, client) -> None:
    hub.speaks.clear()
    found = client.load("uoft-cs/cifar10", probe_seconds=0.5)
    assert found["error"] == "DataMissingError"
    assert "the hub cannot be reached, and its cache on this machine has no" in found["message"]
    assert "`path` may name a folder on this machine" in found["message"]
    assert found["seconds"] < 30  # the hub's client alone takes minutes
