"""Store, database or engine fail: whose fault it is said to be, that nobody pays for it, and what is left behind."""

from __future__ import annotations

import asyncio
import base64
from typing import Final, NoReturn

import pytest
from structlog.testing import capture_logs

from rekontext.api.console import admin
from rekontext.api.parts import Parts
from rekontext.contract import EditRefused, EngineFault
from rekontext.database import DatabaseUnavailable
from rekontext.jobs import JobLife
from rekontext.masks import MaskRefused
from rekontext.pictures import StoreUnavailable
from tests.api.conftest import MakeStudio
from tests.api.orders import PLAIN, V1
from tests.api.studio import SOON_S, Studio, gone
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

DOUBT: Final = DatabaseUnavailable("gone", is_in_doubt=True)


async def test_a_store_that_is_away_answers_503_and_holds_nothing(studio: Studio) -> None:
    """Full, unmounted, unreachable: the caller may come again, and the log has the reason."""
    objects = studio.options.data_dir / "store"
    async with studio.open() as client:
        objects.rename(studio.folder / "elsewhere")
        objects.write_text("no folder any more")
        with capture_logs() as lines:
            answers = [await client.post(url, json=PLAIN) for url in (V1, "/v2/flux-kontext-dev")]
        balance = (await client.get("/console/api/me")).json()["balance"]
        objects.unlink()
        (studio.folder / "elsewhere").rename(objects)
        assert (await client.post(V1, json=PLAIN)).status_code == 200
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["error"].startswith("The picture store is full or can't be reached just now;")
        assert str(objects) not in answer.text
    assert (balance["available"], balance["held"]) == (10, 0)
    said = [line["fault"] for line in lines if line["event"] == "store_unavailable"]
    assert [str(objects) in each for each in said] == [True, True]
    assert len(studio.fleet.requests) == 1


@pytest.mark.parametrize(("in_doubt", "says"), [(True, "it may have happened"), (False, "nothing was changed")])
async def test_advice_names_what_is_read(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, in_doubt: bool, says: str
) -> None:
    """Only submits read Idempotency-Key: whoever adds credits can but look."""

    def broken(*_: object, **__: object) -> None:
        raise DatabaseUnavailable("gone", is_in_doubt=in_doubt)

    monkeypatch.setattr(JobLife, "accept", broken)
    monkeypatch.setattr("rekontext.accounts.Acts.add_credits", broken)
    credits = f"/console/api/admin/accounts/{studio.account}/credits"
    async with studio.open() as client:
        for path, body, has_key in ((V1, PLAIN, True), (credits, {"amount": 1}, False)):
            answer = await client.post(path, json=body)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert says in answer.json()["error"]
            assert ("Idempotency-Key" in answer.json()["error"]) is (in_doubt and has_key)
            told_off = answer.headers.get("x-should-retry") == "false"
            assert told_off is in_doubt, "a client that posts again by itself might pay twice"


