"""What the playground asks before an edit."""

from __future__ import annotations

import base64
from dataclasses import replace

import httpx2
import pytest

from rekontext.contract import EditRequest, Estimate
from tests.api.conftest import MakeStudio
from tests.api.studio import Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio


async def test_an_estimate_says_price_and_time_of_an_edit_submitted_now(
    client: httpx2.AsyncClient, studio: Studio
) -> None:
    """More steps take longer; the fleet of these tests takes half a second for each."""
    few = (await client.get("/console/api/estimate?num_inference_steps=10")).json()
    assert few == {"price": 0.04, "queue_position": 0, "eta_seconds": 5.0}
    many = (await client.get("/console/api/estimate?num_inference_steps=20&width=640&height=480")).json()
    assert many["eta_seconds"] == 10.0
    wrong = await client.get("/console/api/estimate?num_inference_steps=99")
    assert wrong.status_code == 400
    assert wrong.json()["errors"][0]["parameter"] == "num_inference_steps"
    assert (await client.get("/console/api/estimate", headers={"x-api-key": ""})).status_code == 401


async def test_an_estimate_is_asked_as_that_of_the_edit_itself(
    client: httpx2.AsyncClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fleet is told all that an edit's length hangs on, by a page that knows neither prompt nor photo."""
    asked, estimate = [], studio.fleet.estimate

    def look(request: EditRequest) -> Estimate:
        asked.append(request)
        return estimate(request)

    monkeypatch.setattr(studio.fleet, "estimate", look)
    length: dict[str, int | str] = {
        "num_inference_steps": 10,
        "aspect_ratio": "16:9",
        "acceleration": "high",
        "num_images": 2,
    }
    assert (await client.get("/console/api/estimate", params={"width": 48, "height": 32, **length})).status_code == 200
    edit = {"prompt": "invert it", "seed": 0, "input_image": base64.b64encode(photo_bytes(48, 32)).decode()}
    assert (await client.post("/v2/flux-kontext-dev", json=edit | length | {"deadline_s": 1000})).status_code == 200
    of_page, of_edit = asked[:2]
    assert replace(of_page, id=of_edit.id, prompt=of_edit.prompt) == of_edit


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/x.jpg", "file:///etc/passwd", "data:image/png;base64,AAAA"])
async def test_a_photo_behind_a_link_is_read_as_an_edit_would_read_it(client: httpx2.AsyncClient, url: str) -> None:
    """Private addresses are refused here as there, with the same words."""
    refused = await client.post("/console/api/photo", json={"url": url})
    assert refused.status_code == 400
    [wrong] = refused.json()["errors"]
    assert (wrong["parameter"], wrong["allowed"]) == ("url", "the http(s) URL of a jpeg, png, gif or webp picture")


async def test_a_photo_behind_a_link_of_ours_is_read_without_a_fetch(client: httpx2.AsyncClient) -> None:
    """An upload or a result, which an edit takes too though its address is private."""
    photo = photo_bytes()
    [link] = (await client.post("/upload-asset", files={"file": ("a.jpg", photo)})).json()["file_urls"]
    answer = await client.post("/console/api/photo", json={"url": link})
    assert (answer.status_code, answer.content) == (200, photo)


async def test_only_a_key_that_may_edit_gets_photos_fetched(make_studio: MakeStudio) -> None:
    studio = make_studio()
    reader = studio.new_key(scopes=frozenset({"read"}))
    async with studio.open(), studio.client(reader.secret) as client:
        answer = await client.post("/console/api/photo", json={"url": "https://example.com/x.jpg"})
    assert answer.status_code == 403
    assert answer.json()["code"] == "scope_missing"


@pytest.mark.parametrize("path", ["/console", "/docs"])
async def test_a_slash_behind_a_page_leads_to_it(client: httpx2.AsyncClient, path: str) -> None:
    """By a relative way: a proxy may serve everything below a prefix."""
    answer = await client.get(f"{path}/", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, f"..{path}")
    page = await client.get(f"{path}/", follow_redirects=True)
    assert (page.status_code, page.url.path) == (200, path)


@pytest.mark.parametrize("path", ["/", "/console", "/web/theme.css", "/docs/assets/swagger-ui.css"])
@pytest.mark.parametrize("wanted", ["bytes=0-9", "bytes=99999999-", "bytes=x", "bytes=9-1"])
async def test_files_of_the_pages_come_whole(client: httpx2.AsyncClient, path: str, wanted: str) -> None:
    """Whatever range is asked for: a server need heed none, and one that can't be was refused in plain text."""
    whole = await client.get(path)
    answer = await client.get(path, headers={"range": wanted})
    assert (answer.status_code, answer.content) == (200, whole.content)
    assert answer.headers["accept-ranges"] == "none"
