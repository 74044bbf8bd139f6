"""Marking what may change: by mouse, finger and keyboard, what of it is sent and kept, and what it rules out."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import OpenPage
from tests.browser.hands import choose, run
from tests.browser.site import Site, photo_bytes
from tests.browser.test_code import RUN, copied, executed
from tests.browser.test_lost_answers import SUBMIT, online_until
from tests.browser.test_promises import DRAWN, PHONE, assert_fits, check

HALF = ((0.25, 0.1), (0.25, 0.9))
"""A stroke from top to bottom through the middle of the left half."""


@pytest.fixture
def site(lasting_site: Site) -> Iterator[Site]:
    """Shared by the tests of this file: none asks what the account has or did."""
    yield lasting_site
    lasting_site.go_on()


def mark(page: Page) -> None:
    page.locator("#mark").click()
    expect(page.locator(".marking")).to_be_visible()


def paint(page: Page, *points: tuple[float, float], button: Literal["left", "right"] = "left") -> None:
    """Draw the brush from point to point, each given in parts of the photo's width and height."""
    box = page.locator(".marking").bounding_box()
    assert box is not None
    for at, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=3)
        if at == 0:
            page.mouse.down(button=button)
    page.mouse.up(button=button)


def mark_half(page: Page, photo: Path) -> int:
    """A photo whose left half is marked: percent of it."""
    choose(page, photo)
    mark(page)
    paint(page, *HALF)
    return marked(page)


def marked(page: Page) -> int:
    """Percent of the photo that the page says to be marked."""
    found = re.match(r"Only (\d+) %", page.locator("#mask_image-help").inner_text())
    return int(found[1]) if found else 0


def edited(page: Page, site: Site) -> Image.Image | None:
    """Run, and give the mask that the engine was asked to keep to."""
    before = len(site.fleet.requests)
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    (asked,) = site.fleet.requests[before:]
    return asked.mask


def level(mask: Image.Image | None, x: float, y: float) -> int:
    """At a place given in parts of the width and height."""
    assert mask is not None, "no mask was sent"
    found = mask.getpixel((int(x * mask.width), int(y * mask.height)))
    assert isinstance(found, int)
    return found


def await_mask(page: Page, *, is_kept: bool = True) -> None:
    """The draft of this tab has a mask, or none: nothing on the page tells when that is done."""
    kept = """() => new Promise((resolve) => {
        indexedDB.open("rekontext.draft").onsuccess = ({ target: { result: database } }) => {
            const store = database.transaction("draft").objectStore("draft");
            const mask = store.get(["mask", sessionStorage.getItem("rekontext.tab")]);
            store.transaction.oncomplete = () => {
                database.close();
                resolve(Boolean(mask.result?.value));
            };
        };
    })"""
    for _ in range(500):
        if page.evaluate(kept) == is_kept:
            return
        page.wait_for_timeout(10)
    raise AssertionError("the mask is not kept" if is_kept else "the mask is still kept")


def test_what_is_painted_is_what_may_change(open_page: OpenPage, site: Site, photo: Path) -> None:
    """White where the brush went, black elsewhere, soft in between; and the page says that the edit has a part."""
    page = open_page()
    expect(page.locator("#mark")).to_be_hidden()
    choose(page, photo)
    assert edited(page, site) is None
    mark(page)
    paint(page, *HALF)
    paint(page, (0.0, 0.5), (0.5, 0.5), button="right")
    expect(page.locator("#mark")).to_have_attribute("aria-pressed", "true")
    mask = edited(page, site)
    assert mask is not None
    assert abs(mask.width / mask.height - 120 / 80) < 0.01
    assert max(mask.size) <= 1024
    assert [level(mask, 0.25, y) for y in (0.15, 0.5, 0.85)] == [255, 0, 255]
    assert [level(mask, x, 0.15) for x in (0.05, 0.5, 0.75)] == [0, 0, 0]
    assert len(mask.getcolors(256) or ()) > 20, "the brush has no soft edge"
    expect(page.locator(".facts")).to_contain_text(re.compile(r"Changed\s*\d+ % of the photo"))
    expect(page.locator(".tile").first).to_have_attribute("aria-label", "Done: make it night, in a marked part")
    expect(page.locator(".tile").nth(1)).to_have_attribute("aria-label", "Done: make it night")
    expect(page.locator("#mark")).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_role("slider", name="Divider between before and after")).to_be_visible()


