"""Uploads as fal's clients send them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.api.conftest import MakeStudio
from tests.api.dialects.fal_calls import (
    GOOD,
    INITIATE,
    PHOTO,
    RUN,
    UPLOAD,
)
from tests.api.studio import SOON_S, Studio, gone
from tests.pictures.samples import encoded, gradient, photo_bytes

pytestmark = pytest.mark.anyio


async def test_a_file_sent_as_it_is_becomes_an_upload(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Under its name; the token is what the client shows then, and the link is good for an edit."""
    token = (await client.post("/fal/rest/storage/auth/token", json={})).json()
    assert datetime.fromisoformat(token["expires_at"]) > datetime.now(UTC)
    assert token["base_url"] == "http://studio/fal/cdn"
    shown = {"x-api-key": "", "authorization": f"{token['token_type']} {token['token']}"}
    answer = await client.post(UPLOAD, content=PHOTO, headers=shown | {"x-fal-file-name": "a/cat.jpg"})
    link = answer.json()["access_url"]
    [listed] = (await client.get("/console/api/files")).json()["files"]
    assert listed["file_name"] == "cat.jpg"
    assert (await client.get(link)).content == PHOTO
    assert (await client.post(RUN, json=GOOD | {"image_url": link})).status_code == 200


async def test_a_file_that_is_no_picture_is_refused(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Sent either way, and nothing of it is kept."""
    initiated = (await client.post(INITIATE, json={"file_name": "x.txt"})).json()
    for answer in (
        await client.post(UPLOAD, content=b"some text"),
        await client.put(initiated["upload_url"], content=b"some text"),
    ):
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"] == ["body", "file"]
    assert (await client.get(initiated["file_url"])).status_code == 404
    assert (await client.get("/console/api/files")).json()["files"] == []


async def test_a_picture_is_put_without_a_key(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Where its account was told to, under the name that was told then; sent again it changes nothing."""
    initiated = (await client.post(INITIATE, json={"content_type": "image/jpeg", "file_name": "my cat.jpg"})).json()
    async with studio.client("") as stranger:
        for sent in (PHOTO, encoded(gradient(20, 10))):
            put = await stranger.put(initiated["upload_url"], content=sent)
            assert (put.status_code, put.content) == (200, b"")
        assert (await stranger.get(initiated["file_url"])).content == PHOTO
    [listed] = (await client.get("/console/api/files")).json()["files"]
    assert listed["file_name"] == "my cat.jpg"
    result = await client.post(RUN, json=GOOD | {"image_url": initiated["file_url"]})
    assert result.status_code == 200


@pytest.mark.parametrize("change", ["id", "id by what URLs drop", "key", "signature", "expires", "is a link to a file"])
async def test_a_url_for_a_put_that_was_changed_takes_nothing(
    studio: Studio, client: httpx2.AsyncClient, change: str
) -> None:
    """Nor does a link to a file: it is signed for something else. And the URL for a PUT opens no file."""
    initiated = (await client.post(INITIATE, json={})).json()
    url = httpx2.URL(initiated["upload_url"])
    other = studio.new_account("other").key.id
    if change == "id":
        url = url.copy_with(path=url.path + "0")
    elif change == "id by what URLs drop":
        url = httpx2.URL(initiated["upload_url"].replace("?", "%0A?"))
    elif change == "key":
        url = url.copy_with(path=url.path.replace(studio.key_id, other))
    elif change == "is a link to a file":
        url = url.copy_with(query=urlsplit(initiated["file_url"]).query.encode())
    else:
        url = url.copy_merge_params({change: "99999999999" if change == "expires" else "x"})
    answer = await client.put(str(url), content=PHOTO)
    assert (answer.status_code, answer.json()["error_type"]) == (403, "link_refused")
    assert (await client.get(initiated["upload_url"].replace("/fal/", "/files/fal/"))).status_code == 404
    assert (await client.get("/console/api/files")).json()["files"] == []


async def test_pictures_put_at_one_moment_are_one(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that hears nothing sends it again. The first is kept, and its bytes are those that are counted."""
    initiated = (await client.post(INITIATE, json={})).json()
    objects, tried, both = studio.service.parts.objects, list[str](), asyncio.Event()
    put = objects.put

    async def put_together(key: str, data: bytes, **how: Any) -> None:
        try:
            await put(key, data, **how)
        finally:
            tried.append(key)
            if len(tried) == 2:
                both.set()
            await both.wait()

    monkeypatch.setattr(objects, "put", put_together)
    sent = [PHOTO, encoded(gradient(20, 10))]
    async with asyncio.timeout(SOON_S):
        answers = await asyncio.gather(*(client.put(initiated["upload_url"], content=each) for each in sent))
    assert [answer.status_code for answer in answers] == [200, 200]
    kept = (await client.get(initiated["file_url"])).content
    assert kept in sent
    [listed] = (await client.get("/console/api/files")).json()["files"]
    assert listed["bytes"] == len(kept)


async def test_a_picture_that_was_put_but_not_written_down_is_by_the_next_put(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which the database's coming back takes, or the process'."""
    initiated = (await client.post(INITIATE, json={})).json()
    with monkeypatch.context() as away:
        away.setattr(studio.service.parts.database, "transact", gone)
        assert (await client.put(initiated["upload_url"], content=PHOTO)).status_code == 503
    assert (await client.put(initiated["upload_url"], content=encoded(gradient(20, 10)))).status_code == 200
    assert (await client.get(initiated["file_url"])).content == PHOTO
    [listed] = (await client.get("/console/api/files")).json()["files"]
    assert (listed["bytes"], listed["content_type"]) == (len(PHOTO), "image/jpeg")


async def test_a_url_for_a_put_ends_with_its_key_and_within_the_hour(
    studio: Studio, client: httpx2.AsyncClient
) -> None:
    """Whoever revokes a key that leaked means all that it opened."""
    leaked = studio.new_key()
    async with studio.client(leaked.secret) as thief:
        url = (await thief.post(INITIATE, json={})).json()["upload_url"]
    assert int(httpx2.URL(url).params["expires"]) <= datetime.now(UTC).timestamp() + 3600
    studio.act(lambda tx, acts: acts.revoke_key(tx, leaked.key.id))
    answer = await client.put(url, content=PHOTO)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")


async def test_uploads_have_the_bounds_that_all_have(make_studio: MakeStudio) -> None:
    """Those of a picture, a body and an account."""
    large = photo_bytes(200, 150)
    studio = make_studio(uploads_bytes_max=len(large), picture_bytes_max=10_000, body_bytes_max=20_000)
    async with studio.open() as client:
        urls = [(await client.post(INITIATE, json={})).json()["upload_url"] for _ in range(2)]
        for size, code in ((10_001, "picture_too_large"), (20_001, "body_too_large")):
            answer = await client.put(urls[0], content=large + bytes(size - len(large)))
            assert (answer.status_code, answer.json()["code"]) == (413, code)
            assert isinstance(answer.json()["detail"], str)
        assert (await client.put(urls[0], content=large)).status_code == 200
        for answer in (await client.put(urls[1], content=large), await client.post(UPLOAD, content=large)):
            assert (answer.status_code, answer.json()["code"]) == (400, "uploads_full")
