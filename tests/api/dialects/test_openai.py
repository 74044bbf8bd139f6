"""OpenAI's dialect on the wire: forms and JSON, both kinds of answer, streams, and every failure in its form."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from io import BytesIO
from typing import Any, Final

import httpx2
import pytest
from PIL import Image
from starlette.types import Scope

from rekontext.accounts import Balance
from rekontext.api import sse
from rekontext.api.dialects import openai, openai_order
from rekontext.api.edits import Submitted
from rekontext.contract import STEPS_MAX, STEPS_MIN, EngineFault, Preview
from rekontext.database import DatabaseUnavailable
from rekontext.jobs import Job, JobLife
from rekontext.pictures import StoreUnavailable
from rekontext.safety import PictureWithheld
from tests.api.caller import Caller, only_request
from tests.api.conftest import MakeStudio
from tests.api.studio import SOON_S, STRANGER, Studio, gone
from tests.api.test_safety import Said, checked
from tests.pictures.samples import encoded, gradient, photo_bytes

pytestmark = pytest.mark.anyio

EDITS: Final = "/v1/images/edits"
PHOTO: Final = photo_bytes()
FILE: Final = ("image", ("upload", PHOTO, "application/octet-stream"))
FORM: Final = {"prompt": "invert it", "num_inference_steps": "4", "seed": "7"}
URI: Final = f"data:image/jpeg;base64,{base64.b64encode(PHOTO).decode()}"
JSON: Final[dict[str, Any]] = {"prompt": "invert it", "num_inference_steps": 4, "seed": 7, "image": URI}


async def form(client: httpx2.AsyncClient, *files: Any, **fields: Any) -> httpx2.Response:
    """A good form, but for these fields; None leaves one out."""
    data = {name: value for name, value in (FORM | fields).items() if value is not None}
    return await client.post(EDITS, data=data, files=list(files) or [FILE])


def picture(data: str) -> Image.Image:
    return Image.open(BytesIO(base64.b64decode(data)))


def told(text: str) -> list[tuple[str, dict[str, Any]]]:
    """The events of a stream: name and data."""
    blocks = [block.splitlines() for block in text.strip().split("\n\n")]
    blocks = [lines for lines in blocks if not lines[0].startswith(":")]
    assert all(len(lines) == 2 for lines in blocks), text
    events = [(lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))) for lines in blocks]
    assert all(data["type"] == name for name, data in events)
    return events


async def test_a_form_is_answered_with_the_picture_and_what_is_known_of_it(client: httpx2.AsyncClient) -> None:
    """What isn't known of it (tokens, a quality) isn't said."""
    answer = await form(client)
    document = answer.json()
    assert set(document) == {"created", "data", "size", "output_format", "background"}
    assert (document["size"], document["output_format"], document["background"]) == ("48x32", "png", "opaque")
    assert document["created"] == int(document["created"]) > 0
    [image] = document["data"]
    assert set(image) == {"b64_json"}
    assert (picture(image["b64_json"]).format, picture(image["b64_json"]).size) == ("PNG", (48, 32))
    headers = answer.headers
    assert (headers["x-cost"], headers["x-seed-value"], headers["ratelimit-limit"]) == ("0.04", "7", "10000")
    result = (await client.get(f"/v2/requests/{headers['x-request-id']}")).json()
    assert (result["status"], result["seed"]) == ("COMPLETED", 7), "it is a job as any other"


@pytest.mark.parametrize(
    "body",
    [
        JSON,
        JSON | {"image": [URI]},
        JSON | {"image": base64.b64encode(PHOTO).decode()},
        JSON | {"image": None, "images": [{"image_url": URI}]},
        JSON | {"image": {"image_url": {"url": URI}}},
        JSON | {"model": None, "n": 1, "size": None, "stream": False, "mask": None, "background": "auto"},
    ],
)
async def test_json_asks_for_the_same_as_a_form(client: httpx2.AsyncClient, body: Mapping[str, Any]) -> None:
    """As gateways send it; the picture in any way that one is sent in JSON."""
    answer = await client.post(EDITS, json=body)
    assert answer.json()["data"] == (await form(client)).json()["data"]


@pytest.mark.parametrize("name", ["image", "image[]", "image[0]"])
@pytest.mark.parametrize("content", [PHOTO, URI])
async def test_one_picture_comes_under_the_name_of_a_list_too(
    client: httpx2.AsyncClient, name: str, content: str | bytes
) -> None:
    """As a file, as one without a name, or as text."""
    answers = [await form(client, (name, (None, content)))]
    if isinstance(content, bytes):
        answers.append(await form(client, (name, ("C:\\a.bin", content, "application/octet-stream"))))
    assert [answer.status_code for answer in answers] == [200] * len(answers)


async def test_a_link_opens_without_a_key(client: httpx2.AsyncClient) -> None:
    """For as long as links do."""
    [image] = (await form(client, response_format="url")).json()["data"]
    assert set(image) == {"url"}
    opened = await client.get(image["url"], headers={"x-api-key": ""})
    assert opened.headers["content-type"] == "image/png"


@pytest.mark.parametrize(
    ("fields", "name", "value"),
    [
        ({"num_inference_steps": "9"}, "steps", 9),
        ({"num_inference_steps": None, "steps": "9"}, "steps", 9),
        ({"num_inference_steps": None}, "steps", 35),
        ({"guidance": "2.5"}, "guidance", 2.5),
        ({"guidance_scale": "2.5"}, "guidance", 2.5),
        ({}, "guidance", 7.0),
        ({"acceleration": "high"}, "acceleration", "high"),
        ({}, "aspect_ratio", "match_input_image"),
        ({"size": "auto"}, "aspect_ratio", "match_input_image"),
        ({"size": "1536x1024"}, "aspect_ratio", "3:2"),
        ({"size": "1536x1024", "aspect_ratio": "1:1"}, "aspect_ratio", "1:1"),
        ({"aspect_ratio": "16:9", "size": ""}, "aspect_ratio", "16:9"),
        ({"size": "1536x1024", "aspect_ratio": ""}, "aspect_ratio", "3:2"),
        ({"partial_images": "3"}, "preview_every", None),
        ({"partial_images": "3", "stream": "true", "num_inference_steps": "28"}, "preview_every", 7),
        ({"quality": "high", "user": "me", "nested[a]": "1", "input_fidelity": "low"}, "seed", 7),
    ],
)
async def test_fields_reach_the_edit(studio: Studio, fields: dict[str, Any], name: str, value: object) -> None:
    """The vendor's and ours; without them it is as our own API has it."""
    async with studio.open() as client:
        answer = await form(client, **fields)
    assert answer.status_code == 200, answer.text
    [request] = studio.fleet.requests
    assert getattr(request, name) == value


