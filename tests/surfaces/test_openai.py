"""The official OpenAI client, pointed at this server by nothing but its own settings."""

from __future__ import annotations

import base64
import importlib.metadata
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, Final

import httpx
import openai
import pytest
from PIL import Image

from rekontext.api import sse
from rekontext.contract import EngineFault
from tests.pictures.samples import encoded, gradient, photo_bytes
from tests.surfaces.served import Served

FAST: Final = {"num_inference_steps": 4, "seed": 7}


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key) as client:
        yield client


@pytest.fixture
async def asynchronous(served: Served) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.key) as client:
        yield client


def opened(text: str | None) -> Image.Image:
    """The picture in an answer."""
    assert text is not None
    return Image.open(BytesIO(base64.b64decode(text)))


def test_the_client_is_the_one_that_is_promised() -> None:
    """Its version is what was tried."""
    assert importlib.metadata.version("openai") == "3.57.0"


@pytest.mark.parametrize("how", ["path", "bytes", "opened", "named", "list"])
def test_edit_brings_the_picture(client: openai.OpenAI, photo: Path, how: str) -> None:
    """However the photo is handed to the client."""
    image: Any = {
        "path": photo,
        "bytes": photo.read_bytes(),
        "opened": BytesIO(photo.read_bytes()),
        "named": ("a.bin", photo.read_bytes(), "application/octet-stream"),
        "list": [photo],
    }[how]
    answer = client.images.edit(image=image, prompt="invert it", model="flux-kontext-dev", extra_body=FAST)
    assert answer.data is not None
    picture = opened(answer.data[0].b64_json)
    assert (picture.format, picture.size) == ("PNG", (48, 32))
    assert (answer.size, answer.output_format, answer.background) == ("48x32", "png", "opaque")
    assert (answer.quality, answer.usage) == (None, None), "nobody knows them"


def test_the_headers_are_there_with_the_raw_answer(client: openai.OpenAI, photo: Path) -> None:
    """Price, seed and the request's id."""
    raw = client.images.with_raw_response.edit(image=photo, prompt="invert it", extra_body=FAST)
    assert (raw.headers["x-cost"], raw.headers["x-seed-value"]) == ("0.04", "7")
    assert raw.headers["x-request-id"] == raw.request_id


def test_the_fields_of_both_apis_are_heeded(client: openai.OpenAI, served: Served, photo: Path) -> None:
    """The vendor's as arguments, ours in `extra_body`."""
    more = {"guidance": 2.5, "acceleration": "high", "disable_safety_checker": True, "nested": {"a": 1}, "list": [1]}
    answer = client.images.edit(
        image=photo,
        prompt="invert it",
        model="flux-kontext-dev",
        n=1,
        size="1536x1024",
        quality="high",
        output_format="jpeg",
        output_compression=80,
        background="opaque",
        input_fidelity="high",
        user="me",
        extra_body=FAST | more,
    )
    assert answer.data is not None
    picture = opened(answer.data[0].b64_json)
    assert (picture.format, answer.output_format) == ("JPEG", "jpeg")
    assert f"{picture.width}x{picture.height}" == answer.size
    asked = served.studio.fleet.requests[-1]
    assert (asked.guidance, asked.acceleration, asked.aspect_ratio, asked.seed) == (2.5, "high", "3:2", 7)


