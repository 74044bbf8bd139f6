"""Masks that an edit comes with: the forms that they are sent in, what fits which photo, and where they are kept."""

from __future__ import annotations

import base64
from typing import Any

import httpx2
import pytest
from PIL import Image

from rekontext.api.bodies import Upload
from rekontext.api.orders import _digest
from rekontext.api.parameters import parse
from rekontext.contract import EditRequest
from rekontext.jobs import mask_key
from rekontext.pictures import Marks, StoreUnavailable
from tests.api.conftest import MakeStudio
from tests.api.orders import GOOD, PLAIN, V1, V2, followed
from tests.api.studio import PillowFleet, Studio
from tests.pictures.samples import encoded, gradient, half_marked, photo_bytes

pytestmark = pytest.mark.anyio

HALF = half_marked()
MASK = encoded(HALF)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sent(mask: Image.Image) -> str:
    return text(encoded(mask))


def mask_of(request: EditRequest) -> Image.Image:
    assert request.mask is not None
    return request.mask


@pytest.mark.parametrize(
    "mask",
    [text(MASK), f"data:image/png;base64,{text(MASK)}", text(encoded(HALF.convert("RGB"), "WEBP", lossless=True))],
    ids=["base64", "data-uri", "colours"],
)
async def test_a_mask_reaches_the_engine_as_it_was_sent(studio: Studio, client: httpx2.AsyncClient, mask: str) -> None:
    answer = await client.post(V1, json=GOOD | {"mask_image": mask})
    assert answer.status_code == 200, answer.text
    [request] = studio.fleet.requests
    assert mask_of(request).tobytes() == HALF.tobytes()
    whole = (await client.get(f"/console/api/requests/{answer.headers['x-request-id']}")).json()
    assert whole["parameters"]["mask_image"].endswith(f"48x32, {len(base64.b64decode(mask.split(',')[-1]))} bytes)")


@pytest.mark.parametrize("name", ["mask.png", None], ids=["named", "nameless"])
async def test_a_form_has_a_file(studio: Studio, client: httpx2.AsyncClient, name: str | None) -> None:
    files = [("input_image", ("photo.jpg", photo_bytes())), ("mask_image", (name, MASK))]
    answer = await client.post(V1, data={"prompt": "invert it"}, files=files)
    assert answer.status_code == 200, answer.text
    assert mask_of(studio.fleet.requests[0]).tobytes() == HALF.tobytes()


@pytest.mark.parametrize("empty", [("", b""), (None, b"")], ids=["no-file-chosen", "empty-text"])
async def test_a_form_without_a_file_has_none(
    studio: Studio, client: httpx2.AsyncClient, empty: tuple[str | None, bytes]
) -> None:
    """A page's form sends its field all the same."""
    answer = await client.post(V1, data=PLAIN, files=[("mask_image", empty)])
    assert answer.status_code == 200, answer.text
    whole = (await client.get(f"/console/api/requests/{answer.headers['x-request-id']}")).json()
    assert "mask_image" not in whole["parameters"], "another process, of the version before, may run it"
    assert studio.fleet.requests[0].mask is None


async def test_an_uploaded_mask_is_read_without_a_fetch(studio: Studio, client: httpx2.AsyncClient) -> None:
    [url] = (await client.post("/upload-asset", files={"file": ("mask.png", MASK)})).json()["file_urls"]
    answer = await client.post(V1, json=GOOD | {"mask_image": url})
    assert answer.status_code == 200, answer.text
    assert mask_of(studio.fleet.requests[0]).tobytes() == HALF.tobytes()


async def test_a_large_photo_takes_a_small_mask_and_a_large_mask_is_made_smaller(make_studio: MakeStudio) -> None:
    """To what an edit can use of it."""
    studio = make_studio(PillowFleet(), picture_pixels_max=10**7)
    async with studio.open() as client:
        small = GOOD | {"input_image": text(photo_bytes(480, 320)), "mask_image": text(MASK)}
        large = GOOD | {"mask_image": sent(half_marked(3000, 2000))}
        assert [(await client.post(V1, json=each)).status_code for each in (small, large)] == [200, 200]
    assert [mask_of(request).size for request in studio.fleet.requests] == [(48, 32), (2048, 1365)]


