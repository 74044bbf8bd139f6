"""What bringing LoRAs may cost: files on their way, room for them, who waits, what a sweep or a fault leaves."""

from __future__ import annotations

import asyncio
import shutil
import time
from datetime import timedelta
from typing import Any, NoReturn, cast

import pytest
from sqlalchemy import update

from rekontext.accounts import NewKey
from rekontext.api import brought
from rekontext.api.parts import Parts
from rekontext.database import DatabaseUnavailable
from rekontext.database.tables import loras as table
from rekontext.jobs import Retention, Sweeper, loras
from rekontext.pictures.copies import LocalCopies
from tests.api.brought import LIMITS, LoraSite, brought_by, lora_file, order, sent, why
from tests.api.caller import Caller
from tests.api.conftest import MakeStudio
from tests.api.orders import GOOD, V2
from tests.api.studio import PillowFleet, Studio, gone

pytestmark = pytest.mark.anyio


@pytest.fixture
def studio(make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch, site: LoraSite) -> Studio:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    return make_studio(PillowFleet(loras=("wash",)), **LIMITS)


def fails(*_asked: object, **_how: object) -> NoReturn:
    raise DatabaseUnavailable("gone for a moment")


async def until_bringing(studio: Studio, count: int) -> None:
    """Until so many requests wait for LoRAs that are on their way."""
    async with asyncio.timeout(10):
        while sum(studio.service.parts.brought._bringing.values()) < count:  # noqa: ASYNC110 - requests are elsewhere
            await asyncio.sleep(0.01)


async def unused_for_a_week(studio: Studio) -> Parts:
    """Have all LoRAs used last so long ago that they go."""
    parts = studio.service.parts
    week_ago = parts.clock.now() - timedelta(days=8)
    await parts.database.transact(lambda tx: tx.execute(update(table).values(used_at=week_ago)))
    return parts


async def test_an_order_that_is_wrong_fetches_none(studio: Studio, site: LoraSite) -> None:
    """And neither does one whose key came before."""
    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors", guidance=99)
        await order(client, [f"{site.url}/ink.safetensors", "nosuch"])
        assert site.visits == []
        for _ in range(2):
            answer = await client.post(
                V2,
                json=GOOD | {"loras": f"{site.url}/ink.safetensors"},
                headers={"idempotency-key": "once"},
            )
            assert answer.status_code == 200
    assert len(site.visits) == 1


async def test_those_make_room_that_were_not_used_for_longest(make_studio: MakeStudio, site: LoraSite) -> None:
    """But none that an order asked for just now: its edit may still wait for it."""
    size = len(lora_file())
    studio = make_studio(**LIMITS | {"loras_bytes_max": 2 * size})
    for i in range(1, 4):
        site.files[f"/l{i}.safetensors"] = lora_file(seed=i)
    async with studio.open() as client:
        for i in (1, 2):
            assert (await order(client, f"{site.url}/l{i}.safetensors")).status_code == 200
        full = await order(client, f"{site.url}/l3.safetensors")
        first, second = reversed(await brought_by(client))
        long_ago = studio.service.parts.clock.now() - timedelta(hours=2)
        await studio.service.parts.database.transact(
            lambda tx: tx.execute(update(table).where(table.c.id == first["id"]).values(used_at=long_ago))
        )
        assert (await order(client, f"{site.url}/l3.safetensors")).status_code == 200
        third, also_second = await brought_by(client)
        listed = (await client.get("/console/api/loras")).json()
    assert f"have {2 * size} bytes, and may have {2 * size} together" in why(full)
    assert also_second["id"] == second["id"]
    assert (listed["bytes_kept"], listed["bytes_max"]) == (2 * size, 2 * size)
    stored = {file.name for file in (studio.options.data_dir / "store" / "loras").iterdir()}
    assert stored == {second["id"], third["id"]}
    copies = {file.stem for file in (studio.options.data_dir / "loras").iterdir()}
    assert copies == {f"copy-{each['id']}" for each in (second, third)}


