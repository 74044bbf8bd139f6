"""What is being written: what is shown is what is run, and nothing takes it away."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage
from tests.browser.hands import await_draft, choose, linked, run
from tests.browser.site import Site, photo_bytes


def test_json_that_is_no_request_runs_nothing(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Another photo than the one that is here, or a prompt that isn't text: what ran would be something else."""
    page = open_page()
    page.get_by_role("tab", name="JSON").click()
    text, fault = page.locator("#json"), page.locator("#json-fault")
    text.fill('{"input_image": "@other.jpg", "prompt": "x"}')
    expect(fault).to_have_text("input_image: a link, a data URI or base64, in quotation marks.")
    page.get_by_role("tab", name="Form").click()
    choose(page, photo)
    page.get_by_role("tab", name="JSON").click()
    for source in ('"@other.jpg"', "5", '["@my photo.jpg"]', '{"url": "x"}', "false"):
        text.fill(f'{{"input_image": {source}, "prompt": "x"}}')
        expect(fault).to_contain_text('or "@my photo.jpg" for the photo here')
        page.locator("#run").click()
        text.fill('{"input_image": "@my photo.jpg", "prompt": "x"}')
        expect(fault).to_be_empty()
    for prompt in ('{"text": "x"}', '["a", "b"]', "5", "false"):
        text.fill(f'{{"input_image": "@my photo.jpg", "prompt": {prompt}}}')
        expect(fault).to_have_text("prompt: text, in quotation marks.")
        page.locator("#run").click()
    expect(page.locator(".tile")).to_have_count(0)
    assert not site.fleet.requests


@pytest.mark.parametrize("fragment", ["#edit=AAAA", linked('{"prompt": {"text": "x"}}')])
def test_a_damaged_share_link_takes_nothing_away(fragment: str, open_page: OpenPage, photo: Path) -> None:
    """What was being written stands there still: on the open page, in a new one, and after a reload."""
    page = open_page()
    choose(page, photo, "make it my own")
    page.evaluate("fragment => { location.hash = fragment }", fragment)
    expect(page.locator("#refusal")).to_have_text("This share link is damaged.")
    expect(page.locator("#prompt")).to_have_value("make it my own")
    other = page.context.new_page()
    other.goto(page.url.split("#")[0] + fragment)
    other.locator("body[data-ready]").wait_for()
    expect(other.locator("#refusal")).to_have_text("This share link is damaged.")
    for each in (page, other):
        each.reload()
        each.locator("body[data-ready]").wait_for()
        expect(each.locator("#prompt")).to_have_value("make it my own")
        expect(each.locator("#drop-full")).to_contain_text("my photo.jpg")


def test_each_tab_keeps_its_own_draft(open_page: OpenPage, photo: Path) -> None:
    """A reload brings back a tab's own photo and words, never another's; a new tab begins with the latest of all."""
    one = open_page()
    choose(one, photo, "make it night")
    await_draft(one, "my photo.jpg", "make it night", "7")
    two = one.context.new_page()
    two.goto(one.url)
    expect(two.locator("#prompt")).to_have_value("make it night")
    another = photo.with_name("another.jpg")
    another.write_bytes(photo_bytes(size=(90, 60)))
    choose(two, another, "blur it")
    expect(two.locator("#drop-full")).to_contain_text("another.jpg")
    await_draft(two, "another.jpg", "blur it", "7")
    for page, name, words in ((one, "my photo.jpg", "make it night"), (two, "another.jpg", "blur it")):
        page.reload()
        page.locator("body[data-ready]").wait_for()
        expect(page.locator("#drop-full")).to_contain_text(name)
        expect(page.locator("#prompt")).to_have_value(words)
        await_draft(page, name, words, "7")
    three = one.context.new_page()
    three.goto(one.url)
    expect(three.locator("#drop-full")).to_contain_text("another.jpg")
    expect(three.locator("#prompt")).to_have_value("blur it")


