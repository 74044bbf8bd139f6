"""Every wrong request gets the right status and code, and a sentence that names the fault."""

from __future__ import annotations

import base64
import gzip
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import orjson
import pytest
from PIL import Image

from tests.api.studio import STRANGER, Studio
from tests.pictures.samples import encoded, gradient, photo_bytes

pytestmark = pytest.mark.anyio

URL = "/v1/flux-kontext-dev"
PHOTO = base64.b64encode(photo_bytes()).decode()
GOOD = {"prompt": "make it night", "input_image": PHOTO}
MULTIPART = "multipart/form-data; boundary=x"


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A request and the answer that it must get."""

    name: str
    status: int = 400
    code: str = "invalid_parameters"
    says: str
    parameters: Sequence[str] = ()
    json: object = None
    form: Mapping[str, Any] | None = None
    files: Sequence[tuple[str, Any]] = ()
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    path: str = URL


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx2.AsyncClient]:
    """One studio for all: none of these requests leaves anything behind."""
    studio = Studio(folder=tmp_path_factory.mktemp("bad"))
    async with studio.open() as client:
        yield client
    assert studio.fleet.requests == []


def wrong(parameter: str, value: object, says: str) -> Bad:
    """A JSON request with one wrong parameter."""
    name = f"{parameter}={str(value)[:30]}"
    return Bad(name=name, says=says, parameters=[parameter], json=GOOD | {parameter: value})


def wrong_form(parameter: str, text: str, says: str) -> Bad:
    """A form with one wrong field."""
    name = f"form {parameter}={text[:30]}"
    return Bad(name=name, says=says, parameters=[parameter], form=GOOD | {parameter: text})


def bad_picture(name: str, value: object, says: str, code: str = "unreadable_picture", status: int = 400) -> Bad:
    return Bad(
        name=name, status=status, code=code, says=says, parameters=["input_image"], json=GOOD | {"input_image": value}
    )


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


PNG = encoded(gradient(64, 64))

TABLE = [
    # The key
    Bad(
        name="no key",
        status=401,
        code="missing_api_key",
        says="Missing Authorization or x-api-key",
        json=GOOD,
        headers={"x-api-key": ""},
    ),
    Bad(
        name="a password",
        status=401,
        code="missing_api_key",
        says='send "Bearer" and the key, or the key in the x-api-key header',
        json=GOOD,
        headers={"x-api-key": "", "authorization": "Basic YWxpY2U6c2VjcmV0"},
    ),
    Bad(
        name="a bearer token that is nobody's key",
        status=401,
        code="invalid_api_key",
        says="unknown",
        json=GOOD,
        headers={"x-api-key": "", "authorization": f"Bearer {STRANGER}"},
    ),
    Bad(
        name="somebody's key that is nobody's",
        status=401,
        code="invalid_api_key",
        says="unknown",
        json=GOOD,
        headers={"x-api-key": STRANGER},
    ),
    Bad(
        name="mistyped key",
        status=401,
        code="invalid_api_key",
        says="mistyped",
        json=GOOD,
        headers={"x-api-key": STRANGER + "0"},
    ),
    Bad(
        name="key beyond ASCII",
        status=401,
        code="invalid_api_key",
        says="mistyped",
        json=GOOD,
        headers={"x-api-key": "clé"},
    ),
    # The path
    Bad(
        name="unknown model",
        status=404,
        code="unknown_model",
        says="flux-kontext-dev",
        path="/v1/flux-kontext-max",
        json=GOOD,
    ),
    Bad(name="unknown path", status=404, code="not_found", says="/docs", path="/v9/nothing", json=GOOD),
    Bad(name="trailing slash", status=404, code="not_found", says="/docs", path=URL + "/", json=GOOD),
    Bad(
        name="unknown model on v2",
        status=404,
        code="unknown_model",
        says="flux-kontext-dev",
        path="/v2/flux-kontext-max",
        json=GOOD,
    ),
    Bad(
        name="unknown request",
        status=404,
        code="request_not_found",
        says="no-such-job",
        method="GET",
        path="/v2/requests/no-such-job",
    ),
    Bad(
        name="unknown model, with GET",
        status=404,
        code="unknown_model",
        says="flux-kontext-dev",
        method="GET",
        path="/v1/flux-kontext-max",
    ),
    Bad(name="GET", status=405, code="method_not_allowed", says="POST", method="GET"),
    Bad(name="PUT", status=405, code="method_not_allowed", says="POST", method="PUT", json=GOOD),
    # The body
    Bad(name="no body at all", status=415, code="unsupported_content_type", says="Content-Type is missing"),
    Bad(
        name="text/plain",
        status=415,
        code="unsupported_content_type",
        says='"text/plain"',
        content=b"hello",
        headers={"content-type": "text/plain"},
    ),
    Bad(
        name="urlencoded form",
        status=415,
        code="unsupported_content_type",
        says="multipart/form-data",
        content=b"prompt=x",
        headers={"content-type": "application/x-www-form-urlencoded"},
    ),
    Bad(
        name="picture as the body",
        status=415,
        code="unsupported_content_type",
        says='"image/png"',
        content=PNG,
        headers={"content-type": "image/png"},
    ),
    Bad(
        name="empty JSON",
        code="malformed_body",
        says="not valid JSON",
        content=b"",
        headers={"content-type": "application/json"},
    ),
    Bad(
        name="cut JSON",
        code="malformed_body",
        says="not valid JSON",
        content=b'{"prompt": "x',
        headers={"content-type": "application/json"},
    ),
    Bad(
        name="NaN in JSON",
        code="malformed_body",
        says="not valid JSON",
        content=b'{"guidance": NaN}',
        headers={"content-type": "application/json"},
    ),
    Bad(
        name="compressed JSON",
        status=415,
        code="unsupported_content_type",
        says='Content-Encoding is "gzip"',
        content=gzip.compress(orjson.dumps(GOOD)),
        headers={"content-type": "application/json", "content-encoding": "gzip"},
    ),
    Bad(
        name="JSON in UTF-16",
        code="malformed_body",
        says="not valid JSON",
        content='{"prompt": "x"}'.encode("utf-16"),
        headers={"content-type": "application/json"},
    ),
    Bad(
        name="a value nested too deeply",
        says="seed is (nested too deeply)",
        parameters=["seed"],
        content=orjson.dumps(GOOD)[:-1] + b', "seed": ' + b"[" * 900 + b"]" * 900 + b"}",
        headers={"content-type": "application/json"},
    ),
    Bad(
        name="JSON of very many items",
        code="malformed_body",
        says="more than 65536 commas and opening brackets",
        content=orjson.dumps(GOOD)[:-1] + b', "padding": [' + b"[]," * 40_000 + b"[]]}",
        headers={"content-type": "application/json"},
    ),
    Bad(name="JSON array", code="malformed_body", says="JSON object", json=[GOOD]),
    Bad(name="JSON string", code="malformed_body", says="JSON object", json="make it night"),
    Bad(
        name="form without a boundary",
        code="malformed_body",
        says="form",
        content=b"x",
        headers={"content-type": "multipart/form-data"},
    ),
    Bad(
        name="form cut off in its last field",
        code="malformed_body",
        says="closing boundary is missing",
        content=b"".join(
            b'--x\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), str(value).encode())
            for name, value in (*GOOD.items(), ("num_inference_steps", 4))
        ),
        headers={"content-type": MULTIPART},
    ),
    Bad(
        name="form that is none",
        code="malformed_body",
        says="form",
        content=b"no form",
        headers={"content-type": MULTIPART},
    ),
    Bad(
        name="form of too many fields",
        code="malformed_body",
        says="form",
        files=[(f"f{i}", (None, b"x")) for i in range(200)],
    ),
    Bad(
        name="body over the limit",
        status=413,
        code="body_too_large",
        says="400000 bytes",
        json=GOOD | {"padding": "x" * 400_000},
    ),
    Bad(
        name="form over the limit",
        status=413,
        code="body_too_large",
        says="400000 bytes",
        form=GOOD,
        files=[("mask", ("mask.png", b"x" * 400_000))],
    ),
    # Each parameter
    Bad(name="nothing", says="is missing", parameters=["input_image", "prompt"], json={}),
    Bad(name="no prompt", says="prompt is missing", parameters=["prompt"], json={"input_image": PHOTO}),
    Bad(name="no input_image", says="input_image is missing", parameters=["input_image"], json={"prompt": "x"}),
    wrong("prompt", None, "prompt is missing"),
    wrong("prompt", "", "text of 1 to 10000"),
    wrong("prompt", "  \n", "text of 1 to 10000"),
    wrong("prompt", 42, "prompt is 42"),
    wrong("prompt", ["x"], "prompt is"),
    wrong("prompt", "x" * 10_001, "text of 1 to 10000"),
    wrong("prompt", "x\x00y", "text of 1 to 10000"),
    wrong("input_image", 42, "input_image is 42"),
    wrong("input_image", {"url": "x"}, "input_image is"),
    wrong("aspect_ratio", "7:5", "match_input_image"),
    wrong("aspect_ratio", "16x9", "one of"),
    wrong("aspect_ratio", "", "one of"),
    wrong("aspect_ratio", 1, "one of"),
    wrong("guidance", -0.1, "from 0 to 10"),
    wrong("guidance", 10.01, "from 0 to 10"),
    wrong("guidance", "7", "from 0 to 10"),
    wrong("guidance", True, "from 0 to 10"),
    wrong("num_inference_steps", 3, "from 4 to 50"),
    wrong("num_inference_steps", 51, "from 4 to 50"),
    wrong("num_inference_steps", 20.5, "from 4 to 50"),
    wrong("num_inference_steps", "20", "from 4 to 50"),
    wrong("num_inference_steps", True, "from 4 to 50"),
    wrong("output_format", "jpeg", "one of webp, jpg, png"),
    wrong("output_format", "PNG", "one of webp, jpg, png"),
    wrong("output_quality", -1, "from 0 to 100"),
    wrong("output_quality", 101, "from 0 to 100"),
    wrong("output_quality", 90.5, "from 0 to 100"),
    wrong("seed", -2, "random"),
    wrong("seed", 2**63, "9223372036854775807"),
    wrong("seed", 1e300, "random"),
    wrong("seed", 1.5, "random"),
    wrong("seed", "42", "random"),
    wrong("seed", False, "random"),
    wrong("disable_safety_checker", "false", "true or false"),
    wrong("disable_safety_checker", 0, "true or false"),
    Bad(
        name="everything wrong at once",
        says="wrong",
        parameters=[
            "input_image",
            "prompt",
            "aspect_ratio",
            "guidance",
            "num_inference_steps",
            "output_format",
            "seed",
        ],
        json={
            "input_image": 1,
            "prompt": "",
            "aspect_ratio": "x",
            "guidance": 11,
            "num_inference_steps": 0,
            "output_format": "bmp",
            "seed": -7,
        },
    ),
    Bad(
        name="a bad picture beside a bad number",
        says="guidance",
        parameters=["guidance", "input_image"],
        json=GOOD | {"guidance": 99, "input_image": "cat.jpg"},
    ),
    wrong("acceleration", "turbo", "none, regular, high"),
    wrong("loras", 7, "loras is 7"),
    wrong("loras", ["ink"], 'loras asks for "ink", and this server offers none'),
    wrong("loras", [{"name": "ink", "scale": 1}], 'loras has an entry with "scale" in it'),
    wrong("priority", 3, "from -2 to 2"),
    wrong("deadline_s", 0, "above 0"),
    wrong("deadline_s", "10", "above 0"),
    wrong("previews", 51, "from 0 to 50"),
    wrong("webhook_url", "ftp://example.com", "http(s)"),
    wrong("webhook_url", "http://user:pass@example.com", "without a user"),
    Bad(
        name="an idempotency key that is too long",
        code="invalid_idempotency_key",
        says="1 to 255",
        json=GOOD,
        headers={"idempotency-key": "k" * 256},
    ),
    Bad(
        name="an empty idempotency key",
        code="invalid_idempotency_key",
        says="0 characters",
        json=GOOD,
        headers={"idempotency-key": ""},
    ),
    # Forms
    wrong_form("guidance", "seven", "from 0 to 10"),
    wrong_form("guidance", "nan", "from 0 to 10"),
    wrong_form("guidance", "1e999", "from 0 to 10"),
    wrong_form("num_inference_steps", "0x20", "from 4 to 50"),
    wrong_form("num_inference_steps", "20.5", "from 4 to 50"),
    wrong_form("num_inference_steps", "true", "from 4 to 50"),
    wrong_form("disable_safety_checker", "yes", "true or false"),
    wrong_form("disable_safety_checker", "1", "true or false"),
    wrong_form("prompt", "", "prompt"),
    wrong_form("aspect_ratio", "wide", "one of"),
    wrong_form("seed", "-5", "random"),
    wrong_form("loras", "ink:0", "from -4 to 4, and not 0"),
    wrong_form("loras", '["ink", 7]', "loras has 7 in it"),
    Bad(
        name="a field given twice",
        says="more than once",
        parameters=["guidance"],
        form=GOOD,
        files=[("guidance", (None, b"5")), ("guidance", (None, b"6"))],
    ),
    Bad(
        name="a file as the prompt",
        says="prompt is a file",
        parameters=["prompt"],
        form={"input_image": PHOTO},
        files=[("prompt", ("prompt.txt", b"make it night"))],
    ),
    Bad(
        name="an uploaded text file",
        code="unreadable_picture",
        says="no jpeg, png, gif or webp",
        parameters=["input_image"],
        form={"prompt": "x"},
        files=[("input_image", ("cat.png", b"this is no picture", "image/png"))],
    ),
    Bad(
        name="an empty upload",
        code="unreadable_picture",
        says="0 bytes",
        parameters=["input_image"],
        form={"prompt": "x"},
        files=[("input_image", ("cat.png", b"", "image/png"))],
    ),
    # The picture
    bad_picture("empty string", "", "empty"),
    bad_picture("a file name", "cat.jpg", "not base64"),
    bad_picture("text beyond ASCII", "größe", "not base64"),
    bad_picture("base64 of text", b64(b"hello, this is text"), "no jpeg, png, gif or webp"),
    bad_picture("base64 of BMP", b64(encoded(gradient(), "BMP")), "no jpeg, png, gif or webp"),
    bad_picture("base64 of TIFF", b64(encoded(gradient(), "TIFF")), "no jpeg, png, gif or webp"),
    bad_picture("data URI without a comma", "data:image/png;base64", '","'),
    bad_picture("data URI with bad base64", "data:image/png;base64,!!!!", "not base64"),
    bad_picture("header of a PNG only", b64(PNG[:20]), "header"),
    bad_picture("cut PNG", b64(PNG[: len(PNG) // 2]), "cut off"),
    bad_picture("cut JPEG", b64(photo_bytes(200, 200)[:-900]), "cut off"),
    bad_picture("file URL", "file:///etc/passwd", "scheme"),
    bad_picture("ftp URL", "ftp://example.com/cat.jpg", "scheme"),
    bad_picture("loopback URL", "http://127.0.0.1:1/cat.jpg", "not a public address", "unreachable_picture"),
    bad_picture("metadata URL", "http://169.254.169.254/latest", "not a public address", "unreachable_picture"),
    bad_picture("link of ours, mangled", "http://studio/files///[x", "opens nothing", "unreachable_picture"),
    bad_picture("URL without a host", "http:///cat.jpg", "URL", "unreachable_picture"),
    bad_picture("URL with a bad port", "http://example.com:99999/", "URL", "unreachable_picture"),
    bad_picture("URL with a bad name", f"http://{'a' * 80}.example/", "fetched", "unreachable_picture"),
    bad_picture("too many bytes", b64(b"\x89PNG\r\n\x1a\n" + bytes(100_000)), "100000", "picture_too_large", 413),
    bad_picture("too many pixels", b64(encoded(Image.new("L", (600, 600)))), "600x600", "picture_too_large", 413),
    bad_picture(
        "decompression bomb", b64(encoded(Image.new("1", (20_000, 10_000)))), "250000", "picture_too_large", 413
    ),
]


def test_the_table_is_large_enough_and_names_are_unique() -> None:
    """A name used twice would hide a case behind another."""
    assert len({bad.name for bad in TABLE}) == len(TABLE) >= 40


@pytest.mark.parametrize("bad", TABLE, ids=lambda bad: bad.name)
async def test_a_bad_request_is_answered_by_name(client: httpx2.AsyncClient, bad: Bad) -> None:
    """Status, code and sentence fit, and `errors` lists exactly the parameters at fault."""
    answer = await client.request(bad.method, bad.path, **_request(bad))

    body = answer.json()
    assert (answer.status_code, body["code"]) == (bad.status, bad.code), body
    assert bad.says.lower() in body["error"].lower()
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers.get("www-authenticate") == ("Bearer" if bad.status == 401 else None)
    problems = body.get("errors", [])
    assert sorted(each["parameter"] for each in problems) == sorted(bad.parameters)
    for each in problems:
        assert f"{each['parameter']} " in body["error"]
        assert each["allowed"] in body["error"] or "can't be used: " in body["error"]
        assert len(orjson.dumps(each["value"])) < 400, "a value is echoed in short"


def _request(bad: Bad) -> dict[str, Any]:
    headers = {name: value.encode("latin-1") for name, value in bad.headers.items()}
    if bad.json is not None:
        return {"content": orjson.dumps(bad.json), "headers": {"content-type": b"application/json"} | headers}
    if bad.form is not None or bad.files:
        fields = [(name, (None, value)) for name, value in (bad.form or {}).items()]
        return {"files": [*fields, *bad.files], "headers": headers}
    return {"content": bad.content, "headers": headers}