async def test_a_large_mask_of_a_narrow_photo_is_as_narrow_as_it_gets(make_studio: MakeStudio) -> None:
    """Half a pixel of its height is more than its shape may be off."""
    async with make_studio(PillowFleet()).open() as client:
        size = (4000, 40)
        answer = await client.post(
            V1, json=GOOD | {"input_image": text(photo_bytes(*size)), "mask_image": sent(half_marked(*size))}
        )
        assert answer.status_code == 200, answer.text


async def test_a_mask_may_weigh_more_than_the_picture_that_it_was(make_studio: MakeStudio) -> None:
    """It is kept without loss; the limit is for what is sent."""
    mask = encoded(Image.effect_noise((48, 32), 120), "JPEG", quality=5)
    studio = make_studio(PillowFleet(), picture_bytes_max=1200)
    async with studio.open() as client:
        answer = await client.post(V1, json=GOOD | {"mask_image": text(mask)})
        assert answer.status_code == 200, answer.text


async def test_a_photo_that_lies_on_its_side_takes_the_mask_of_what_is_seen(
    studio: Studio, client: httpx2.AsyncClient
) -> None:
    """Cameras store a photo as the sensor has it, and say how it was held."""
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = text(encoded(gradient(48, 32), "JPEG", exif=exif))
    seen, stored = (
        GOOD | {"input_image": photo, "mask_image": sent(half_marked(*size))} for size in ((32, 48), (48, 32))
    )
    assert (await client.post(V1, json=seen)).status_code == 200
    refused = await client.post(V1, json=stored)
    assert "mask_image is 48x32 and the photo 32x48: they must have the same shape" in refused.json()["error"]
    [request] = studio.fleet.requests
    assert request.photo is not None
    assert request.photo.size == mask_of(request).size == (32, 48)


@pytest.mark.parametrize("ratio", ["match_input_image", "3:2"])
async def test_a_ratio_that_the_photo_has_anyway_is_no_other(
    studio: Studio, client: httpx2.AsyncClient, ratio: str
) -> None:
    answer = await client.post(V1, json=GOOD | {"mask_image": text(MASK), "aspect_ratio": ratio})
    assert answer.status_code == 200, answer.text
    assert studio.fleet.requests[0].aspect_ratio == "match_input_image"


@pytest.mark.parametrize(
    ("asked", "code", "says"),
    [
        (
            {"mask_image": 7},
            "invalid_parameters",
            "mask_image is 7 (allowed: a picture of the photo's shape, in any form",
        ),
        ({"mask_image": ""}, "unreadable_picture", "mask_image can't be used: the text is empty"),
        ({"mask_image": text(b"GIF87a")}, "unreadable_picture", "mask_image can't be used: the gif picture's header"),
        ({"mask_image": text(MASK[:70])}, "unreadable_picture", "mask_image can't be used: the png picture is cut off"),
        ({"mask_image": "http://10.0.0.1/m.png"}, "unreachable_picture", "mask_image can't be used: "),
        (
            {"mask_image": sent(HALF.resize((32, 32)))},
            "mask_refused",
            "mask_image is 32x32 and the photo 48x32",
        ),
        (
            {"mask_image": sent(Image.new("L", (48, 32)))},
            "mask_refused",
            "mask_image marks nothing: it must be",
        ),
        (
            {"mask_image": sent(Image.new("RGBA", (48, 32)))},
            "mask_refused",
            "mask_image has transparent parts: it must be white where the photo may change",
        ),
        (
            {"mask_image": text(MASK), "aspect_ratio": "1:1"},
            "invalid_parameters",
            "aspect_ratio asks for 1:1, and with a mask the picture keeps the shape of the photo (allowed: that of",
        ),
    ],
    ids=["number", "empty", "header", "cut-off", "private", "shape", "black", "transparent", "ratio"],
)
async def test_what_is_wrong_with_a_mask_is_said(
    studio: Studio, client: httpx2.AsyncClient, asked: dict[str, Any], code: str, says: str
) -> None:
    """When it is ordered: nobody waits for an edit that can't be."""
    answer = await client.post(V1, json=GOOD | asked)
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    assert answer.json()["error"].startswith(f"Wrong parameter: {says}")
    assert [each["parameter"] for each in answer.json()["errors"]] == [next(reversed(asked))]
    assert not studio.fleet.requests


