"""LoRAs in other vendors' dialects, each under its vendor's names."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest

from rekontext.contract import LoRARefused
from tests.api.brought import lora_file, open_site
from tests.api.conftest import MakeStudio
from tests.api.dialects import fal_calls, openai_calls, replicate_calls, test_bfl, test_huggingface
from tests.api.dialects.replicate_calls import CREATE, HELD, INPUT, MODEL, PREDICTIONS, done
from tests.api.orders import GOOD, V1, followed
from tests.api.studio import PillowFleet, Studio

pytestmark = pytest.mark.anyio

INK_AND_WATERCOLOUR = (("ink", 1.0), ("watercolour", 0.8))
OFFERED = "this server offers ink, watercolour"


@pytest.fixture
def studio(make_studio: MakeStudio) -> Studio:
    return make_studio(PillowFleet(loras=("ink", "watercolour")))


@pytest.mark.parametrize(
    "loras",
    [
        [{"path": "watercolour", "scale": 0.8}, {"path": "ink"}],
        [{"path": "ink", "scale": None}, {"name": "watercolour", "strength": 0.8}],
        [{"path": "ink", "strength": 1}, "watercolour:0.8"],
        "ink,watercolour:0.8",
    ],
)
async def test_fal_has_paths_and_scales(studio: Studio, client: httpx2.AsyncClient, loras: object) -> None:
    """And our own words beside them."""
    answer = await client.post(fal_calls.RUN, json=fal_calls.GOOD | {"loras": loras})
    assert (answer.status_code, answer.json()["model"]) == (200, "mini + ink + watercolour:0.8")
    [request] = studio.fleet.requests
    assert request.loras == INK_AND_WATERCOLOUR


@pytest.mark.parametrize(
    ("loras", "says"),
    [
        ([{"path": "http://127.0.0.1:9/x"}], "can't be used: http://127.0.0.1:9/x can't be fetched: 127.0.0.1 is not"),
        ([{"path": "nosuch", "scale": 1}], f'asks for "nosuch", and {OFFERED}'),
        ([{"path": "ink", "scale": 9}], 'has "ink" with a strength of 9 (allowed: a list of at most 4'),
        ([{"path": "ink", "name": "ink"}], 'has an entry with "path" in it (allowed: a list of at most 4'),
        ([{"path": "ink", "weight_name": "x"}], 'has an entry with "weight_name" in it'),
        (7, "is 7 (allowed: a list of at most 4"),
    ],
)
async def test_fal_is_told_what_is_wrong_in_its_form(client: httpx2.AsyncClient, loras: object, says: str) -> None:
    answer = await client.post(fal_calls.RUN, json=fal_calls.GOOD | {"loras": loras})
    assert answer.status_code == 422
    [problem] = answer.json()["detail"]
    assert (problem["loc"], problem["type"]) == (["body", "loras"], "value_error")
    assert says in problem["msg"]
    assert "strength" not in problem["msg"].partition("(allowed")[2], "the words that are allowed are the vendor's"


async def test_replicate_has_one_in_two_parameters(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Which its document shows again."""
    found = await done(client, lora_weights="watercolour", lora_strength=0.8)
    assert found["input"].items() >= {"lora_weights": "watercolour", "lora_strength": 0.8}.items()
    assert (await done(client, lora_weights="ink"))["input"]["lora_strength"] == 1.0
    assert "lora_weights" not in (await done(client, lora_weights="", lora_strength=0.5))["input"]
    assert [request.loras for request in studio.fleet.requests] == [(("watercolour", 0.8),), (("ink", 1.0),), ()]


async def test_replicate_s_version_is_the_model_s_whatever_was_merged_for_one_edit(
    studio: Studio, client: httpx2.AsyncClient
) -> None:
    """Its clients look the version of a prediction up."""
    version = (await client.get(f"/v1/models/{MODEL}")).json()["latest_version"]
    assert (await done(client, lora_weights="ink"))["version"] == version["id"]
    inputs = version["openapi_schema"]["components"]["schemas"]["Input"]["properties"]
    assert (inputs["lora_weights"]["type"], inputs["lora_strength"]["default"]) == ("string", 1)
    assert len({each["x-order"] for each in inputs.values()}) == len(inputs)


async def test_replicate_shows_an_edit_of_our_own_surface_with_several(client: httpx2.AsyncClient) -> None:
    """Under our name, since no input has more than one."""
    await client.post(V1, json=GOOD | {"loras": "ink,watercolour:0.8"})
    [found] = (await client.get(PREDICTIONS)).json()["results"]
    assert [each["name"] for each in found["input"]["loras"]] == ["ink", "watercolour"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lora_weights": "nosuch"}, f'lora_weights asks for "nosuch", and {OFFERED}'),
        ({"lora_weights": "ink:0.5"}, 'lora_weights has "ink:0.5", which is neither a name nor an address'),
        ({"lora_weights": 7}, "lora_weights has an entry whose name is 7 (allowed: the address of a LoRA"),
        ({"lora_weights": "ink", "lora_strength": 0}, "lora_strength is 0 (allowed: a number from -4 to 4, and not 0)"),
        ({"lora_weights": "ink", "lora_strength": "1"}, 'lora_strength is "1" (allowed: a number'),
        ({"loras": ["ink"]}, "loras can't be heeded here (allowed: one LoRA, as lora_weights and lora_strength)"),
    ],
)
async def test_replicate_is_told_what_is_wrong(client: httpx2.AsyncClient, given: dict[str, Any], says: str) -> None:
    answer = await client.post(CREATE, json={"input": INPUT | given}, headers=HELD)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
    assert says in answer.json()["detail"]


