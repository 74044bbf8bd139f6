"""Good requests: the right picture of the right size and type, with its facts in the headers."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any, Final

import httpx2
import orjson
import pytest
from PIL import Image, ImageChops, ImageStat

from rekontext.api.answers import prefers_json
from rekontext.api.documents import MINI_NOTICE
from rekontext.api.problems import PROMPT_CHARACTERS_MAX
from rekontext.contract import ASPECT_RATIOS, AspectRatio
from rekontext.pictures import MEDIA_TYPES, OUTPUT_FORMATS, sniff
from tests.api.conftest import MakeStudio
from tests.api.studio import SEED_DRAWN, SIZES, PillowFleet, Studio
from tests.pictures.samples import encoded, gradient, photo_bytes

pytestmark = pytest.mark.anyio

URL: Final = "/v1/flux-kontext-dev"
PHOTO: Final = photo_bytes()
GOOD: Final[dict[str, Any]] = {"prompt": "invert it", "input_image": base64.b64encode(PHOTO).decode()}


def picture(answer: httpx2.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(BytesIO(answer.content))


@pytest.mark.parametrize("aspect_ratio", ASPECT_RATIOS)
async def test_every_aspect_ratio_and_format(client: httpx2.AsyncClient, aspect_ratio: AspectRatio) -> None:
    """The answer has the size that the ratio stands for and the type that was asked for."""
    width, height = SIZES.get(aspect_ratio, (48, 32))
    for output_format in OUTPUT_FORMATS:
        answer = await client.post(URL, json=GOOD | {"aspect_ratio": aspect_ratio, "output_format": output_format})
        assert picture(answer).size == (width, height)
        assert answer.headers["content-type"] == MEDIA_TYPES[output_format] == f"image/{sniff(answer.content)}"
        assert answer.headers["x-output-metadata"] == f'{{"width":{width},"height":{height}}}'


async def test_the_picture_is_the_edited_one(client: httpx2.AsyncClient) -> None:
    """What the engine made of this photo comes back, not the photo."""
    edited = picture(await client.post(URL, json=GOOD | {"seed": 1}))
    original = Image.open(BytesIO(PHOTO))
    total = ImageStat.Stat(ImageChops.add(edited.convert("RGB"), original)).mean
    assert min(total) > 240, "an inversion and its original add up to white"


@pytest.mark.parametrize("character", [",", "[", "{"])
async def test_a_prompt_may_be_all_punctuation(client: httpx2.AsyncClient, character: str) -> None:
    """The longest one stays below what bounds the items of a JSON body."""
    answer = await client.post(URL, json=GOOD | {"prompt": character * PROMPT_CHARACTERS_MAX})
    assert answer.status_code == 200, answer.text


async def test_the_page_s_defaults(studio: Studio, client: httpx2.AsyncClient) -> None:
    """What is absent or null is the page's default; the seed is drawn."""
    nothing = dict.fromkeys(["aspect_ratio", "guidance", "num_inference_steps", "output_format", "output_quality"])
    for body in (GOOD, GOOD | nothing):
        answer = await client.post(URL, json=body)
        assert picture(answer).format == "PNG"
        request = studio.fleet.requests[-1]
        assert (request.steps, request.guidance, request.aspect_ratio) == (35, 7.0, "match_input_image")
        assert (request.seed, request.prompt) == (SEED_DRAWN, "invert it")
        assert request.id == answer.headers["x-request-id"]


@pytest.mark.parametrize("seed", [None, "", -1, -1.0])
async def test_a_random_seed_is_told(client: httpx2.AsyncClient, seed: object) -> None:
    """The header names the seed that was drawn, and sending it back gives the same picture."""
    drawn = await client.post(URL, json=GOOD | {"seed": seed})
    assert drawn.headers["x-seed-value"] == str(SEED_DRAWN)
    again = await client.post(URL, json=GOOD | {"seed": SEED_DRAWN})
    other = await client.post(URL, json=GOOD | {"seed": 0})
    assert drawn.content == again.content != other.content
    assert other.headers["x-seed-value"] == "0"