async def test_formats_and_their_compression(client: httpx2.AsyncClient) -> None:
    """The vendor's word for jpg, in and out; more of it is a larger file."""
    large = (await form(client, output_format="jpeg", output_compression="95")).json()
    small = (await form(client, output_format="jpeg", output_compression="10")).json()
    webp = (await form(client, output_format="webp")).json()
    assert [each["output_format"] for each in (large, small, webp)] == ["jpeg", "jpeg", "webp"]
    assert [picture(each["data"][0]["b64_json"]).format for each in (large, webp)] == ["JPEG", "WEBP"]
    assert len(small["data"][0]["b64_json"]) < len(large["data"][0]["b64_json"])


async def test_a_check_that_callers_may_turn_off_is(studio: Studio) -> None:
    """By our own field, in a form."""
    check = Said(is_optional=True)
    async with checked(studio, check).open() as client:
        assert (await form(client, disable_safety_checker="true")).status_code == 200
    assert check.seen == []


async def test_a_large_picture_does_not_hold_up_others(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It becomes text in a thread, in both kinds of answer."""
    at_work: list[threading.Thread] = []

    class Watched:
        def b64encode(self, data: bytes) -> bytes:
            at_work.append(threading.current_thread())
            return base64.b64encode(data)

    monkeypatch.setattr(openai, "base64", Watched())
    await form(client)
    await form(client, stream="true")
    assert len(at_work) == 2
    assert threading.current_thread() not in at_work


WRONG: Final[Sequence[tuple[dict[str, Any], str, str]]] = [
    ({"prompt": None}, "prompt", "prompt is missing"),
    ({"prompt": " "}, "prompt", "allowed: UTF-8 text"),
    ({"n": "2"}, "n", "n is 2 (allowed: 1)"),
    ({"n": "some"}, "n", "n is some (allowed: 1)"),
    ({"size": "1000x7"}, "size", "size is 1000x7 (allowed: auto, or WIDTHxHEIGHT"),
    ({"size": "0x0"}, "size", "size is 0x0"),
    ({"size": "large"}, "size", "size is large"),
    ({"output_format": "gif"}, "output_format", "output_format is gif (allowed: one of png, jpeg, webp)"),
    ({"output_compression": "101"}, "output_compression", "output_compression is 101 (allowed: an integer from 0"),
    ({"background": "transparent"}, "background", "background is transparent (allowed: one of auto, opaque)"),
    ({"response_format": "file"}, "response_format", "allowed: one of b64_json, url"),
    ({"response_format": "url", "stream": "true"}, "response_format", "a stream has no links (allowed: b64_json)"),
    ({"stream": "maybe"}, "stream", "stream is maybe (allowed: one of false, true)"),
    ({"partial_images": "4", "stream": "true"}, "partial_images", "allowed: one of 0, 1, 2, 3"),
    ({"mask": "a"}, "mask", "mask can't be heeded here"),
    ({"markup": "a"}, "markup", "markup can't be heeded here"),
    ({"negative_prompt": "blur"}, "negative_prompt", "negative_prompt can't be heeded here"),
    ({"seed": "-5"}, "seed", "seed is -5"),
    ({"guidance": "99"}, "guidance", "guidance is 99 (allowed: a number from 0 to 10)"),
    ({"num_inference_steps": "3"}, "num_inference_steps", "num_inference_steps is 3"),
    ({"steps": "5"}, "num_inference_steps", "num_inference_steps is given more than once"),
    ({"aspect_ratio": "7:5"}, "aspect_ratio", 'aspect_ratio is "7:5"'),
    ({"acceleration": "warp"}, "acceleration", 'acceleration is "warp"'),
]


@pytest.fixture(scope="module")
async def refusing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx2.AsyncClient]:
    """One studio for all that is refused: none of it leaves anything behind."""
    studio = Studio(folder=tmp_path_factory.mktemp("refusing"))
    async with studio.open() as client:
        yield client
    assert studio.fleet.requests == []


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def error(answer: httpx2.Response, status: int, code: str, *, kind: str = "invalid_request_error") -> dict[str, Any]:
    """The vendor's form of this failure."""
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/json"), answer.text
    assert answer.headers["x-request-id"]
    document = answer.json()
    assert set(document) == {"error"}
    found: dict[str, Any] = document["error"]
    assert list(found) == ["message", "type", "param", "code"]
    assert (found["type"], found["code"]) == (kind, code)
    return found


@pytest.mark.parametrize(("fields", "param", "says"), WRONG, ids=[str(each[0]) for each in WRONG])
async def test_a_wrong_field_is_refused_by_its_name(
    refusing: httpx2.AsyncClient, fields: dict[str, Any], param: str, says: str
) -> None:
    """Under the name that its caller has for it, as a 400, a stream's too."""
    found = error(await form(refusing, **fields), 400, "invalid_parameters")
    assert found["param"] == param
    assert says in found["message"]


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({"n": 2}, "n", "n is 2"),
        ({"stream": "yes"}, "stream", "stream is yes"),
        ({"image": None}, "image", "image is missing"),
        ({"image": []}, "image", "image is missing"),
        ({"image": None, "images": [{"file_id": "file-1"}]}, "image", 'image is {"file_id":"file-1"}'),
        ({"image": [URI, URI]}, "image", "image has 2 pictures (allowed: one)"),
        ({"mask": {"image_url": URI}}, "mask", "can't be heeded"),
        ({"seed": "7"}, "seed", 'seed is "7"'),
        ({"size": 1024}, "size", "size is 1024"),
    ],
)
async def test_a_wrong_value_in_json_is_refused_by_its_name(
    refusing: httpx2.AsyncClient, body: dict[str, Any], param: str, says: str
) -> None:
    """JSON's types are meant as they stand, where they are an edit's."""
    found = error(await refusing.post(EDITS, json=JSON | body), 400, "invalid_parameters")
    assert found["param"] == param
    assert says in found["message"]


