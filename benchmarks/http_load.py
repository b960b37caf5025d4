"""A cheap load on an HTTP server: many keep-alive connections, each asks again when answered.

`python -m benchmarks.http_load < ORDER` runs the JSON order of standard input, an `Order`, and
prints the latencies as JSON. It parses no more of an answer than it must: it shares the machine's
cores with what it measures.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Order:
    """What to send."""

    url: str
    """The server, as http://127.0.0.1:8000."""
    paths: list[str]
    """Sent in turn."""
    clients: int
    requests: int
    """In all."""
    bodies: list[str] = field(default_factory=list)
    """Sent in turn by POST; without any it is GET."""
    pause_s: float = 0.0
    """A client's time between two of its sends, where the answer does not take longer."""
    keys: str = ""
    """Begins the Idempotency-Key of each request, where it is not empty."""


@dataclass(frozen=True)
class Load:
    """What came back."""

    seconds: float
    latencies_s: list[float]
    statuses: dict[str, int]


class Client(asyncio.Protocol):
    """One connection; one request at a time."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._answered: asyncio.Future[int] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the connection."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """Fail what is waited for."""
        if self._answered and not self._answered.done():
            self._answered.set_exception(ConnectionError(str(error)))

    def data_received(self, data: bytes) -> None:
        """Gather one answer: its head, and as many bytes as that names."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._buffer[:end]).lower()
        _, _, rest = head.partition(b"content-length:")
        length = int(rest.partition(b"\r\n")[0])
        if len(self._buffer) >= end + 4 + length:
            self._buffer.clear()
            assert self._answered is not None
            self._answered.set_result(int(head[9:12]))

    def send(self, request: bytes) -> "asyncio.Future[int]":
        """Send it; the future has the answer's status."""
        assert self._transport is not None
        self._answered = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answered


def request(order: Order, number: int) -> bytes:
    """The bytes of the request of this number."""
    host = urlsplit(order.url).netloc
    path = order.paths[number % len(order.paths)]
    body = order.bodies[number % len(order.bodies)].encode() if order.bodies else b""
    lines = [f"{'POST' if body else 'GET'} {path} HTTP/1.1", f"Host: {host}"]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    if order.keys:
        lines.append(f"Idempotency-Key: {order.keys}-{number}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def run(order: Order) -> Load:
    """Send all requests by all clients, and wait for the last answer."""
    address = urlsplit(order.url)
    loop = asyncio.get_running_loop()
    numbers = iter(range(order.requests))
    latencies: list[float] = []
    statuses: Counter[int] = Counter()

    async def work(client: Client, delay: float) -> None:
        await asyncio.sleep(delay)
        for number in numbers:
            content = request(order, number)
            sent = time.perf_counter()
            statuses[await client.send(content)] += 1
            took = time.perf_counter() - sent
            latencies.append(took)
            if order.pause_s > took:
                await asyncio.sleep(order.pause_s - took)

    clients = []
    for _ in range(order.clients):
        _, client = await loop.create_connection(Client, address.hostname, address.port)
        clients.append(client)
    started = time.perf_counter()
    # Clients that pause begin one after the other, evenly; the others all at once.
    delays = [order.pause_s * index / order.clients for index in range(order.clients)]
    await asyncio.gather(*(work(c, d) for c, d in zip(clients, delays, strict=True)))
    seconds = time.perf_counter() - started
    return Load(seconds, latencies, {str(status): n for status, n in statuses.items()})


def main() -> None:
    """Run the order of standard input."""
    order = Order(**json.load(sys.stdin))
    print(json.dumps(asdict(asyncio.run(run(order)))))


if __name__ == "__main__":
    main()