async def test_one_that_is_deleted_meanwhile_is_brought_again(
    studio: Studio, site: LoraSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its server has just said that it is the same still."""
    monkeypatch.setattr(brought, "_FRESH_FOR", timedelta())
    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors")
        [kept] = await brought_by(client)
        site.may_answer.clear()
        again = asyncio.create_task(order(client, f"{site.url}/ink.safetensors"))
        await site.until_waiting(1)
        await client.delete(f"/console/api/loras/{kept['id']}")
        site.may_answer.set()
        assert (await again).status_code == 200
        assert [each["id"] for each in await brought_by(client)] == [kept["id"]]
    assert [status for _, status in site.visits] == [200, 304, 200]


async def test_what_is_known_is_not_stored_again(
    studio: Studio, site: LoraSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not lost when it can't be written down that it lies elsewhere, too."""
    site.files["/other.safetensors"] = lora_file()
    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors")
        [kept] = await brought_by(client)
        stored = studio.options.data_dir / "store" / "loras" / kept["id"]
        before = stored.stat().st_ino
        with monkeypatch.context() as broken:
            broken.setattr(loras, "keep", fails)
            assert (await order(client, f"{site.url}/other.safetensors")).status_code == 503
        assert (await order(client, kept["name"])).status_code == 200
        assert (await order(client, f"{site.url}/other.safetensors")).status_code == 200
    assert stored.stat().st_ino == before


async def test_an_order_that_would_be_refused_brings_none(make_studio: MakeStudio, site: LoraSite) -> None:
    """Whoever can't pay, or may not have what is asked for, costs no fetch."""
    studio = make_studio(PillowFleet(), in_flight_max=1, **LIMITS)
    studio.fleet.may_step.clear()
    poor, strange = studio.new_account("poor"), studio.new_key(models=frozenset({"another"}))
    plain = studio.new_key(scopes=frozenset({"edit"}))
    address = f"{site.url}/ink.safetensors"

    async def code(key: NewKey, **asked: object) -> object:
        async with studio.client(key.secret) as other:
            return (await order(other, address, **asked)).json()["code"]

    async with studio.open() as client:
        assert await code(poor) == "insufficient_credits"
        assert await code(strange) == "model_not_allowed"
        assert await code(plain, priority=1) == "scope_missing"
        assert (await client.post(V2, json=GOOD)).status_code == 200
        busy = await order(client, address)
        studio.fleet.may_step.set()
    assert (busy.status_code, busy.json()["code"], "retry-after" in busy.headers) == (429, "too_many_in_flight", True)
    assert site.visits == []


async def test_few_are_on_their_way_at_a_time(make_studio: MakeStudio, site: LoraSite) -> None:
    """Of one account; the others wait, and those are refused that are too many to wait."""
    studio = make_studio(PillowFleet(), **LIMITS)
    count = brought.BRINGING_MAX
    for i in range(count + 1):
        site.files[f"/l{i}.safetensors"] = lora_file(seed=i)
    site.may_answer.clear()
    async with studio.open() as client:
        asked = [asyncio.create_task(order(client, f"{site.url}/l{i}.safetensors")) for i in range(count)]
        await site.until_waiting(2)
        await until_bringing(studio, count)
        for refused in (await order(client, f"{site.url}/l{count}.safetensors"), await sent(client, "x", lora_file())):
            told = refused.json()["code"], "retry-after" in refused.headers
            assert (refused.status_code, *told) == (429, "too_many_loras", True)
        site.may_answer.set()
        assert {(await each).status_code for each in asked} == {200}
        assert (await sent(client, "x", lora_file())).status_code == 200
    assert site.most_waiting == 2


async def test_an_address_that_does_not_answer_is_waited_for_once(make_studio: MakeStudio, site: LoraSite) -> None:
    """By all together, and no photo with them."""
    studio = make_studio(PillowFleet(), lora_timeout_s=0.5, **LIMITS)
    site.may_answer.clear()
    address, photo = f"{site.url}/ink.safetensors", f"{site.url}/photo.png"
    async with studio.open() as client:
        began = time.monotonic()
        asked = [order(client, address, input_image=photo, seed=i) for i in range(brought.BRINGING_MAX)]
        answers = await asyncio.gather(*asked)
        took_s = time.monotonic() - began
        several = await order(client, [f"{site.url}/a", f"{site.url}/b", f"{site.url}/c"])
    assert {why(each) for each in answers} == {
        f"can't be used: {address} did not come within 0.5 s (of one account 2 are fetched at a time)"
    }
    assert took_s < 2.5
    assert "did not come within 0.5 s" in why(several)
    assert (site.most_waiting, site.visits) == (1, [])


async def test_hanging_up_ends_the_fetch(studio: Studio, site: LoraSite) -> None:
    """Unless somebody else waits for the same."""
    site.may_answer.clear()
    body = GOOD | {"loras": f"{site.url}/ink.safetensors"}
    async with studio.open() as client:
        callers = [Caller(body | {"seed": i}, studio.headers) for i in range(2)]
        calls = [asyncio.create_task(studio.app(each.scope, each.receive, each.send)) for each in callers]
        await site.until_waiting(1)
        await until_bringing(studio, 2)
        callers[0].hang_up.set()
        await calls[0]
        assert site.waiting == 1
        callers[1].hang_up.set()
        await calls[1]
        await site.until_waiting(0)
        assert (await client.get("/console/api/requests")).json()["data"] == []
    assert not any(studio.options.data_dir.glob("loras/*"))


async def test_a_disk_without_room_is_not_the_caller_s_fault(
    studio: Studio, site: LoraSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of it is left for others, and what was begun goes."""
    usage = shutil.disk_usage(studio.options.data_dir)
    async with studio.open() as client:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**30 - 1))
        for refused in (await order(client, f"{site.url}/ink.safetensors"), await sent(client, "ink", lora_file())):
            assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert not any(studio.options.data_dir.glob("loras/*"))
        assert (await order(client, f"{site.url}/ink.safetensors")).status_code == 200


async def test_one_for_which_there_is_no_room_is_not_stored(
    make_studio: MakeStudio, site: LoraSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor fetched farther than its length; and one that is sent isn't stored either."""
    studio = make_studio(**LIMITS | {"loras_bytes_max": len(lora_file()) + 10})
    site.files["/second.safetensors"] = lora_file(seed=1)
    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors")
        monkeypatch.setattr(studio.service.parts.objects, "put_file", gone)
        assert "may have" in why(await order(client, f"{site.url}/second.safetensors"))
        refused = await sent(client, "second", lora_file(seed=1))
    assert refused.json()["error"].startswith("Wrong parameter: file can't be kept: the LoRAs that this account used")


async def test_one_that_is_brought_while_it_is_swept_stays(studio: Studio, site: LoraSite) -> None:
    """Its row goes before its object: whoever asks then brings both anew."""

    class Objects:
        def __getattr__(self, name: str) -> Any:
            return getattr(studio.service.parts.objects, name)

        async def delete(self, key: str) -> None:
            await studio.service.parts.objects.delete(key)
            assert (await order(client, f"{site.url}/ink.safetensors")).status_code == 200

    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors")
        [kept] = await brought_by(client)
        parts = await unused_for_a_week(studio)
        objects = cast(Any, Objects())
        await Sweeper(database=parts.database, objects=objects, clock=parts.clock, retention=Retention()).sweep()
        assert (await order(client, kept["name"])).status_code == 200


async def test_the_sweeper_takes_those_that_nobody_uses(studio: Studio, site: LoraSite) -> None:
    """Their bytes with their rows, and bytes that no row knows."""
    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors")
        [kept] = await brought_by(client)
        parts = await unused_for_a_week(studio)
        copies = LocalCopies(parts.objects, studio.options.data_dir / "loras", bytes_max=10**6)
        sweeper = Sweeper(
            database=parts.database, objects=parts.objects, clock=parts.clock, retention=Retention(), copies=copies
        )
        swept = await sweeper.sweep()
        assert (swept.loras, swept.copies) == (1, 1)
        assert await brought_by(client) == []
        assert not await parts.objects.has(f"loras/{kept['id']}")


async def test_an_account_has_no_more_of_them_than_a_bound(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are, and though it used them just now."""
    monkeypatch.setattr(loras, "KEPT_MAX", 3)
    async with studio.open() as client:
        names = [(await sent(client, f"l{i}", lora_file(seed=i))).json()["name"] for i in range(5)]
        assert [each["name"] for each in await brought_by(client)] == names[:1:-1]
