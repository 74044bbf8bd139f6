"""The console, as its user uses it: signing in, credits, keys, webhooks, files."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.console import card, edit, go_to, rows
from tests.browser.loras import own
from tests.browser.site import WAIT_S, Site

CREDITS_MICROS = 1_000_000


@contextmanager
def receiver() -> Iterator[str]:
    """The address of somebody who takes every message."""

    class Taker(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Taker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/hook"
        finally:
            server.shutdown()
            thread.join()


def test_signing_in_and_out(open_page: OpenPage, site: Site, refusals: list[int]) -> None:
    """A wrong key is told; a right one is kept until signing out, and never in the address."""
    refusals.append(401)
    page = open_page("/console", key=None)
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#key-fault")).to_have_text("Give a key to sign in.")
    page.get_by_label("API key").fill("rk_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.locator("#key-fault")).to_contain_text("Unauthorized")
    page.get_by_label("API key").fill(site.key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    page.reload()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    assert site.key not in page.url
    page.locator("#key-button").click()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Console")).to_be_visible()
    assert page.evaluate("JSON.stringify([localStorage, sessionStorage])").find(site.key) == -1


@pytest.mark.parametrize("path", ["/", "/console"])
def test_another_tab_changes_who_pays(path: str, open_page: OpenPage, site: Site, photo: Path) -> None:
    """Who is shown is whose key is sent, in every tab; what was not sent yet stays."""
    stranger = site.studio.new_account("stranger", credits_micros=CREDITS_MICROS)
    page = open_page(path, key=None)
    other = page.context.new_page()
    other.goto(f"{site.url}/console")
    other.get_by_label("API key").fill(site.key)
    other.keyboard.press("Enter")
    shown = page.locator("#key-button")
    expect(shown).to_have_text("owner")
    if path == "/":
        page.locator("body[data-ready]").wait_for()
        page.set_input_files("#file", photo)
        page.fill("#prompt", "make it night")
    other.evaluate("key => localStorage.setItem('rekontext.key', key)", stranger.secret)
    expect(shown).to_have_text("stranger")
    if path == "/":
        expect(page.locator(".toast").last).to_contain_text("paid by stranger")
        expect(page.locator("#prompt")).to_have_value("make it night")
        expect(page.locator("#balance")).to_have_text("$1.00")
    other.reload()
    other.locator("#key-button").click()
    other.get_by_role("button", name="Sign out").click()
    if path == "/":
        expect(shown).to_have_text("Add API key")
    else:
        expect(page.get_by_role("button", name="Sign in")).to_be_visible()


def test_a_user_sees_credits_usage_and_each_request_whole(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Figures, filters, and one request with its picture, parameters and times."""
    edit(site, photo, "make it night")
    edit(site, photo, "blur it")
    page = open_page("/console")
    expect(card(page, "Can be spent")).to_have_text("$9.92")
    expect(card(page, "Spent this month")).to_have_text("$0.08")
    expect(card(page, "Edits")).to_have_text("2")
    expect(page.locator(".chart-svg")).to_have_count(3)
    page.get_by_text("7 days").click()
    expect(page.locator(".chart").first.locator(".as-table tbody tr")).to_have_count(7)

    go_to(page, "requests")
    expect(rows(page)).to_have_count(2)
    page.get_by_label("Search").fill("night")
    page.get_by_role("button", name="Filter").click()
    expect(rows(page)).to_have_count(1)
    page.get_by_label("Status").select_option("FAILED")
    expect(page.get_by_text("No request matches.")).to_be_visible()
    page.get_by_label("Status").select_option("COMPLETED")
    page.get_by_role("button", name="Open the request: make it night").click()
    one = page.get_by_role("dialog", name="Request")
    expect(one).to_contain_text("num_inference_steps")
    expect(one).to_contain_text("denoise")
    picture = one.get_by_role("img", name="Result of")
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 120
    one.get_by_role("link", name="Open in the playground").click()
    expect(page.locator("#prompt")).to_have_value("make it night")
    expect(page.locator("#p-num_inference_steps")).to_have_value("5")


