"""LoRAs that an edit asks for by name: how they are written, what is on offer, and the life of such an edit."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from threading import Thread, current_thread, main_thread
from typing import Any, cast

import httpx2
import pytest

from rekontext.api.bodies import Upload
from rekontext.api.loras import Loras, loras_of, shown_loras
from rekontext.api.orders import _digest
from rekontext.api.parameters import from_form, parse
from rekontext.api.problems import ParametersRefused
from rekontext.contract import Fleet, LoRARefused
from rekontext.fleet import LocalFleet, Opening, ProcessFleet, local, processes
from rekontext.models import offered_loras
from tests.api.conftest import MakeStudio
from tests.api.orders import GOOD, V1, V2, followed
from tests.api.studio import SOON_S, PillowFleet, Studio
from tests.api.test_elsewhere import until_ready

pytestmark = pytest.mark.anyio

INK_AND_WATERCOLOUR = (("ink", 1.0), ("watercolour", 0.8))


@pytest.fixture
def studio(make_studio: MakeStudio) -> Studio:
    return make_studio(PillowFleet(loras=("ink", "watercolour")))


def read(loras: object) -> Loras:
    """What is asked for, so far as it can be."""
    parameters, problems = parse({"prompt": "x", "input_image": "y", "loras": loras})
    assert parameters is not None, problems
    return parameters.loras


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (None, ()),
        ([], ()),
        ("", ()),
        (" , ", ()),
        ("ink", (("ink", 1.0),)),
        ("watercolour:0.8,ink", INK_AND_WATERCOLOUR),
        (" ink:1 , watercolour:.8,", INK_AND_WATERCOLOUR),
        (["watercolour:0.8", "ink"], INK_AND_WATERCOLOUR),
        ([{"name": "watercolour", "strength": 0.8}, {"name": "ink"}], INK_AND_WATERCOLOUR),
        ([{"name": "ink", "strength": None}, "watercolour:0.80"], INK_AND_WATERCOLOUR),
        ([{"name": "ink", "strength": 4}, "b.v2_x-y:-4"], (("b.v2_x-y", -4.0), ("ink", 4.0))),
        ("ink@0123456789abcdef:0.5", (("ink@0123456789abcdef", 0.5),)),
        ("owner/name", (("owner/name", 1.0),)),
        ("owner/name/ink.safetensors:-1,ink", (("ink", 1.0), ("owner/name/ink.safetensors", -1.0))),
        ("https://a.example:8443/ink?a=1:2:0.8", (("https://a.example:8443/ink?a=1:2", 0.8),)),
        ("http://a.example/ink", (("http://a.example/ink", 1.0),)),
        ([{"name": "https://a.example/a,b:3", "strength": 0.5}], (("https://a.example/a,b:3", 0.5),)),
    ],
)
def test_loras_are_read_however_they_are_written(written: object, meant: Loras) -> None:
    """In the order of their names, so that two spellings are one request."""
    found = read(written)
    assert found == meant
    assert [type(strength) for _, strength in found] == [float] * len(found), "else 1 and 1.0 were two requests"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", ()),
        ("null", ()),
        ("[]", ()),
        ("watercolour:0.8,ink", INK_AND_WATERCOLOUR),
        ('["watercolour:0.8", "ink"]', INK_AND_WATERCOLOUR),
        (' [{"name": "watercolour", "strength": 0.8}, "ink"] ', INK_AND_WATERCOLOUR),
    ],
)
def test_a_form_has_them_as_text_or_as_json(text: str, meant: Loras) -> None:
    given, repeated = from_form([("loras", text)])
    assert (read(given["loras"]), repeated) == (meant, {})


def test_a_form_s_list_is_read_up_to_a_bound() -> None:
    """What is longer than any good one stays a text, which is then no name."""
    given, _ = from_form([("loras", "[" + "[]," * 100_000 + "[]]")])
    assert isinstance(given["loras"], str)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (7, "is 7"),
        (True, "is true"),
        ({"name": "ink"}, 'is {"name":"ink"}'),
        (["a", "b", "c", "d", "e"], "has more than 4 entries"),
        ("a,b,c,d,e,", "has more than 4 entries"),
        (["ink", {"name": "ink", "strength": 2}], 'has "ink" twice'),
        ("ink:0", 'has "ink:0" in it'),
        ("ink:", 'has "ink:" in it'),
        ("ink:nan", 'has "ink:nan" in it'),
        ("ink:4.01", 'has "ink" with a strength of 4.01'),
        (["ink", 7], "has 7 in it"),
        ([None], "has null in it"),
        ([["ink"]], 'has ["ink"] in it'),
        ([""], 'has "" in it'),
        ([{"name": "ink", "scale": 0.5}], 'has an entry with "scale" in it'),
        ([{}], "has an entry whose name is null"),
        ([{"name": ""}], 'has an entry whose name is ""'),
        ([{"name": 7}], "has an entry whose name is 7"),
        ([{"name": "ink", "strength": 0}], 'has "ink" with a strength of 0'),
        ([{"name": "ink", "strength": True}], 'has "ink" with a strength of true'),
        ([{"name": "ink", "strength": "1"}], 'has "ink" with a strength of "1"'),
        ([{"name": "ink", "strength": float("nan")}], 'has "ink" with a strength of "nan"'),
        ([{"name": "ink", "strength": -5}], 'has "ink" with a strength of -5'),
        ([{"name": "ink", "strength": 10**400}], 'has "ink" with a strength of 1'),
        (["a,b"], 'has "a,b", which is neither a name nor an address of one'),
        (["ink@0123456789abcde"], 'has "ink@0123456789abcde", which is neither'),
        ("https://a.example/\x07x", 'has "https://a.example/'),
        (["https://a.example/" + "x" * 2000], 'has "https://a.example/x'),
        ("https://a.example/ink.safetensors:9", 'has "https://a.example/ink.safetensors" with a strength of 9'),
    ],
)
def test_what_is_wrong_with_them_is_said(written: object, reason: str) -> None:
    """Beside what would be right."""
    _, [problem] = parse({"prompt": "x", "input_image": "y", "loras": written})
    assert problem.parameter == "loras"
    assert problem.reason.startswith(reason)
    assert problem.sentence.endswith("a strength is from -4 to 4, and not 0)")


@pytest.mark.parametrize(
    ("given", "digest"),
    [
        (
            {"prompt": "make it night", "input_image": "https://a.example/photo.jpg"},
            "7aab6b0d754fa24f46708700a19aadf4b141b27e82a93993a31c9297bd6d2eed",
        ),
        (
            {
                "prompt": "make it night",
                "input_image": "https://a.example/photo.jpg",
                "seed": 42,
                "guidance": 2.5,
                "num_inference_steps": 30,
                "aspect_ratio": "16:9",
                "output_format": "webp",
                "output_quality": 80,
                "disable_safety_checker": True,
                "acceleration": "high",
                "priority": -1,
                "deadline_s": 60,
                "previews": 5,
                "webhook_url": "https://a.example/hook",
            },
            "b8c9b14318c3ead8b116dcfcf957de0e2e00e4eeba43b74ded1e83595da7347a",
        ),
        (
            {"prompt": "make it night", "input_image": Upload(data=b"photo")},
            "9d12f0bc91b19ec85ae9a1ee9e44859a2ffc2b69ffa9bf73d91513ca194ec2bc",
        ),
    ],
)
def test_a_request_without_loras_has_the_digest_that_it_had_before_there_were_any(
    given: dict[str, object], digest: str
) -> None:
    """Idempotency keys outlive an upgrade. These are what the code before made of them."""
    nothing: tuple[object, ...] = (None, [], "")
    for loras in nothing:
        parameters, _ = parse({**given, "loras": loras})
        assert parameters is not None
        assert _digest(parameters) == digest
    some, _ = parse({**given, "loras": "ink"})
    assert some is not None
    assert _digest(some) != digest


async def test_an_edit_is_made_with_them_and_says_so(studio: Studio) -> None:
    """From the order to the result, its headers and the history; what is kept can be sent again as it is."""
    async with studio.open() as client:
        waited = await client.post(V1, json=GOOD | {"loras": "watercolour:0.8,ink"})
        job = waited.headers["x-request-id"]
        result = (await client.get(f"/v2/requests/{job}")).json()
        whole = (await client.get(f"/console/api/requests/{job}")).json()
        [row] = (await client.get("/console/api/requests")).json()["data"]
        [segmind] = (await client.get("/inference-request/generations")).json()["data"]
        again = await client.post(V1, json=GOOD | {"loras": whole["parameters"]["loras"]})
        model = (await client.get("/console/api/me")).json()["model"]
    assert [request.loras for request in studio.fleet.requests] == [INK_AND_WATERCOLOUR] * 2
    assert result["model"] == waited.headers["x-rekontext-model"] == whole["made_by"] == "mini + ink + watercolour:0.8"
    kept = [{"name": "ink", "strength": 1.0}, {"name": "watercolour", "strength": 0.8}]
    assert whole["parameters"]["loras"] == row["loras"] == segmind["parameters"]["loras"] == kept
    assert again.status_code == 200
    assert (model["loras"], model["name"]) == (["ink", "watercolour"], "mini")


async def test_an_edit_without_any_is_kept_as_before(studio: Studio) -> None:
    """Another process, of the version before, may run it."""
    async with studio.open() as client:
        answer = await client.post(V1, json=GOOD | {"loras": []})
        whole = (await client.get(f"/console/api/requests/{answer.headers['x-request-id']}")).json()
    assert "loras" not in whole["parameters"]
    assert (whole["loras"], whole["made_by"]) == ([], "mini")
    assert studio.fleet.requests[0].loras == ()


async def test_spellings_of_one_request_are_one_job(studio: Studio) -> None:
    """In JSON and in forms; another strength is another request."""
    key = {"idempotency-key": "k"}
    form = {name: (None, str(value)) for name, value in GOOD.items()}
    async with studio.open() as client:
        first = await client.post(V2, json=GOOD | {"loras": "ink,watercolour:0.8"}, headers=key)
        for loras in (["watercolour:0.80", {"name": "ink", "strength": 1}], "watercolour:.8,ink"):
            again = await client.post(V2, json=GOOD | {"loras": loras}, headers=key)
            assert again.json()["request_id"] == first.json()["request_id"]
        for text in ("watercolour:0.8,ink", json.dumps(["ink", "watercolour:0.8"])):
            again = await client.post(V2, files=form | {"loras": (None, text)}, headers=key)
            assert again.json()["request_id"] == first.json()["request_id"]
        other = await client.post(V2, json=GOOD | {"loras": "ink,watercolour:0.7"}, headers=key)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")


async def test_a_form_that_names_them_twice_is_refused(studio: Studio) -> None:
    fields = [*((name, (None, str(value))) for name, value in GOOD.items()), *[("loras", (None, "ink"))] * 2]
    async with studio.open() as client:
        answer = await client.post(V2, files=fields)
    assert answer.json()["errors"][0]["parameter"] == "loras"
    assert "loras is given more than once" in answer.json()["error"]


@pytest.mark.parametrize(
    ("offers", "asked", "says"),
    [
        (("ink", "watercolour"), ["nosuch"], 'asks for "nosuch", and this server offers ink, watercolour'),
        (("ink",), "a,ink,b:2", 'asks for "a" and "b", and this server offers ink'),
        ((), ["ink"], 'asks for "ink", and this server offers none'),
        (("ink",), ["Ink"], 'asks for "Ink", and this server offers ink'),
        (
            tuple(f"l{i:02}" for i in range(23)),
            "ink",
            "this server offers l00, l01, l02, l03, l04, l05, l06, l07, l08, l09 and 13 more",
        ),
    ],
)
async def test_what_is_not_on_offer_is_refused_with_what_is(
    make_studio: MakeStudio, offers: tuple[str, ...], asked: object, says: str
) -> None:
    """As any wrong parameter, before the photo is fetched, and beside what else is wrong."""
    studio = make_studio(PillowFleet(loras=offers))
    async with studio.open() as client:
        answer = await client.post(V2, json=GOOD | {"loras": asked})
        both = await client.post(V2, json=GOOD | {"loras": asked, "guidance": 99})
    body = answer.json()
    assert (answer.status_code, body["code"]) == (400, "invalid_parameters")
    assert body["error"].startswith("Wrong parameter: loras asks for ")
    assert says in body["error"]
    [problem] = body["errors"]
    assert problem["parameter"] == "loras"
    assert problem["allowed"] == f"this server offers {says.partition('this server offers ')[2]}"
    assert {each["parameter"] for each in both.json()["errors"]} == {"loras", "guidance"}
    assert studio.fleet.requests == []


async def test_what_is_on_offer_may_change_under_a_running_service(studio: Studio) -> None:
    """A file is dropped in, or taken away; an edit that was accepted before is known by its key all the same."""
    key = {"idempotency-key": "k"}
    async with studio.open() as client:
        made = await client.post(V1, json=GOOD | {"loras": "ink"}, headers=key)
        assert made.status_code == 200
        studio.fleet.loras = ("watercolour",)
        again = await client.post(V1, json=GOOD | {"loras": "ink"}, headers=key)
        new = await client.post(V1, json=GOOD | {"loras": "ink"})
        assert (await client.get("/console/api/me")).json()["model"]["loras"] == ["watercolour"]
    assert (again.status_code, again.headers["x-request-id"]) == (200, made.headers["x-request-id"])
    assert (new.status_code, new.json()["errors"][0]["allowed"]) == (400, "this server offers watercolour")


async def test_while_the_model_loads_they_are_on_offer_already(make_studio: MakeStudio) -> None:
    """Who has the folder knows."""
    fleet = PillowFleet(loras=("ink",))
    fleet.may_start.clear()
    async with make_studio(fleet).open() as client:
        assert (await client.post(V2, json=GOOD | {"loras": "ink"})).status_code == 200
        assert (await client.post(V2, json=GOOD | {"loras": "nosuch"})).status_code == 400
        assert (await client.get("/console/api/me")).json()["model"]["loras"] == ["ink"]
        fleet.may_start.set()


async def test_a_front_learns_what_the_others_offer(tmp_path: Path) -> None:
    """Until one of them has been up nobody can say, so an edit waits as any does; what can't be a name is refused."""
    front = Studio(folder=tmp_path, fleet=cast(Any, None), settings={"worker": "front"})
    back = Studio(folder=tmp_path, fleet=PillowFleet(loras=("ink",)), settings={"worker": "back"})
    async with asyncio.timeout(2 * SOON_S), front.open() as client:
        waits = await client.post(V2, json=GOOD | {"loras": "ink"})
        assert (waits.status_code, waits.json()["status"]) == (200, "QUEUED")
        assert (await client.post(V2, json=GOOD | {"loras": "owner/name"})).status_code == 400
        async with back.open():
            await until_ready(client)
            done = await followed(client, waits.json()["events_url"])
            refused = await client.post(V2, json=GOOD | {"loras": "nosuch"})
            assert (await client.get("/console/api/me")).json()["model"]["loras"] == ["ink"]
    assert done[-1][2]["model"] == "mini + ink"
    assert refused.json()["errors"][0]["allowed"] == "this server offers ink"


