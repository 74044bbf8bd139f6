"""Several pictures of one edit: asked for, chosen from, saved and edited on, in the page, its code and the console."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Download, Locator, Page, Request, expect

from rekontext.contract import SEED_MAX
from tests.browser.conftest import OpenPage
from tests.browser.console import begin_edit, edit
from tests.browser.hands import await_draft, change_kept_run, choose, run
from tests.browser.site import Site
from tests.browser.test_code import RUN, carry_out, copied
from tests.browser.test_promises import DRAWN, assert_fits, check, tops

PER_EDIT = 0.04


@pytest.fixture
def site(lasting_site: Site) -> Iterator[Site]:
    """Shared by the tests of this file: none asks what the account has or did."""
    yield lasting_site
    lasting_site.go_on()


def ask_for(page: Page, count: int) -> None:
    page.get_by_role("radiogroup", name="Pictures", exact=True).get_by_role("radio", name=str(count)).check()


def results(page: Page) -> Locator:
    return page.get_by_role("radiogroup", name="Pictures of this edit").get_by_role("radio")


def shown(page: Page, *, name: str) -> None:
    """The picture that is chosen is the one on stage."""
    chosen = page.get_by_role("radio", name=name)
    expect(chosen).to_be_checked()
    small = chosen.locator("xpath=following-sibling::img").get_attribute("src")
    assert small
    expect(page.locator(".layer.after img")).to_have_attribute("src", small)
    expect(page.locator(".layer.after img")).to_have_attribute("alt", re.compile(name))


def sent(request: Request) -> dict[str, Any]:
    found = json.loads(request.post_data or "")
    assert isinstance(found, dict)
    return found


def pixels(download: Download) -> bytes:
    return Image.open(io.BytesIO(Path(download.path()).read_bytes())).convert("RGB").tobytes()


def test_three_pictures_are_chosen_from(open_page: OpenPage, site: Site, photo: Path) -> None:
    """By pointer and by keyboard; the one that is chosen is compared, saved, named by its seed and edited on."""
    page = open_page()
    choose(page, photo)
    ask_for(page, 3)
    expect(page.locator("#estimate")).to_contain_text(f"${3 * PER_EDIT:.2f}")
    page.fill("#p-seed", str(SEED_MAX - 1))
    with page.expect_request("**/v2/flux-kontext-dev") as asked:
        run(page)
    assert sent(asked.value)["num_images"] == 3
    expect(page.locator(".facts")).to_contain_text(f"${3 * PER_EDIT:.2f} for 3")
    seeds = (SEED_MAX - 1, SEED_MAX, 0)
    expect(results(page)).to_have_count(3)
    for at, (radio, seed) in enumerate(zip(results(page).all(), seeds, strict=True), 1):
        expect(radio).to_have_accessible_name(f"Picture {at} of 3, seed {seed}")
    shown(page, name="Picture 1 of 3")
    tile = page.locator(".tile").first
    expect(tile).to_have_accessible_name("Done: make it night, 3 pictures")
    expect(tile).to_have_text("×3")

    page.get_by_role("button", name="Zoom in (+)").click()
    results(page).first.focus()
    page.keyboard.press("ArrowRight")
    shown(page, name="Picture 2 of 3")
    expect(results(page).nth(1)).to_be_focused()
    expect(page.locator(".scale")).to_have_text("150 %")
    expect(page.locator(".facts")).to_contain_text(str(SEED_MAX))
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    shown(page, name="Picture 3 of 3")
    results(page).nth(1).check()

    saved: list[Download] = []
    page.on("download", lambda each: saved.append(each))
    with page.expect_download():
        page.get_by_role("link", name="Download").click()
    page.get_by_role("button", name="Download all 3").click()
    while len(saved) < 4:
        page.wait_for_event("download")
    one, *all_of_them = saved
    assert one.suggested_filename == f"my photo-{SEED_MAX}.png"
    assert {each.suggested_filename for each in all_of_them} == {f"my photo-{seed}.png" for seed in seeds}
    found = {each.suggested_filename: pixels(each) for each in all_of_them}
    assert len(set(found.values())) == 3
    assert pixels(one) == found[one.suggested_filename]

    page.get_by_role("button", name="keep", exact=True).click()
    expect(page.locator("#p-seed")).to_have_value(str(SEED_MAX))
    page.get_by_role("button", name="Edit again").click()
    expect(page.locator("#drop-full")).to_contain_text("my photo-edited.png")
    page.fill("#prompt", "blur it")
    ask_for(page, 1)
    with page.expect_request("**/v2/flux-kontext-dev") as asked:
        run(page)
    assert "num_images" not in sent(asked.value)
    expect(page.locator(".tile")).to_have_count(2)
    expect(page.locator(".tile").first).to_have_accessible_name("Done: blur it")
    expect(results(page)).to_have_count(0)
    given = site.fleet.requests[-1].photo
    assert given is not None
    assert given.convert("RGB").tobytes() == pixels(one)


def test_how_many_stays_with_the_request(open_page: OpenPage, site: Site, photo: Path) -> None:
    """In the JSON, the draft with what was chosen, a share link, and the settings of an earlier edit."""
    page = open_page()
    choose(page, photo)

    def written() -> object:
        return json.loads(page.locator("#json").input_value()).get("num_images")

    assert written() is None
    ask_for(page, 4)
    assert written() == 4
    page.get_by_role("tab", name="JSON").click()
    page.locator("#json").fill(page.locator("#json").input_value().replace('"num_images": 4', '"num_images": 2'))
    page.get_by_role("tab", name="Form").click()
    expect(page.get_by_role("radio", name="2", exact=True)).to_be_checked()
    site.fleet.pause_at = 4
    run(page)
    expect(page.locator(".status")).to_contain_text("Step 4")
    expect(page.locator("#bar")).to_contain_text("2 pictures")
    site.go_on()
    results(page).nth(1).check()
    page.fill("#p-guidance", "3")
    await_draft(page, "my photo.jpg", "make it night", "3")
    page.reload()
    shown(page, name="Picture 2 of 2")
    expect(page.get_by_role("radio", name="2", exact=True)).to_be_checked()

    page.locator("#share").click()
    expect(page.locator(".toast")).to_contain_text("Link copied")
    other = open_page(page.evaluate("navigator.clipboard.readText()").removeprefix(site.url), key=None)
    expect(other.get_by_role("radio", name="2", exact=True)).to_be_checked()
    expect(other.locator("#estimate")).to_contain_text(f"${2 * PER_EDIT:.2f}")
    page.get_by_role("button", name="Reset Pictures").click()
    expect(page.get_by_role("radio", name="1", exact=True)).to_be_checked()
    page.get_by_role("button", name="Put these settings back into the form").click()
    expect(page.get_by_role("radio", name="2", exact=True)).to_be_checked()


def test_an_edit_that_an_earlier_page_kept_is_opened(open_page: OpenPage, photo: Path) -> None:
    """It knew of one picture."""
    page = open_page()
    choose(page, photo)
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    change_kept_run(page, "({ others, ...run }) => run")
    page.reload()
    expect(page.locator(".facts")).to_be_visible()
    expect(page.locator(".layer.after img")).to_have_attribute("alt", "After: make it night")
    expect(page.locator(".tile")).to_have_accessible_name("Done: make it night")
    expect(results(page)).to_have_count(0)
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download").click()
    assert len(pixels(waiting.value)) == 3 * 120 * 80


def test_pictures_are_accessible_and_fit_a_phone(open_page: OpenPage, photo: Path, tmp_path: Path) -> None:
    """In both colour schemes, and beside each other at each width, wide and upright ones alike."""
    page = open_page(reduced_motion="reduce")
    ask_for(page, 4)
    page.fill("#prompt", "make it night")
    for size in ((240, 80), (80, 240)):
        shaped = tmp_path / f"{size}.jpg"
        Image.open(photo).resize(size).save(shaped)
        page.set_input_files("#file", shaped)
        run(page)
        expect(page.locator(".facts")).to_contain_text(f"{size[0]} × {size[1]}")
        expect(results(page)).to_have_count(4)
        for width in (1280, 375, 320):
            page.set_viewport_size({"width": width, "height": 700})
            page.evaluate(DRAWN)
            assert_fits(page)
            assert len(tops(page, ".picture")) == 1, f"{size} at {width}"
            for small in page.locator(".picture").all():
                box = small.bounding_box()
                assert box is not None
                assert 24 <= box["width"] <= 96, f"{size} at {width}"
    check(page, "four pictures on a phone")
    page.emulate_media(forced_colors="active")
    outlines = page.locator(".picture").evaluate_all("all => all.map(each => getComputedStyle(each).outlineStyle)")
    assert outlines == ["solid", "none", "none", "none"]


def test_copied_code_takes_all_pictures(open_page: OpenPage, site: Site, photo: Path, tmp_path: Path) -> None:
    """Waiting and collecting, in each language: every picture is a file of its own."""
    page = open_page()
    choose(page, photo)
    ask_for(page, 3)
    page.fill("#p-seed", "7")
    page.get_by_text("Output and speed").click()
    page.get_by_role("radio", name="webp").check()
    done: dict[str, str] = {}
    for language in RUN:
        for mode in ("Wait for it", "Submit, then collect"):
            code = copied(page, language, mode)
            if code == done.get(language):
                continue  # there is one way to take several
            done[language] = code
            folder = tmp_path / f"{language} {mode}"
            folder.mkdir()
            shutil.copy(photo, folder)
            carry_out(code, language, folder, site.key)
            assert (site.fleet.requests[-1].pictures, site.fleet.requests[-1].seed) == (3, 7)
            files = sorted(folder.glob("edited-*.webp"))
            assert [each.name for each in files] == ["edited-1.webp", "edited-2.webp", "edited-3.webp"], code
            assert len({Image.open(each).convert("RGB").tobytes() for each in files}) == 3
    assert {"Python", "Segmind SDK", "OpenAI SDK", "JavaScript"} <= set(done)


def test_the_console_s_list_counts_the_pictures_of_an_edit(open_page: OpenPage, site: Site, photo: Path) -> None:
    """On the small picture and in what the row is called; not where there is one, nor before they are there."""
    edit(site, photo, "counted", accept="application/json", num_images="3")
    edit(site, photo, "single")
    begin_edit(site, photo, num_images="2")
    page = open_page("/console#requests")

    def row(prompt: str) -> Locator:
        return page.get_by_role("button", name=f"Open the request: {prompt}")

    expect(row("counted")).to_have_accessible_name("Open the request: counted, 3 pictures")
    expect(row("counted").locator(".count")).to_have_text("×3")
    expect(row("single")).to_have_accessible_name("Open the request: single")
    expect(row("single").locator(".count")).to_have_count(0)
    running = row("make it night").first
    expect(running).to_have_accessible_name("Open the request: make it night")
    expect(running.locator(".count")).to_have_count(0)
    site.go_on()
    expect(running).to_have_accessible_name("Open the request: make it night, 2 pictures")
    expect(running.locator(".count")).to_have_text("×2")
    check(page, "a list of several pictures")
    picture, count = (row("counted").locator(each).bounding_box() for each in (".row-picture", ".count"))
    assert picture is not None
    assert count is not None
    assert picture["x"] < count["x"]
    assert count["x"] + count["width"] <= picture["x"] + picture["width"]
    assert picture["y"] < count["y"]
    assert count["y"] + count["height"] <= picture["y"] + picture["height"]


def test_the_console_shows_all_pictures_of_a_request(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Each with its seed; of one alone there is nothing to tell apart."""
    several = {"num_images": "3", "seed": str(SEED_MAX - 1)}
    edit(site, photo, "three", accept="application/json", **several)
    edit(site, photo, "one alone")
    page = open_page("/console#requests")
    page.get_by_role("button", name="Open the request: three").click()
    whole = page.get_by_role("dialog", name="Request")
    for at, seed in enumerate((SEED_MAX - 1, SEED_MAX, 0), 1):
        item = whole.get_by_role("listitem").filter(has_text=f"Seed {seed}")
        picture = item.get_by_role("img", name=f"Result of “three”, picture {at} of 3")
        expect(picture).to_have_js_property("naturalWidth", 120)
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Open the request: one alone").click()
    expect(whole.get_by_role("img", name="Result of “one alone”", exact=True)).to_have_js_property("naturalWidth", 120)