def test_the_overview_knows_what_was_spent_meanwhile(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Credits are asked for whenever it is shown, as usage is."""
    page = open_page("/console")
    expect(card(page, "Can be spent")).to_have_text("$10.00")
    go_to(page, "requests")
    edit(site, photo, "make it night")
    go_to(page, "overview")
    expect(card(page, "Can be spent")).to_have_text("$9.96")
    expect(card(page, "Cost")).to_have_text("$0.04")


def test_a_revoked_key_leads_to_the_sign_in(open_page: OpenPage, site: Site, refusals: list[int]) -> None:
    """With the server's words, instead of trying again what can't succeed."""
    refusals.append(401)
    second = site.studio.new_key().secret
    page = open_page("/console", key=second)
    headers = {"x-api-key": site.key}
    keys = httpx2.get(f"{site.url}/console/api/keys", headers=headers, timeout=WAIT_S).json()["keys"]
    [other] = [key["id"] for key in keys if not key["is_current"]]
    assert httpx2.delete(f"{site.url}/console/api/keys/{other}", headers=headers, timeout=WAIT_S).status_code == 200
    page.locator('#side a[href="#requests"]').click()
    expect(page.get_by_role("button", name="Sign in")).to_be_visible()
    expect(page.locator("#key-fault")).to_contain_text("Unauthorized")
    expect(page.locator("#side")).to_be_hidden()


@pytest.mark.parametrize(
    ("call", "shown"),
    [
        ("money(0.0255)", "$0.0255"),
        ("money(1.5)", "$1.50"),
        ("money(0.000025)", "$0.000025"),
        ("seconds(119.7)", "2 min 0 s"),
        ("seconds(7200)", "2 h 0 min"),
        ("seconds(9.25)", "9.3 s"),
        ("bytes(42_000)", "42\u00a0kB"),
    ],
)
def test_numbers_are_shown_as_they_are(call: str, shown: str, open_page: OpenPage) -> None:
    """Parts of a cent aren't rounded away, no minute has 60 seconds, and no line ends between a size and its unit."""
    page = open_page("/console", key=None)
    assert page.evaluate(f"import('/web/shared/format.js').then(({{bytes, money, seconds}}) => {call})") == shown


def test_a_key_is_made_shown_once_and_revoked(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """The new key works until it is revoked; a name that is too long is told at its field."""
    refusals.append(400)
    page = open_page("/console")
    go_to(page, "keys")
    page.get_by_role("button", name="New key").click()
    form = page.get_by_role("dialog", name="New key")
    form.get_by_label("Name").fill("x" * 300)
    form.get_by_role("button", name="Make the key").click()
    expect(form.locator("#ask-name-fault")).not_to_be_empty()
    form.get_by_label("Name").fill("website")
    form.get_by_label("read").uncheck()
    form.get_by_role("button", name="Make the key").click()
    secret = page.locator("#secret").inner_text()
    page.get_by_role("button", name="I have it").click()
    expect(rows(page)).to_have_count(2)
    edit(site, photo, "make it night", key=secret)
    assert secret not in page.content()
    page.get_by_role("button", name="Revoke website").click()
    page.get_by_role("dialog").get_by_role("button", name="Revoke").click()
    expect(rows(page).filter(has_text="website")).to_contain_text("revoked")
    refused = httpx2.get(f"{site.url}/console/api/me", headers={"x-api-key": secret}, timeout=WAIT_S)
    assert refused.status_code == 401


def test_the_last_day_of_a_key_is_the_maker_s_and_is_shown(open_page: OpenPage, site: Site) -> None:
    """It ends with that day where it was made."""
    page = open_page("/console#keys", timezone_id="Asia/Kathmandu")
    page.get_by_role("button", name="New key").click()
    page.get_by_label("Name").fill("website")
    page.get_by_label("Valid until").fill("2099-03-29")
    page.get_by_role("button", name="Make the key").click()
    page.get_by_role("button", name="I have it").click()
    expect(rows(page).filter(has_text="website")).to_contain_text("29 Mar 2099, 23:59")
    keys = httpx2.get(f"{site.url}/console/api/keys", headers={"x-api-key": site.key}, timeout=WAIT_S).json()["keys"]
    assert {key["expires_at"] for key in keys} == {None, "2099-03-29T18:14:59.000Z"}


def test_a_key_that_only_reads_is_offered_nothing_to_change(open_page: OpenPage, site: Site) -> None:
    """The server would refuse it."""
    page = open_page("/console#keys", key=site.studio.new_key(scopes=frozenset({"read"})).secret)
    expect(rows(page)).to_have_count(2)
    expect(page.get_by_role("button", name="New key")).to_have_count(0)
    expect(page.get_by_role("button", name="Revoke")).to_have_count(0)
    go_to(page, "webhooks")
    expect(page.get_by_role("button", name="New webhook")).to_have_count(0)


def test_copying_in_a_dialog_needs_no_https(open_page: OpenPage) -> None:
    """Nor the clipboard interface, to copy a new key; what can't be copied isn't said to be; both in plain sight."""
    page = open_page("/console")
    go_to(page, "keys")
    page.get_by_role("button", name="New key").click()
    page.get_by_label("Name").fill("website")
    page.get_by_role("button", name="Make the key").click()
    secret = page.locator("#secret").inner_text()
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('no https')) }")
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("dialog[open] .toast")).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == secret
    expect(page.get_by_role("button", name="Copy")).to_be_focused()
    page.evaluate("() => { document.execCommand = () => false }")
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("dialog[open] .toast").last).to_contain_text("Could not copy")
    page.get_by_role("button", name="I have it").click()
    page.get_by_role("button", name="Revoke website").click()
    expect(page.get_by_role("dialog")).to_be_visible()


