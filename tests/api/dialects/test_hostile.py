"""Whatever stands in any field, header or path of a dialect, the caller is told in that dialect, and it is no 500."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from itertools import product
from typing import Any, Final

import httpx2
import orjson
import pytest
from starlette.routing import Route

from rekontext.api.dialects import DIALECTS, Dialect
from tests.api.dialects.fal_calls import URI
from tests.api.studio import Studio

pytestmark = pytest.mark.anyio

_DEEP: Final = 1000
"""Lists in lists: more than most of Python's own functions go into, less than the JSON parser refuses."""
VALUES: Final = (
    b"null",
    b"true",
    b"-0.0",
    b"1e308",
    b"1e999",
    b"NaN",
    b"18446744073709551616",
    b'""',
    b'"\\u0000"',
    b'"\\ud800"',
    b'"data:,"',
    b'"http://[::1"',
    b'"http://127.0.0.1:1/x"',
    b'"http://studio/files/%00?expires=99999999999&signature=x"',
    b'"' + b"x" * 20_000 + b'"',
    b"[null]",
    b'{"image_url": {"url": [1]}}',
    b'{"width": true, "height": 0}',
    b"[" * _DEEP + b"]" * _DEEP,
    b'{"a":' * _DEEP + b"1" + b"}" * _DEEP,
)
FEW: Final = (b"true", b'"\\u0000"', b'"http://127.0.0.1:1/x"', b"[null]")
OTHERS: Final = (
    *("images", "image_urls", "model", "version", "n", "size", "stream", "partial_images", "response_format"),
    *("background", "mask", "negative_prompt", "sync_mode", "enable_safety_checker", "num_images", "webhook"),
    *("webhook_events_filter", "input", "parameters", "target_size", "inputs", "file_name", "webhook_secret", "auth"),
)
"""Fields that a dialect reads beside those that it has names for."""
IDS: Final = ("x", "%00", "%ff", "%0A", "%25", "a" * 3000)
HEADERS: Final = (
    {"prefer": "wait=" + "9" * 5000},
    {"idempotency-key": ""},
    {"last-event-id": "1:output"},
    {"content-encoding": "gzip"},
    {"content-type": "multipart/form-data"},
    {"content-type": "application/jsonx"},
    {"host": "x/y?"},
)
QUERIES: Final = ("cursor=%00", "signature=%ff&expires=1", "id=%00", "fal_webhook=http://[", "fal_webhook=data:,x")
JSON: Final = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def studio(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Studio]:
    """One for all, in which edits cost nothing."""
    folder = tmp_path_factory.mktemp("hostile")
    studio = Studio(folder=folder, settings={"price_per_edit_usd": 0, "fetch_timeout_s": 1})
    async with studio.open():
        yield studio


@pytest.fixture(scope="module")
async def client(studio: Studio) -> AsyncIterator[httpx2.AsyncClient]:
    async with studio.client() as client:
        yield client


def paths(dialect: Dialect, studio: Studio) -> Iterator[tuple[str, str]]:
    """Each method and path of a dialect, the names of models in it filled in."""
    owner = "fal-ai" if dialect.name == "fal" else "black-forest-labs"
    name = {"{owner}": owner, "{alias}": "flux-kontext", "{name}": "flux-kontext-dev"}
    for route in dialect.routes(studio.service.parts):
        assert isinstance(route, Route)
        path = route.path.replace("{app:path}", "fal-ai/flux-kontext/dev")
        for placeholder, said in name.items():
            path = path.replace(placeholder, said)
        for method in sorted((route.methods or set()) - {"HEAD"}):
            yield method, path


def shown(dialect: Dialect, studio: Studio) -> dict[str, str]:
    """The headers of a request in it: one dialect has paths of ours, another one path for all."""
    own = {"x-key": studio.key} if dialect.name == "bfl" else {}
    return JSON | own | {"x-fal-target-url": "https://fal.run/fal-ai/flux-kontext/dev"}