async def test_a_value_that_is_nested_deeply_is_refused_too(refusing: httpx2.AsyncClient) -> None:
    """Python's own writing of it would fail."""
    content = json.dumps(JSON).encode()[:-1] + b',"n":' + b"[" * 1000 + b"]" * 1000 + b"}"
    answer = await refusing.post(EDITS, content=content, headers={"content-type": "application/json"})
    assert error(answer, 400, "invalid_parameters")["param"] == "n"


async def test_two_pictures_are_one_too_many(refusing: httpx2.AsyncClient) -> None:
    """This model takes one; which one was meant isn't guessed."""
    for names in (("image[]", "image[]"), ("image", "image")):
        files = [(name, ("a.png", PHOTO, "image/png")) for name in names]
        found = error(await form(refusing, *files), 400, "invalid_parameters")
        assert found["message"] == "Wrong parameter: image has 2 pictures (allowed: one)."


async def test_all_that_is_wrong_is_told_at_once(refusing: httpx2.AsyncClient) -> None:
    """The first of them is the one that is named for programs."""
    found = error(await form(refusing, n="3", size="x", seed="x"), 400, "invalid_parameters")
    assert found["message"].startswith("Wrong parameters: size is x")
    assert [name in found["message"] for name in ("n is 3", "seed is")] == [True, True]
    assert found["param"] == "size"


