"""Replicate's dialect on the wire: its model with its version, files, the account, webhooks."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import httpx2
import pytest
from replicate.webhook import Webhooks, WebhookSigningSecret

from tests.api.conftest import MakeStudio, Receiver
from tests.api.dialects.replicate_calls import CREATE, GOOD, HELD, MODEL, PHOTO, PREDICTIONS, done
from tests.api.studio import PillowFleet, Studio

pytestmark = pytest.mark.anyio


async def test_a_prediction_by_version_or_by_name(client: httpx2.AsyncClient) -> None:
    """The served model is the one version; a wrong one is refused with the right one."""
    version = (await client.get(f"/v1/models/{MODEL}")).json()["latest_version"]["id"]
    for reference in (
        {"version": version},
        {"version": f"{MODEL}:{version}"},
        {"version": MODEL},
        {"model": MODEL},
        {"model": MODEL, "version": None},
    ):
        answer = await client.post(PREDICTIONS, json=GOOD | reference, headers=HELD)
        assert (answer.status_code, answer.json()["version"]) == (201, version), reference
    for wrong in ({"version": "a" * 64}, {"version": f"{MODEL}:latest"}, {"version": 7}, {}):
        answer = await client.post(PREDICTIONS, json=GOOD | wrong)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
        assert "version" in answer.json()["detail"]
    assert version in (await client.post(PREDICTIONS, json=GOOD | {"version": "a"})).json()["detail"]


async def test_a_version_is_its_model_s(make_studio: MakeStudio) -> None:
    """The same on every server that has this model, and another one's where another model is."""
    versions = []
    for is_mini in (True, True, False):
        async with make_studio(PillowFleet(is_mini=is_mini)).open() as client:
            versions.append((await done(client))["version"])
    assert versions[0] == versions[1] != versions[2]