def check(dialect: Dialect, answer: httpx2.Response) -> None:
    """That it is no fault of ours, and, if it is a failure, told in this dialect."""
    asked = f"{answer.request.method} {answer.request.url!s:.200}: {answer.status_code} {answer.text[:200]}"
    assert answer.status_code < 500, asked
    if answer.status_code >= 400:
        said = answer.json()
        fields: dict[str, Any] = {
            "openai": {"error": dict},
            "replicate": {"title": str, "detail": str, "status": int},
            "fal": {"detail": (str, list), "message": str, "error_type": str},
            "bfl": {"detail": str, "message": str},
            "huggingface": {"error": str},
        }
        assert all(isinstance(said.get(name), kind) for name, kind in fields[dialect.name].items()), asked


def body(fields: dict[str, bytes]) -> bytes:
    return b"{" + b",".join(orjson.dumps(name) + b":" + value for name, value in fields.items()) + b"}"


@pytest.mark.parametrize("dialect", DIALECTS, ids=[each.name for each in DIALECTS])
async def test_no_value_in_any_field_is_too_much(studio: Studio, client: httpx2.AsyncClient, dialect: Dialect) -> None:
    """In all fields at once, and in one of a request that is good otherwise."""
    names = [*dialect.vocabulary.names.values(), *OTHERS]
    picture = orjson.dumps(URI)
    good = {"prompt": b'"x"', **dict.fromkeys(("image", "image_url", "input_image", "inputs"), picture)}
    good |= {"version": b'"black-forest-labs/flux-kontext-dev"'}
    nested = ("input", "parameters")
    bodies = [body(dict.fromkeys(names, value)) for value in VALUES]
    bodies += [body(good | {top: body(dict.fromkeys(names, value)) for top in nested}) for value in VALUES]
    for name, value in product(names, FEW):
        inner = body(good | {name: value})
        bodies.append(body(good | dict.fromkeys(nested, inner) | {name: value}))
    for method, path in paths(dialect, studio):
        if method == "POST" and "{" not in path and not path.endswith("/proxy"):
            for each in bodies:
                check(dialect, await client.post(path, content=each, headers=shown(dialect, studio)))


@pytest.mark.parametrize("dialect", DIALECTS, ids=[each.name for each in DIALECTS])
async def test_no_path_header_or_query_is_too_much(
    studio: Studio, client: httpx2.AsyncClient, dialect: Dialect
) -> None:
    """With a body that is none, too, and where a path takes another method."""
    for method, path in paths(dialect, studio):
        named = [re.sub(r"\{\w+\}", each, path) for each in (IDS if "{" in path else IDS[:1])]
        tried: list[tuple[str, str, dict[str, str]]] = [(method, each, {}) for each in named]
        tried += [(method, named[0], each) for each in HEADERS]
        tried += [(method, f"{named[0]}?{each}", {}) for each in QUERIES]
        tried += [("PATCH", each, {}) for each in named]
        for verb, target, headers in tried:
            sent = shown(dialect, studio) | headers
            check(dialect, await client.request(verb, target, headers=sent, content=b"[" * 5000))


TARGETS: Final = (
    "",
    "https://[",
    "https://fal.run",
    "https://fal.run/../proxy",
    "https://fal.run/%00",
    "https://fal.run/%ed%a0%80?%ff",
    "https://fal.run@elsewhere/",
    "https://queue.fal.run/fal-ai/flux-kontext/requests/%0A/status",
    "https://queue.fal.run/fal-ai/flux-kontext/requests/x/status/stream",
    "https://rest.fal.ai/../uploads/x/y",
    "http://127.0.0.1/",
)


async def test_no_target_of_the_proxy_is_too_much(studio: Studio, client: httpx2.AsyncClient) -> None:
    """None is called, and none leads to a path that isn't the vendor's."""
    [fal] = [each for each in DIALECTS if each.name == "fal"]
    for target, method in product(TARGETS, ("GET", "POST", "PUT")):
        headers = JSON | {"x-fal-target-url": target}
        answer = await client.request(method, "/fal/proxy", headers=headers, content=b"{}")
        assert answer.status_code in (404, 405, 422), (target, method, answer.text)
        check(fal, answer)