async def test_a_picture_that_is_none_is_named_as_the_caller_names_it(refusing: httpx2.AsyncClient) -> None:
    """And one that is too large is a 413."""
    found = error(await form(refusing, ("image", ("a.png", b"no picture"))), 400, "unreadable_picture")
    assert (found["param"], "image can't be used" in found["message"]) == ("image", True)
    large = encoded(gradient(400, 400).resize((900, 900)))
    found = error(await form(refusing, ("image", ("a.png", large))), 413, "picture_too_large")
    assert found["param"] == "image"


@pytest.mark.parametrize("model", ["gpt-image-1", "FLUX-KONTEXT-DEV"])
async def test_another_model_is_not_found(refusing: httpx2.AsyncClient, model: str) -> None:
    """In the vendor's code, where one is ordered and where one is asked for."""
    for answer in (await form(refusing, model=model, n="7"), await refusing.get(f"/v1/models/{model}")):
        found = error(answer, 404, "model_not_found")
        assert (found["param"], model in found["message"]) == ("model", True)
    assert error(await refusing.post(EDITS, json=JSON | {"model": 7}), 404, "model_not_found")


async def test_what_is_no_call_of_ours_is_refused_in_the_same_form(refusing: httpx2.AsyncClient) -> None:
    """The vendor's other calls, methods and bodies."""
    error(await refusing.post("/v1/images/generations", json={"prompt": "x"}), 404, "not_found")
    assert "POST" in error(await refusing.get(EDITS), 405, "method_not_allowed")["message"]
    error(await refusing.post(EDITS, content=b"{", headers={"content-type": "application/json"}), 400, "malformed_body")
    error(await refusing.post(EDITS, content=b"x"), 415, "unsupported_content_type")
    error(await form(refusing, prompt="x" * 500_000), 413, "body_too_large")


@pytest.mark.parametrize("header", ["authorization", "x-key"])
async def test_strangers_are_refused_in_the_same_form(refusing: httpx2.AsyncClient, header: str) -> None:
    """Whichever header their key is in."""
    shown = {"x-api-key": "", header: f"Bearer {STRANGER}" if header == "authorization" else STRANGER}
    for method, path in (("POST", EDITS), ("GET", "/v1/models")):
        answer = await refusing.request(method, path, headers=shown)
        error(answer, 401, "invalid_api_key", kind="authentication_error")


@pytest.mark.parametrize("agent", ["OpenAI/Python 3.57.0", "AsyncOpenAI/JS 6.49.0"])
async def test_its_clients_read_what_is_wrong_at_other_paths(refusing: httpx2.AsyncClient, agent: str) -> None:
    """Below a base URL without /v1, which the sentence shows, and in calls that there are none of here."""
    for path in ("/images/edits", "/v1/chat/completions"):
        answer = await refusing.post(path, json={}, headers={"user-agent": agent})
        assert f"nothing at {path};" in error(answer, 404, "not_found")["message"]


