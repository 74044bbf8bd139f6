"""Accounts as an operator has them on the console: opened, paid, limited, their keys and edits looked after."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from rekontext.accounts import Allowance
from rekontext.api.auth import Caller
from rekontext.contract import EditRefused
from tests.api.conftest import MakeStudio
from tests.api.orders import NIGHT, V1, followed
from tests.api.studio import SOON_S, Studio

pytestmark = pytest.mark.anyio


async def test_admin_is_for_admins(studio: Studio) -> None:
    """An ordinary key sees nothing of others, and does nothing to them."""
    async with studio.open(), studio.client(studio.new_key().secret) as client:
        for method, path in (
            ("GET", "accounts"),
            ("POST", "accounts"),
            ("GET", "queue"),
            ("GET", "requests"),
            ("GET", "requests/0"),
            ("POST", "requests/0/cancel"),
            ("GET", "audit"),
            ("GET", f"accounts/{studio.account}/keys"),
            ("POST", f"accounts/{studio.account}/keys"),
            ("DELETE", f"accounts/{studio.account}/keys"),
            ("DELETE", f"accounts/{studio.account}/keys/{studio.key_id}"),
            ("POST", f"accounts/{studio.account}/credits"),
            ("PATCH", f"accounts/{studio.account}"),
        ):
            body = {"name": "x"} if path == "accounts" else {"amount": 1} if path.endswith("credits") else {}
            answer = await client.request(method, f"/console/api/admin/{path}", json=None if method == "GET" else body)
            assert (answer.status_code, answer.json()["code"]) == (403, "scope_missing"), path


async def test_an_admin_opens_an_account_pays_limits_it_and_is_written_down(
    client: httpx2.AsyncClient, studio: Studio
) -> None:
    """The new account's key works at once, within its limits."""
    opened = await client.post("/console/api/admin/accounts", json={"name": "alice", "credits": "0.08"})
    account, key = opened.json()["account"]["id"], opened.json()["api_key"]
    assert (await client.post("/console/api/admin/accounts", json={"name": "alice"})).status_code == 409
    async with studio.client(key) as alice:
        assert (await alice.post(V1, json=NIGHT)).headers["x-remaining-credits"] == "0.04"
        capped = await client.patch(f"/console/api/admin/accounts/{account}", json={"monthly_cap": 0.05})
        assert capped.json()["account"]["monthly_cap"] == 0.05
        refused = await alice.post(V1, json=NIGHT)
        assert (refused.status_code, refused.json()["code"]) == (406, "spend_cap_reached")
    paid = await client.post(f"/console/api/admin/accounts/{account}/credits", json={"amount": 5, "kind": "payment"})
    assert paid.json()["balance"] == {"credits": 5, "free_credits": 0.04, "held": 0, "available": 5.04}
    none = await client.post(f"/console/api/admin/accounts/{account}/credits", json={"amount": -1})
    assert (none.status_code, none.json()["errors"]) == (
        400,
        [
            {
                "parameter": "amount",
                "value": -1,
                "allowed": "above 0, or not 0 for a correction",
                "reason": "is -1: must be above 0, or not 0 for a correction",
            }
        ],
    )
    set_right = {"amount": -5.03, "kind": "correction"}
    taken = await client.post(f"/console/api/admin/accounts/{account}/credits", json=set_right)
    assert taken.json()["balance"] == {"credits": 0, "free_credits": 0.01, "held": 0, "available": 0.01}
    more = await client.post(f"/console/api/admin/accounts/{account}/credits", json=set_right)
    assert (more.status_code, more.json()["code"]) == (409, "correction_too_large")
    await client.post(f"/console/api/admin/accounts/{account}/credits", json={"amount": 5.03})
    second = await client.post(f"/console/api/admin/accounts/{account}/keys", json={"name": "second"})
    assert second.json()["api_key"].startswith("rk_")
    nobody = await client.post("/console/api/admin/accounts/acc_nobody/keys", json={})
    assert (nobody.status_code, nobody.json()["code"]) == (404, "account_unknown")
    accounts = (await client.get("/console/api/admin/accounts")).json()["accounts"]
    assert [(each["name"], each["balance"]["available"]) for each in accounts] == [("alice", 5.04), ("owner", 10)]
    everybody = (await client.get("/console/api/admin/requests")).json()["data"]
    assert [row["account_id"] for row in everybody] == [account]
    records = (await client.get("/console/api/admin/audit?limit=3")).json()["records"]
    assert [each["action"] for each in records] == ["key.create", "credits.grant", "credits.correction"]
    assert {each["actor"] for each in records} == {studio.key_id}
    older = (await client.get(f"/console/api/admin/audit?before={records[-1]['id']}")).json()["records"]
    assert older[0]["id"] < records[-1]["id"]