def test_a_webhook_is_added_tested_and_switched_off(open_page: OpenPage, refusals: list[int]) -> None:
    """Its address is checked, its secret shown once, its deliveries are logged and can be sent again."""
    with receiver() as address:
        _a_webhook_is_used(open_page, address, refusals)


def _a_webhook_is_used(open_page: OpenPage, address: str, refusals: list[int]) -> None:
    refusals.append(400)
    page = open_page("/console")
    go_to(page, "webhooks")
    page.get_by_role("button", name="New webhook").click()
    form = page.get_by_role("dialog", name="New webhook")
    form.get_by_label("Address").fill("nowhere")
    form.get_by_role("button", name="Add it").click()
    expect(form.locator("form > .fault")).not_to_be_empty()
    expect(form.get_by_label("Address")).to_have_attribute("aria-invalid", "true")
    form.get_by_label("Address").fill(address)
    form.get_by_role("button", name="Add it").click()
    expect(page.locator("#secret")).to_contain_text("whsec_")
    page.get_by_role("button", name="I have it").click()
    expect(page.locator(".hook")).to_contain_text(address)
    page.get_by_role("button", name="Send a test").click()
    expect(rows(page)).to_contain_text("delivered")
    expect(rows(page)).to_contain_text("204")
    page.get_by_role("button", name="Open the delivery of webhook.test").click()
    delivery = page.get_by_role("dialog", name="webhook.test")
    expect(delivery.locator("pre")).to_contain_text('"type": "webhook.test"')
    delivery.get_by_role("button", name="Send it again").click()
    expect(page.locator(".toast").last).to_have_text("It is on its way again")
    log = page.get_by_role("button", name="Log")
    log.click()
    expect(page.get_by_role("heading", name=f"Deliveries to {address}")).to_be_visible()
    expect(log).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Switch off").click()
    expect(page.locator(".hook")).to_contain_text("inactive")


def test_the_secret_of_requests_own_webhooks_is_shown_and_replaced(open_page: OpenPage) -> None:
    """On the webhooks page, after a question."""
    page = open_page("/console")
    go_to(page, "webhooks")
    page.get_by_role("button", name="Show the secret").click()
    expect(page.locator("#secret")).to_contain_text("whsec_")
    old = page.locator("#secret").text_content() or ""
    page.get_by_role("button", name="I have it").click()
    page.get_by_role("button", name="Replace it").click()
    page.get_by_role("dialog").get_by_role("button", name="Replace").click()
    expect(page.get_by_role("dialog", name="New signing secret")).to_be_visible()
    expect(page.locator("#secret")).not_to_have_text(old)


def test_uploads_are_listed(open_page: OpenPage, site: Site, photo: Path) -> None:
    """With their picture, size and a link to copy, and can be deleted."""
    uploaded = httpx2.post(
        f"{site.url}/upload-asset",
        headers={"x-api-key": site.key},
        files={"file": ("cat.jpg", photo.read_bytes())},
        timeout=WAIT_S,
    )
    assert uploaded.status_code == 200
    page = open_page("/console")
    go_to(page, "files")
    expect(rows(page)).to_contain_text("cat.jpg")
    assert page.locator(".row-picture").evaluate("image => image.decode().then(() => image.naturalWidth)") == 120
    expect(page.get_by_text("of 2.1 GB that uploads may have.")).to_be_visible()
    page.get_by_role("button", name="Delete cat.jpg").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No uploads.")).to_be_visible()


def test_loras_that_were_brought_are_listed(open_page: OpenPage, site: Site) -> None:
    """Under the uploads: where each is from and how much all may have; they can be deleted."""
    page = open_page("/console")
    go_to(page, "files")
    expect(page.get_by_text("No LoRAs. An edit that asks for one by its address brings it here")).to_be_visible()
    lora = own(site, "watercolour", "https://example.com/watercolour.safetensors")
    go_to(page, "overview")
    go_to(page, "files")
    for told in (lora.reference, lora.source, "19.0 MB", "just now"):
        expect(rows(page)).to_contain_text(told)
    expect(page.get_by_text("19.0 MB of 4.3 GB that LoRAs may have.")).to_be_visible()
    page.get_by_role("button", name=f"Delete {lora.reference}").click()
    expect(page.get_by_role("dialog")).to_contain_text("it can be brought again")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_text("No LoRAs.")).to_be_visible()


def test_an_account_sees_only_its_own_and_no_operation(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Neither requests nor keys of others, and no way to the operators' views, typed addresses included."""
    edit(site, photo, "a secret of the first account")
    stranger = site.studio.new_account("stranger", credits_micros=CREDITS_MICROS)
    page = open_page("/console", key=stranger.secret)
    expect(page.locator("#side")).not_to_contain_text("Accounts")
    go_to(page, "requests")
    expect(page.get_by_text("No request matches.")).to_be_visible()
    go_to(page, "keys")
    expect(rows(page)).to_have_count(1)
    page.goto(f"{site.url}/console#accounts")
    page.reload()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