async def test_any_good_key_may_list_the_models(studio: Studio, client: httpx2.AsyncClient) -> None:
    """In one list with Replicate's."""
    model = {"id": "flux-kontext-dev", "object": "model", "created": 0, "owned_by": "rekontext"}
    for scope in ("read", "edit"):
        headers = {"x-api-key": studio.new_key(scopes=frozenset({scope})).secret}
        listed = await client.get("/v1/models", headers=headers)
        assert (listed.json()["object"], listed.json()["data"]) == ("list", [model])
        assert (await client.get("/v1/models/flux-kontext-dev", headers=headers)).json() == model


async def test_what_an_account_may_not_has_the_vendor_s_types(make_studio: MakeStudio) -> None:
    """Scope, model, money, rate; only the last makes sense to try again, and says when."""
    studio = make_studio(requests_per_minute=2)
    async with studio.open():
        reader, other, poor = (
            studio.new_key(scopes=frozenset({"read"})),
            studio.new_key(models=frozenset({"another"})),
            studio.new_account("poor"),
        )
        async with studio.client(reader.secret) as client:
            error(await form(client), 403, "scope_missing", kind="permission_error")
        async with studio.client(other.secret) as client:
            error(await form(client), 403, "model_not_allowed", kind="permission_error")
        async with studio.client(poor.secret) as client:
            for _ in range(2):
                error(await form(client), 402, "insufficient_credits", kind="insufficient_quota")
            limited = await form(client)
    error(limited, 429, "rate_limit_exceeded", kind="rate_limit_error")
    assert int(limited.headers["retry-after"]) > 0
    assert "x-should-retry" not in limited.headers


