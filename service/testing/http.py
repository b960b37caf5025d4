"""A small HTTP server of JSON documents on loopback, in threads of this process."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit


class HangUpError(Exception):
    """The connection is cut without an answer."""


Answer = tuple[int, Any]
"""Status and document; a `str` is sent as plain text."""
Answering = Callable[[str, str, dict[str, Any]], Answer]
"""From method, path, and the fields of query and body; may raise HangUpError."""


@contextmanager
def serving(answering: Answering) -> Iterator[str]:
    """Serve; the value is the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            split = urlsplit(self.path)
            try:
                status, document = answering(
                    self.command, split.path, {**dict(parse_qsl(split.query)), **body}
                )
            except HangUpError:
                self.close_connection = True
                return
            self._answer(status, document)

        def _answer(self, status: int, document: Any) -> None:
            text = document if isinstance(document, str) else json.dumps(document)
            kind = "text/plain" if isinstance(document, str) else "application/json"
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = _serve  # noqa: N815

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

        def handle(self) -> None:
            """A client that was killed is no error of ours."""
            try:
                super().handle()
            except ConnectionError:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
