"""/docs and the OpenAPI document say what the API does, and reading them calls no other host."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final
from unittest.mock import ANY

import httpx2
import pytest
from starlette.routing import Route

from rekontext.accounts import AccountRefused
from rekontext.api import dialects, plain, web
from rekontext.api.parameters import FILES_MAX, parse
from rekontext.api.problems import ALLOWED
from rekontext.contract import ASPECT_RATIOS, EditRefused
from rekontext.jobs import JobRefused
from rekontext.jobs.endpoints import URL_CHARACTERS_MAX
from rekontext.pictures import PictureRefused
from tests.api.studio import SOON_S, Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio


async def test_the_document_has_every_parameter_with_its_range_and_default(client: httpx2.AsyncClient) -> None:
    """Names, ranges, choices and defaults as the checks have them, for both kinds of body."""
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/flux-kontext-dev"]["post"]
    for content_type in ("application/json", "multipart/form-data"):
        schema = operation["requestBody"]["content"][content_type]["schema"]
        properties = schema["properties"]
        assert sorted(schema["required"]) == ["input_image", "prompt"]
        none = [None] if content_type == "application/json" else []
        assert properties["aspect_ratio"]["enum"] == [*ASPECT_RATIOS, *none]
        assert properties["output_format"]["enum"] == ["webp", "jpg", "png", *none]
        ranges = {
            name: (each.get("minimum"), each.get("maximum"), each.get("default")) for name, each in properties.items()
        }
        assert ranges["guidance"] == (0, 10, 7.0)
        assert ranges["num_inference_steps"] == (4, 50, 35)
        assert ranges["output_quality"] == (0, 100, 90)
        assert [each.get("minimum") for each in properties["seed"]["anyOf"]] == [-1, None]
        assert properties["input_image"]["type"] == "string"
    assert set(operation["responses"]) == {
        "200",
        "400",
        "401",
        "403",
        "404",
        "406",
        "409",
        "413",
        "415",
        "422",
        "429",
        "500",
        "503",
        "504",
    }
    assert {"x-request-id", "x-seed-value"} <= set(operation["responses"]["200"]["headers"])
    assert document["components"]["securitySchemes"]["APIKeyHeader"]["name"] == "x-api-key"


async def test_null_stands_in_the_document_for_what_may_be_null(client: httpx2.AsyncClient) -> None:
    """And for nothing else: clients made from the document send it, or refuse to."""
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path in ("/v1/flux-kontext-dev", "/v2/flux-kontext-dev"):
        body = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(body["properties"]) == set(ALLOWED)
        for name, described in body["properties"].items():
            _, problems = parse({"input_image": "aGk=", "prompt": "x", name: None})
            assert _takes_null(described) == (not problems), f"{path}: {name} is described as {described}"


def _takes_null(described: dict[str, Any]) -> bool:
    """Whether null fits what JSON Schema says of a field."""
    if "anyOf" in described:
        return any(map(_takes_null, described["anyOf"]))
    kinds = described["type"]
    return "null" in ([kinds] if isinstance(kinds, str) else kinds) and None in described.get("enum", [None])


PAGES: Final = {
    page.stem: page.read_text(encoding="utf-8") for page in (Path(__file__).parents[2] / "docs/api").glob("*.md")
}
CALLS: Final = PAGES["README"].partition("## All calls\n")[2]
CALL: Final = re.compile(r"`(GET|POST|PUT|PATCH|DELETE) (/[^`?]*)[^`]*`")


def section(page: str, heading: str) -> str:
    """What a page says under one of its headings."""
    _, found, after = PAGES[page].partition(f"\n## {heading}\n")
    assert found, f"{page} has no {heading}"
    return after.partition("\n## ")[0]


@pytest.mark.parametrize(
    ("heading", "schema", "at_times"),
    [
        ("`POST /v2/flux-kontext-dev`", plain.SUBMITTED, set()),
        ("`GET /v2/requests/{id}/status`", plain.STATUS, set()),
        ("`GET /v2/requests/{id}`", plain.RESULT, {"code", "notice"}),
        ("`POST /v2/requests/{id}/cancel`", plain.CANCELLED, set()),
    ],
)
def test_the_examples_on_the_api_s_pages_have_every_field(
    heading: str, schema: dict[str, Any], at_times: set[str]
) -> None:
    """Clients are written from them. What is there at times only stands in the text."""
    example = section("edits", heading).partition("```json\n")[2].partition("```")[0]
    assert set(json.loads(example)) | at_times == set(schema["properties"])


def test_the_api_s_pages_have_every_field_of_an_edit() -> None:
    """A row for each, and none for what there isn't."""
    fields = section("edits", "Fields").partition("### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", fields, re.M)) == set(ALLOWED)