async def test_all_that_is_wrong_is_said_at_once(client: httpx2.AsyncClient) -> None:
    """With the photo and with its mask."""
    answer = await client.post(V1, json={"prompt": "x", "input_image": "?", "mask_image": "?", "guidance": 99})
    assert {each["parameter"] for each in answer.json()["errors"]} == {"input_image", "mask_image", "guidance"}


def test_a_request_without_a_mask_has_the_digest_that_it_had_before_there_were_any() -> None:
    """Idempotency keys outlive an upgrade. The digest is what the code before made of it."""
    given: dict[str, object] = {"prompt": "make it night", "input_image": "https://a.example/photo.jpg"}
    masks: list[tuple[object, Marks]] = [
        (None, "white"),
        (text(MASK), "white"),
        (text(MASK), "transparency"),
        (Upload(data=MASK), "white"),
        (Upload(data=MASK + b"x"), "white"),
    ]
    found = []
    for mask, marks in masks:
        parameters, problems = parse({**given, "mask_image": mask})
        assert parameters is not None, problems
        found.append(_digest(parameters, marks))
    assert found[0] == "7aab6b0d754fa24f46708700a19aadf4b141b27e82a93993a31c9297bd6d2eed"
    assert len(set(found)) == len(found)


async def test_a_mask_lies_beside_its_photo_and_goes_with_it(studio: Studio, client: httpx2.AsyncClient) -> None:
    studio.fleet.may_step.clear()
    job = (await client.post(V2, json=GOOD | {"mask_image": text(MASK)})).json()
    await studio.fleet.began.wait()
    objects = studio.service.parts.objects
    assert [found.key async for found in objects.list("masks")] == [mask_key(job["request_id"])]
    studio.fleet.may_step.set()
    assert (await followed(client, job["events_url"]))[-1][0] == "done"


@pytest.mark.parametrize("fails", ["inputs/", "masks/"])
async def test_an_order_whose_mask_cannot_be_kept_leaves_nothing(
    studio: Studio, client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    objects = studio.service.parts.objects
    put = objects.put

    async def broken(key: str, data: bytes, **options: Any) -> None:
        if key.startswith(fails):
            raise StoreUnavailable("the store is full")
        await put(key, data, **options)

    monkeypatch.setattr(objects, "put", broken)
    answer = await client.post(V1, json=GOOD | {"mask_image": text(MASK)})
    assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
    assert not [found.key for folder in ("inputs", "masks") async for found in objects.list(folder)]


async def test_a_refused_order_and_a_replayed_one_leave_no_mask(studio: Studio, client: httpx2.AsyncClient) -> None:
    asked = GOOD | {"mask_image": text(MASK)}
    key = {"idempotency-key": "k"}
    first, again = [await client.post(V1, json=asked, headers=key) for _ in range(2)]
    assert again.headers["idempotency-replayed"] == "true"
    assert first.content == again.content
    other = await client.post(V1, json=GOOD | {"mask_image": sent(half_marked(24, 16))}, headers=key)
    assert other.json()["code"] == "idempotency_key_reused"
    assert len([found async for found in studio.service.parts.objects.list("masks")]) == 1
