"""Downloads from a local web server: once, whole and verified, whatever goes wrong."""

import gzip
import hashlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from capsmodel.config import MnistConfig
from capsmodel.datasets import DataCorruptError, DataMissingError, download, load_dataset, mnist
from capsmodel.datasets.download import LOCK_NAME, RemoteFile, fetch

CONTENT = bytes(range(256)) * 20


class Handler(BaseHTTPRequestHandler):
    """Answers as the server's `faults` say, else with the file."""

    server: "FileServer"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        content = self.server.files.get(self.path)
        faults = self.server.faults.get(self.path)
        if faults:
            faults.pop(0)(self, content)
        elif content is None:
            self.send_error(404)
        else:
            self.begin(len(content))
            self.wfile.write(content)

    def begin(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


class FileServer(ThreadingHTTPServer):
    """Serves bytes on loopback and remembers what was asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Callable[[Handler, bytes], None]]] = {}
        self.requests: list[str] = []
        self.released = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


def cut_off(handler: Handler, content: bytes) -> None:
    handler.begin(len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def stall(handler: Handler, content: bytes) -> None:
    handler.begin(len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.server.released.wait(60)


def other_bytes(handler: Handler, content: bytes) -> None:
    handler.begin(5)
    handler.wfile.write(b"other")


def unavailable(handler: Handler, content: bytes) -> None:
    handler.send_error(503)


def no_http(handler: Handler, content: bytes) -> None:
    handler.wfile.write(b"no HTTP at all\r\n\r\n")
    handler.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("CAPS_DATA_MIRROR", raising=False)
    with FileServer() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.released.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def closed_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def check(expected: bytes, content: bytes, source: str) -> None:
    if content != expected:
        raise DataCorruptError(f"{source} is {len(content)} bytes of another file")


FILE = RemoteFile("file", partial(check, CONTENT))


def held(folder: Path) -> list[str]:
    """Names of what lies in the folder beside the lock."""
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK_NAME)


class TestMirrors:
    def test_the_first_mirror_gives_all_files(self, server, tmp_path) -> None:
        server.files = {"/a/file": CONTENT, "/a/second": b"2"}
        files = [FILE, RemoteFile("second", partial(check, b"2"))]
        fetch("Set", tmp_path / "set", files, [f"{server.url}/a", f"{server.url}/b/"])
        assert (tmp_path / "set" / "file").read_bytes() == CONTENT
        assert server.requests == ["/a/file", "/a/second"]

    @pytest.mark.parametrize("fault", [cut_off, other_bytes, unavailable, no_http])
    def test_after_a_fault_the_next_mirror_is_asked(self, server, tmp_path, fault) -> None:
        server.files = {"/a/file": CONTENT, "/b/file": CONTENT}
        server.faults["/a/file"] = [fault]
        fetch("Set", tmp_path, [FILE], [f"{server.url}/a/", f"{server.url}/b/"])
        assert server.requests == ["/a/file", "/b/file"]
        assert held(tmp_path) == ["file"]
        assert (tmp_path / "file").read_bytes() == CONTENT

    def test_a_mirror_that_failed_is_asked_last_from_then_on(self, server, tmp_path) -> None:
        server.files = {"/b/file": CONTENT, "/a/second": b"2", "/b/second": b"2"}
        files = [FILE, RemoteFile("second", partial(check, b"2"))]
        fetch("Set", tmp_path, files, [f"{server.url}/a/", f"{server.url}/b/"])
        assert server.requests == ["/a/file", "/b/file", "/b/second"]

    def test_a_closed_port_moves_on_to_the_next_mirror(self, server, tmp_path, closed_port) -> None:
        server.files = {"/file": CONTENT}
        fetch("Set", tmp_path, [FILE], [closed_port, server.url])
        assert held(tmp_path) == ["file"]

    def test_silence_ends_a_transfer(self, server, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(download, "TIMEOUT_SECONDS", 0.2)
        server.files = {"/a/file": CONTENT, "/b/file": CONTENT}
        server.faults["/a/file"] = [stall]
        start = time.monotonic()
        fetch("Set", tmp_path, [FILE], [f"{server.url}/a/", f"{server.url}/b/"])
        assert time.monotonic() - start < 10
        assert held(tmp_path) == ["file"]

    def test_the_mirror_of_the_environment_comes_first(self, server, tmp_path, monkeypatch) -> None:
        server.files = {"/lab/set/file": CONTENT, "/a/file": CONTENT}
        monkeypatch.setenv("CAPS_DATA_MIRROR", f"{server.url}/lab")
        fetch("Set", tmp_path / "set", [FILE], [f"{server.url}/a/"])
        assert server.requests == ["/lab/set/file"]

    def test_a_mirror_of_the_environment_without_http_is_refused(
        self, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setenv("CAPS_DATA_MIRROR", "lab/data")
        with pytest.raises(DataMissingError, match=r"CAPS_DATA_MIRROR is 'lab/data', .* http://"):
            fetch("Set", tmp_path, [FILE], [])

    def test_a_proxy_of_the_environment_is_asked(self, server, tmp_path, monkeypatch) -> None:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setattr(
            urllib.request, "_opener", None
        )  # it knows the proxies of its first use
        server.files = {"http://mirror.invalid/file": CONTENT}
        fetch("Set", tmp_path, [FILE], ["http://mirror.invalid/"])
        assert held(tmp_path) == ["file"]

    def test_files_that_are_there_are_not_asked_for(self, server, tmp_path) -> None:
        (tmp_path / "file").write_bytes(b"there")
        fetch("Set", tmp_path, [FILE], [server.url])
        assert server.requests == []


class TestFailures:
    def test_the_error_says_what_each_mirror_said_and_what_to_do(
        self, server, tmp_path, closed_port
    ) -> None:
        server.files = {"/a/file": CONTENT, "/c/file": CONTENT}
        server.faults = {"/a/file": [cut_off], "/c/file": [other_bytes]}
        folder = tmp_path / "data" / "set"
        mirrors = [closed_port, *(f"{server.url}/{name}/" for name in "abc")]
        with pytest.raises(DataMissingError) as caught:
            fetch("Set", folder, [FILE], mirrors, hint="; or ask")
        for part in (
            f"Set: file is not in {folder}",
            f"{closed_port}/file: [Errno ",
            f"{server.url}/a/file: cut off after 2560 bytes, 2560 more were announced",
            f"{server.url}/b/file: HTTP status 404",
            f"{server.url}/c/file: what it sent is 5 bytes of another file",
            f"put file from {' or '.join(mirrors)} into that folder",
            "CAPS_DATA_DIR",
            "CAPS_DATA_MIRROR",
            "; or ask",
        ):
            assert part in str(caught.value)
        assert held(folder) == []

    def test_the_files_before_the_failure_stay(self, server, tmp_path) -> None:
        server.files = {"/file": CONTENT}
        with pytest.raises(DataMissingError, match="second is not in"):
            fetch("Set", tmp_path, [FILE, RemoteFile("second", partial(check, b""))], [server.url])
        assert held(tmp_path) == ["file"]

    def test_a_wrong_checksum_is_told_with_both_digests(
        self, server, tmp_path, monkeypatch
    ) -> None:
        monkeypatch.setattr(mnist, "MNIST", replace(mnist.MNIST, mirrors=(server.url,)))
        name = "train-images-idx3-ubyte"
        server.files = {f"/{name}.gz": gzip.compress(b"other digits")}
        with pytest.raises(DataMissingError) as caught:
            load_dataset(MnistConfig(), tmp_path)
        assert hashlib.md5(b"other digits").hexdigest() in str(caught.value)
        assert mnist.MNIST.md5[name] in str(caught.value)
        assert held(tmp_path / "mnist") == []

    def test_a_folder_that_cannot_be_made(self, server, tmp_path) -> None:
        (tmp_path / "data").write_bytes(b"a file in its place")
        with pytest.raises(
            DataMissingError, match=r"Set needs file, but .*data/set cannot be written: .*_DIR"
        ):
            fetch("Set", tmp_path / "data" / "set", [FILE], [server.url])
        assert server.requests == []

    def test_a_disk_that_is_full_leaves_nothing(self, server, tmp_path) -> None:
        """A limit on the size of files stands for it: writing fails in the middle."""
        big = bytes(4_000_000)
        server.files = {"/file": big}
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, limits[1]))
        try:
            with pytest.raises(DataMissingError, match=r"cannot be written: .* Free some space"):
                fetch("Set", tmp_path, [RemoteFile("file", partial(check, big))], [server.url])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert held(tmp_path) == []


FOUR_PROCESSES = """
import json, multiprocessing, os, sys
from pathlib import Path
from capsmodel.config import MnistConfig
from capsmodel.datasets import load_dataset

def load(_):
    together.wait()
    return os.getpid(), load_dataset(MnistConfig(), Path(sys.argv[1])).sha256

context = multiprocessing.get_context("fork")
together = context.Barrier(4)
with context.Pool(4) as pool:
    print(json.dumps(pool.map(load, range(4), chunksize=1)))
"""
DOWNLOADER = """
import sys
from pathlib import Path
from capsmodel.datasets.download import RemoteFile, fetch

fetch("Set", Path(sys.argv[1]), [RemoteFile("file", lambda *_: None)], [sys.argv[2]])
"""


def packed_file(folder: Path, name: str) -> bytes:
    """A file of MNIST as a mirror has it, whether it lies in the folder plain or compressed."""
    plain = folder / name
    if plain.is_file():
        return gzip.compress(plain.read_bytes(), compresslevel=1)
    return (folder / f"{name}.gz").read_bytes()


class TestProcesses:
    @pytest.mark.slow
    def test_four_processes_download_the_whole_of_mnist_once(
        self, server, tmp_path, mnist_folder
    ) -> None:
        packed = {
            f"{name}.gz": packed_file(mnist_folder / "mnist", name) for name in mnist.MNIST.md5
        }
        server.files = {f"/mnist/{name}": content for name, content in packed.items()}
        environment = os.environ | {"CAPS_DATA_MIRROR": server.url, "OMP_NUM_THREADS": "1"}
        ran = subprocess.run(
            [sys.executable, "-c", FOUR_PROCESSES, str(tmp_path)],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        found = json.loads(ran.stdout)
        assert len({pid for pid, _ in found}) == 4
        assert {digest for _, digest in found} == {load_dataset(MnistConfig(), mnist_folder).sha256}
        assert sorted(server.requests) == sorted(server.files)
        assert held(tmp_path / "mnist") == sorted(packed)
        for name, content in packed.items():
            assert (tmp_path / "mnist" / name).read_bytes() == content

    def test_a_killed_downloader_blocks_nobody(self, server, tmp_path) -> None:
        server.files = {"/file": CONTENT}
        server.faults["/file"] = [stall]
        killed = subprocess.Popen([sys.executable, "-c", DOWNLOADER, str(tmp_path), server.url])
        try:
            deadline = time.monotonic() + 60
            while not server.requests:
                assert time.monotonic() < deadline, "it never asked"
                time.sleep(0.01)
            with pytest.raises(Timeout):
                FileLock(tmp_path / LOCK_NAME).acquire(timeout=0)
        finally:
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        assert held(tmp_path) == []
        start = time.monotonic()
        fetch("Set", tmp_path, [FILE], [server.url])
        assert time.monotonic() - start < 5
        assert held(tmp_path) == ["file"]
        assert server.requests == ["/file", "/file"]

    def test_what_a_process_killed_while_writing_left_is_replaced(self, server, tmp_path) -> None:
        (tmp_path / "file.part").write_bytes(CONTENT[:100])
        server.files = {"/file": CONTENT}
        fetch("Set", tmp_path, [FILE], [server.url])
        assert held(tmp_path) == ["file"]
        assert (tmp_path / "file").read_bytes() == CONTENT


def test_nothing_is_asked_for_offline(tmp_path, monkeypatch) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("asked for over the network")

    monkeypatch.setattr(urllib.request, "urlopen", asked)
    monkeypatch.setenv("CAPS_OFFLINE", "1")
    with pytest.raises(DataMissingError, match="nothing is downloaded: CAPS_OFFLINE is 1") as error:
        load_dataset(MnistConfig(), tmp_path)
    assert "train-images-idx3-ubyte.gz" in str(error.value)
    assert str(tmp_path / "mnist") in str(error.value)
    assert not (tmp_path / "mnist").exists()