async def test_the_api_s_pages_have_every_call(client: httpx2.AsyncClient) -> None:
    """In the list of all, and on the page that tells of it: what the document has, and nothing else."""
    paths = (await client.get("/openapi.json")).json()["paths"]

    def calls(text: str) -> set[tuple[str, str]]:
        return {(method, _nameless(path)) for method, path in CALL.findall(text)}

    served = {(method.upper(), _nameless(path)) for path, operations in paths.items() for method in operations}
    told = "".join(text for name, text in PAGES.items() if name != "README")
    assert calls(CALLS) == served
    assert served - calls(told) == set()


def _nameless(path: str) -> str:
    """A path without the names of its parameters, which callers never send."""
    return re.sub(r"{\w+}", "{}", path)


async def test_the_api_s_page_has_the_scope_of_every_call(studio: Studio, client: httpx2.AsyncClient) -> None:
    """That with which it lets a key in that has no other."""
    keys = {scope: studio.new_key(scopes=frozenset({scope})).secret for scope in ("edit", "read", "admin")}
    seen = 0
    for named, told in re.findall(r"^\| (.+?) \| (.+?) \|", CALLS, re.M):
        for method, path in CALL.findall(named):
            if path == "/metrics":  # which asks this machine for no key
                continue
            lets_in = []
            for scope, key in {"no key": "", **keys}.items():
                answer = await client.request(method, re.sub(r"{\w+}", "x", path), headers={"x-api-key": key})
                if answer.status_code != 401 and '"scope_missing"' not in answer.text:
                    lets_in.append(scope)
            expected = {"any": [*keys], "no key": ["no key", *keys]}
            assert lets_in == expected.get(told, [told.strip("`")]), f"{method} {path}"
            seen += 1
    assert seen > 50


async def test_the_headers_that_say_when_are_documented_where_they_are_sent(client: httpx2.AsyncClient) -> None:
    """With a submit, a status and what comes instead of a result, in the document and on the page."""
    paths = (await client.get("/openapi.json")).json()["paths"]
    for method, path, status in (
        ("post", "/v2/flux-kontext-dev", "200"),
        ("get", "/v2/requests/{id}/status", "200"),
        ("get", "/v2/requests/{id}", "202"),
    ):
        assert {"x-eta-seconds", "x-queue-position"} <= set(paths[path][method]["responses"][status]["headers"])
        told = section("edits", f"`{method.upper()} {path}`")
        assert "`x-eta-seconds`" in told
        assert "`x-queue-position`" in told


@pytest.mark.parametrize("base", [AccountRefused, JobRefused, EditRefused, PictureRefused])
def test_the_api_s_page_has_every_code_of_a_refusal(base: type[Any]) -> None:
    """A row for each: programs branch on them."""
    codes = {kind.code for kind in base.__subclasses__()}
    assert codes
    assert codes - set(re.findall(r"^\| \d{3} \| `(\w+)`", PAGES["errors"], re.M)) == set()


