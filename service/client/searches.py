"""The client's calls about searches."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from service.api.search_views import (
    ConfigurationPage,
    ConfigurationView,
    SearchItem,
    SearchPage,
    SearchView,
    TrialPage,
    TrialView,
)
from service.api.views import JobView
from service.client.jobs import LogChunk, filters, log_chunk
from service.client.transport import Transport, json_body
from workers.search_preview import SearchPreview
from workers.search_specs import SearchSpec


class SearchCalls(Transport):
    """Submit, look at trials, promote; the verbs of jobs work for searches too."""

    def submit_search(
        self, spec: SearchSpec | Mapping[str, Any], *, key: str | None = None
    ) -> SearchView:
        """Queue a search, once for a `key`, as `submit` does."""
        answer = self._submit("/v1/searches", spec, key)
        return self._parsed(answer, SearchView.model_validate_json)

    def preview(self, spec: SearchSpec | Mapping[str, Any]) -> SearchPreview:
        """What a search would amount to; nothing is queued."""
        answer = self._call("POST", "/v1/searches/preview", **json_body(spec))
        return self._parsed(answer, SearchPreview.model_validate_json)

    def search(self, search_id: str) -> SearchView:
        """Look at a search."""
        answer = self._call("GET", _path(search_id))
        return self._parsed(answer, SearchView.model_validate_json)

    def searches(
        self,
        *,
        experiment: str | None = None,
        labels: Mapping[str, str] | None = None,
        states: Sequence[str] = (),
        owner: str | None = None,
        page_size: int = 50,
    ) -> Iterator[SearchItem]:
        """All searches that fit, the newest first, read page by page."""
        query = filters(experiment, labels, states, page_size, owner)
        while True:
            answer = self._call("GET", "/v1/searches", params=query)
            page = self._parsed(answer, SearchPage.model_validate_json)
            yield from page.searches
            if page.next_cursor is None:
                return
            query["cursor"] = page.next_cursor

    def trials(
        self,
        search_id: str,
        *,
        states: Sequence[str] = (),
        configuration: int | None = None,
        order_by: str | None = None,
        page_size: int = 100,
    ) -> Iterator[TrialView]:
        """A search's trials, the best first unless `order_by` says otherwise."""
        query: dict[str, Any] = {"state": list(states), "limit": page_size}
        if configuration is not None:
            query["configuration"] = configuration
        if order_by is not None:
            query["order_by"] = order_by
        while True:
            answer = self._call("GET", _path(search_id, "trials"), params=query)
            page = self._parsed(answer, TrialPage.model_validate_json)
            yield from page.trials
            if page.next_offset is None:
                return
            query["offset"] = page.next_offset

    def trial_log(
        self, search_id: str, number: int, offset: int = 0, attempt: int | None = None
    ) -> LogChunk:
        """Some of a trial's log, from a byte offset on."""
        query = {"offset": offset} | ({} if attempt is None else {"attempt": attempt})
        path = _path(search_id, "trials", str(number), "logs")
        answer = self._call("GET", path, params=query)
        return self._parsed(answer, lambda content: log_chunk(content, answer.headers))

    def configurations(
        self, search_id: str, *, limit: int = 100, offset: int = 0
    ) -> list[ConfigurationView]:
        """The leaderboard's `limit` places from `offset` on, the best first."""
        query = {"limit": limit, "offset": offset}
        answer = self._call("GET", _path(search_id, "configurations"), params=query)
        return self._parsed(answer, ConfigurationPage.model_validate_json).configurations

    def retry_failed(self, search_id: str) -> SearchView:
        """Run the failed trials of an ended search again."""
        answer = self._call("POST", _path(search_id, "retry-failed"))
        return self._parsed(answer, SearchView.model_validate_json)

    def promote(
        self,
        search_id: str,
        *,
        configuration: int | None = None,
        changes: Mapping[str, Any] | None = None,
        name: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int | None = None,
        key: str | None = None,
    ) -> JobView:
        """Queue a training from the best configuration, with `changes` of fields by path."""
        wish: dict[str, Any] = {
            "configuration": configuration,
            "set": dict(changes or {}),
            "name": name,
            "labels": dict(labels or {}),
            "priority": priority,
        }
        answer = self._submit(_path(search_id, "promote"), wish, key)
        return self._parsed(answer, JobView.model_validate_json)


def _path(search_id: str, *below: str) -> str:
    return "/".join(["/v1/searches", quote(search_id, safe=""), *below])