def test_strokes_are_undone_inverted_and_cleared(open_page: OpenPage, site: Site, photo: Path) -> None:
    """By buttons and by keys; where nothing is left marked, no mask is sent."""
    page = open_page()
    choose(page, photo)
    mark(page)

    def press(name: str) -> None:
        page.get_by_role("button", name=name, exact=True).click()

    paint(page, *HALF)
    one = marked(page)
    assert 5 < one < 20
    paint(page, (0.75, 0.1), (0.75, 0.9))
    two = marked(page)
    assert two == pytest.approx(2 * one, abs=1)
    press("Undo (Ctrl Z)")
    assert marked(page) == one
    press("Redo (Ctrl Shift Z)")
    assert marked(page) == two
    expect(page.locator("#said")).to_have_text(f"Done again. {two} % of the photo is marked")
    press("Invert")
    assert marked(page) == 100 - two
    press("Clear")
    assert marked(page) == 0
    expect(page.get_by_role("button", name="Clear", exact=True)).to_have_attribute("aria-disabled", "true")
    for _ in range(3):
        page.keyboard.press("Control+z")
    assert marked(page) == one
    page.locator(".marking").press("Control+Shift+Z")
    assert marked(page) == two
    page.get_by_role("radio", name="Erase").check()
    for _ in range(5):
        page.keyboard.press("]")
    paint(page, (0.75, 0.0), (0.75, 1.0))
    assert marked(page) == one
    paint(page, (0.25, 0.0), (0.25, 1.0))
    expect(page.locator("#mask_image-help")).to_have_text("and the edit changes nothing else.")
    assert edited(page, site) is None