async def test_a_busy_service_says_when_to_come_again(make_studio: MakeStudio) -> None:
    """The clients wait so long by themselves."""
    studio = make_studio(in_flight_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        first = asyncio.create_task(form(client))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        second = await form(client)
        studio.fleet.may_step.set()
        assert (await first).status_code == 200
    error(second, 429, "too_many_in_flight", kind="rate_limit_error")
    assert int(second.headers["retry-after"]) > 0
    assert "x-should-retry" not in second.headers


async def test_a_deadline_says_where_the_result_will_be(make_studio: MakeStudio) -> None:
    """And no client orders the edit again."""
    studio = make_studio(deadline_s=0.05)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        answer = await form(client)
        found = error(answer, 504, "deadline_exceeded", kind="server_error")
        path = found["message"].rpartition(" ")[2].rstrip(".")
        assert path == f"/v2/requests/{answer.headers['x-request-id']}"
        assert (await client.get(path)).status_code == 202
        studio.fleet.may_step.set()
    assert answer.headers["x-should-retry"] == "false"


async def test_what_ended_otherwise_is_not_ordered_again(studio: Studio) -> None:
    """A cancelled edit, one that the engine failed on, one whose key came with another body."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        call = asyncio.create_task(form(client))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        await client.post(f"/v2/requests/{(await only_request(client))['request_id']}/cancel")
        cancelled = await asyncio.wait_for(call, SOON_S)
        studio.fleet.may_step.set()
        await client.post(EDITS, json=JSON, headers={"idempotency-key": "k"})
        reused = await client.post(EDITS, json=JSON | {"seed": 8}, headers={"idempotency-key": "k"})
        studio.fleet.fault = EngineFault("no device")
        failed = await form(client)
    error(cancelled, 409, "cancelled")
    error(reused, 409, "idempotency_key_reused")
    error(failed, 500, "engine_fault", kind="server_error")
    assert [each.headers["x-should-retry"] for each in (cancelled, reused, failed)] == ["false"] * 3


@pytest.mark.parametrize(("is_in_doubt", "retry"), [(True, "false"), (False, None)])
async def test_a_database_that_is_away_is_asked_again_only_if_nothing_was_ordered(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, is_in_doubt: bool, retry: str | None
) -> None:
    """In doubt a retry might be a second edit."""

    def broken(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("gone", is_in_doubt=is_in_doubt)

    monkeypatch.setattr(JobLife, "accept", broken)
    async with studio.open() as client:
        answer = await form(client)
    error(answer, 503, "database_unavailable", kind="server_error")
    assert (answer.headers["retry-after"], answer.headers.get("x-should-retry")) == ("1", retry)


async def test_a_picture_that_the_operator_s_check_withholds(studio: Studio) -> None:
    """In the vendor's code and status, by which its callers know it; in a stream nothing of it is seen."""
    check = Said(PictureWithheld("a face"), PictureWithheld("a face"))
    async with checked(studio, check).open() as client:
        error(await form(client), 400, "moderation_blocked")
        [(name, data)] = told((await form(client, stream="true", partial_images="3")).text)
    assert (name, data["error"]["code"]) == ("error", "moderation_blocked")


async def test_a_stream_ends_with_the_picture(client: httpx2.AsyncClient) -> None:
    """The same that the other answer has, and the same facts in its headers, as far as they are known then."""
    answer = await form(client, stream="true")
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert {"x-request-id", "ratelimit-remaining", "x-eta-seconds"} <= set(answer.headers)
    [(name, data)] = told(answer.text)
    assert name == "image_edit.completed"
    whole = (await form(client)).json()
    assert data.pop("created_at") <= whole.pop("created")
    assert data.pop("b64_json") == whole.pop("data")[0]["b64_json"]
    assert data == {"type": name, "quality": "auto", "usage": None} | whole


async def test_early_looks_come_before_the_picture(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as were asked for, though the engine may make more of them."""
    shown, looks = asyncio.Semaphore(0), openai_order.is_due

    def watched(seen: int, **about: int) -> bool:
        shown.release()
        return looks(seen, **about)

    monkeypatch.setattr(openai_order, "is_due", watched)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        call = asyncio.create_task(form(client, stream="true", partial_images="2", num_inference_steps="7"))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        for step in (2, 4, 6):
            studio.fleet.tell(Preview(step=step, steps=7, picture=Image.new("RGB", (6, 4))))
            await asyncio.wait_for(shown.acquire(), SOON_S)
        studio.fleet.may_step.set()
        answer = await asyncio.wait_for(call, SOON_S)
    assert studio.fleet.requests[0].preview_every == 2
    *early, (last, _) = told(answer.text)
    assert last == "image_edit.completed"
    assert [(name, data["partial_image_index"]) for name, data in early] == [
        ("image_edit.partial_image", 0),
        ("image_edit.partial_image", 1),
    ]
    look = early[0][1]
    assert (picture(look["b64_json"]).size, picture(look["b64_json"]).format) == ((6, 4), "JPEG")
    assert (look["size"], look["output_format"]) == ("6x4", "jpeg")


@pytest.mark.parametrize("looks", [1, 2, 3])
def test_looks_are_spread_over_the_steps(looks: int) -> None:
    """Of every number of steps all are there, each within half a pause of its place."""
    for steps in range(STEPS_MIN, STEPS_MAX + 1):
        every = max(1, steps // (looks + 1))
        at: list[int] = []
        for step in range(every, steps + 1, every):
            if openai_order.is_due(len(at), looks=looks, step=step, steps=steps):
                at.append(step)
        places = [steps * (index + 1) / (looks + 1) for index in range(looks)]
        assert len(at) == looks, steps
        assert all(abs(step - place) <= every / 2 for step, place in zip(at, places, strict=True)), (steps, at)
        assert at[-1] < steps


async def test_a_stream_fails_before_it_begins_as_any_call(client: httpx2.AsyncClient) -> None:
    """Its caller gets an HTTP error, not a stream of one."""
    error(await form(client, stream="true", size="x"), 400, "invalid_parameters")


@pytest.mark.parametrize("how", ["cancelled", "deadline", "server goes down", "cut photo", "store away"])
async def test_a_stream_that_fails_says_why(make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Under the names of its caller, with the code of the same failure before a stream."""

    async def away(*_: object) -> bytes:
        raise StoreUnavailable("away")

    studio = make_studio(deadline_s=0.05) if how == "deadline" else make_studio()
    studio.fleet.may_step.clear()
    whole = encoded(gradient(64, 64))
    photo = whole[: len(whole) // 2] if how == "cut photo" else PHOTO
    async with studio.open() as client:
        call = asyncio.create_task(form(client, ("image", ("a", photo)), stream="true"))
        if how != "cut photo":  # which is seen before the engine has it
            await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        if how == "cancelled":
            await client.post(f"/v2/requests/{(await only_request(client))['request_id']}/cancel")
        elif how == "server goes down":
            studio.service.hang_up()
        elif how == "store away":
            monkeypatch.setattr(studio.service.parts.objects, "get", away)
            studio.fleet.may_step.set()
        answer = await asyncio.wait_for(call, SOON_S)
        studio.fleet.may_step.set()
    [(name, data)] = told(answer.text)
    assert (answer.status_code, name) == (200, "error")
    goes_on = f"Ask for it at /v2/requests/{answer.headers['x-request-id']}."
    code, param, says = {
        "cancelled": ("cancelled", None, "cancelled by another request"),
        "deadline": ("deadline_exceeded", None, goes_on),
        "server goes down": ("deadline_exceeded", None, goes_on),
        "cut photo": ("unreadable_picture", "image", "image can't be used"),
        "store away": ("store_unavailable", None, goes_on),
    }[how]
    assert (data["error"]["code"], data["error"]["param"]) == (code, param)
    assert says in data["error"]["message"]


async def test_a_stream_hears_of_the_end_though_the_database_was_away(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it there are no looks; the picture is there all the same, and the connection is kept alive until then."""
    kept_alive = asyncio.Event()
    stream = sse.stream

    async def heard(*about: Any, **more: Any) -> AsyncIterator[bytes]:
        async for frame in stream(*about, **more):
            if frame.startswith(b":"):
                kept_alive.set()
            yield frame

    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.001)
    monkeypatch.setattr(sse, "stream", heard)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        monkeypatch.setattr(studio.service.parts.desk, "_tell_what_is_known", gone)
        call = asyncio.create_task(form(client, stream="true", partial_images="1"))
        await asyncio.wait_for(kept_alive.wait(), SOON_S)
        studio.fleet.may_step.set()
        answer = await asyncio.wait_for(call, SOON_S)
    assert [name for name, _ in told(answer.text)] == ["image_edit.completed"]


class Listener(Caller):
    """A connection to this path."""

    @property
    def scope(self) -> Scope:
        return {**super().scope, "path": EDITS, "raw_path": EDITS.encode()}


@pytest.mark.parametrize("has_key", [False, True])
@pytest.mark.parametrize("is_streamed", [False, True])
async def test_hanging_up_cancels_the_edit(studio: Studio, is_streamed: bool, has_key: bool) -> None:
    """Unless its caller may come back for it by an idempotency key."""
    headers = {**studio.headers, **({"idempotency-key": "k"} if has_key else {})}
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        caller = Listener(JSON | {"stream": is_streamed}, headers)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(call, SOON_S)
        if not has_key:
            await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
        studio.fleet.may_step.set()
        again = await client.post(EDITS, json=JSON | {"stream": is_streamed}, headers=headers)
    assert again.headers.get("idempotency-replayed") == ("true" if has_key else None)
    assert len(studio.fleet.requests) == (1 if has_key else 2)
    assert b'"b64_json"' in again.content


async def test_a_listener_who_hangs_up_is_seen_by_one_only(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the stream broken off by another who sees it, the edit might go on with nobody waiting for it."""
    edits = studio.service.parts.edits
    honest = edits.wait

    async def slow_to_stop(submitted: Submitted) -> tuple[Job, Balance]:
        try:
            return await honest(submitted)
        except asyncio.CancelledError:
            for _ in range(100):
                await asyncio.sleep(0)
            raise

    monkeypatch.setattr(edits, "wait", slow_to_stop)
    studio.fleet.may_step.clear()
    async with studio.open():
        caller = Listener(JSON | {"stream": True}, studio.headers)
        call = asyncio.create_task(studio.app(caller.scope, caller.receive, caller.send))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        caller.hang_up.set()
        await asyncio.wait_for(call, SOON_S)
        await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
