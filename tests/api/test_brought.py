"""LoRAs that accounts bring by address: fetched once, known again, theirs alone, and gone when they are deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx2
import pytest
from sqlalchemy import update

from rekontext.api import brought
from rekontext.database.tables import loras as table
from rekontext.jobs import Retention, Sweeper, loras
from tests.api.brought import LoraSite, lora_file, open_site
from tests.api.conftest import MakeStudio
from tests.api.orders import GOOD, V1, V2
from tests.api.studio import PillowFleet, Studio
from tests.api.test_elsewhere import until

pytestmark = pytest.mark.anyio

NEW: dict[str, Any] = {"lora_bytes_max": 10_000, "loras_bytes_max": 100_000, "fetch_allow": ("127.0.0.1",)}


@pytest.fixture
async def site() -> AsyncIterator[LoraSite]:
    async with open_site() as site:
        yield site


@pytest.fixture
def studio(make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch, site: LoraSite) -> Studio:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    return make_studio(PillowFleet(loras=("wash",)), **NEW)


async def order(client: httpx2.AsyncClient, asked: object, **others: object) -> httpx2.Response:
    return await client.post(V1, json=GOOD | {"loras": asked} | others)


async def brought_by(client: httpx2.AsyncClient) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await client.get("/console/api/loras")).json()["loras"]
    return found


def why(answer: httpx2.Response) -> str:
    """What is said of a refused one."""
    body = answer.json()
    assert (answer.status_code, body["code"]) == (400, "lora_refused"), body
    [problem] = body["errors"]
    assert problem["parameter"] == "loras"
    sentence: str = body["error"]
    return sentence.removeprefix("Wrong parameter: loras ").removesuffix(".")


async def test_an_edit_has_the_lora_that_it_brings(studio: Studio, site: LoraSite) -> None:
    """The engine is told where it lies; the answer tells the name by which it can be asked for again."""
    async with studio.open() as client:
        first = await order(client, [{"name": f"{site.url}/ink.safetensors?token=secret", "strength": 0.8}, "wash"])
        [kept] = await brought_by(client)
        again = await order(client, f"{kept['name']}:0.8,wash")
        row = (await client.get(f"/console/api/requests/{first.headers['x-request-id']}")).json()
    assert first.status_code == again.status_code == 200, first.text
    assert (
        first.headers["x-rekontext-model"] == again.headers["x-rekontext-model"] == f"mini + {kept['name']}:0.8 + wash"
    )
    assert kept["name"] == f"ink@{kept['id']}"
    assert (kept["source"], kept["bytes"]) == (f"{site.url}/ink.safetensors", len(lora_file()))
    assert row["parameters"]["loras"] == [{"name": kept["name"], "strength": 0.8}, {"name": "wash", "strength": 1.0}]
    for request in studio.fleet.requests:
        assert request.loras == ((kept["name"], 0.8), ("wash", 1.0))
        [(name, file)] = request.lora_files.items()
        assert (name, file.read_bytes()) == (kept["name"], lora_file())
    assert site.visits == [("/ink.safetensors", 200)]


async def test_an_address_is_asked_again_after_a_while(
    studio: Studio, site: LoraSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it has another; what it has already isn't sent again."""
    address = f"{site.url}/ink.safetensors"
    async with studio.open() as client:
        for _ in range(2):
            assert (await order(client, address)).status_code == 200
        monkeypatch.setattr(brought, "_FRESH_FOR", timedelta())
        assert (await order(client, address)).status_code == 200
        site.files["/ink.safetensors"] = lora_file(seed=1)
        assert (await order(client, address)).status_code == 200
        kept = await brought_by(client)
    assert [status for _, status in site.visits] == [200, 304, 200]
    assert [request.loras[0][0] for request in studio.fleet.requests] == [kept[1]["name"]] * 3 + [kept[0]["name"]]