async def test_the_largest_and_smallest_values_are_allowed(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Every range includes its ends, and an integer may be spelled with a point."""
    low = {"guidance": 0, "num_inference_steps": 4, "output_quality": 0, "seed": 0, "output_format": "jpg"}
    high = {"guidance": 10, "num_inference_steps": 50.0, "output_quality": 100, "seed": 2**63 - 1}
    small = await client.post(URL, json=GOOD | low)
    large = await client.post(URL, json=GOOD | high | {"output_format": "jpg", "disable_safety_checker": True})
    assert (small.status_code, large.status_code) == (200, 200)
    assert [request.steps for request in studio.fleet.requests] == [4, 50]
    assert large.headers["x-seed-value"] == str(2**63 - 1)
    assert len(small.content) < len(large.content), "quality reaches the encoder"


async def test_unknown_parameters_are_ignored(client: httpx2.AsyncClient) -> None:
    """Callers that send what other models take are served."""
    assert (await client.post(URL, json=GOOD | {"negative_prompt": 3, "model": None})).status_code == 200
    nested = orjson.dumps(GOOD)[:-1] + b', "lora": ' + b"[" * 900 + b"]" * 900 + b"}"
    answer = await client.post(URL, content=nested, headers={"content-type": "application/json"})
    assert answer.status_code == 200, "however deep"


async def test_a_form_with_a_file(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Text fields are read as the values they spell; empty ones are absent; other files are ignored."""
    form = {
        "prompt": "invert it",
        "guidance": "2.5",
        "num_inference_steps": " 12 ",
        "output_format": "webp",
        "output_quality": "",
        "aspect_ratio": "",
        "seed": "7",
        "disable_safety_checker": "False",
    }
    files = {"input_image": ("lie.txt", PHOTO, "text/plain"), "mask": ("mask.png", b"whatever", "image/png")}
    answer = await client.post(URL, data=form, files=files)
    assert picture(answer).format == "WEBP"
    request = studio.fleet.requests[-1]
    assert (request.guidance, request.steps, request.seed, request.aspect_ratio) == (2.5, 12, 7, "match_input_image")


@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "GIF", "WEBP"])
async def test_a_form_with_a_file_that_has_no_name(client: httpx2.AsyncClient, pillow_format: str) -> None:
    """Without one the form's parser takes a file for text; a script's null comes as text too."""
    data = encoded(gradient(40, 20), pillow_format)
    texts = dict.fromkeys(["prompt", "guidance", "aspect_ratio", "seed"], (None, "null"))
    answer = await client.post(URL, files=[("input_image", (None, data)), *texts.items()])
    assert picture(answer).size == (40, 20)
    assert answer.headers["x-seed-value"] == str(SEED_DRAWN)


@pytest.mark.parametrize("charset", ["utf-8", "ISO-8859-1", "undefined", "punycode", '"unicode_escape"', "no such"])
async def test_a_form_is_read_alike_whatever_charset_it_names(
    client: httpx2.AsyncClient, studio: Studio, charset: str
) -> None:
    """Its fields are UTF-8, as browsers send them."""
    named = httpx2.Request("POST", "http://studio", data={"prompt": r"größer \ud800"}, files={"input_image": PHOTO})
    headers = {"content-type": f"{named.headers['content-type']}; charset={charset}"}
    assert picture(await client.post(URL, content=named.read(), headers=headers))
    assert studio.fleet.requests[-1].prompt == r"größer \ud800"


async def test_json_behind_a_byte_order_mark(client: httpx2.AsyncClient) -> None:
    """As some editors and shells write it."""
    body = b"\xef\xbb\xbf" + orjson.dumps(GOOD)
    assert (await client.post(URL, content=body, headers={"content-type": "application/json"})).status_code == 200


async def test_a_form_with_the_picture_as_text(client: httpx2.AsyncClient) -> None:
    """A form field may hold base64 or a data URI just as JSON may."""
    fields = {name: (None, value) for name, value in GOOD.items()}
    from_form = await client.post(URL, files=fields)
    from_json = await client.post(URL, json=GOOD | {"input_image": f"data:image/webp;base64,{GOOD['input_image']}"})
    assert picture(from_form).tobytes() == picture(from_json).tobytes()


