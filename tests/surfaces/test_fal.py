"""The official fal client, pointed at this server by nothing but its constants: by its settings it calls https only."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import fal_client
import fal_client.client
import httpx
import pytest
from PIL import Image

from rekontext.contract import EngineFault
from tests.pictures.samples import encoded, gradient
from tests.surfaces.served import Served

APP: Final = "fal-ai/flux-kontext/dev"
FAST: Final = {"num_inference_steps": 4, "seed": 7}


@pytest.fixture
def client(served: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[fal_client.SyncClient]:
    """A client whose constants name our server."""
    point(served.url, monkeypatch)
    opened: list[httpx.Client] = []
    honest = fal_client.SyncClient._get_cdn_client

    def closed_later(self: fal_client.SyncClient) -> httpx.Client:  # which it leaves to the garbage collector
        opened.append(honest(self))
        return opened[-1]

    monkeypatch.setattr(fal_client.SyncClient, "_get_cdn_client", closed_later)
    made = fal_client.SyncClient(key=served.key)
    yield made
    for each in (made._client, *opened):
        each.close()


def point(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the client's calls go to a server of ours."""
    for name, path in (
        ("RUN_URL_FORMAT", "/fal/run/"),
        ("QUEUE_URL_FORMAT", "/fal/queue/"),
        ("REST_URL", "/fal/rest"),
        ("CDN_URL", "/fal/cdn"),
    ):
        monkeypatch.setattr(fal_client.client, name, f"{url}{path}")


def opened(result: dict[str, Any]) -> Image.Image:
    """The picture of a result, by its link."""
    return Image.open(BytesIO(httpx.get(result["images"][0]["url"]).content))


def test_the_client_is_the_one_that_is_promised() -> None:
    """Its version is what the documentation names."""
    assert importlib.metadata.version("fal-client") == "1.0.3"


def test_run_brings_the_result(client: fal_client.SyncClient, photo: Path) -> None:
    """In one call; the photo is in it as text."""
    image_url = fal_client.encode_file(photo)
    result = client.run(APP, {"prompt": "invert it", "image_url": image_url, **FAST})
    assert (result["seed"], result["prompt"]) == (7, "invert it")
    assert opened(result).size == (48, 32)