async def test_the_same_bytes_are_one_lora(studio: Studio, site: LoraSite) -> None:
    """From wherever they come, also at the same moment; and twice in one order they are one too many."""
    site.files["/other.safetensors"] = lora_file()
    async with studio.open() as client:
        answers = await asyncio.gather(*(order(client, f"{site.url}/ink.safetensors", seed=i) for i in range(4)))
        second = await order(client, f"{site.url}/other.safetensors")
        twice = await order(client, [f"{site.url}/ink.safetensors", f"{site.url}/other.safetensors"])
        [kept] = await brought_by(client)
    assert {answer.status_code for answer in [*answers, second]} == {200}
    assert why(twice) == f"has {kept['name']} twice"
    assert site.visits.count(("/ink.safetensors", 200)) == 2, "once for the four, and again when it was the other's"


async def test_a_lora_is_its_account_s(studio: Studio, site: LoraSite) -> None:
    """Nobody else can name it; of the same bytes each has one."""
    other = studio.new_account("other", credits_micros=10**7)
    async with studio.open() as client, studio.client(other.secret) as stranger:
        await order(client, f"{site.url}/ink.safetensors")
        [kept] = await brought_by(client)
        refused = await order(stranger, kept["name"])
        gone = await stranger.delete(f"/console/api/loras/{kept['id']}")
        assert await brought_by(stranger) == []
        assert (await order(stranger, f"{site.url}/ink.safetensors")).status_code == 200
        [theirs] = await brought_by(stranger)
        assert (await stranger.delete(f"/console/api/loras/{theirs['id']}")).json() == {
            "id": theirs["id"],
            "deleted": True,
        }
        assert (await order(client, kept["name"])).status_code == 200
    assert why(refused) == f"asks for {kept['name']}, which this account doesn't have (any more)"
    assert (gone.status_code, gone.json()["code"]) == (404, "lora_unknown")
    assert theirs["id"] != kept["id"]


async def test_the_hub_s_names_will_do(studio: Studio, site: LoraSite) -> None:
    """A repository with one file, or with the usual one, or a file that is named."""
    site.add_repository("o/one", {"sketch.safetensors": lora_file(seed=1)})
    site.add_repository("o/usual", {"pytorch_lora_weights.safetensors": lora_file(seed=2), "x.safetensors": b""})
    site.add_repository("o/many", {"a.safetensors": lora_file(seed=3), "b b.safetensors": b""})
    site.files["/api/models/o/strange"] = b"[]"
    async with studio.open() as client:
        for given in ("o/one", "huggingface.co/o/usual", "o/many/a.safetensors"):
            assert (await order(client, given)).status_code == 200, given
        many, none = await order(client, "o/many"), await order(client, "o/none")
        strange, path = await order(client, "o/strange"), await order(client, "/etc/passwd")
    assert [request.loras[0][0].partition("@")[0] for request in studio.fleet.requests] == ["sketch", "usual", "a"]
    assert why(many) == (
        "can't be used: o/many has 2 .safetensors files (a.safetensors, b b.safetensors); name the one, as "
        "o/many/FILE.safetensors"
    )
    assert "answered 404" in why(none)
    assert why(strange) == "can't be used: the hub doesn't tell which files o/strange has"
    assert why(path).startswith("has /etc/passwd: it must be the http(s) URL")


@pytest.mark.parametrize(
    ("path", "data", "says"),
    [
        ("/none", None, "/none answered 404, not 200"),
        ("/page", b"<html>sign in</html>", "/page is no safetensors file: it begins with '<html>sign in</h'"),
        ("/cut", lora_file()[:-1], "/cut is cut short: transformer.x.lora_B.weight ends at byte 249 of 248"),
        ("/large", lora_file(size=20_000), "/large has more than 10000 bytes"),
    ],
)
async def test_what_is_no_lora_is_refused_when_it_is_ordered(
    studio: Studio, site: LoraSite, path: str, data: bytes | None, says: str
) -> None:
    """With what is wrong with it, and nothing of it is kept."""
    if data is not None:
        site.files[path] = data
    async with studio.open() as client:
        assert says in why(await order(client, f"{site.url}{path}"))
        assert await brought_by(client) == []
    assert [file.name for file in (studio.options.data_dir / "loras").iterdir()] == []
    assert not (studio.options.data_dir / "store" / "loras").exists()


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


