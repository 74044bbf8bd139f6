"""LoRAs that accounts bring by address: fetched once, known again, theirs alone, and gone when they are deleted."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import select

from rekontext.api import brought
from rekontext.database import AccountId
from rekontext.database.tables import lora_sources
from rekontext.jobs import loras
from tests.api.brought import LIMITS, LoraSite, brought_by, lora_file, order, sent, why
from tests.api.conftest import MakeStudio
from tests.api.orders import GOOD, V2
from tests.api.studio import PillowFleet, Studio
from tests.api.test_elsewhere import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def studio(make_studio: MakeStudio, monkeypatch: pytest.MonkeyPatch, site: LoraSite) -> Studio:
    monkeypatch.setenv("HF_ENDPOINT", site.url)
    return make_studio(PillowFleet(loras=("wash",)), **LIMITS)


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
    assert site.visits == [("/ink.safetensors", 200), ("/other.safetensors", 200)], "each address once"


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
    site.files["/api/models/o/odd"] = b'{"siblings": [{"rfilename": 3}]}'
    async with studio.open() as client:
        for given in ("o/one", "huggingface.co/o/usual", "o/many/a.safetensors"):
            assert (await order(client, given)).status_code == 200, given
        many, none = await order(client, "o/many"), await order(client, "o/none")
        strange, path = await order(client, "o/strange"), await order(client, "/etc/passwd")
        odd = await order(client, "o/odd")
    assert [request.loras[0][0].partition("@")[0] for request in studio.fleet.requests] == ["sketch", "usual", "a"]
    assert why(many) == (
        "can't be used: o/many has 2 .safetensors files (a.safetensors, b b.safetensors); name the one, as "
        "o/many/FILE.safetensors"
    )
    assert "answered 404" in why(none)
    assert why(odd) == "can't be used: the hub doesn't tell which files o/odd has"
    assert why(strange) == "can't be used: the hub doesn't tell which files o/strange has"
    assert why(path).startswith("can't be used: /etc/passwd is neither the http(s) URL")


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


async def test_addresses_that_are_not_public_are_not_dialled(make_studio: MakeStudio, site: LoraSite) -> None:
    studio = make_studio(**LIMITS | {"fetch_allow": ()})
    async with studio.open() as client:
        refused = await order(client, f"{site.url}/ink.safetensors")
    assert "127.0.0.1 is not a public address" in why(refused)
    assert site.visits == []


async def test_a_server_may_take_none(make_studio: MakeStudio, site: LoraSite) -> None:
    studio = make_studio(**LIMITS | {"lora_bytes_max": 0})
    async with studio.open() as client:
        refused = await order(client, f"{site.url}/ink.safetensors")
    assert why(refused) == f"has {site.url}/ink.safetensors, and this server takes LoRAs by their names only"


async def test_one_that_is_gone_is_brought_again(studio: Studio, site: LoraSite) -> None:
    """Whatever took it from the store: its row alone makes no edit."""
    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors")
        [kept] = await brought_by(client)
        stored = studio.options.data_dir / "store" / "loras" / kept["id"]
        stored.unlink()
        assert (await order(client, f"{site.url}/ink.safetensors")).status_code == 200
        stored.unlink()
        refused = await order(client, kept["name"])
        assert await brought_by(client) == []
    assert [status for _, status in site.visits] == [200, 200]
    assert why(refused) == f"asks for {kept['name']}, which this account doesn't have (any more)"


async def test_an_edit_whose_lora_was_deleted_fails_free_of_charge(studio: Studio, site: LoraSite) -> None:
    """If it hasn't begun; nothing of it is left on this machine."""
    studio.fleet.may_start.clear()
    async with studio.open() as client:
        answer = await client.post(V2, json=GOOD | {"loras": f"{site.url}/ink.safetensors"})
        [kept] = await brought_by(client)
        await client.delete(f"/console/api/loras/{kept['id']}")
        assert not any(studio.options.data_dir.glob("loras/*"))
        studio.fleet.may_start.set()
        place = f"/v2/requests/{answer.json()['request_id']}"
        await until(client, f"{place}/status", lambda told: told["status"] == "FAILED")
        result = (await client.get(place)).json()
        balance = (await client.get("/console/api/me")).json()["balance"]
    assert result["code"] == "lora_refused"
    assert f"The LoRA {kept['name']} was deleted, or its time is over" in result["error"]
    assert balance["available"] == 10


async def test_a_name_is_the_lora_s_own(studio: Studio, site: LoraSite) -> None:
    """Whatever somebody calls it before its @."""
    async with studio.open() as client:
        await order(client, f"{site.url}/ink.safetensors")
        [kept] = await brought_by(client)
        twice = await order(client, [f"a@{kept['id']}", f"b@{kept['id']}"])
        both = await order(client, [f"{site.url}/ink.safetensors", f"Another.Style@{kept['id']}"])
        once = await order(client, f"Another.Style@{kept['id']}")
    assert why(twice) == why(both) == f"has {kept['name']} twice"
    assert once.headers["x-rekontext-model"] == f"mini + {kept['name']}"


@pytest.mark.parametrize("tag", ['"\xff"', '"' + "a" * 600 + '"', '"a\tb"'])
async def test_a_tag_that_is_none_is_not_kept(studio: Studio, tag: str) -> None:
    """What a server calls its files may be anything."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {len(lora_file())}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode("latin-1") + lora_file())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with studio.open() as client, server:
        place = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.safetensors"
        assert (await order(client, place)).status_code == 200
        database = studio.service.parts.database
        tags = await database.read(lambda tx: tx.execute(select(lora_sources.c.tag)).scalars().all())
    assert tags == [""]


async def test_a_front_keeps_no_copies(tmp_path: Path, site: LoraSite) -> None:
    """No edit runs there that would need one."""
    front = Studio(folder=tmp_path, fleet=cast(Any, None), settings=LIMITS)
    async with front.open() as client:
        answer = await client.post(V2, json=GOOD | {"loras": f"{site.url}/ink.safetensors"})
        assert answer.status_code == 200, answer.text
        assert len(await brought_by(client)) == 1
    assert not any(front.options.data_dir.glob("loras/*"))


async def test_one_of_many_addresses_is_fetched_again(
    studio: Studio, site: LoraSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those are known by which it was found last."""
    monkeypatch.setattr(loras, "_SOURCES_MAX", 2)
    for name in "abc":
        site.files[f"/{name}"] = lora_file()
    async with studio.open() as client:
        for name in "abcba":
            assert (await order(client, f"{site.url}/{name}")).status_code == 200
        assert len(await brought_by(client)) == 1
    assert [path for path, _ in site.visits] == ["/a", "/b", "/c", "/a"]


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


def test_of_one_file_each_account_has_another() -> None:
    """And one account always the same."""
    alice, bob = AccountId("alice"), AccountId("bob")
    assert loras.id_of(alice, "digest") == loras.id_of(alice, "digest")
    assert len({loras.id_of(alice, "digest"), loras.id_of(bob, "digest"), loras.id_of(alice, "other")}) == 3


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