async def test_accounts_come_page_by_page(client: httpx2.AsyncClient) -> None:
    """As requests do, and under the name that they had when all came at once."""
    for name in ("print shop", "printer", "bakery"):
        assert (await client.post("/console/api/admin/accounts", json={"name": name})).status_code == 201

    async def found(query: str) -> tuple[list[str], tuple[int, ...]]:
        document = (await client.get(f"/console/api/admin/accounts{query}")).json()
        counts = tuple(document[name] for name in ("page", "per_page", "total", "total_pages"))
        return [each["name"] for each in document["accounts"]], counts

    assert await found("") == (["bakery", "printer", "print shop", "owner"], (1, 20, 4, 1))
    assert await found("?per_page=3&page=2") == (["owner"], (2, 3, 4, 2))
    assert await found("?search= PRINT ") == (["printer", "print shop"], (1, 20, 2, 1))
    assert await found("?search=") == await found("")
    for wrong in ("per_page=101", "page=0", f"search={'x' * 201}"):
        answer = await client.get(f"/console/api/admin/accounts?{wrong}")
        assert (answer.status_code, answer.json()["errors"][0]["parameter"]) == (400, wrong.partition("=")[0])


async def test_an_admin_revokes_a_customer_s_keys(client: httpx2.AsyncClient, studio: Studio) -> None:
    """One by its id, or every open one; each has its line in the audit log, with who did it."""
    opened = (await client.post("/console/api/admin/accounts", json={"name": "alice"})).json()
    account, path = opened["account"]["id"], f"/console/api/admin/accounts/{opened['account']['id']}/keys"
    made = [(await client.post(path, json={"name": name})).json() for name in ("second", "third")]
    second, third = (each["key"]["id"] for each in made)
    async with studio.client(made[0]["api_key"]) as alice, studio.client(opened["api_key"]) as first:
        assert (await alice.get("/console/api/me")).status_code == 200
        revoked = await client.delete(f"{path}/{second}")
        assert (revoked.json()["key"]["id"], revoked.json()["key"]["revoked_at"] is None) == (second, False)
        assert (await alice.get("/console/api/me")).json()["code"] == "invalid_api_key"
        assert (await client.delete(f"{path}/{second}")).json() == revoked.json()
        for wrong, code in (
            (f"{path}/nope", "key_unknown"),
            (f"{path}/{studio.key_id}", "key_unknown"),
            (f"/console/api/admin/accounts/acc_nobody/keys/{third}", "account_unknown"),
            ("/console/api/admin/accounts/acc_nobody/keys", "account_unknown"),
        ):
            answer = await client.delete(wrong)
            assert (answer.status_code, answer.json()["code"]) == (404, code)
        first_id = (await first.get("/console/api/me")).json()["key"]["id"]
        rest = (await client.delete(path)).json()["keys"]
        assert [(each["id"], each["revoked_at"] is None) for each in rest] == [(third, False), (first_id, False)]
        assert (await first.get("/console/api/me")).json()["code"] == "invalid_api_key"
    assert (await client.delete(path)).json() == {"keys": []}
    records = (await client.get("/console/api/admin/audit")).json()["records"]
    acts = [each for each in records if each["action"] == "key.revoke"]
    assert [each["subject"] for each in reversed(acts)] == [second, first_id, third]
    assert {(each["actor"], each["details"]["account"]) for each in acts} == {(studio.key_id, account)}