async def test_openai_has_ours_in_json_and_in_a_form(studio: Studio, client: httpx2.AsyncClient) -> None:
    """Of a list its clients make fields, one for each text in it."""
    listed = ["watercolour:0.8", "ink"]
    for answer in (
        await client.post(openai_calls.EDITS, json=openai_calls.JSON | {"loras": listed}),
        await openai_calls.form(client, loras="watercolour:0.8,ink"),
        await openai_calls.form(client, **{"loras[]": listed}),
        await openai_calls.form(client, **{"loras[0]": listed[0], "loras[1]": listed[1]}),
    ):
        assert answer.status_code == 200, answer.text
    assert [request.loras for request in studio.fleet.requests] == [INK_AND_WATERCOLOUR] * 4


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"loras": "nosuch"}, f'loras asks for "nosuch", and {OFFERED}'),
        ({"loras[][name]": "ink", "loras[][strength]": "0.5"}, "loras is in pieces, loras[][name] for one (allowed"),
        ({"loras": "ink", "loras[]": "ink"}, "loras is given more than once"),
    ],
)
async def test_openai_is_told_what_is_wrong(client: httpx2.AsyncClient, fields: dict[str, Any], says: str) -> None:
    found = openai_calls.error(await openai_calls.form(client, **fields), 400, "invalid_parameters")
    assert found["param"] == "loras"
    assert says in found["message"]


@pytest.mark.parametrize("loras", [["ink", "watercolour:0.8"], "nosuch"])
async def test_black_forest_labs_and_hugging_face_have_ours(
    studio: Studio, client: httpx2.AsyncClient, loras: object
) -> None:
    client.headers["x-key"] = client.headers.pop("x-api-key")
    bfl = await client.post(test_bfl.PATH, json={**test_bfl.ASKED, "loras": loras})
    huggingface = await client.post(test_huggingface.PATH, json=test_huggingface.asked(loras=loras))
    if loras == "nosuch":
        for answer, field in ((bfl, "detail"), (huggingface, "error")):
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_parameters")
            assert f'loras asks for "nosuch", and {OFFERED}' in answer.json()[field]
        return
    await followed(client, f"/v2/requests/{bfl.json()['id']}/events")
    assert huggingface.headers["x-rekontext-model"] == "mini + ink + watercolour:0.8"
    assert [request.loras for request in studio.fleet.requests] == [INK_AND_WATERCOLOUR] * 2


async def test_one_that_can_t_be_merged_is_the_caller_s_in_every_dialect(
    studio: Studio, client: httpx2.AsyncClient
) -> None:
    """No client is to send it again."""
    studio.fleet.fault = LoRARefused("the LoRA ink can't be merged into mini")
    fal = await client.post(fal_calls.RUN, json=fal_calls.GOOD | {"loras": [{"path": "ink"}]})
    openai = await openai_calls.form(client, loras="ink")
    replicate = await replicate_calls.done(client, lora_weights="ink")
    assert (fal.status_code, fal.json()["code"]) == (400, "lora_refused")
    assert openai_calls.error(openai, 400, "lora_refused")["message"] == "The LoRA ink can't be merged into mini."
    assert (replicate["status"], replicate["error"]) == ("failed", "The LoRA ink can't be merged into mini.")


async def test_each_brings_them_by_address(make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    """As their vendors have it: fal a URL, Replicate the hub's name, with or without the hub's."""
    async with open_site() as site:
        monkeypatch.setenv("HF_ENDPOINT", site.url)
        site.add_repository("o/wash", {"pytorch_lora_weights.safetensors": lora_file(seed=1)})
        studio = make_studio(fetch_allow=("127.0.0.1",))
        async with studio.open() as client:
            path = f"{site.url}/ink.safetensors"
            answer = await client.post(fal_calls.RUN, json=fal_calls.GOOD | {"loras": [{"path": path, "scale": 0.5}]})
            assert answer.status_code == 200, answer.text
            found = await done(client, lora_weights="huggingface.co/o/wash", lora_strength=0.8)
            again = await done(client, lora_weights=found["input"]["lora_weights"])
            assert (await openai_calls.form(client, loras="o/wash:0.8")).status_code == 200
    names = [[(name.partition("@")[0], by) for name, by in request.loras] for request in studio.fleet.requests]
    assert names == [[("ink", 0.5)], [("wash", 0.8)], [("wash", 1.0)], [("wash", 0.8)]]
    assert again["input"]["lora_weights"] == found["input"]["lora_weights"] == studio.fleet.requests[1].loras[0][0]
