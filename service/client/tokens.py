"""The client's calls about tokens, for administrators."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from service.api.token_views import CreatedTokenView, TokenPage, TokenView
from service.client.transport import Transport, json_body


class TokenCalls(Transport):
    """Make, list, revoke."""

    def create_token(
        self,
        name: str,
        *,
        owner: str | None = None,
        scope: str = "submit",
        expires_in_s: int | None = None,
    ) -> CreatedTokenView:
        """A new token, which the answer tells and nothing else ever will."""
        wish = {"name": name, "owner": owner, "scope": scope, "expires_in_s": expires_in_s}
        answer = self._call("POST", "/v1/tokens", **json_body(wish))
        return self._parsed(answer, CreatedTokenView.model_validate_json)

    def tokens(self, *, owner: str | None = None, page_size: int = 100) -> Iterator[TokenView]:
        """All tokens, the newest first, also those that are no longer good."""
        query: dict[str, Any] = {"limit": page_size} | ({} if owner is None else {"owner": owner})
        while True:
            answer = self._call("GET", "/v1/tokens", params=query)
            page = self._parsed(answer, TokenPage.model_validate_json)
            yield from page.tokens
            if page.next_offset is None:
                return
            query["offset"] = page.next_offset

    def token(self, token_id: str) -> TokenView:
        """Look at a token."""
        answer = self._call("GET", _path(token_id))
        return self._parsed(answer, TokenView.model_validate_json)

    def revoke_token(self, token_id: str) -> None:
        """Within 5 s nobody takes it any more; repeat it as you like."""
        self._call("DELETE", _path(token_id))


def _path(token_id: str) -> str:
    return f"/v1/tokens/{quote(token_id, safe='')}"