async def test_addresses_that_are_not_public_are_not_dialled(make_studio: MakeStudio, site: LoraSite) -> None:
    studio = make_studio(**NEW | {"fetch_allow": ()})
    async with studio.open() as client:
        refused = await order(client, f"{site.url}/ink.safetensors")
    assert "127.0.0.1 is not a public address" in why(refused)
    assert site.visits == []


async def test_a_server_may_take_none(make_studio: MakeStudio, site: LoraSite) -> None:
    studio = make_studio(**NEW | {"lora_bytes_max": 0})
    async with studio.open() as client:
        refused = await order(client, f"{site.url}/ink.safetensors")
    assert why(refused) == f"has {site.url}/ink.safetensors, and this server takes LoRAs by their names only"


async def test_those_make_room_that_were_not_used_for_longest(make_studio: MakeStudio, site: LoraSite) -> None:
    """But none that an order asked for just now: its edit may still wait for it."""
    size = len(lora_file())
    studio = make_studio(**NEW | {"loras_bytes_max": 2 * size})
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


async def test_one_that_is_gone_is_brought_again(studio: Studio, site: LoraSite) -> None:
    """Whatever took it from the store: its row alone makes no edit."""
    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors")
        [kept] = await brought_by(client)
        (studio.options.data_dir / "store" / "loras" / kept["id"]).unlink()
        assert (await order(client, f"{site.url}/ink.safetensors")).status_code == 200
    assert [status for _, status in site.visits] == [200, 200]


async def test_an_edit_whose_lora_was_deleted_fails_free_of_charge(studio: Studio, site: LoraSite) -> None:
    """If it hasn't begun, and this machine has no copy any more."""
    studio.fleet.may_start.clear()
    async with studio.open() as client:
        answer = await client.post(V2, json=GOOD | {"loras": f"{site.url}/ink.safetensors"})
        [kept] = await brought_by(client)
        await client.delete(f"/console/api/loras/{kept['id']}")
        for file in (studio.options.data_dir / "loras").iterdir():
            file.unlink()
        studio.fleet.may_start.set()
        place = f"/v2/requests/{answer.json()['request_id']}"
        await until(client, f"{place}/status", lambda told: told["status"] == "FAILED")
        result = (await client.get(place)).json()
        balance = (await client.get("/console/api/me")).json()["balance"]
    assert result["code"] == "lora_refused"
    assert f"The LoRA {kept['name']} was deleted, or its time is over" in result["error"]
    assert balance["available"] == 10


async def test_the_sweeper_takes_those_that_nobody_uses(studio: Studio, site: LoraSite) -> None:
    """Their bytes with their rows, and bytes that no row knows."""
    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors")
        [kept] = await brought_by(client)
        parts = studio.service.parts
        week_ago = parts.clock.now() - timedelta(days=8)
        await parts.database.transact(lambda tx: tx.execute(update(table).values(used_at=week_ago)))
        sweeper = Sweeper(database=parts.database, objects=parts.objects, clock=parts.clock, retention=Retention())
        assert (await sweeper.sweep()).loras == 1
        assert await brought_by(client) == []
        assert not await parts.objects.has(f"loras/{kept['id']}")


async def sent(client: httpx2.AsyncClient, name: str, data: bytes, *, piece: int = 1000) -> httpx2.Response:
    """As a client does that doesn't have the file in memory either."""

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(data), piece):
            yield data[at : at + piece]

    return await client.put(f"/v1/loras/{name}", content=pieces())


