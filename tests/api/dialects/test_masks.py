"""Masks in other vendors' dialects, each under its vendor's name and as its vendor means them."""

from __future__ import annotations

import base64
from typing import Any

import httpx2
import pytest
from PIL import Image

from tests.api.dialects import fal_calls, openai_calls, replicate_calls, test_bfl, test_huggingface
from tests.api.studio import Studio
from tests.pictures.samples import encoded, gradient, half_marked

pytestmark = pytest.mark.anyio

HALF = half_marked()


def uri(picture: Image.Image) -> str:
    return f"data:image/png;base64,{base64.b64encode(encoded(picture)).decode()}"


def with_hole() -> Image.Image:
    """The photo again, transparent where the mask is white."""
    picture = gradient(48, 32).convert("RGBA")
    picture.putalpha(HALF.point(lambda level: 255 - level))
    return picture


def masks(studio: Studio) -> list[bytes]:
    """Of the edits so far."""
    return [b"" if request.mask is None else request.mask.tobytes() for request in studio.fleet.requests]


async def test_openai_marks_by_transparency(studio: Studio, client: httpx2.AsyncClient) -> None:
    """In a form and in JSON; what is opaque is often the photo itself."""
    mask = ("mask", ("mask.png", encoded(with_hole()), "image/png"))
    answers = [
        await openai_calls.form(client, openai_calls.FILE, mask),
        await client.post(openai_calls.EDITS, json=openai_calls.JSON | {"mask": uri(with_hole())}),
        await client.post(openai_calls.EDITS, json=openai_calls.JSON | {"mask": {"image_url": uri(with_hole())}}),
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200], answers[0].text
    assert masks(studio) == [HALF.tobytes()] * 3


async def test_openai_s_examples_name_the_size_that_their_photo_has(studio: Studio, client: httpx2.AsyncClient) -> None:
    answer = await openai_calls.form(
        client, openai_calls.FILE, ("mask", ("mask.png", encoded(with_hole()))), size="1536x1024"
    )
    assert answer.status_code == 200, answer.text
    refused = await openai_calls.form(
        client, openai_calls.FILE, ("mask", ("mask.png", encoded(with_hole()))), size="1024x1024"
    )
    says = (
        "Wrong parameter: size asks for 1:1, and with a mask the picture keeps the shape of the photo (allowed: that of"
    )
    assert openai_calls.error(refused, 400, "invalid_parameters")["message"].startswith(says)
    assert masks(studio) == [HALF.tobytes()]


async def test_openai_takes_one_mask(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Of two nobody knows which; and a form has its field where no file was chosen."""
    hole = ("mask", ("mask.png", encoded(with_hole())))
    twice = await openai_calls.form(client, openai_calls.FILE, hole, hole)
    assert openai_calls.error(twice, 400, "invalid_parameters")["message"].startswith("Wrong parameter: mask has 2 pic")
    assert (await openai_calls.form(client, openai_calls.FILE, ("mask", ("", b"")))).status_code == 200
    assert masks(studio) == [b""]


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (HALF, "mask marks nothing: it must be transparent where the photo may change"),
        (with_hole().resize((32, 32)), "mask is 32x32 and the photo 48x32: they must have the same shape"),
    ],
)
async def test_openai_is_told_in_its_words(client: httpx2.AsyncClient, mask: Image.Image, says: str) -> None:
    answer = await openai_calls.form(client, openai_calls.FILE, ("mask", ("mask.png", encoded(mask))))
    error = openai_calls.error(answer, 400, "mask_refused")
    assert error["param"] == "mask"
    assert says in error["message"]
    wrong = await client.post(openai_calls.EDITS, json=openai_calls.JSON | {"mask": 7})
    allowed = "(allowed: a picture of the photo's shape, in any form that it may have: transparent where"
    assert allowed in openai_calls.error(wrong, 400, "invalid_parameters")["message"]


async def test_fal_has_a_url_and_a_path_for_it(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Its model for masks asks for a reference, too: only the photo itself will do."""
    asked = fal_calls.GOOD | {"mask_url": uri(HALF)}
    both = asked | {"reference_image_url": asked["image_url"], "strength": 1}
    calls = [(fal_calls.RUN, asked), ("/fal/run/fal-ai/flux-kontext-lora/inpaint", both)]
    for path, body in calls:
        answer = await client.post(path, json=body)
        assert answer.status_code == 200, answer.text
    assert masks(studio) == [HALF.tobytes()] * 2
    refused = await client.post(fal_calls.RUN, json=both | {"reference_image_url": uri(gradient()), "strength": 0.5})
    assert refused.status_code == 422
    assert {tuple(each["loc"]) for each in refused.json()["detail"]} == {
        ("body", "reference_image_url"),
        ("body", "strength"),
    }


async def test_fal_is_told_in_its_words(client: httpx2.AsyncClient) -> None:
    answer = await client.post(fal_calls.RUN, json=fal_calls.GOOD | {"mask_url": uri(with_hole())})
    [problem] = answer.json()["detail"]
    assert problem["loc"] == ["body", "mask_url"]
    assert problem["msg"].startswith("mask_url has transparent parts")


async def test_an_empty_text_is_no_mask(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Programs that show a field for it send that."""
    answers = [
        await client.post(fal_calls.RUN, json=fal_calls.GOOD | {"mask_url": ""}),
        await client.post(test_huggingface.PATH, json=test_huggingface.asked(mask_image="")),
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert masks(studio) == [b"", b""]


async def test_a_size_beside_a_mask_is_refused_as_what_it_was_sent_as(
    studio: Studio, client: httpx2.AsyncClient
) -> None:
    """Nobody finds `aspect_ratio` in a request without one."""
    square = {"width": 512, "height": 512}
    bfl = test_bfl.ASKED | {"mask": uri(HALF), **square}
    replicate = replicate_calls.INPUT | {"mask": uri(HALF), "size": "512x512"}
    answers = [
        await client.post(fal_calls.RUN, json=fal_calls.GOOD | {"mask_url": uri(HALF), "image_size": "square"}),
        await client.post(test_huggingface.PATH, json=test_huggingface.asked(mask_image=uri(HALF), target_size=square)),
        await client.post(test_bfl.PATH, json=bfl, headers={"x-key": studio.key}),
        await client.post(replicate_calls.CREATE, json={"input": replicate}),
    ]
    for answer, name in zip(answers, ("image_size", "target_size", "width", "size"), strict=True):
        assert f"{name} asks for 1:1, and with a mask the picture keeps the shape" in answer.text


async def test_replicate_has_a_mask(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Which its document shows again, as far as it shows pictures that were sent inline."""
    found = await replicate_calls.done(client, mask=uri(HALF))
    assert masks(studio) == [HALF.tobytes()]
    assert found["input"]["mask"] == f"(png, 48x32, {len(encoded(HALF))} bytes)"
    assert "mask" not in (await replicate_calls.done(client))["input"]


@pytest.mark.parametrize("mask", [uri(HALF), base64.b64encode(encoded(HALF)).decode()], ids=["uri", "base64"])
async def test_black_forest_labs_and_hugging_face_have_one(
    studio: Studio, client: httpx2.AsyncClient, mask: str
) -> None:
    answers: list[Any] = [
        await client.post(test_bfl.PATH, json=test_bfl.ASKED | {"mask": mask}, headers={"x-key": studio.key}),
        await client.post(test_huggingface.PATH, json=test_huggingface.asked(mask_image=mask)),
    ]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    await client.get(answers[0].json()["polling_url"])
    assert masks(studio) == [HALF.tobytes()] * 2