@pytest.mark.parametrize("pillow_format", ["JPEG", "PNG", "GIF", "WEBP"])
async def test_every_input_format(client: httpx2.AsyncClient, pillow_format: str) -> None:
    """The four formats are taken, whatever the data URI calls them."""
    data = base64.b64encode(encoded(gradient(40, 20), pillow_format)).decode()
    answer = await client.post(URL, json=GOOD | {"input_image": f"data:application/pdf;base64,{data}"})
    assert picture(answer).size == (40, 20)


async def test_json_for_those_who_ask(client: httpx2.AsyncClient) -> None:
    """The same picture as a data URI, with the facts of the headers beside it."""
    raw = await client.post(URL, json=GOOD | {"seed": 5, "output_format": "jpg"})
    answer = await client.post(
        URL, json=GOOD | {"seed": 5, "output_format": "jpg"}, headers={"accept": "application/json"}
    )
    body = answer.json()
    assert base64.b64decode(body["output"].removeprefix("data:image/jpeg;base64,")) == raw.content
    assert body["images"] == [
        {
            "url": body["output"],
            "content_type": "image/jpeg",
            "file_name": f"{body['request_id']}.jpg",
            "file_size": len(raw.content),
            "width": 48,
            "height": 32,
        }
    ]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert (body["status"], body["seed"], body["prompt"]) == ("COMPLETED", 5, "invert it")
    assert f"{body['metrics']['inference_time']:.4f}" == answer.headers["x-generation-time"]
    assert body["metrics"]["total_time"] >= body["metrics"]["inference_time"] > 0
    assert (body["model"], body["notice"]) == ("mini", MINI_NOTICE)
    linked = (await client.get(body["response_url"])).json()
    assert (await client.get(linked["output"])).content == raw.content


async def test_the_headers_of_a_picture(client: httpx2.AsyncClient) -> None:
    """Every promised header is there; the embedded model says what it is."""
    headers = (await client.post(URL, json=GOOD)).headers
    assert float(headers["x-generation-time"]) > 0
    assert (headers["x-seed-value"], headers["x-rekontext-model"]) == (str(SEED_DRAWN), "mini")
    assert "embedded model" in headers["x-rekontext-notice"]


async def test_a_real_model_is_named_without_a_notice(make_studio: MakeStudio) -> None:
    """There is none to give."""
    studio = make_studio(PillowFleet(is_mini=False))
    async with studio.open() as client:
        headers = (await client.post(URL, json=GOOD)).headers
    assert headers["x-rekontext-model"] == "kontext-dev"
    assert "x-rekontext-notice" not in headers


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("image/png", False),
        ("application/json", True),
        ("APPLICATION/JSON; charset=utf-8", True),
        ("application/json, text/plain, */*", False),
        ("application/json, */*;q=0.5", True),
        ("application/json;q=0.4, image/*", False),
        ("image/webp;q=0.2, application/json;q=0.9", True),
        ("application/json;q=0", False),
        ("application/json;q=x", False),
        ("application/json;q=0, image/*;q=0", False),
        ("text/html", False),
    ],
)
def test_who_prefers_json(accept: str, expected: bool) -> None:
    """JSON only for those who rank it above a picture."""
    assert prefers_json(accept) is expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", True),
        ("*/*", True),
        ("application/json, text/plain, */*", True),
        ("application/json;q=0.5, image/png;q=0.5", True),
        ("application/json;q=0.4, image/*", False),
        ("image/*", False),
        ("application/json;q=0", False),
        ("application/json;q=0, image/*;q=0", False),
    ],
)
def test_whom_the_key_decides_for(accept: str, expected: bool) -> None:
    """With a key made for JSON, those get it who rank it at least as high as a picture, or don't say."""
    assert prefers_json(accept, otherwise=True) is expected


async def test_every_answer_has_its_own_request_id(client: httpx2.AsyncClient) -> None:
    """Ids differ, and a caller's own is not taken over."""
    ids = [(await client.get("/healthz", headers={"x-request-id": "mine"})).headers["x-request-id"] for _ in "ab"]
    assert len({*ids, "mine"}) == 3
