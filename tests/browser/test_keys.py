"""Signing in where something is in the way."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
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
