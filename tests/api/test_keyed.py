"""Who may not call is told so first, whatever else is wrong with what they sent: it is nobody else's to know."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from tests.api.studio import Studio

pytestmark = pytest.mark.anyio

OPEN: Final = {
    *("/", "/console", "/console/", "/docs", "/docs/", "/openapi.json", "/healthz", "/readyz"),
    *("/files/x", "/fal/uploads/x/x", "/inference-model-information/list"),
}
ANY_KEY: Final = {
    *("/console/api/me", "/console/api/estimate", "/api/auth/authenticate", "/v1/x", "/v2/x"),
    *("/v1/models", "/v1/models/x"),
    "/fal/proxy",  # which leads to others that ask for more
}
ONLY_BFL: Final = "/v1/flux-kontext-pro"
"""A path for those only who show their key as that vendor's clients do."""
NAMES: Final = ("days", "limit", "page", "status", "width", "from", "from_date", "start_date", "previews", "before")


def calls(studio: Studio) -> Iterator[tuple[str, str]]:
    """Every method of every path that the app serves."""
    for route in iter_route_contexts(studio.app.routes):
        for method in sorted((route.methods or set()) - {"HEAD"}):  # mounts of files have none
            yield method, re.sub(r"{[^}]*}", "x", str(route.path))


async def nonsense(client: httpx2.AsyncClient, method: str, path: str, key: str) -> httpx2.Response:
    shown = {"x-api-key": "", "x-key": key} if path == ONLY_BFL else {"x-api-key": key}
    headers = {**shown, "content-type": "application/json"}
    return await client.request(method, path, params=dict.fromkeys(NAMES, "?"), content=b'{"', headers=headers)


async def test_whoever_has_no_key_is_told_so_first(studio: Studio, client: httpx2.AsyncClient) -> None:
    """On every path but the open ones."""
    seen = set()
    for method, path in calls(studio):
        answer = await nonsense(client, method, path, "")
        assert (answer.status_code == 401) is (path not in OPEN), (method, path, answer.text)
        seen.add(path)
    assert len(seen) > 45
    assert seen >= OPEN | ANY_KEY


async def test_whose_key_lacks_the_scope_is_told_so_first(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Of the keys that only read and only edit each path lets one in, those for operators neither."""
    keys = {scope: studio.new_key(scopes=frozenset({scope})).secret for scope in ("edit", "read")}
    for method, path in calls(studio):
        if path in OPEN:
            continue
        refused = set()
        for scope, key in keys.items():
            answer = await nonsense(client, method, path, key)
            if answer.status_code == 403:
                assert "scope_missing" in answer.text
                refused.add(scope)
        expected = 0 if path in ANY_KEY else 2 if "/admin/" in path or path == "/metrics" else 1
        assert len(refused) == expected, (method, path, refused)