async def test_a_key_that_is_closed_meanwhile_makes_none(
    client: httpx2.AsyncClient, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever has a stolen one outlives the closing of all."""
    made = studio.new_key()
    allow = studio.service.parts.edits.allow

    async def slowly(caller: Caller) -> Allowance:
        await client.delete(f"/console/api/admin/accounts/{studio.account}/keys/{made.key.id}")
        return await allow(caller)

    monkeypatch.setattr(type(studio.service.parts.edits), "allow", lambda _, caller: slowly(caller))
    async with studio.client(made.secret) as thief:
        answer = await thief.post("/console/api/keys", json={"name": "hidden"})
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_api_key")
    assert "hidden" not in (await client.get("/console/api/keys")).text


async def test_an_admin_looks_up_a_customer_s_request(client: httpx2.AsyncClient, studio: Studio) -> None:
    """By the id that the customer has from `x-request-id`, whole and in the list, with what an operator asks first."""
    opened = (await client.post("/console/api/admin/accounts", json={"name": "alice", "credits": 1})).json()
    account = opened["account"]["id"]
    async with studio.client(opened["api_key"]) as alice:
        ordering_key = (await alice.get("/console/api/me")).json()["key"]["id"]
        done = (await alice.post(V1, json=NIGHT)).headers["x-request-id"]
        studio.fleet.fault = EditRefused("not this one")
        failed = (await alice.post(V1, json=NIGHT)).headers["x-request-id"]
        found = (await alice.get(f"/console/api/requests?search= {failed} ")).json()["data"]
        assert [row["request_id"] for row in found] == [failed]
        assert "account_id" not in found[0]
        refused = await alice.get(f"/console/api/admin/requests/{failed}")
        assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")
    own = await client.get(f"/console/api/requests?search={failed}")
    assert own.json()["data"] == []

    whole = (await client.get(f"/console/api/admin/requests/{failed}")).json()
    asked = {"account_id": account, "attempt": 1, "faults": 0, "worker": None, "error_code": "edit_refused"}
    assert whole["key_id"] == ordering_key
    assert {name: whole[name] for name in asked} == asked
    assert whole["parameters"]["guidance"] == 7.0
    for query, ids in (
        (f"search={failed}", [failed]),
        (f"account_id={account}", [failed, done]),
        (f"account_id={account}&search=NIGHT&status=COMPLETED", [done]),
        (f"account_id={studio.account}", []),
        (f"account_id={studio.account}&search={failed}", []),
        ("account_id=acc_nobody", []),
    ):
        page = (await client.get(f"/console/api/admin/requests?{query}")).json()
        assert [row["request_id"] for row in page["data"]] == ids, query
        assert page["total"] == len(ids)
    row = (await client.get(f"/console/api/admin/requests?search={failed}")).json()["data"][0]
    assert {name: row[name] for name in asked} == asked
    nothing = await client.get("/console/api/admin/requests/0")
    assert (nothing.status_code, nothing.json()["code"]) == (404, "request_not_found")


async def test_an_admin_cancels_a_customer_s_edit_and_is_written_down(make_studio: MakeStudio) -> None:
    """One that waits at once, one that runs within a step; both are free. What had ended stays, and is no act."""
    studio = make_studio(running_max=1)
    studio.fleet.may_step.clear()
    async with studio.open() as client:
        opened = (await client.post("/console/api/admin/accounts", json={"name": "alice", "credits": 1})).json()
        async with studio.client(opened["api_key"]) as alice:
            running = (await alice.post("/v2/flux-kontext-dev", json=NIGHT)).json()
            await asyncio.wait_for(studio.fleet.began.wait(), SOON_S)
            waiting = (await alice.post("/v2/flux-kontext-dev", json=NIGHT)).json()
            ids = [waiting["request_id"], running["request_id"]]
            refused = await alice.post(f"/console/api/admin/requests/{ids[0]}/cancel")
            assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")
            for request_id, status in zip(ids, ("CANCELLED", "PROCESSING"), strict=True):
                row = (await client.post(f"/console/api/admin/requests/{request_id}/cancel")).json()
                assert (row["status"], row["cancelled"], row["account_id"]) == (status, True, opened["account"]["id"])
            await asyncio.wait_for(studio.fleet.stopped.wait(), SOON_S)
            events = await followed(alice, running["events_url"])
            assert events[-1][2]["status"] == "CANCELLED"
            assert (await alice.get("/v1/get-user-credits")).json()["free-credits"] == 1
            studio.fleet.may_step.set()
            done = (await alice.post(V1, json=NIGHT)).headers["x-request-id"]
        late = (await client.post(f"/console/api/admin/requests/{done}/cancel")).json()
        assert (late["status"], late["cancelled"]) == ("COMPLETED", False)
        nothing = await client.post("/console/api/admin/requests/0/cancel")
        assert (nothing.status_code, nothing.json()["code"]) == (404, "request_not_found")
        records = (await client.get("/console/api/admin/audit")).json()["records"]
    acts = [each for each in records if each["action"] == "request.cancel"]
    assert [each["subject"] for each in reversed(acts)] == ids
    assert {each["actor"] for each in acts} == {studio.key_id}
    assert {each["details"]["account"] for each in acts} == {opened["account"]["id"]}


async def test_a_limit_that_isn_t_sent_stays(client: httpx2.AsyncClient, studio: Studio) -> None:
    """Null lifts it; setting one must not take the other away."""
    path = f"/console/api/admin/accounts/{studio.account}"

    async def changed(body: dict[str, Any]) -> tuple[Any, Any, Any]:
        account = (await client.patch(path, json=body)).json()["account"]
        return account["monthly_cap"], account["in_flight_max"], account["own_in_flight_max"]

    assert await changed({"monthly_cap": 7.5}) == (7.5, 32, None)
    assert await changed({"in_flight_max": 5}) == (7.5, 5, 5)
    assert await changed({}) == (7.5, 5, 5)
    assert await changed({"monthly_cap": None}) == (None, 5, 5)
    assert await changed({"in_flight_max": None}) == (None, 32, None)
    records = (await client.get("/console/api/admin/audit?limit=4")).json()["records"]
    assert [each["details"] for each in reversed(records)] == [
        {"monthly_cap": 7.5},
        {"in_flight_max": 5},
        {"monthly_cap": None},
        {"in_flight_max": None},
    ]