def test_a_duplicated_tab_has_a_draft_of_its_own(open_page: OpenPage, photo: Path) -> None:
    """It begins with what was being written in its original, whose name it has, and takes nothing from it."""
    one = open_page()
    choose(one, photo, "make it night")
    await_draft(one, "my photo.jpg", "make it night", "7")
    name = one.evaluate("sessionStorage.getItem('rekontext.tab')")
    with one.expect_popup() as opened:
        one.evaluate("window.open(location.href) && null")  # it has a copy of the sessionStorage, as duplicates do
    two = opened.value
    two.locator("body[data-ready]").wait_for()
    expect(two.locator("#prompt")).to_have_value("make it night")
    expect(two.locator("#drop-full")).to_contain_text("my photo.jpg")
    two.fill("#prompt", "blur it")
    await_draft(two, "my photo.jpg", "blur it", "7")
    for page, words in ((one, "make it night"), (two, "blur it")):
        page.reload()
        page.locator("body[data-ready]").wait_for()
        expect(page.locator("#prompt")).to_have_value(words)
    assert one.evaluate("sessionStorage.getItem('rekontext.tab')") == name


def test_the_drafts_of_a_few_tabs_are_kept(open_page: OpenPage, photo: Path) -> None:
    """Tabs that were closed long ago fill no disk."""
    page = open_page()
    choose(page, photo)
    await_draft(page, "my photo.jpg", "make it night", "7")
    for _ in range(9):
        page.evaluate("sessionStorage.clear()")
        page.reload()
        page.locator("body[data-ready]").wait_for()
        await_draft(page, "my photo.jpg", "make it night", "7")
    kept = page.evaluate(
        """() => new Promise((resolve) => {
            indexedDB.open("rekontext.draft").onsuccess = ({ target: { result: database } }) => {
                database.transaction("draft").objectStore("draft").getAllKeys().onsuccess =
                    ({ target: { result } }) => resolve(result.length);
            };
        })"""
    )
    assert kept == 2 * 7  # the six before, and this one


def test_a_refused_edit_gives_the_stage_back_to_the_one_that_runs(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """And its result appears there."""
    refusals.append(406)
    page = open_page(key=site.studio.new_account("short", credits_micros=50_000).secret)
    choose(page, photo)
    site.fleet.pause_at = 5
    run(page)
    expect(page.locator(".status")).to_contain_text("Step 5")
    run(page)
    expect(page.locator("#refusal")).to_contain_text("Insufficient credits")
    expect(page.locator(".status")).to_contain_text("Step 5")
    site.go_on()
    expect(page.locator(".facts")).to_be_visible()


def test_a_prompt_that_is_too_long_is_refused_and_not_cut(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """Characters count, whatever they take: 10,000 emoji are a prompt."""
    refusals.append(400)
    page = open_page()
    choose(page, photo)
    page.locator("#prompt").press("Control+a")
    page.keyboard.insert_text("x" * 10_001)
    run(page)
    expect(page.locator("#prompt-fault")).to_contain_text("1 to 10000 characters")
    assert not site.fleet.requests
    page.locator("#prompt").press("Control+a")
    page.keyboard.insert_text("🐈" * 10_000)
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    assert [len(each.prompt) for each in site.fleet.requests] == [10_000]


def test_a_prompt_is_written_from_its_own_side(open_page: OpenPage, site: Site, photo: Path) -> None:
    """From the right where its first letters are: in the form, under the picture, and in the console."""
    page = open_page()
    choose(page, photo, "اجعلها ليلاً, like a poster")
    expect(page.locator("#prompt")).to_have_css("direction", "rtl")
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    expect(page.locator(".caption.prompt")).to_have_css("direction", "rtl")
    page.goto(f"{site.url}/console#requests")
    expect(page.locator("span.prompt")).to_have_css("direction", "rtl")
    page.locator(".row-open").click()
    expect(page.locator(".request-prompt")).to_have_css("direction", "rtl")


def test_what_was_being_written_survives_a_reload(open_page: OpenPage, photo: Path) -> None:
    """Photo, prompt and values that no edit has had yet, even after an edit."""
    page = open_page()
    choose(page, photo)
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    another = photo.with_name("another.jpg")
    another.write_bytes(photo_bytes())
    choose(page, another, "blur it")
    page.fill("#p-guidance", "3")
    await_draft(page, "another.jpg", "blur it", "3")
    page.reload()
    expect(page.locator("#drop-full")).to_contain_text("another.jpg")
    expect(page.locator("#prompt")).to_have_value("blur it")
    expect(page.locator("#p-guidance")).to_have_value("3")
