"""One example of every answer about tokens; a test holds them against the views."""

from typing import Any

REQUEST: dict[str, Any] = {"name": "ann's laptop", "owner": "ann", "expires_in_s": 2_592_000}

TOKEN: dict[str, Any] = {
    "id": "k3v9x2mq",
    "name": "ann's laptop",
    "owner": "ann",
    "scope": "submit",
    "state": "valid",
    "created_at": "2026-11-22T18:42:06.185000Z",
    "expires_at": "2026-12-22T18:42:06.185000Z",
    "revoked_at": None,
    "last_used_at": None,
}

CREATED = TOKEN | {"token": f"caps_k3v9x2mq_{'0123456789abcdef' * 4}"}

PAGE = {"tokens": [TOKEN], "next_offset": None}