async def test_a_lora_is_sent(make_studio: MakeStudio) -> None:
    """It may be larger than what else is sent; the same again is the same, under the name that it had."""
    data = lora_file(size=500_000)
    studio = make_studio(PillowFleet(), body_bytes_max=100_000, lora_bytes_max=600_000)
    async with studio.open() as client:
        answer = await sent(client, "water-colour.safetensors", data)
        again = await sent(client, "other", data)
        kept = answer.json()
        assert (answer.status_code, kept["name"]) == (200, f"water-colour@{kept['id']}")
        assert (kept["source"], kept["bytes"]) == ("(sent)", len(data))
        assert again.json()["id"] == kept["id"]
        assert [each["name"] for each in await brought_by(client)] == [kept["name"]]
        assert (await order(client, f"{kept['name']}:0.5")).status_code == 200
    [request] = studio.fleet.requests
    assert request.loras == ((kept["name"], 0.5),)
    assert request.lora_files[kept["name"]].read_bytes() == data


async def test_what_was_fetched_keeps_its_address_when_it_is_sent(studio: Studio, site: LoraSite) -> None:
    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors")
        await sent(client, "other", lora_file())
        await order(client, f"{site.url}/ink.safetensors")
        [kept] = await brought_by(client)
    assert (kept["name"].partition("@")[0], kept["source"]) == ("ink", f"{site.url}/ink.safetensors")
    assert len(site.visits) == 1


@pytest.mark.parametrize(
    ("name", "data", "status", "says"),
    [
        ("ink", b"", 400, "Wrong parameter: file is no safetensors file: it begins with ''."),
        ("ink", lora_file()[:-1], 400, "Wrong parameter: file is cut short: transformer.x.lora_B.weight ends at"),
        ("ink", lora_file(size=20_000), 413, "The request's body has more than 10000 bytes"),
        ("a@b", lora_file(), 400, 'Wrong parameter: name is "a@b" (allowed: 1 to 64 letters'),
        ("x" * 65, lora_file(), 400, "Wrong parameter: name is"),
    ],
)
async def test_what_is_sent_and_is_no_lora_is_refused(
    studio: Studio, name: str, data: bytes, status: int, says: str
) -> None:
    """And nothing of it is kept."""
    async with studio.open() as client:
        answer = await sent(client, name, data)
        assert (answer.status_code, answer.json()["error"].startswith(says)) == (status, True), answer.text
        assert await brought_by(client) == []
    assert not any(studio.options.data_dir.glob("loras/*"))


async def test_sending_needs_a_key_that_may_edit(studio: Studio) -> None:
    """Before a byte is taken; and a server that takes none says so."""
    reader = studio.new_key(scopes=frozenset({"read"}))
    async with studio.open() as client, studio.client(reader.secret) as other, studio.client("") as nobody:
        assert (await sent(other, "ink", lora_file())).status_code == 403
        assert (await sent(nobody, "ink", lora_file())).status_code == 401
        assert await brought_by(client) == []


async def test_a_server_that_takes_none_is_sent_none(make_studio: MakeStudio) -> None:
    async with make_studio(lora_bytes_max=0).open() as client:
        answer = await sent(client, "ink", lora_file())
    assert answer.status_code == 400
    assert "this server takes LoRAs by their names only" in answer.json()["error"]


def test_a_name_is_what_a_file_is_called() -> None:
    """In letters that names may have; the hub's nameless files are called after their repository."""
    for address, name in (
        ("https://a.example/Water%20colour%20v2.safetensors?x=1", "Water-colour-v2"),
        ("https://huggingface.co/o/My.Style/resolve/main/pytorch_lora_weights.safetensors", "My.Style"),
        ("https://a.example/lora.safetensors", "lora"),
        ("https://a.example/", "lora"),
        ("https://a.example/%E2%9C%93.safetensors", "lora"),
        ("https://a.example/api/download/models/12345", "12345"),
        (f"https://a.example/{'x' * 200}", "x" * 64),
    ):
        assert brought._name_of(address) == name
        assert loras.id_of("a", "b") != loras.id_of("c", "b")  # type: ignore[arg-type]
