"""The console as its operator uses it: accounts, credits and limits, the live queue, everybody's requests."""

from __future__ import annotations

from pathlib import Path

import httpx2
from playwright.sync_api import Locator, Route, expect

from tests.browser.conftest import OpenPage
from tests.browser.console import begin_edit, card, go_to, rows
from tests.browser.site import WAIT_S, Site


def test_an_operator_cancels_an_edit_where_its_request_is_shown(open_page: OpenPage, site: Site, photo: Path) -> None:
    """After a question, and once: its row says so, and then that it ended."""
    begin_edit(site, photo)
    page = open_page("/console#all-requests")
    page.get_by_role("button", name="Open the request: make it night").click()
    whole = page.get_by_role("dialog", name="Request")
    whole.get_by_role("button", name="Cancel the edit").click()
    page.get_by_role("dialog", name="Cancel this edit?").get_by_role("button", name="Keep").click()
    expect(whole).to_contain_text("processing")
    whole.get_by_role("button", name="Cancel the edit").click()
    page.get_by_role("dialog", name="Cancel this edit?").get_by_role("button", name="Cancel it").click()
    expect(page.locator(".toast").last).to_have_text("Cancelled, and free")
    expect(whole.get_by_role("button", name="Cancel the edit")).to_have_count(0)
    expect(whole).to_contain_text("cancelled")
    page.keyboard.press("Escape")
    expect(rows(page)).to_contain_text("cancelled")
    go_to(page, "requests")
    page.get_by_role("button", name="Open the request: make it night").click()
    expect(whole.get_by_role("button", name="Copy id")).to_be_visible()
    expect(whole.get_by_role("button", name="Cancel the edit")).to_have_count(0)


def test_an_operator_opens_accounts_gives_credits_and_sets_limits(
    open_page: OpenPage, site: Site, refusals: list[int]
) -> None:
    """Each act is in the audit log."""
    refusals.append(400)
    page = open_page("/console")
    go_to(page, "accounts")
    page.get_by_role("button", name="New account").click()
    form = page.get_by_role("dialog", name="New account")
    form.get_by_label("Name").fill("print shop")
    form.get_by_label("Credits to begin with").fill("2")
    form.get_by_role("button", name="Open it").click()
    secret = page.locator("#secret").inner_text()
    page.get_by_role("button", name="I have it").click()
    shop = rows(page).filter(has_text="print shop")
    expect(shop).to_contain_text("$2.00")

    shop.get_by_role("button", name="Credits").click()
    form = page.get_by_role("dialog", name="Credits of print shop")
    form.get_by_label("Amount").fill("-5")
    form.get_by_role("button", name="Put on the account").click()
    expect(form.locator("form > .fault")).not_to_be_empty()
    form.get_by_label("Amount").fill("3.5")
    form.get_by_role("button", name="Put on the account").click()
    expect(shop).to_contain_text("$5.50")
    expect(page.locator(".toast").last).to_have_text("print shop can spend $5.50 now")

    shop.get_by_role("button", name="Limits").click()
    form = page.get_by_role("dialog", name="Limits of print shop")
    form.get_by_label("Spend in a month").fill("1.25")
    form.get_by_role("button", name="Save").click()
    expect(shop).to_contain_text("$1.25")

    shop.get_by_role("button", name="Keys").click()
    expect(page.get_by_role("dialog", name="Keys of print shop").locator("tbody tr")).to_have_count(1)
    page.keyboard.press("Escape")

    me = httpx2.get(f"{site.url}/console/api/me", headers={"x-api-key": secret}, timeout=WAIT_S).json()
    assert me["account"]["monthly_cap"] == 1.25
    assert me["balance"]["available"] == 5.5
    go_to(page, "audit")
    log = page.locator("main tbody")
    expect(log).to_contain_text("amount")
    expect(log.get_by_title(me["account"]["id"], exact=True).first).to_be_visible()