async def test_the_document_has_every_call(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Those of plain routes too, each under the methods that are served; without a key only the open ones."""
    paths = (await client.get("/openapi.json")).json()["paths"]
    unlisted = {"/", "/console", "/console/", "/docs", "/docs/", "/openapi.json"}
    of_dialects = {getattr(route, "path", "") for route in dialects.routes(studio.service.parts)}
    routes = [route for route in studio.app.routes if type(route) is Route and route.path not in of_dialects]
    plain = {route.path.replace(":path}", "}"): route.methods for route in routes}
    assert len(plain) > 8
    for path, methods in plain.items():
        assert path in unlisted or set(paths[path]) == {each.lower() for each in methods or () if each != "HEAD"}, path
    stranger = {"x-api-key": ""}
    for path, operations in paths.items():
        if "get" in operations and path not in ("/metrics", "/files/{key}"):  # open to this machine; to a link
            status = (await client.get(path, headers=stranger)).status_code
            assert (status == 401) is ("security" in operations["get"]), path


async def test_the_document_says_what_a_link_has(client: httpx2.AsyncClient) -> None:
    """Without either it opens nothing."""
    parameters = (await client.get("/openapi.json")).json()["paths"]["/files/{key}"]["get"]["parameters"]
    assert {each["name"] for each in parameters if each["required"]} == {"key", "expires", "signature"}


@pytest.mark.usefixtures("client")
async def test_the_page_on_other_clients_has_their_paths(studio: Studio) -> None:
    """They are in no OpenAPI document of ours: what is there is their vendors'."""
    page = (Path(__file__).parents[2] / "docs/clients.md").read_text(encoding="utf-8")
    paths = {getattr(route, "path", "") for route in dialects.routes(studio.service.parts)}
    assert {path for path in paths if f"`{re.sub(r':[a-z]+}', '}', path)}`" not in page} == set()


async def test_the_document_speaks_to_callers(client: httpx2.AsyncClient) -> None:
    """Its names become those of generated clients; what is checked stands in it."""
    document = (await client.get("/openapi.json")).json()
    assert [name for name in document["components"]["schemas"] if "__" in name] == []
    assert document["tags"][0]["name"] == "edits", "what most come for stands first"
    for content in document["paths"]["/v2/flux-kontext-dev"]["post"]["requestBody"]["content"].values():
        assert "description" not in content["schema"]
        assert content["schema"]["properties"]["webhook_url"]["anyOf"][0]["maxLength"] == URL_CHARACTERS_MAX
    assert "400" in document["paths"]["/v2/requests/{id}/events"]["get"]["responses"]
    uploads = document["paths"]["/upload-asset"]["post"]["requestBody"]["content"]
    for name, content_type in (("data_urls", "application/json"), ("file", "multipart/form-data")):
        assert uploads[content_type]["schema"]["properties"][name]["maxItems"] == FILES_MAX


async def test_bounds_are_said_in_words_that_json_schema_has(client: httpx2.AsyncClient) -> None:
    """Pydantic leaves its own words where it finds none (`ge` beside a choice of types), and clients pass them over."""
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    text = json.dumps(schemas)
    assert [word for word in ("ge", "le", "gt", "lt", "min_length", "max_length") if f'"{word}":' in text] == []
    credits = schemas["AccountWanted"]["properties"]["credits"]["anyOf"]
    assert credits[0] == {"type": "number", "minimum": 0, "maximum": 1_000_000_000}
    assert [re.search(credits[1]["pattern"], text) is not None for text in ("0.04", "1_5")] == [True, False]
    assert schemas["LimitsWanted"]["properties"]["monthly_cap"]["anyOf"][-1] == {"type": "null"}
    assert schemas["CreditsWanted"]["properties"]["amount"]["anyOf"][0]["minimum"] == -1_000_000_000


async def test_every_call_says_that_it_may_be_refused_or_fail(client: httpx2.AsyncClient) -> None:
    """A key may be wrong or lack a scope, and the database may be away: clients made from the document expect it."""
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            told = set(operation["responses"])
            expected = {"401", "403", "503"} if "security" in operation else set()
            missing = {status for status in expected if not {status, f"{status[0]}XX"} & told}
            assert not missing, f"{method} {path}"


async def test_jobs_are_as_the_document_says(client: httpx2.AsyncClient) -> None:
    """Each document about a job has the fields that it is described with, and no others."""
    paths = (await client.get("/openapi.json")).json()["paths"]

    def properties(path: str, method: str, answer: httpx2.Response) -> set[str]:
        content = paths[path][method]["responses"][str(answer.status_code)]["content"]
        return set(content["application/json"]["schema"]["properties"])

    body = {"prompt": "x", "input_image": base64.b64encode(photo_bytes()).decode(), "num_inference_steps": 4}
    submitted = await client.post("/v2/flux-kontext-dev", json=body)
    assert set(submitted.json()) == properties("/v2/flux-kontext-dev", "post", submitted)
    await client.get(submitted.json()["events_url"])
    status = await client.get(submitted.json()["status_url"])
    assert set(status.json()) == properties("/v2/requests/{id}/status", "get", status)
    result = await client.get(submitted.json()["response_url"])
    assert set(result.json()) | {"code"} == properties("/v2/requests/{id}", "get", result)


async def test_the_page_calls_no_other_host_and_is_guarded_as_the_others(client: httpx2.AsyncClient) -> None:
    """Its script and style come from here. Keys are typed into it, on the origin where those of the pages are kept."""
    answer = await client.get("/docs")
    links = re.findall(r"""(?:src|href)=["']([^"']+)""", answer.text)
    assert links
    for link in links:
        assert link.startswith(("/", "data:"))
        if link.startswith("/"):
            part = await client.get(link)
            assert (part.status_code, part.headers["content-encoding"]) == (200, "gzip")
            assert web.HEADERS.items() <= dict(part.headers).items()
    assert answer.headers.items() >= {**web.HEADERS, "content-security-policy": ANY}.items()
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("path", ["/", "/console", "/web/playground/main.js", "/web/shared/dom.js"])
@pytest.mark.parametrize(
    ("accepted", "is_taken"),
    [
        ("gzip, deflate, br", True),
        ("GZIP;q=0.1", True),
        ("identity;q=0, x-gzip", True),
        ("identity", False),
        ("", False),
        ("gzip;q=0", False),
        ("br, gzip ; Q=0.000", False),
        ("notgzip", False),
    ],
)
async def test_files_come_compressed_to_whoever_takes_that(
    path: str, accepted: str, is_taken: bool, client: httpx2.AsyncClient
) -> None:
    """Nobody else gets gzip; HEAD is told what GET is; and a part of one isn't given."""
    asked = {"accept-encoding": accepted, "range": "bytes=0-9"}
    got, told = [await client.request(method, path, headers=asked) for method in ("GET", "HEAD")]
    assert (got.status_code, got.headers.get("content-encoding")) == (200, "gzip" if is_taken else None)
    assert got.headers["vary"] == "Accept-Encoding"
    plain = await client.get(path, headers={"accept-encoding": "identity"})
    assert got.text == plain.text
    assert (int(got.headers["content-length"]) < len(plain.content)) is is_taken
    ours = {"date", "x-request-id"}
    heads = [{name: value for name, value in each.headers.items() if name not in ours} for each in (told, got)]
    assert heads[0] == heads[1]
    assert told.content == b""


@pytest.mark.parametrize("path", ["/", "/console", "/web/playground/main.js"])
async def test_a_file_that_is_there_already_is_not_sent_again(path: str, client: httpx2.AsyncClient) -> None:
    """A page neither; compressed or not."""
    for accepted in ("gzip", "identity"):
        asked = {"accept-encoding": accepted}
        tag = (await client.get(path, headers=asked)).headers["etag"]
        again = await client.get(path, headers=asked | {"if-none-match": tag})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert web.HEADERS.items() <= dict(again.headers).items()


def test_the_wire_does_not_import_torch() -> None:
    """The service runs where no engine is installed."""
    check = "import sys, rekontext.api, rekontext.assembly; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False, timeout=SOON_S).returncode == 0


async def test_trying_a_form_out_sends_nothing_that_nobody_wrote(client: httpx2.AsyncClient) -> None:
    """The page fills fields in: an optional one is left out if its example is empty, else it has a value made up."""
    document = (await client.get("/openapi.json")).json()
    body = document["paths"]["/v1/flux-kontext-dev"]["post"]["requestBody"]["content"]
    form = body["multipart/form-data"]["schema"]["properties"]
    made_up = {name for name, field in form.items() if field.get("default") is None and field.get("example") != ""}
    assert made_up == {"input_image", "prompt", "seed"}  # of seed it makes up -1, which is a random one