@pytest.mark.parametrize("loras", ["ink,watercolour:0.5", ["ink", "watercolour:0.5"]])
def test_loras_as_a_text_or_a_list(
    client: openai.OpenAI, served: Served, photo: Path, loras: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the list the client makes fields."""
    monkeypatch.setattr(served.studio.fleet, "loras", ("ink", "watercolour"))
    client.images.edit(image=photo, prompt="invert it", extra_body=FAST | {"loras": loras})
    assert served.studio.fleet.requests[-1].loras == (("ink", 1.0), ("watercolour", 0.5))
    with pytest.raises(openai.BadRequestError, match="this server offers ink, watercolour") as caught:
        client.images.edit(image=photo, prompt="x", extra_body={"loras": "nosuch"})
    assert caught.value.param == "loras"


def test_a_mask_is_transparent_where_the_photo_may_change(
    client: openai.OpenAI, served: Served, photo: Path, tmp_path: Path
) -> None:
    mask = Image.open(photo).convert("RGBA")
    mask.paste((0, 0, 0, 0), (0, 0, mask.width // 2, mask.height))
    mask.save(tmp_path / "mask.png")
    client.images.edit(image=photo, mask=tmp_path / "mask.png", prompt="invert it", extra_body=FAST)
    found = served.studio.fleet.requests[-1].mask
    assert found is not None
    assert found.getcolors() == [(mask.width * mask.height // 2, 0), (mask.width * mask.height // 2, 255)]


def test_a_link_instead_of_the_picture(client: openai.OpenAI, photo: Path) -> None:
    """It opens without a key."""
    answer = client.images.edit(image=photo, prompt="invert it", response_format="url", extra_body=FAST)
    assert answer.data is not None
    assert answer.data[0].url is not None
    assert httpx.get(answer.data[0].url).headers["content-type"] == "image/png"


def test_a_stream_shows_the_picture_on_its_way(
    client: openai.OpenAI, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is sent in between to keep the connection alive."""
    monkeypatch.setattr(sse, "KEEP_ALIVE_S", 0.0)
    more = FAST | {"num_inference_steps": 50}
    stream = client.images.edit(image=photo, prompt="invert it", stream=True, partial_images=3, extra_body=more)
    *looks, last = stream
    assert 0 <= len(looks) <= 3, "whoever is slow misses some"
    for index, look in enumerate(looks):
        assert look.type == "image_edit.partial_image"
        assert look.partial_image_index == index
        assert opened(look.b64_json).format == "JPEG"
    assert last.type == "image_edit.completed"
    assert (opened(last.b64_json).size, last.size, last.output_format) == ((48, 32), "48x32", "png")
    assert last.usage is None


@pytest.mark.anyio
async def test_the_asynchronous_client(asynchronous: openai.AsyncOpenAI, photo: Path) -> None:
    """Edits, streams and lists as the other one does."""
    answer = await asynchronous.images.edit(image=photo, prompt="invert it", extra_body=FAST)
    assert answer.data is not None
    *_, last = [
        event
        async for event in await asynchronous.images.edit(image=photo, prompt="invert it", stream=True, extra_body=FAST)
    ]
    assert last.b64_json == answer.data[0].b64_json
    assert [model.id async for model in asynchronous.models.list()] == ["flux-kontext-dev"]


def test_models(client: openai.OpenAI) -> None:
    """The one that is served, in the list and by its name."""
    [model] = client.models.list()
    assert client.models.retrieve(model.id) == model
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-image-1")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("more", "kind", "code", "param"),
    [
        ({"model": "gpt-image-1"}, openai.NotFoundError, "model_not_found", "model"),
        ({"size": "2x1"}, openai.BadRequestError, "invalid_parameters", "size"),
        ({"mask": photo_bytes()}, openai.BadRequestError, "mask_refused", "mask"),
        ({"image": [photo_bytes(), photo_bytes()]}, openai.BadRequestError, "invalid_parameters", "image"),
        ({"image": b"none"}, openai.BadRequestError, "unreadable_picture", "image"),
        ({"extra_body": {"seed": "x"}, "stream": True}, openai.BadRequestError, "invalid_parameters", "seed"),
        ({"extra_headers": {"Authorization": "Bearer rk_no"}}, openai.AuthenticationError, "invalid_api_key", None),
    ],
)
def test_a_refusal_is_the_exception_that_the_client_has_for_it(
    client: openai.OpenAI, photo: Path, more: dict[str, Any], kind: type[openai.APIStatusError], code: str, param: str
) -> None:
    """With our code and the name of the parameter."""
    with pytest.raises(kind) as caught:
        client.images.edit(**{"image": photo, "prompt": "x", **more})
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.request_id


def test_a_failure_in_a_stream_is_an_exception(client: openai.OpenAI, tmp_path: Path) -> None:
    """A stream that only ended would pass for one without a picture."""
    whole = encoded(gradient(64, 64))
    cut = tmp_path / "cut.png"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(openai.APIError, match="image can't be used") as caught:
        list(client.images.edit(image=cut, prompt="x", stream=True))
    assert (caught.value.code, caught.value.param) == ("unreadable_picture", "image")


def test_an_edit_that_failed_is_not_ordered_again(
    client: openai.OpenAI, served: Served, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client repeats a 500 twice by itself, unless it is told not to."""
    monkeypatch.setattr(served.studio.fleet, "fault", EngineFault("no device"))
    before = len(served.studio.fleet.requests)
    with pytest.raises(openai.InternalServerError) as caught:
        client.images.edit(image=photo, prompt="x", extra_body=FAST)
    assert caught.value.code == "engine_fault"
    assert len(served.studio.fleet.requests) == before + 1


def test_who_cannot_pay_is_told_at_once(served: Served, photo: Path) -> None:
    """The client doesn't try again."""
    poor = served.studio.new_account("poor").secret
    with (
        openai.OpenAI(base_url=f"{served.url}/v1", api_key=poor) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        client.images.edit(image=photo, prompt="x")
    assert (caught.value.status_code, caught.value.code) == (402, "insufficient_credits")