def test_an_operator_looks_for_an_account_among_many(open_page: OpenPage, site: Site) -> None:
    """A page at a time; what was asked for is there again after a reload, and a new account is always seen."""
    with httpx2.Client(base_url=f"{site.url}/console/api/admin/", headers={"x-api-key": site.key}) as operator:
        for number in range(20):
            operator.post("accounts", json={"name": f"shop {number}"})
    page = open_page("/console#accounts")
    expect(rows(page)).to_have_count(20)
    expect(page.get_by_text("Page 1 of 2, 21 in all")).to_be_visible()
    page.get_by_role("button", name="Older").click()
    expect(rows(page)).to_have_count(1)
    expect(rows(page)).to_contain_text("owner")
    page.get_by_label("Search").fill("SHOP 1")
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(11)
    page.reload()
    expect(rows(page)).to_have_count(11)
    expect(page.get_by_label("Search")).to_have_value("SHOP 1")

    page.get_by_role("button", name="New account").click()
    form = page.get_by_role("dialog", name="New account")
    form.get_by_label("Name").fill("bakery")
    form.get_by_role("button", name="Open it").click()
    page.get_by_role("button", name="I have it").click()
    expect(rows(page).first).to_contain_text("bakery")
    expect(page.get_by_label("Search")).to_be_empty()
    page.get_by_label("Search").fill("nobody")
    page.get_by_role("button", name="Filter").click()
    expect(page.get_by_text("No account matches.")).to_be_visible()


def test_an_operator_revokes_another_account_s_keys(open_page: OpenPage, site: Site) -> None:
    """One of them or all, each after the question that one's own asks; the page itself stays signed in."""
    with httpx2.Client(base_url=f"{site.url}/console/api/admin/", headers={"x-api-key": site.key}) as operator:
        opened = operator.post("accounts", json={"name": "print shop"}).json()
        for name in ("till", "website"):
            operator.post(f"accounts/{opened['account']['id']}/keys", json={"name": name})
    page = open_page("/console#accounts")
    rows(page).filter(has_text="print shop").get_by_role("button", name="Keys").click()
    shown = page.get_by_role("dialog", name="Keys of print shop")
    keys = shown.locator("tbody tr")
    expect(keys).to_have_count(3)

    shown.get_by_role("button", name="Revoke website").click()
    question = page.get_by_role("dialog", name="Revoke website?")
    expect(question).to_contain_text("Programs that use it are refused from now on.")
    question.get_by_role("button", name="Keep").click()
    expect(keys.filter(has_text="revoked")).to_have_count(0)
    shown.get_by_role("button", name="Revoke website").click()
    question.get_by_role("button", name="Revoke").click()
    expect(keys.filter(has_text="website")).to_contain_text("revoked")
    expect(keys.filter(has_text="active")).to_have_count(2)

    shown.get_by_role("button", name="Revoke all").click()
    question = page.get_by_role("dialog", name="Revoke every key of print shop?")
    question.get_by_role("button", name="Revoke all").click()
    expect(keys.filter(has_text="revoked")).to_have_count(3)
    expect(shown.get_by_role("button", name="Revoke")).to_have_count(0)
    page.keyboard.press("Escape")
    refused = httpx2.get(f"{site.url}/console/api/me", headers={"x-api-key": opened["api_key"]}, timeout=WAIT_S)
    assert refused.json()["code"] == "invalid_api_key"

    rows(page).filter(has_text="owner").get_by_role("button", name="Keys").click()
    page.get_by_role("dialog", name="Keys of owner").get_by_role("button", name="Revoke all").click()
    expect(page.get_by_role("dialog", name="Revoke every key of owner?")).to_contain_text("it signs you out")