def test_a_keyboard_marks(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Arrows move the brush, Space marks, Delete erases; held, they draw. Escape ends it."""
    page = open_page()
    choose(page, photo)
    page.locator("#mark").press("Enter")
    expect(page.locator(".marking")).to_be_focused()
    page.keyboard.press("[")
    page.keyboard.press("Space")
    said = page.locator("#said")
    expect(said).to_have_text("1 % of the photo is marked")
    for _ in range(3):
        page.keyboard.press("Shift+ArrowLeft")
    expect(said).to_have_text(re.compile(r"\d+ % across, 50 % down, not marked"))
    page.keyboard.down("Space")
    for _ in range(4):
        page.keyboard.press("ArrowUp")
    page.keyboard.up("Space")
    drawn = marked(page)
    page.keyboard.press("Delete")
    assert marked(page) < drawn
    page.keyboard.press("Control+z")
    assert marked(page) == drawn
    page.keyboard.press("Escape")
    expect(page.locator("#mark")).to_be_focused()
    expect(page.locator(".tint")).to_be_visible()
    mask = edited(page, site)
    assert level(mask, 0.5, 0.5) == 255
    assert level(mask, 0.2, 0.5) == 255
    assert level(mask, 0.2, 0.4) == 255
    assert level(mask, 0.35, 0.5) == 0


def test_a_finger_paints_and_does_not_scroll(open_page: OpenPage, site: Site, photo: Path) -> None:
    """On a phone the photo to paint on comes into view, and stays there."""
    page = open_page(**PHONE)
    choose(page, photo)
    page.locator("#mark").tap()
    box = page.locator(".marking").bounding_box()
    assert box is not None
    expect(page.locator(".marking")).to_be_in_viewport(ratio=1)
    assert_fits(page)
    before = page.evaluate("scrollY")
    touch = page.context.new_cdp_session(page)
    x = box["x"] + 0.25 * box["width"]
    for kind, part in (("touchStart", 0.9), ("touchMove", 0.5), ("touchMove", 0.1), ("touchEnd", None)):
        points = [] if part is None else [{"x": x, "y": box["y"] + part * box["height"]}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert page.evaluate("scrollY") == before
    page.get_by_role("button", name="Done").tap()
    mask = edited(page, site)
    assert [level(mask, x, 0.5) for x in (0.25, 0.75)] == [255, 0]


def test_a_mask_stays_with_its_photo(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Over a reload, a share and an edit; another photo has none, and a draft without one brings none back."""
    page = open_page()
    part = mark_half(page, photo)
    await_mask(page)
    page.reload()
    expect(page.locator(".tint")).to_be_visible()
    assert marked(page) == part
    page.locator("#share").click()
    expect(page.locator(".toast")).to_have_text(
        "Link copied, without what is marked. Whoever has it can see the photo."
    )
    assert marked(page) == part
    link = page.evaluate("navigator.clipboard.readText()")
    mask = edited(page, site)
    assert [level(mask, x, 0.5) for x in (0.25, 0.75)] == [255, 0]
    another = photo.with_name("another.jpg")
    another.write_bytes(photo_bytes(colour=(10, 120, 40)))
    page.set_input_files("#file", another)
    expect(page.locator("#drop-full")).to_contain_text("another.jpg")
    assert marked(page) == 0
    await_mask(page, is_kept=False)
    page.reload()
    expect(page.locator("#drop-full")).to_contain_text("another.jpg")
    expect(page.locator(".tint")).to_have_count(0)
    page.locator(".tile").first.click()
    page.get_by_role("button", name="Put these settings back into the form").click()
    expect(page.locator("#drop-full")).to_contain_text("my photo.jpg")
    assert marked(page) == part
    page.get_by_role("button", name="Unmark").click()
    expect(page.locator("#mark")).to_be_focused()
    expect(page.locator(".tint")).to_have_count(0)
    mark(page)
    page.keyboard.press("Control+z")
    assert marked(page) == part
    await_mask(page)
    page.goto(f"{site.url}/console")
    page.goto(link)
    page.locator("body[data-ready]").wait_for()
    await_mask(page, is_kept=False)
    expect(page.locator(".tint")).to_have_count(0)


def test_the_same_part_of_a_result_is_edited_again(open_page: OpenPage, site: Site, photo: Path) -> None:
    """The part stays marked as the result becomes the photo, as it was or as it was changed since."""
    page = open_page()
    part = mark_half(page, photo)
    edited(page, site)
    page.get_by_role("button", name="Edit again").click()
    expect(page.locator(".toast")).to_contain_text("with the same part marked")
    expect(page.locator("#drop-full")).to_contain_text("my photo-edited.png")
    assert marked(page) == part
    page.fill("#prompt", "blur it")
    mask = edited(page, site)
    assert [level(mask, x, 0.5) for x in (0.25, 0.75)] == [255, 0]
    page.get_by_role("button", name="Unmark").click()
    page.locator(".tile").first.click()
    page.get_by_role("button", name="Edit again").click()
    expect(page.locator("#drop-full")).to_contain_text("my photo-edited.png")
    expect(page.locator(".toast").last).to_have_text("The result is the photo now. What should change next?")
    assert marked(page) == 0


def test_a_marked_part_keeps_the_shape(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Other shapes can't be chosen, one that is chosen already is told before anything is sent."""
    page = open_page()
    choose(page, photo)
    square = page.get_by_role("radio", name="1:1", exact=True)
    square.check()
    mark(page)
    paint(page, *HALF)
    fault = page.locator("#aspect_ratio-fault")
    expect(fault).to_contain_text('"1:1" is not allowed: match_input_image or 3:2, because')
    expect(page.get_by_role("radio", name="16:9")).to_be_disabled()
    before = len(site.fleet.requests)
    run(page)
    expect(page.get_by_role("radio", name="match")).to_be_focused()
    expect(fault).not_to_be_empty()
    expect(page.locator(".tile")).to_have_count(0)
    assert len(site.fleet.requests) == before
    page.get_by_role("radio", name="3:2", exact=True).check()
    expect(fault).to_be_empty()
    expect(square).to_be_disabled()
    assert level(edited(page, site), 0.25, 0.5) == 255
    page.get_by_role("button", name="Unmark").click()
    expect(square).to_be_enabled()


def test_a_refusal_is_told_at_the_mask_and_takes_nothing_away(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """In the server's words; the same part is still marked and can be sent again."""
    refusals.append(400)
    page = open_page()
    part = mark_half(page, photo)
    white = io.BytesIO()
    Image.new("L", (50, 50), 255).save(white, "PNG")

    def spoil(route: Route) -> None:
        body = json.loads(route.request.post_data or "")
        body["mask_image"] = base64.b64encode(white.getvalue()).decode()
        route.continue_(post_data=json.dumps(body))

    page.route(SUBMIT, spoil)
    run(page)
    expect(page.locator("#refusal")).to_contain_text("mask_image is 50x50 and the photo 120x80")
    expect(page.locator("#mask_image-fault")).to_contain_text("is not allowed: ")
    expect(page.locator("#mark")).to_be_focused()
    expect(page.locator("#mark")).to_have_attribute("aria-invalid", "true")
    expect(page.locator(".tint")).to_be_visible()
    assert marked(page) == part
    page.unroute(SUBMIT)
    assert level(edited(page, site), 0.25, 0.5) == 255
    expect(page.locator("#mask_image-fault")).to_be_empty()


def test_an_edit_that_was_never_answered_keeps_its_mask(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Sent again after a reload, it is still the one of its part; with another part marked it is another edit."""
    page = open_page()
    choose(page, photo)
    mark(page)
    paint(page, *HALF)
    page.route(SUBMIT, lambda route: route.abort())
    run(page)
    online_until(page, page.locator(".verdict").is_visible)
    expect(page.locator("#bar")).to_contain_text("in the marked part")
    page.unroute(SUBMIT)
    page.reload()
    page.locator("body[data-ready]").wait_for()
    mark(page)
    page.get_by_role("button", name="Invert").click()
    mask = edited(page, site)
    assert [level(mask, x, 0.5) for x in (0.25, 0.75)] == [0, 255]
    page.locator(".tile").nth(1).click()
    before = len(site.fleet.requests)
    page.get_by_role("button", name="Send it again").click()
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(2)
    (asked,) = site.fleet.requests[before:]
    assert [level(asked.mask, x, 0.5) for x in (0.25, 0.75)] == [255, 0]


def test_the_json_has_the_mask_and_gives_one(open_page: OpenPage, site: Site, photo: Path) -> None:
    """What is marked stands there by a name; a picture in its place becomes the mask, nothing unmarks."""
    page = open_page()
    choose(page, photo)
    mark(page)
    paint(page, *HALF)
    page.get_by_role("tab", name="JSON").click()
    text, fault = page.locator("#json"), page.locator("#json-fault")
    shown = json.loads(text.input_value())
    assert shown["mask_image"] == "@my photo-mask.png"
    text.fill(json.dumps(shown | {"mask_image": "@other.png"}))
    expect(fault).to_contain_text(
        'mask_image: a link, a data URI or base64, in quotation marks, or "@my photo-mask.png"'
    )
    text.fill(json.dumps(shown | {"input_image": "data:image/jpeg;base64," + base64.b64encode(photo_bytes()).decode()}))
    expect(fault).to_contain_text("mask_image: is of the photo that was here")

    def picture(size: tuple[int, int]) -> str:
        drawn = Image.new("L", size, 0)
        drawn.paste(255, (size[0] // 2, 0, *size))
        file = io.BytesIO()
        drawn.save(file, "PNG")
        return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

    text.fill(json.dumps(shown | {"mask_image": picture((50, 50))}))
    expect(fault).to_have_text("The mask is 50 × 50 and the photo 120 × 80: they must have the same shape.")
    text.fill(json.dumps(shown | {"mask_image": picture((60, 40))}))
    expect(fault).to_be_empty()
    expect(page.locator(".caption")).to_contain_text("50 % marked")
    mask = edited(page, site)
    assert [level(mask, x, 0.5) for x in (0.25, 0.75)] == [0, 255]
    del shown["mask_image"]
    text.fill(json.dumps(shown))
    expect(page.locator(".tint")).to_have_count(0)
    assert edited(page, site) is None


def test_copied_code_sends_the_mask(open_page: OpenPage, site: Site, photo: Path) -> None:
    """The file that the page saves, beside a photo's file or its link; each client's own way marks the same part."""
    page = open_page()
    choose(page, photo)
    page.get_by_text("Output and speed").click()
    page.get_by_role("radio", name="webp").check()
    mark(page)
    paint(page, *HALF)
    with page.expect_download() as waiting:
        page.get_by_role("button", name="save it").click()
    assert waiting.value.suggested_filename == "my photo-mask.png"
    waiting.value.save_as(photo.with_name("my photo-mask.png"))

    def run_copied(mode: str, languages: Iterable[str]) -> None:
        for language in languages:
            before = len(site.fleet.requests)
            executed(copied(page, language, mode), language, photo.parent, site.key)
            (asked,) = site.fleet.requests[before:]
            assert [level(asked.mask, x, 0.5) for x in (0.25, 0.75)] == [255, 0], language

    run_copied("Wait for it", RUN)
    page.get_by_role("button", name="upload the photo").click()
    expect(page.locator("#code-note")).not_to_contain_text("upload the photo")
    run_copied("Submit, then collect", ("curl", "Python", "JavaScript"))  # which send a form then instead of JSON


def test_marking_is_accessible_and_fits(open_page: OpenPage, site: Site, photo: Path) -> None:
    """While it is painted and once it is, in both colour schemes; also on the narrowest phone."""
    page = open_page(reduced_motion="reduce")
    choose(page, photo)
    page.get_by_role("radio", name="1:1", exact=True).check()
    mark(page)
    paint(page, *HALF)
    check(page, "marking")
    page.get_by_role("button", name="Done").click()
    check(page, "marked")
    page.get_by_role("radio", name="match").check()
    mark(page)
    for width in (320, 375):
        page.set_viewport_size({"width": width, "height": 700})
        page.evaluate(DRAWN)
        assert_fits(page)