def test_loras_are_named_by_their_paths(
    client: fal_client.SyncClient, served: Served, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which at the vendor lead to files."""
    monkeypatch.setattr(served.studio.fleet, "loras", ("ink", "watercolour"))
    asked = {"prompt": "invert it", "image_url": fal_client.encode_file(photo), **FAST}
    given = asked | {"loras": [{"path": "watercolour", "scale": 0.5}, {"path": "ink"}]}
    result = client.subscribe("fal-ai/flux-kontext-lora", given)
    assert result["model"] == "mini + ink + watercolour:0.5"
    with pytest.raises(fal_client.FalClientHTTPError, match="this server offers ink, watercolour"):
        client.run(APP, asked | {"loras": [{"path": "nosuch", "scale": 1}]})


def test_a_file_is_uploaded_and_edited(client: fal_client.SyncClient, photo: Path) -> None:
    """As the vendor's own examples begin."""
    result = client.run(APP, {"prompt": "invert it", "image_url": client.upload_file(photo), **FAST})
    assert opened(result).size == (48, 32)


def test_pictures_are_uploaded_by_either_way(client: fal_client.SyncClient) -> None:
    """The client has two, and takes the second when the first fails."""
    for repository in ("fal_v3", "fal"):
        link = client.upload_image(gradient(20, 10), "png", repository=repository)
        assert Image.open(BytesIO(httpx.get(link).content)).size == (20, 10)


def test_a_file_that_is_no_picture_is_refused(client: fal_client.SyncClient) -> None:
    """By both ways; what is raised is our answer to the second."""
    with pytest.raises(fal_client.FalClientHTTPError, match="file can't be used") as caught:
        client.upload(b"some text", "text/plain", "x.txt")
    assert caught.value.status_code == 422
    assert caught.value.response.request.method == "PUT"


def test_subscribe_waits_and_is_told_of_each_status(client: fal_client.SyncClient, photo: Path) -> None:
    """Logs can be gone through without asking for them, as the vendor's examples do."""
    told: list[fal_client.Status] = []
    enqueued: list[str] = []
    body = {"prompt": "invert it", "image_url": fal_client.encode_file(photo), **FAST}
    result = client.subscribe(
        APP, body, interval=0.01, on_queue_update=told.append, on_enqueue=enqueued.append, priority="low"
    )
    assert opened(result).size == (48, 32)
    assert isinstance(told[-1], fal_client.Completed)
    assert told[-1].metrics["inference_time"] > 0
    for status in told:
        assert isinstance(status, fal_client.Queued) or status.logs == []  # type: ignore[attr-defined]
    assert client.result(APP, enqueued[0])["seed"] == 7


def test_a_handle_s_own_calls(served: Served, client: fal_client.SyncClient, photo: Path) -> None:
    """Status, cancel, and by the request's name alone; what was cancelled has no result."""
    served.studio.fleet.may_step.clear()
    try:
        handle = client.submit(APP, {"prompt": "x", "image_url": fal_client.encode_file(photo), **FAST})
        assert handle.status_url.startswith(f"{served.url}/fal/queue/")
        assert not isinstance(client.status(APP, handle.request_id, with_logs=True), fal_client.Completed)
        client.cancel(APP, handle.request_id)
    finally:
        served.studio.fleet.may_step.set()
    with pytest.raises(fal_client.FalClientHTTPError, match="cancelled") as caught:
        handle.get(interval=0.01)
    assert (caught.value.status_code, caught.value.error_type) == (499, "cancelled")
    with pytest.raises(fal_client.FalClientHTTPError) as again:
        handle.cancel()
    assert again.value.status_code == 400


def test_a_stream_is_followed(client: fal_client.SyncClient, photo: Path) -> None:
    """Each event is an object; the last is the result."""
    body = {"prompt": "invert it", "image_url": fal_client.encode_file(photo), **FAST}
    *steps, result = client.stream(APP, body)
    assert [each["step"] for each in steps][-1] == 4
    assert opened(result).size == (48, 32)


def test_hanging_up_on_a_stream_cancels(served: Served, client: fal_client.SyncClient, photo: Path) -> None:
    """On the queue's own one it doesn't: that job was submitted to be asked for."""
    served.studio.fleet.may_step.clear()
    body = {"prompt": "invert it", "image_url": fal_client.encode_file(photo), **FAST}
    try:
        stream = client.stream(APP, body)
        left = next(stream)["request_id"]
        stream.close()  # type: ignore[attr-defined]
        with pytest.raises(fal_client.FalClientHTTPError, match="cancelled"):
            client.get_handle(APP, left).get(interval=0.01)
        goes_on = client.submit(APP, body)
        with httpx.stream(
            "GET", f"{goes_on.status_url}/stream", headers={"authorization": f"Key {served.key}"}
        ) as told:
            assert next(told.iter_lines()).startswith("data: ")
    finally:
        served.studio.fleet.may_step.set()
    assert goes_on.get(interval=0.01)["seed"] == 7


@pytest.mark.anyio
async def test_the_asynchronous_client(served: Served, photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls."""
    point(served.url, monkeypatch)
    client = fal_client.AsyncClient(key=served.key)
    link = await client.upload_file(photo)
    result = await client.subscribe(APP, {"prompt": "invert it", "image_url": link, **FAST}, interval=0.01)
    assert result["seed"] == 7
    assert [each async for each in client.stream(APP, {"prompt": "x", "image_url": link, **FAST})][-1]["seed"] == 7
    await (await client._client).aclose()


def test_wrong_parameters_are_raised_with_their_names(client: fal_client.SyncClient, photo: Path) -> None:
    """As the list that the vendor's own refusals are."""
    with pytest.raises(fal_client.FalClientHTTPError) as caught:
        client.run(APP, {"image_url": fal_client.encode_file(photo), "guidance_scale": 99})
    assert (caught.value.status_code, caught.value.error_type) == (422, "invalid_parameters")
    said: Any = caught.value.message
    assert [each["loc"] for each in said] == [["body", "prompt"], ["body", "guidance_scale"]]


def test_a_job_that_fails_is_raised_by_its_result(
    served: Served, client: fal_client.SyncClient, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is wrong with the photo as a problem of its field, a fault of ours as a sentence; neither is asked twice."""
    whole = encoded(gradient(64, 64))
    photo.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(fal_client.FalClientHTTPError, match="cut off") as caught:
        client.subscribe(APP, {"prompt": "x", "image_url": fal_client.encode_file(photo), **FAST}, interval=0.01)
    assert caught.value.status_code == 422
    photo.write_bytes(whole)
    monkeypatch.setattr(served.studio.fleet, "fault", EngineFault("out of memory"))
    with pytest.raises(fal_client.FalClientHTTPError) as failed:
        client.subscribe(APP, {"prompt": "x", "image_url": fal_client.encode_file(photo), **FAST}, interval=0.01)
    assert (failed.value.status_code, failed.value.error_type) == (500, "engine_fault")


def test_another_app_and_another_key_are_refused(served: Served, client: fal_client.SyncClient) -> None:
    """In a sentence."""
    with pytest.raises(fal_client.FalClientHTTPError, match="fal-ai/flux/dev"):
        client.run("fal-ai/flux/dev", {"prompt": "x"})
    stranger = fal_client.SyncClient(key="not:mine")
    with pytest.raises(fal_client.FalClientHTTPError, match="API key") as caught:
        stranger.run(APP, {"prompt": "x"})
    assert caught.value.status_code == 401
    stranger._client.close()