def test_a_limit_is_the_account_s_own_only_once_it_was_set(open_page: OpenPage) -> None:
    """Where it follows the server its field is empty; what wasn't changed isn't sent."""
    page = open_page("/console#accounts")
    owner = rows(page).filter(has_text="owner")
    limit = owner.locator("td").nth(4)
    form = page.get_by_role("dialog", name="Limits of owner")
    at_once = form.get_by_label("Edits at once")

    def set_limit(field: Locator, text: str) -> object:
        field.fill(text)
        with page.expect_request(lambda request: request.method == "PATCH") as sent:
            form.get_by_role("button", name="Save").click()
        return sent.value.post_data_json

    expect(limit).to_have_text("32")
    owner.get_by_role("button", name="Limits").click()
    expect(at_once).to_be_empty()
    assert set_limit(form.get_by_label("Spend in a month"), "1.25") == {"monthly_cap": 1.25}
    expect(owner).to_contain_text("$1.25")
    owner.get_by_role("button", name="Limits").click()
    assert set_limit(at_once, "3") == {"in_flight_max": 3}
    expect(limit).to_have_text("3")
    owner.get_by_role("button", name="Limits").click()
    expect(at_once).to_have_value("3")
    assert set_limit(at_once, "") == {"in_flight_max": None}
    expect(limit).to_have_text("32")


def test_the_live_queue_stays_where_it_is_read(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Another look moves neither the focus nor the table, and answers slower than the pause between looks are shown."""
    begin_edit(site, photo)
    page = open_page("/console", viewport={"width": 390, "height": 800})
    looks: list[Route] = []
    page.route("**/admin/queue", lambda route: looks.append(route))
    page.clock.install()
    with page.expect_request("**/admin/queue"):
        page.locator('#side a[href="#queue"]').click()
    page.clock.run_for(9000)
    assert len(looks) == 1, "it looked again before it had seen anything"
    looks[0].continue_()
    region = page.get_by_role("region", name="Unfinished edits")
    region.focus()
    region.evaluate("region => { region.scrollLeft = 120; region.dataset.old = '' }")
    with page.expect_request("**/admin/queue"):
        page.clock.run_for(2500)
    page.evaluate("0")  # lets the route be handled, too
    looks[1].continue_()
    expect(page.locator(".table-place:not([data-old])")).to_be_focused()
    assert region.evaluate("region => region.scrollLeft") == 120


def test_an_operator_watches_the_queue_live(open_page: OpenPage, site: Site, photo: Path) -> None:
    """A running edit with its step, then none; and it is among all requests."""
    page = open_page()
    page.set_input_files("#file", photo)
    page.fill("#prompt", "make it night")
    site.fleet.pause_at = 7
    page.keyboard.press("Control+Enter")
    expect(page.locator(".status")).to_contain_text("Step 7")
    console = open_page("/console#queue")
    expect(card(console, "Running")).to_have_text("1")
    expect(rows(console)).to_contain_text("7 / 35")
    expect(console.get_by_text("ready on cpu")).to_be_visible()
    site.go_on()
    expect(console.get_by_text("Nothing waits and nothing runs.")).to_be_visible()
    go_to(console, "all-requests")
    expect(rows(console)).to_contain_text("make it night")
    console.get_by_label("Account").fill("acc_nobody")
    console.get_by_role("button", name="Filter").click()
    expect(console.get_by_text("No request matches.")).to_be_visible()
    console.get_by_label("Account").fill("")
    console.get_by_role("button", name="Filter").click()
    console.get_by_role("button", name="Open the request: make it night").click()
    expect(console.get_by_role("dialog", name="Request")).to_contain_text("acc_")


def test_the_queue_tells_the_place_of_what_a_device_has_taken(open_page: OpenPage) -> None:
    """An edit may wait in the engine, behind others that it has; only what runs has no place."""
    page = open_page("/console")
    job = {
        "request_id": "f" * 32,
        "account_id": "acc_1",
        "accepted_at": "2026-11-30T06:00:00Z",
        "attempt": 1,
        "steps": 35,
    }
    states = [("PROCESSING", 0), ("PROCESSING", 1), ("PROCESSING", 2), ("QUEUED", 0), ("QUEUED", None)]

    def answer(route: Route) -> None:
        queue = (response := route.fetch()).json()
        queue["jobs"] = [job | {"status": state, "queue_position": place} for state, place in states]
        route.fulfill(response=response, json=queue)

    page.route("**/admin/queue", answer)
    go_to(page, "queue")
    assert rows(page).locator("td:nth-child(5)").all_text_contents() == ["–", "1", "2", "0", "–"]
