"""Uploads and links: what comes back opens without a key for a while, and is read in process when it is sent in."""

from __future__ import annotations

import base64
from datetime import datetime
from io import BytesIO
from typing import Any, Final, NoReturn

import httpx2
import pytest
from PIL import Image
from structlog.testing import capture_logs

from rekontext.database import DatabaseUnavailable
from rekontext.jobs import assets
from rekontext.pictures import StoreUnavailable
from tests.api.conftest import MakeStudio
from tests.api.studio import Studio
from tests.pictures.samples import encoded, gradient, photo_bytes

pytestmark = pytest.mark.anyio

V1: Final = "/v1/flux-kontext-dev"
PHOTO: Final = photo_bytes()
URI: Final = f"data:image/jpeg;base64,{base64.b64encode(PHOTO).decode()}"
DOUBT: Final = DatabaseUnavailable("gone", is_in_doubt=True)
GOOD: Final[dict[str, Any]] = {"prompt": "invert it", "input_image": URI, "num_inference_steps": 4}


async def test_uploads_as_json_and_as_a_form(client: httpx2.AsyncClient) -> None:
    """Links in the order of the files; each opens without a key and is the file."""
    as_json = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()
    png = encoded(gradient(8, 8))
    files = [("a", ("cat.jpg", PHOTO, "text/plain")), ("b", ("dog.png", png, "image/png"))]
    as_form = (await client.post("/upload-asset", files=files)).json()
    links = [*as_json["file_urls"], *as_form["file_urls"]]
    got = [await client.get(link, headers={"x-api-key": ""}) for link in links]
    assert [each.content for each in got] == [PHOTO, PHOTO, png]
    assert [each.headers["content-type"] for each in got] == ["image/jpeg", "image/jpeg", "image/png"]
    assert got[0].headers["x-content-type-options"] == "nosniff"
    listed = (await client.get("/console/api/files")).json()["files"]
    assert sorted(each["file_name"] for each in listed) == ["cat.jpg", "dog.png", "upload.jpeg"]
    assert (await client.get(listed[0]["url"])).status_code == 200


