"""Signing in: when the pages ask for a key, and what may be in the way of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from rekontext.accounts import Scope
from tests.browser.conftest import OpenPage
from tests.browser.hands import choose, run
from tests.browser.site import Site


def ask_for_key(page: Page) -> None:
    """Open what takes a key; the console shows it by itself."""
    if page.locator("#key-button").is_visible():
        page.locator("#key-button").click()


@pytest.mark.parametrize("path", ["/", "/console"])
@pytest.mark.parametrize("key", ["rk_schlüssel–1", "rk_one two"])
def test_what_no_key_can_be_is_said_to_be_none(path: str, key: str, open_page: OpenPage) -> None:
    """The browser refuses to send it; the server is well."""
    page = open_page(path, key=None)
    ask_for_key(page)
    page.get_by_label("API key", exact=True).fill(key)
    page.keyboard.press("Enter")
    expect(page.locator("#key-fault")).to_contain_text("This isn't an API key")


@pytest.mark.parametrize("path", ["/", "/console"])
def test_a_full_storage_keeps_nobody_out(path: str, open_page: OpenPage, site: Site) -> None:
    """The key then lives as long as the page, and one that was kept before doesn't come before it."""
    page = open_page(path, key=None)
    page.evaluate(
        """() => {
            localStorage.setItem('rekontext.key', 'rk_old');
            Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') };
        }"""
    )
    ask_for_key(page)
    page.get_by_label("API key", exact=True).fill(site.key)
    page.keyboard.press("Enter")
    expect(page.get_by_text("$10.00").first).to_be_visible()
    assert page.evaluate("localStorage.getItem('rekontext.key')") is None


@pytest.mark.parametrize("scope", ["edit", "read"])
def test_a_key_that_lacks_a_scope_pays_for_nothing(
    scope: Scope, open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """Without "read" the picture couldn't be had, so the page doesn't ask for it."""
    page = open_page(key=site.studio.new_key(scopes=frozenset({scope})).secret)
    choose(page, photo)
    run(page)
    expect(page.locator("#refusal")).to_contain_text(f"lacks the scope '{'read' if scope == 'edit' else 'edit'}'")
    assert not site.fleet.requests


def test_a_key_whose_owner_cannot_be_asked_is_told_and_asked_again(
    open_page: OpenPage, site: Site, refusals: list[int]
) -> None:
    """The page doesn't look signed out."""
    refusals.append(503)
    page = open_page()
    page.route("**/console/api/me", lambda route: route.fulfill(status=503, json={"error": "Gone for a moment."}))
    page.reload()
    expect(page.locator("#refusal")).to_contain_text("Gone for a moment.")
    expect(page.locator("#key-button")).to_have_text("API key")
    page.unroute("**/console/api/me")
    page.evaluate("dispatchEvent(new Event('online'))")
    expect(page.locator("#balance")).to_have_text("$10.00")
    expect(page.locator("#refusal")).to_be_hidden()


def test_the_page_asks_for_a_key_once_and_keeps_it_as_told(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """A wrong key is told in the dialog; a right one is remembered for this tab only when so wished."""
    refusals.append(401)
    page = open_page(key=None)
    choose(page, photo)
    run(page)
    dialog = page.get_by_role("dialog", name="Your API key")
    dialog.get_by_label("API key").fill("rk_wrong")
    dialog.get_by_role("button", name="Use this key").click()
    expect(dialog.locator("#key-fault")).not_to_be_empty()
    dialog.get_by_label("API key").fill(site.key)
    dialog.get_by_label("Remember it on this device").uncheck()
    dialog.get_by_role("button", name="Use this key").click()
    expect(page.locator(".facts")).to_be_visible()
    assert page.evaluate("localStorage.getItem('rekontext.key')") is None
    assert page.evaluate("sessionStorage.getItem('rekontext.key')") == site.key
    assert site.key not in page.content()