@pytest.mark.parametrize(("fault", "left"), [(DatabaseUnavailable("gone"), 0), (RuntimeError("a bug"), 0), (DOUBT, 1)])
async def test_an_order_that_cannot_be_written_down_leaves_nothing_behind(
    studio: Studio, monkeypatch: pytest.MonkeyPatch, fault: Exception, left: int
) -> None:
    """Unless it may be accepted all the same: then its edit needs the picture, and the sweeper looks later."""

    def broken(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(JobLife, "accept", broken)
    async with studio.open() as client:
        assert (await client.post(V1, json=PLAIN)).status_code in (500, 503)
        assert len([found async for found in studio.service.parts.objects.list("inputs")]) == left


async def test_a_refusal_stays_one_when_the_store_goes_away(
    make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The picture of an order that was turned away can't be removed: the caller is told of the order all the same."""
    studio = make_studio(in_flight_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        running = asyncio.create_task(client.post(V1, json=PLAIN))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.objects, "delete", away)
            answer = await client.post(V1, json=PLAIN)
        studio.fleet.may_step.set()
        assert (await running).status_code == 200
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_in_flight")


async def test_a_picture_that_can_t_be_read_is_not_ordered_again(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is made and paid: the answer says where it will be, and asks no client to post once more."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        call = asyncio.create_task(client.post(V1, json=PLAIN))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.objects, "get", away)
            studio.fleet.may_step.set()
            answer = await call
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unavailable")
        assert "retry-after" not in answer.headers
        result = (await client.get(answer.json()["response_url"])).json()
        assert result["status"] == "COMPLETED"
        assert (await client.get(result["output"])).status_code == 200


async def away(_key: str) -> None:
    raise StoreUnavailable("the store could not do that")


async def test_a_paid_picture_is_handed_over_without_the_database(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting for it needs none either; only its header with the credits that remain is as old as the submit."""
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        monkeypatch.setattr(studio.service.parts.desk, "job", gone)
        call = asyncio.create_task(client.post(V1, json=PLAIN))
        await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
        with monkeypatch.context() as broken:
            broken.setattr(studio.service.parts.database, "read", gone)
            studio.fleet.may_step.set()
            answer = await call
    assert (answer.status_code, answer.headers["x-remaining-credits"]) == (200, "9.96")


@pytest.mark.parametrize("fault", [EngineFault("secret tensor"), KeyError("secret key"), OSError("secret socket")])
async def test_an_engine_fault_is_ours_tells_nothing_and_is_free(studio: Studio, fault: Exception) -> None:
    """500 with a request id; the reason stays in the log."""
    studio.fleet.fault = fault
    async with studio.open() as client:
        answer = await client.post(V1, json=PLAIN)
        balance = (await client.get("/console/api/me")).json()["balance"]
    assert (answer.status_code, answer.json()["code"]) == (500, "engine_fault")
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
    assert (balance["available"], balance["held"]) == (10, 0)


async def test_a_model_that_goes_while_a_call_asks_for_it_is_one_line_in_the_log(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure that is foreseen, as all that have a code of their own, and the connection stays."""

    def going(_parts: Parts) -> NoReturn:
        raise EngineFault("secret tensor")

    monkeypatch.setattr(admin, "described_model", going)
    async with studio.open() as client:
        with capture_logs() as lines:
            answer = await client.get("/console/api/admin/queue")
    assert (answer.status_code, answer.json()["code"]) == (500, "engine_fault")
    assert "secret" not in answer.text
    assert "connection" not in answer.headers
    assert [line["fault"] for line in lines if line["event"] == "engine_fault"] == ["secret tensor"]


@pytest.mark.parametrize("fault", [EditRefused("at most 24 words"), MaskRefused("marks too little")])
async def test_an_engine_s_refusal_is_the_caller_s_fault(studio: Studio, fault: EditRefused) -> None:
    """What the engine will not do is answered 400 in its words."""
    studio.fleet.fault = fault
    async with studio.open() as client:
        answer = await client.post(V1, json=PLAIN)
    assert (answer.status_code, answer.json()["code"]) == (400, fault.code)
    assert answer.json()["error"].lower() == f"{fault}."


@pytest.mark.parametrize("refusal", ["engine", "photo"])
async def test_a_refused_edit_is_told_the_same_way_to_who_waits_and_who_comes_back(
    studio: Studio, refusal: str
) -> None:
    """One code for each kind, and a sentence, on both surfaces."""
    order = dict(PLAIN)
    if refusal == "engine":
        studio.fleet.fault = EditRefused("this model takes at most 24 words")
    else:
        order["input_image"] = base64.b64encode(photo_bytes(200, 200)[:-900]).decode()
    async with studio.open() as client:
        waited = (await client.post(V1, json=order)).json()
        submitted = (await client.post("/v2/flux-kontext-dev", json=order)).json()
        async with asyncio.timeout(20):
            while (answer := await client.get(submitted["response_url"])).status_code == 202:
                pass
    result = answer.json()
    assert result["code"] == waited["code"]
    begins = {"engine": "This model", "photo": "input_image can't be used"}
    assert result["error"].startswith(begins[refusal]), "a capital, but for a parameter's name"
    assert result["error"].endswith(".")
    kinds = {"engine": "edit_refused", "photo": "unreadable_picture"}
    assert waited["code"] == kinds[refusal]
