"""Share links."""

from __future__ import annotations

import re
from pathlib import Path

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.hands import choose, linked, run
from tests.browser.site import Site


def test_a_share_link_restores_the_request_and_holds_no_key(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Another browser gets the same photo and settings, but nothing that would send its results elsewhere."""
    page = open_page()
    choose(page, photo, "a müder Kater 🐈")
    page.get_by_role("radio", name="16:9", exact=True).check()
    page.get_by_text("Everything else").click()
    page.fill("#p-previews", "0")
    page.fill("#p-webhook_url", "https://example.com/mine")
    page.locator("#share").click()
    expect(page.locator(".toast")).to_contain_text("Link copied")
    link = page.evaluate("navigator.clipboard.readText()")
    assert site.key not in link
    [kept] = page.request.get(f"{site.url}/console/api/files", headers=site.studio.headers).json()["files"]
    assert kept["file_name"] == "my photo.jpg"
    other = open_page(link.removeprefix(site.url), key=None)
    expect(other.locator("#prompt")).to_have_value("a müder Kater 🐈")
    expect(other.get_by_role("radio", name="16:9", exact=True)).to_be_checked()
    expect(other.locator("#drop-full")).to_contain_text("120 × 80")
    expect(other.locator("#p-previews")).to_have_value("0")
    expect(other.locator("#p-webhook_url")).to_be_empty()
    assert "#" not in other.url
    third = open_page("/" + linked('{"prompt": "x", "webhook_url": "https://example.com/thief"}'))
    expect(third.locator("#prompt")).to_have_value("x")
    expect(third.locator("#p-webhook_url")).to_be_empty()


def test_a_shared_photo_is_edited_after_its_upload_was_deleted(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """The browser has its bytes still, and sends those from then on."""
    refusals.append(400)
    page = open_page()
    choose(page, photo)
    page.locator("#share").click()
    expect(page.locator(".toast")).to_contain_text("Link copied")
    files = f"{site.url}/console/api/files"
    [kept] = page.request.get(files, headers=site.studio.headers).json()["files"]
    assert page.request.delete(f"{files}/{kept['id']}", headers=site.studio.headers).ok
    page.get_by_role("tab", name="JSON").click()
    expect(page.locator("#json")).to_have_value(re.compile('"input_image": "http'))
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    expect(page.locator("#json")).to_have_value(re.compile('"input_image": "@my photo.jpg"'))


def test_a_photo_is_shared_again_after_its_upload_was_deleted(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """It is uploaded anew: the old link would open nothing."""
    refusals.append(404)
    page = open_page()
    choose(page, photo)

    def shared() -> str:
        page.evaluate("navigator.clipboard.writeText('')")
        page.locator("#share").click()
        copied = """async () => {
            for (let text; ; await new Promise((later) => setTimeout(later, 10)))
                if ((text = await navigator.clipboard.readText())) return text;
        }"""
        link: str = page.evaluate(copied)
        return link

    first = shared()
    assert shared() == first
    files = f"{site.url}/console/api/files"
    [kept] = page.request.get(files, headers=site.studio.headers).json()["files"]
    assert page.request.delete(f"{files}/{kept['id']}", headers=site.studio.headers).ok
    other = open_page(shared().removeprefix(site.url), key=None)
    expect(other.locator("#drop-full")).to_contain_text("120 × 80")