async def test_an_upload_can_be_deleted(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its owner only. The file itself goes with it, and an edit that was accepted with it goes on."""

    async def stuck(_key: str) -> None:
        raise StoreUnavailable("no permission")

    async with studio.open() as client:
        studio.fleet.may_step.clear()
        [link] = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()["file_urls"]
        submitted = (await client.post("/v2/flux-kontext-dev", json=GOOD | {"input_image": link})).json()
        listed = (await client.get("/console/api/files")).json()
        assert (listed["bytes_kept"], listed["bytes_max"]) == (len(PHOTO), 2 * 2**30)
        place = f"/console/api/files/{listed['files'][0]['id']}"
        async with studio.client(studio.new_account("stranger").secret) as stranger:
            assert (await stranger.delete(place)).status_code == 404
        async with studio.client(studio.new_key(scopes=frozenset({"read"})).secret) as reader:
            assert (await reader.delete(place)).status_code == 403
        got = await client.get(link)
        assert (got.status_code, got.headers["cache-control"]) == (200, "private, no-cache")
        with monkeypatch.context() as patch:
            patch.setattr(studio.service.parts.objects, "delete", stuck)
            assert (await client.delete(place)).json()["code"] == "store_unavailable"
        assert (await client.get("/console/api/files")).json()["files"] != []  # so that it can be tried again
        deleted = await client.delete(place)
        assert (deleted.status_code, deleted.json()["deleted"]) == (200, True)
        assert (await client.get(link)).json()["code"] == "file_gone"
        again = await client.delete(place)
        assert (again.status_code, again.json()["code"]) == (404, "file_unknown")
        assert [found async for found in studio.service.parts.objects.list("assets")] == []
        refused = await client.post("/v2/flux-kontext-dev", json=GOOD | {"input_image": link})
        assert refused.json()["code"] == "unreachable_picture"
        studio.fleet.may_step.set()
        ended = (await client.get(submitted["events_url"])).text
        assert '"status":"COMPLETED"' in ended


@pytest.mark.parametrize(("fault", "left"), [(DatabaseUnavailable("gone"), 0), (RuntimeError("a bug"), 0), (DOUBT, 1)])
async def test_an_upload_that_cannot_be_written_down_leaves_nothing_behind(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, fault: Exception, left: int
) -> None:
    """Unless it may be written down all the same: then its picture stays, and the sweeper looks an hour later."""

    def broken(*_given: object, **_: object) -> None:
        raise fault

    monkeypatch.setattr(assets, "add", broken)
    async with studio.open() as client:
        assert (await client.post("/upload-asset", json={"data_urls": [URI]})).status_code in (500, 503)
        objects = studio.service.parts.objects
        assert len([found async for found in objects.list("assets")]) == left


async def test_a_store_that_keeps_what_belongs_to_nobody_hides_no_reason(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller reads of the first fault, the log of both."""

    def broken(*_given: object, **_: object) -> None:
        raise DatabaseUnavailable("gone")

    async def stuck(_key: str) -> None:
        raise StoreUnavailable("no permission")

    monkeypatch.setattr(assets, "add", broken)
    async with studio.open() as client:
        monkeypatch.setattr(studio.service.parts.objects, "delete", stuck)
        with capture_logs() as logs:
            answer = await client.post("/upload-asset", json={"data_urls": [URI]})
    assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
    assert [log["fault"] for log in logs if log["event"] == "object_left_behind"] == ["no permission"]


@pytest.mark.parametrize("keep_outputs_s", [60, 86_400 * 31])
async def test_a_link_to_an_upload_opens_as_long_as_the_file_is_kept(
    make_studio: MakeStudio, keep_outputs_s: float
) -> None:
    """However long results are."""
    async with make_studio(keep_outputs_s=keep_outputs_s, keep_uploads_s=86_400).open() as client:
        [uploaded] = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()["file_urls"]
        [listed] = (await client.get("/console/api/files")).json()["files"]
    created_at = datetime.fromisoformat(listed["created_at"]).timestamp()
    for link in (uploaded, listed["url"]):
        assert int(httpx2.URL(link).params["expires"]) == pytest.approx(created_at + 86_400, abs=1)


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("/home/ann/cat.jpg", "cat.jpg"),
        ("C:\\Users\\ann\\猫 1.jpg", "猫 1.jpg"),
        ("ca\x00t\u202e.jpg", "cat.jpg"),
        ("\u202e", "upload.jpeg"),
        ("a" * 300 + ".jpg", "a" * 251 + ".jpg"),
    ],
)
async def test_names_of_files_are_kept_without_their_folders(client: httpx2.AsyncClient, sent: str, kept: str) -> None:
    """Nor with characters that no screen can show."""
    disposition = b'form-data; name="file"; filename="%b"' % sent.encode()
    body = b"--x\r\ncontent-disposition: %b\r\n\r\n%b\r\n--x--\r\n" % (disposition, PHOTO)
    answer = await client.post(
        "/upload-asset", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code == 200, answer.text
    [row] = (await client.get("/console/api/files")).json()["files"]
    assert row["file_name"] == kept


async def test_a_file_without_a_name_is_uploaded(client: httpx2.AsyncClient) -> None:
    """Beside text, which is none."""
    files = [("file", (None, PHOTO)), ("note", (None, b"a cat"))]
    [link] = (await client.post("/upload-asset", files=files)).json()["file_urls"]
    assert (await client.get(link)).content == PHOTO


async def test_who_has_a_file_is_not_sent_it_again(client: httpx2.AsyncClient) -> None:
    """Told by its tag; HEAD brings the headers alone."""
    [link] = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()["file_urls"]
    whole = await client.get(link)
    for known in (whole.headers["etag"], f'"other", W/{whole.headers["etag"]}', "*"):
        again = await client.get(link, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", whole.headers["etag"])
    assert (await client.get(link, headers={"if-none-match": '"other"'})).status_code == 200
    head = await client.head(link)
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(len(PHOTO)))


async def test_what_its_caller_has_is_not_read(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """From an object store that would be a whole download. What is gone, or opened by no good link, isn't told so."""

    async def read(_key: str) -> NoReturn:
        raise StoreUnavailable("it was read")

    async with studio.open() as client:
        [link] = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()["file_urls"]
        tag = {"if-none-match": (await client.get(link)).headers["etag"]}
        [other] = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()["file_urls"]
        assert (await client.get(other, headers=tag)).status_code == 200, "another file, though with the same bytes"
        with monkeypatch.context() as patched:
            patched.setattr(studio.service.parts.objects, "get", read)
            assert (await client.get(link, headers=tag)).status_code == 304
            assert (await client.get(link)).status_code == 503
        assert (await client.get(link.replace("signature=", "signature=x"), headers=tag)).status_code == 403
        [_, file] = (await client.get("/console/api/files")).json()["files"]
        assert (await client.delete(f"/console/api/files/{file['id']}")).status_code == 200
        for known in (tag, {"if-none-match": "*"}):
            gone = await client.get(link, headers=known)
            assert (gone.status_code, gone.json()["code"]) == (404, "file_gone")


async def test_our_own_links_are_read_in_process(client: httpx2.AsyncClient) -> None:
    """An upload, then its result, go in again; no address is dialled, which the guard would refuse."""
    [link] = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()["file_urls"]
    first = await client.post(V1, json=GOOD | {"input_image": link}, headers={"accept": "application/json"})
    assert first.status_code == 200, first.text
    result = (await client.get(f"/v2/requests/{first.headers['x-request-id']}")).json()
    second = await client.post(V1, json=GOOD | {"input_image": result["output"]})
    assert Image.open(BytesIO(second.content)).size == (48, 32)


async def test_an_account_that_keeps_too_many_uploads_is_told_so(make_studio: MakeStudio) -> None:
    """What was written for the refused one is removed."""
    most = max(1024, len(PHOTO))
    kept = most // len(PHOTO)
    studio = make_studio(uploads_bytes_max=most)
    async with studio.open() as client:
        for _ in range(kept):
            assert (await client.post("/upload-asset", json={"data_urls": [URI]})).status_code == 200
        answer = await client.post("/upload-asset", json={"data_urls": [URI]})
        assert (answer.status_code, answer.json()["code"]) == (409, "uploads_full")
        assert f"uploads have {kept * len(PHOTO)} bytes and may have {most}." in answer.json()["error"]
        assert len([found async for found in studio.service.parts.objects.list("assets")]) == kept


async def test_of_several_uploads_all_are_kept_or_none(
    make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to all of them is one: links that nobody got would fill the account, and each new try more so."""
    count = max(2, 1024 // len(PHOTO) + 1)
    studio = make_studio(uploads_bytes_max=count * len(PHOTO))
    async with studio.open() as client:
        objects = studio.service.parts.objects
        refused = await client.post("/upload-asset", json={"data_urls": [URI] * (count + 1)})
        assert (refused.status_code, refused.json()["code"]) == (409, "uploads_full")
        assert [found async for found in objects.list("assets")] == []
        honest, puts = objects.put, 0

        async def second_fails(key: str, data: bytes, *, content_type: str) -> None:
            nonlocal puts
            puts += 1
            if puts == 2:
                raise StoreUnavailable("full")
            await honest(key, data, content_type=content_type)

        with monkeypatch.context() as broken:
            broken.setattr(objects, "put", second_fails)
            assert (await client.post("/upload-asset", json={"data_urls": [URI] * count})).status_code >= 500
        assert [found async for found in objects.list("assets")] == []
        assert len((await client.post("/upload-asset", json={"data_urls": [URI] * count})).json()["file_urls"]) == count


async def test_what_is_kept_of_a_photos_url_has_neither_password_nor_signature(client: httpx2.AsyncClient) -> None:
    """It is shown in the history for a month, to operators too."""
    [link] = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()["file_urls"]
    link = link.replace("http://studio", "http://bob:hush@127.0.0.1:1")
    answer = await client.post(V1, json=GOOD | {"input_image": link})
    assert answer.status_code == 200, answer.text
    shown = await client.get(f"/console/api/requests/{answer.headers['x-request-id']}")
    assert shown.json()["parameters"]["input_image"] == link.partition("?")[0].replace("bob:hush@", "")
    assert "hush" not in shown.text


async def test_a_link_of_ours_is_ours_under_every_name_of_the_server(client: httpx2.AsyncClient) -> None:
    """A link made for a public name comes back under a private one; what we signed is never fetched."""
    [link] = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()["file_urls"]
    known = await client.post(V1, json=GOOD | {"input_image": link.replace("http://studio", "http://127.0.0.1:1")})
    assert known.status_code == 200, known.text
    forged = link.replace("http://studio", "http://127.0.0.1:1")[:-1]
    answer = await client.post(V1, json=GOOD | {"input_image": forged})
    assert (answer.status_code, answer.json()["code"]) == (400, "unreachable_picture"), "a stranger's, and not public"


@pytest.mark.parametrize("change", ["key", "expires", "signature", "nothing left"])
async def test_a_link_that_was_changed_opens_nothing(client: httpx2.AsyncClient, change: str) -> None:
    """As a link, and as an input picture."""
    [link] = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()["file_urls"]
    forged = {
        "key": link.replace("/assets/", "/assets/0"),
        "expires": link.replace("expires=", "expires=9"),
        "signature": link[:-1] + ("A" if link[-1] != "A" else "B"),
        "nothing left": link.partition("?")[0],
    }[change]
    answer = await client.get(forged)
    assert (answer.status_code, answer.json()["code"]) == (403, "link_refused")
    refused = await client.post(V1, json=GOOD | {"input_image": forged})
    assert (refused.status_code, refused.json()["code"]) == (400, "unreachable_picture")


async def test_a_good_link_to_a_file_that_is_gone(client: httpx2.AsyncClient, studio: Studio) -> None:
    """404, and as an input picture a sentence."""
    [link] = (await client.post("/upload-asset", json={"data_urls": [URI]})).json()["file_urls"]
    key = link.partition("/files/")[2].partition("?")[0]
    await studio.service.parts.objects.delete(key)
    assert (await client.get(link)).json()["code"] == "file_gone"
    refused = (await client.post(V1, json=GOOD | {"input_image": link})).json()
    assert "is gone" in refused["error"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "data_urls is missing"),
        ({"data_urls": "data:image/png;base64,AAAA"}, "no list of texts"),
        ({"data_urls": []}, "0 files"),
        ({"data_urls": [URI] * 17}, "17 files"),
        ({"data_urls": ["https://example.com/cat.jpg"]}, "data_urls[0] is no data URI"),
        (
            {"data_urls": [URI, "data:image/svg+xml;base64,PHN2Zz4="]},
            "data_urls[1] can't be used: ",
        ),
        ({"data_urls": ["x", URI, "y"]}, "data_urls[0] is no data URI"),
        ({"data_urls": ["x", URI, "y"]}, "data_urls[2] is no data URI"),
    ],
)
async def test_what_can_t_be_uploaded(client: httpx2.AsyncClient, body: dict[str, object], says: str) -> None:
    """By name, and nothing is kept."""
    answer = await client.post("/upload-asset", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert (await client.get("/console/api/files")).json()["files"] == []