async def test_one_that_can_t_be_merged_is_the_caller_s_to_know(studio: Studio) -> None:
    """It costs nothing, and isn't tried again."""
    studio.fleet.fault = LoRARefused("the LoRA ink can't be merged into mini: it was made for another model")
    async with studio.open() as client:
        waited = await client.post(V1, json=GOOD | {"loras": "ink"})
        result = await client.get(f"/v2/requests/{waited.headers['x-request-id']}")
        credits = (await client.get("/v1/get-user-credits")).json()["free-credits"]
    assert (waited.status_code, waited.json()["code"]) == (400, "lora_refused")
    assert waited.json()["error"] == "The LoRA ink can't be merged into mini: it was made for another model."
    assert (result.json()["status"], result.json()["code"]) == ("FAILED", "lora_refused")
    assert (credits, len(studio.fleet.requests)) == (10, 1)


async def test_an_estimate_is_asked_with_them(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """As text; what can't be read is told as in an order."""
    asked, estimate = [], studio.fleet.estimate

    def look(request: Any) -> Any:
        asked.append(request.loras)
        return estimate(request)

    monkeypatch.setattr(studio.fleet, "estimate", look)
    async with studio.open() as client:
        assert (await client.get("/console/api/estimate", params={"loras": "watercolour:0.8,ink"})).status_code == 200
        wrong = await client.get("/console/api/estimate", params={"loras": "ink:9"})
    assert asked == [INK_AND_WATERCOLOUR]
    assert wrong.status_code == 400
    assert (wrong.json()["errors"][0]["parameter"], wrong.json()["errors"][0]["value"]) == ("loras", "ink:9")


def test_secrets_of_addresses_are_not_told_back() -> None:
    """Neither in a sentence nor as a value, however they are asked for."""
    secret = "https://user:pa55@a.example/x.safetensors?token=s3cret#access_token=s3cret"
    for given in (secret, f"ink,{secret}:9", [secret, secret], [{"name": secret, "strength": 9}], [{"path": secret}]):
        told = str(shown_loras(given))
        assert "a.example/x.safetensors" in told
        assert not {"pa55", "s3cret"} & set(re.split(r"\W+", told)), told
        if given != secret:
            with pytest.raises(ParametersRefused) as refused:
                loras_of(given)
            [problem] = refused.value.problems
            assert not {"pa55", "s3cret"} & set(re.split(r"\W+", f"{problem.sentence} {problem.value}")), problem
    assert shown_loras("user:pa55@a.example/x.safetensors") == "a.example/x.safetensors"
    assert shown_loras(["ink@1f3a9c0e5b7d2a41", 3]) == '["ink@1f3a9c0e5b7d2a41",3]'


async def test_the_document_has_them_for_both_kinds_of_body(client: httpx2.AsyncClient) -> None:
    """As a list or a text in JSON, as text in a form."""
    document = (await client.get("/openapi.json")).json()
    content = document["paths"][V2]["post"]["requestBody"]["content"]
    in_json = content["application/json"]["schema"]["properties"]["loras"]
    in_form = content["multipart/form-data"]["schema"]["properties"]["loras"]
    listed, text, _ = in_json["anyOf"]
    entry = listed["items"]["anyOf"][1]
    assert (listed["maxItems"], text["type"], in_json["default"]) == (4, "string", [])
    assert (entry["required"], entry["additionalProperties"]) == (["name"], False)
    strength = entry["properties"]["strength"]
    assert (strength["type"], strength["minimum"], strength["maximum"]) == (["number", "null"], -4, 4)
    assert (in_form["type"], "anyOf" in in_form) == ("string", False)


@pytest.mark.parametrize("fleet", [LocalFleet, partial(ProcessFleet, devices=("cpu",))])
async def test_a_slow_folder_holds_up_nobody(
    fleet: Callable[[Opening], Fleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie on another machine: it is looked into beside the event loop."""
    (tmp_path / "ink.safetensors").touch()
    where: list[Thread] = []

    def slow(folder: Path | None) -> Mapping[str, Path]:
        where.append(current_thread())
        return offered_loras(folder)

    monkeypatch.setattr(local, "offered_loras", slow)
    monkeypatch.setattr(processes, "offered_loras", slow)
    assert await fleet(Opening(lora_folder=tmp_path)).offers() == ("ink",)
    assert where != []
    assert main_thread() not in where