async def test_while_the_model_loads_no_version_is_told(make_studio: MakeStudio) -> None:
    """Edits are taken all the same, unless they name one."""
    fleet = PillowFleet()
    fleet.may_start.clear()
    async with make_studio(fleet).open() as client:
        created = await client.post(CREATE, json=GOOD)
        assert (created.status_code, created.json()["version"]) == (201, "hidden")
        assert (await client.get(f"/v1/models/{MODEL}")).json()["latest_version"] is None
        assert (await client.get(f"/v1/models/{MODEL}/versions")).json()["results"] == []
        for answer in (
            await client.post(PREDICTIONS, json=GOOD | {"version": "a"}),
            await client.get(f"/v1/models/{MODEL}/versions/a"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
        fleet.may_start.set()
        await client.get(created.json()["urls"]["stream"])
        found = (await client.get(created.json()["urls"]["get"])).json()
        [version] = (await client.get(f"/v1/models/{MODEL}/versions")).json()["results"]
    assert found["version"] == version["id"]


async def test_a_version_says_what_an_input_may_have(client: httpx2.AsyncClient) -> None:
    """With this vendor's defaults; its output is one URI."""
    [version] = (await client.get(f"/v1/models/{MODEL}/versions")).json()["results"]
    assert (await client.get(f"/v1/models/{MODEL}/versions/{version['id']}")).json() == version
    schemas = version["openapi_schema"]["components"]["schemas"]
    defaults = {name: each.get("default") for name, each in schemas["Input"]["properties"].items()}
    assert defaults | {"num_inference_steps": 30, "guidance": 2.5, "output_format": "webp"} == defaults
    assert (schemas["Output"]["type"], schemas["Output"]["format"]) == ("string", "uri")
    assert not {"webhook_url", "previews", "priority"} & set(defaults)


async def test_creates_and_uploads_are_counted_and_polls_are_not(make_studio: MakeStudio) -> None:
    """Clients poll twice a second."""
    async with make_studio(requests_per_minute=2).open() as client:
        created = await client.post(CREATE, json=GOOD, headers=HELD)
        assert created.headers["ratelimit-limit"] == "2"
        assert (await client.post("/v1/files", files={"content": ("a.jpg", PHOTO)})).status_code == 201
        for refused in (
            await client.post(CREATE, json=GOOD),
            await client.post("/v1/files", files={"content": ("a.jpg", PHOTO)}),
        ):
            assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
            assert refused.headers["retry-after"].isdecimal()
        for path in (created.json()["urls"]["get"], PREDICTIONS, "/v1/files", "/v1/account"):
            assert (await client.get(path)).status_code == 200


async def test_a_file_is_kept_for_edits(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Its type is seen from its bytes, whatever its sender calls it, and it can be used, looked at and deleted."""
    sent = {
        "content": ("upload", PHOTO, "application/octet-stream"),
        "metadata": ("blob", b'{"a":1}', "application/json"),
    }
    answer = await client.post("/v1/files", files=sent)
    file = answer.json()
    assert (answer.status_code, file["content_type"], file["size"]) == (201, "image/jpeg", len(PHOTO))
    assert file["checksums"] == {
        "sha256": hashlib.sha256(PHOTO).hexdigest(),
        "md5": hashlib.md5(PHOTO, usedforsecurity=False).hexdigest(),
    }
    assert (file["name"], file["metadata"]) == ("upload", {})
    assert file["expires_at"] > file["created_at"]
    assert (await client.get(f"/v1/files/{file['id']}")).json() == file
    [row] = (await client.get("/v1/files")).json()["results"]
    assert row == file | {"checksums": {}}
    async with studio.client("") as stranger:
        assert (await stranger.get(file["urls"]["get"])).content == PHOTO
    assert (await done(client, input_image=file["urls"]["get"]))["status"] == "succeeded"
    async with studio.client(studio.new_account("stranger").secret) as stranger:
        for method in ("GET", "DELETE"):
            assert (await stranger.request(method, f"/v1/files/{file['id']}")).status_code == 404
    deleted = await client.delete(f"/v1/files/{file['id']}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert (await client.get(file["urls"]["get"])).status_code == 404


async def test_a_file_that_is_gone_from_the_store(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Is gone, though it stands in the list."""
    file = (await client.post("/v1/files", files={"content": ("a.jpg", PHOTO)})).json()
    await studio.service.parts.objects.delete(f"assets/{file['id']}")
    answer = await client.get(f"/v1/files/{file['id']}")
    assert (answer.status_code, answer.json()["code"]) == (404, "file_gone")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ([("other", ("a.jpg", PHOTO))], "content is there 0 times"),
        ([("content", ("a.jpg", PHOTO)), ("content", ("b.jpg", PHOTO))], "content is there 2 times"),
        ([("content", (None, b"a text"))], "content is no file"),
        ([("content", ("a.jpg", b"no picture"))], "content can't be used"),
    ],
)
async def test_what_is_no_file_of_ours(client: httpx2.AsyncClient, fields: list[Any], sentence: str) -> None:
    """Pictures only, one at a time."""
    answer = await client.post("/v1/files", files=fields)
    assert answer.status_code == 422
    assert sentence in answer.json()["detail"]


async def test_the_account_tells_whose_key_it_is(client: httpx2.AsyncClient) -> None:
    """By its name."""
    document = (await client.get("/v1/account")).json()
    assert (document["type"], document["name"]) == ("organization", "owner")


async def test_a_webhook_is_told_the_prediction(make_studio: MakeStudio, receiver: Receiver) -> None:
    """The vendor's own validator takes its signature; its picture is a link, on plain http too."""
    async with make_studio(webhook_allow="127.0.0.1/32").open() as client:
        secret = WebhookSigningSecret(**(await client.get("/v1/webhooks/default/secret")).json())
        for events_filter in ({}, {"webhook_events_filter": ["start", "completed"]}):
            answer = await client.post(CREATE, json=GOOD | {"webhook": receiver.url} | events_filter, headers=HELD)
            headers, body = await receiver.next()
            Webhooks.validate(headers=headers, body=body.decode(), secret=secret, tolerance=60)
            told = json.loads(body)
            assert told["output"].startswith("http://studio/files/outputs/")
            assert told | {"output": answer.json()["output"]} == answer.json()


async def test_a_webhook_that_isn_t_to_hear_of_ends_hears_nothing(make_studio: MakeStudio, receiver: Receiver) -> None:
    """What happens before isn't sent, so the next message is another edit's."""
    async with make_studio(webhook_allow="127.0.0.1/32").open() as client:
        hook = {"webhook": receiver.url}
        await client.post(CREATE, json=GOOD | hook | {"webhook_events_filter": ["start", "output"]}, headers=HELD)
        heard = await client.post(CREATE, json=GOOD | hook, headers=HELD)
        _, body = await receiver.next()
        assert json.loads(body)["id"] == heard.json()["id"]
        assert receiver.got.empty()


async def test_models_has_the_one_model(client: httpx2.AsyncClient) -> None:
    """As it is told by itself, for the list whose path is another vendor's too."""
    listed = (await client.get("/v1/models")).json()
    assert listed["results"] == [(await client.get(f"/v1/models/{MODEL}")).json()]
    assert [each["id"] for each in listed["data"]] == ["flux-kontext-dev"]
