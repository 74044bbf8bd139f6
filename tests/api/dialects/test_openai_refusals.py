"""OpenAI's dialect on the wire: every failure in its form, and whether it is to be tried again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final

import httpx2
import pytest

from rekontext.contract import EngineFault
from rekontext.database import DatabaseUnavailable
from rekontext.jobs import JobLife
from rekontext.safety import PictureWithheld
from tests.api.caller import only_request
from tests.api.conftest import MakeStudio
from tests.api.dialects.openai_calls import EDITS, JSON, PHOTO, URI, error, form, told
from tests.api.studio import SOON_S, STRANGER, Studio
from tests.api.test_safety import Said, checked
from tests.pictures.samples import encoded, gradient

pytestmark = pytest.mark.anyio


WRONG: Final[Sequence[tuple[dict[str, Any], str, str]]] = [
    ({"prompt": None}, "prompt", "prompt is missing"),
    ({"prompt": " "}, "prompt", "allowed: UTF-8 text"),
    ({"n": "5"}, "n", "n is 5 (allowed: one of 1, 2, 3, 4)"),
    ({"n": "some"}, "n", "n is some (allowed: one of 1, 2, 3, 4)"),
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
        ({"n": 5}, "n", "n is 5"),
        ({"stream": "yes"}, "stream", "stream is yes"),
        ({"image": None}, "image", "image is missing"),
        ({"image": []}, "image", "image is missing"),
        ({"image": None, "images": [{"file_id": "file-1"}]}, "image", 'image is {"file_id":"file-1"}'),
        ({"image": [URI, URI]}, "image", "image has 2 pictures (allowed: one)"),
        ({"markup": {"image_url": URI}}, "markup", "can't be heeded"),
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
    found = error(await form(refusing, n="7", size="x", seed="x"), 400, "invalid_parameters")
    assert found["message"].startswith("Wrong parameters: size is x")
    assert [name in found["message"] for name in ("n is 7", "seed is")] == [True, True]
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
