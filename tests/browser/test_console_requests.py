"""The console's lists of requests: found by filters, followed while they run, each shown whole."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.console import begin_edit, edit, go_to, rows
from tests.browser.site import Site


def test_going_back_closes_what_is_open(open_page: OpenPage, site: Site, photo: Path) -> None:
    """A dialog belongs to its view."""
    edit(site, photo, "make it night")
    page = open_page("/console")
    go_to(page, "keys")
    go_to(page, "requests")
    page.get_by_role("button", name="Open the request: make it night").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    page.go_back()
    page.locator("body[data-ready=keys]").wait_for()
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_filters_are_there_after_going_back(open_page: OpenPage, site: Site, photo: Path) -> None:
    """And after a reload; the view's own link shows everything again."""
    edit(site, photo, "make it night")
    edit(site, photo, "blur it")
    page = open_page("/console#requests")
    page.get_by_label("Search").fill("blur")
    page.get_by_label("Search").press("Enter")
    page.get_by_label("Status").select_option("COMPLETED")
    expect(rows(page)).to_have_count(1)
    page.get_by_role("button", name="Open the request: blur it").click()
    page.get_by_role("dialog", name="Request").get_by_role("link", name="Open in the playground").click()
    expect(page.locator("#prompt")).to_have_value("blur it")
    page.go_back()
    for _ in range(2):
        expect(rows(page)).to_have_count(1)
        expect(page.get_by_label("Search")).to_have_value("blur")
        expect(page.get_by_label("Status")).to_have_value("COMPLETED")
        page.reload()
    page.locator('#side a[href="#requests"]').click()
    expect(rows(page)).to_have_count(2)


def test_a_day_of_the_filter_is_the_reader_s_day(open_page: OpenPage) -> None:
    """As the times in the list are, and whole."""
    page = open_page("/console#requests", timezone_id="Asia/Kathmandu")
    page.get_by_label("From").fill("2026-03-28")
    with page.expect_request("**/requests?*to=*") as asked:
        page.get_by_label("To").fill("2026-03-29")
    query = parse_qs(urlsplit(asked.value.url).query)
    assert (query["from"], query["to"]) == (["2026-03-27T18:15:00.000Z"], ["2026-03-29T18:15:00.000Z"])


def test_a_list_of_requests_follows_what_runs(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Until it has ended, without taking the focus from a row."""
    begin_edit(site, photo)
    page = open_page("/console#requests")
    expect(rows(page)).to_contain_text("processing")
    row = page.get_by_role("button", name="Open the request: make it night")
    row.focus()
    site.go_on()
    expect(rows(page)).to_contain_text("completed")
    expect(row).to_be_focused()


def test_a_request_that_is_open_is_followed(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Up to its picture, without taking the focus from what is in it."""
    begin_edit(site, photo)
    page = open_page("/console#requests")
    page.get_by_role("button", name="Open the request: make it night").click()
    whole = page.get_by_role("dialog", name="Request")
    expect(whole).to_contain_text("processing")
    copying = whole.get_by_role("button", name="Copy id")
    copying.focus()
    site.go_on()
    expect(whole.locator("img.request-picture")).to_be_visible()
    expect(whole).to_contain_text("completed")
    expect(copying).to_be_focused()


def test_a_large_seed_keeps_its_last_digit(open_page: OpenPage, site: Site, photo: Path) -> None:
    """In the list, in the request whole, and in the playground: numbers of JavaScript would round it."""
    seed = "9007199254740993"
    edit(site, photo, "make it night", seed=seed)
    page = open_page("/console#requests")
    expect(rows(page)).to_contain_text(seed)
    page.get_by_role("button", name="Open the request: make it night").click()
    one = page.get_by_role("dialog", name="Request")
    expect(one.locator("dd", has_text=seed)).to_be_visible()
    one.get_by_role("link", name="Open in the playground").click()
    expect(page.locator("#p-seed")).to_have_value(seed)
    page.set_input_files("#file", photo)
    expect(page.locator("#drop-full")).to_be_visible()
    page.keyboard.press("Control+Enter")
    expect(page.locator(".facts")).to_contain_text(seed)
    expect(page.locator("a[download]")).to_have_attribute("download", f"my photo-{seed}.png")


def test_the_next_page_of_a_list_begins_at_its_top(open_page: OpenPage, site: Site, photo: Path) -> None:
    """And has the focus, so that arrows scroll it and Tab goes on in it."""
    for number in range(21):
        edit(site, photo, f"make it night {number}")
    page = open_page("/console#requests")
    expect(rows(page)).to_have_count(20)
    page.get_by_role("button", name="Older").click()
    expect(rows(page)).to_have_count(1)
    expect(page.get_by_role("region", name="Requests")).to_be_focused()
    page.get_by_role("button", name="Newer").focus()
    page.keyboard.press("Enter")
    expect(rows(page)).to_have_count(20)
    expect(rows(page).first).to_be_in_viewport()
