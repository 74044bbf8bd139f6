"""The playground, as a person uses it: the life of an edit."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.api.studio import SEED_DRAWN
from tests.browser.conftest import OpenPage
from tests.browser.hands import choose, run
from tests.browser.site import Site, photo_bytes
from tests.jobs.office import Office


def assert_within(page: Page, frame: str, *parts: str) -> None:
    """Each part is drawn inside the frame."""
    outside = page.evaluate(
        """([frame, parts]) => {
            const box = selector => document.querySelector(selector).getBoundingClientRect();
            const {left, right, top, bottom} = box(frame);
            return parts.filter(part => {
                const inner = box(part);
                return inner.left < left || inner.right > right || inner.top < top || inner.bottom > bottom;
            });
        }""",
        [frame, list(parts)],
    )
    assert not outside, f"{outside} lie outside of {frame}"


def test_a_photo_is_edited_compared_and_downloaded(open_page: OpenPage, site: Site, photo: Path) -> None:
    """From a file to the edited picture, with its seed, time, cost and the divider between before and after."""
    page = open_page()
    choose(page, photo)
    expect(page.locator("#estimate")).to_contain_text("$0.04")
    expect(page.locator("#estimate")).to_contain_text("about")
    run(page)

    facts = page.locator(".facts")
    expect(facts).to_contain_text(str(SEED_DRAWN))
    expect(facts).to_contain_text("$0.04")
    expect(facts).to_contain_text("120 × 80")
    expect(page.locator("#balance")).to_have_text("$9.96")
    expect(page.locator(".notice")).to_be_visible()

    divider = page.get_by_role("slider", name="Divider between before and after")
    expect(divider).to_have_attribute("aria-valuenow", "50")
    divider.press("ArrowRight")
    expect(divider).to_have_attribute("aria-valuenow", "52")
    divider.press("Shift+ArrowLeft")
    expect(divider).to_have_attribute("aria-valuenow", "42")
    divider.press("End")
    expect(divider).to_have_attribute("aria-valuetext", "100 % before, 0 % after")
    box = page.locator(".compare").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 30, steps=4)
    page.mouse.up()
    expect(divider).to_have_attribute("aria-valuenow", "25")

    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download").click()
    assert waiting.value.suggested_filename == f"my photo-{SEED_DRAWN}.png"
    picture = Image.open(io.BytesIO(Path(waiting.value.path()).read_bytes()))
    assert picture.size == (120, 80)
    assert picture.getpixel((110, 40)) != Image.open(photo).getpixel((110, 40)), "the download is the photo itself"


def test_the_picture_zooms_about_the_pointer_and_pans(open_page: OpenPage, photo: Path) -> None:
    """Zoom by buttons, keys and double click; drag pans only what is zoomed."""
    page = open_page()
    choose(page, photo)
    run(page)
    page.get_by_role("button", name="Zoom in (+)").click()
    expect(page.locator(".scale")).to_have_text("150 %")
    compare = page.locator(".compare")
    box = compare.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 40, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 20, box["y"] + 30)
    page.mouse.up()
    moved = compare.evaluate("element => element.style.getPropertyValue('--x')")
    assert float(moved.removesuffix("px")) == pytest.approx(-box["width"] / 4 - 20, abs=1)
    page.get_by_role("slider", name="Divider").press("0")
    expect(page.locator(".scale")).to_have_text("100 %")
    compare.dblclick(position={"x": 30, "y": 30})
    expect(page.locator(".scale")).to_have_text("250 %")


def test_an_edit_shows_its_steps_and_can_be_cancelled(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Progress by step, the early look, and a cancel that costs nothing."""
    page = open_page()
    choose(page, photo)
    site.fleet.pause_at = 10
    run(page)
    expect(page.locator(".status")).to_contain_text("Step 10 of 35")
    expect(page.locator(".status")).to_contain_text("about 5.0 s left")
    expect(page.get_by_role("progressbar")).to_have_attribute("aria-valuenow", "10")
    expect(page.get_by_role("img", name="Preview")).to_be_visible()
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".verdict")).to_contain_text("Cancelled. Nothing was charged.")
    page.reload()
    expect(page.locator("#balance")).to_have_text("$10.00")


def test_an_edit_that_runs_in_another_process_waits_and_then_runs(open_page: OpenPage, site: Site, photo: Path) -> None:
    """As long as that tells no steps and times, no guess stands in their place."""
    page = open_page()
    choose(page, photo)
    site.fleet.is_ready = False
    run(page)
    expect(page.locator(".status")).to_have_text("Waiting for a device")
    parts = site.studio.service.parts
    office = Office(database=parts.database)
    parts.database.transact_sync(lambda tx: office.life.claim(tx, worker="elsewhere", limit=1, now=datetime.now(UTC)))
    expect(page.locator(".status")).to_have_text("Running")
    page.get_by_role("button", name="Cancel").click()


def tell_events_by_hand(page: Page) -> Callable[[str, dict[str, object]], None]:
    """From now on an edit's stream says only what the returned function is given: an event and its data."""
    page.evaluate(
        """() => {
            const [ask, {readable, writable}] = [window.fetch, new TextEncoderStream()];
            window.stream = writable.getWriter();
            window.fetch = (url, how) =>
                String(url).endsWith("/events") ? Promise.resolve(new Response(readable)) : ask(url, how);
        }"""
    )
    write = "([event, data]) => { stream.write(`event: ${event}\\ndata: ${JSON.stringify(data)}\\n\\n`) }"
    return lambda event, data: page.evaluate(write, [event, data])


def test_an_edit_that_waits_in_the_engine_says_behind_how_many(open_page: OpenPage, photo: Path) -> None:
    """As in the queue, until its first step."""
    page = open_page()
    choose(page, photo)
    tell = tell_events_by_hand(page)
    run(page)
    status = page.locator(".status")
    tile = page.locator(".tile")
    tell("processing", {"attempt": 1, "queue_position": 2, "eta_seconds": 30.0})
    expect(status).to_have_text(re.compile(r"Waiting behind 2 edits · about (30|29|28) s left"))
    expect(status).to_have_text(re.compile(r"Waiting behind 2 edits · about 2[0-7] s left"))  # time goes on
    tell("processing", {"attempt": 1, "queue_position": 1, "eta_seconds": 20.0})
    expect(status).to_have_text(re.compile(r"Waiting behind 1 edit · about (20|1\d) s left"))
    tell("progress", {"step": 0, "steps": 35, "queue_position": 0, "eta_seconds": None})
    expect(status).to_have_text("Running")
    tell("progress", {"step": 0, "steps": 35, "queue_position": 1, "eta_seconds": 18.0})
    expect(status).to_have_text(re.compile(r"Waiting behind 1 edit · about 1\d s left"))
    expect(tile).to_have_attribute("aria-label", "Waiting: make it night")
    tell("progress", {"step": 1, "steps": 35, "queue_position": 0, "eta_seconds": 17.0})
    expect(status).to_have_text("Step 1 of 35 · about 17 s left")
    tell("progress", {"step": 1, "steps": 35, "queue_position": 1, "eta_seconds": 25.0})
    expect(status).to_have_text(re.compile(r"Waiting behind 1 edit · about 2\d s left"))


def test_three_edits_run_at_once_and_no_more(open_page: OpenPage, site: Site, photo: Path) -> None:
    """The fourth has to wait until one has ended; each keeps its own progress."""
    page = open_page()
    choose(page, photo)
    site.fleet.pause_at = 3
    for running in (1, 2, 3):
        run(page)
        expect(page.locator(".tile:is([data-state=QUEUED], [data-state=PROCESSING])")).to_have_count(running)
    expect(page.locator("#run")).to_be_disabled()
    expect(page.locator("#run")).to_contain_text("3 running")
    run(page)
    site.go_on()
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(3)
    expect(page.locator(".tile")).to_have_count(3)
    expect(page.locator("#run")).to_be_enabled()


def test_a_failed_edit_says_so_and_gives_its_settings_back(open_page: OpenPage, site: Site, photo: Path) -> None:
    """The API's own sentence is on the picture."""
    page = open_page()
    choose(page, photo)
    site.fleet.fault = RuntimeError("broken")
    run(page)
    expect(page.locator(".verdict")).to_be_visible()
    page.fill("#prompt", "something else")
    page.get_by_role("button", name="Use these settings again").click()
    expect(page.locator("#prompt")).to_have_value("make it night")


def test_results_survive_a_reload_and_running_edits_are_followed_again(
    open_page: OpenPage, site: Site, photo: Path
) -> None:
    """Pictures come from the browser's own store; the request comes back too."""
    page = open_page()
    choose(page, photo)
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    site.fleet.pause_at = 5
    run(page)
    expect(page.locator(".status")).to_contain_text("Step 5")
    page.reload()
    expect(page.locator(".tile")).to_have_count(2)
    expect(page.locator("#prompt")).to_have_value("make it night")
    expect(page.locator(".status")).to_contain_text("Step 5")
    site.go_on()
    expect(page.locator(".facts")).to_be_visible()
    page.locator(".tile").last.click()
    expect(page.locator(".facts")).to_contain_text(str(SEED_DRAWN))
    page.get_by_role("button", name="Clear").click()
    page.locator("dialog").get_by_role("button", name="Clear").click()
    expect(page.locator(".tile")).to_have_count(0)
    page.reload()
    expect(page.locator("#session")).to_be_hidden()


def test_what_one_tab_cleared_stays_cleared(open_page: OpenPage, site: Site, photo: Path) -> None:
    """An edit that ends in another tab isn't put back."""
    page = open_page()
    choose(page, photo)
    site.fleet.pause_at = 5
    run(page)
    expect(page.locator(".status")).to_contain_text("Step 5")
    other = page.context.new_page()
    other.goto(page.url)
    expect(other.locator(".tile")).to_have_count(1)
    other.get_by_role("button", name="Clear").click()
    other.get_by_role("dialog").get_by_role("button", name="Clear").click()
    expect(other.locator(".tile")).to_have_count(0)
    site.go_on()
    expect(page.locator(".facts")).to_be_visible()
    other.reload()
    other.locator("body[data-ready]").wait_for()
    expect(other.locator(".tile")).to_have_count(0)


@pytest.mark.parametrize("size", [(100, 700), (700, 90)])
def test_an_edit_of_an_extreme_shape_can_be_followed_and_stopped(
    size: tuple[int, int], open_page: OpenPage, site: Site, tmp_path: Path
) -> None:
    """Progress and every word of it lie within the picture, and so does the way out."""
    page = open_page(viewport={"width": 390, "height": 844})
    photo = tmp_path / "extreme.jpg"
    photo.write_bytes(photo_bytes(size=size))
    choose(page, photo)
    site.fleet.pause_at = 5
    run(page)
    expect(page.locator(".status")).to_contain_text("Step 5")
    assert_within(page, ".frame", ".progress", ".status", ".cancel")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".verdict")).to_be_visible()
    assert_within(page, ".frame", ".verdict p", ".verdict button")


def test_one_press_is_one_edit(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Double clicks, held keys and Enter in a field buy nothing more."""
    page = open_page()
    choose(page, photo)
    page.locator("#p-num_inference_steps").press("Enter")
    page.locator("#run").dblclick()
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(1)
    page.locator("#prompt").focus()
    page.keyboard.down("Control")
    for _ in range(4):
        page.keyboard.down("Enter")
        expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(2)
    page.keyboard.up("Control")
    assert len(site.fleet.requests) == 2


def test_a_result_becomes_the_next_photo(open_page: OpenPage, photo: Path) -> None:
    """Edit again: the picture is sent as a link that the service reads itself."""
    page = open_page()
    choose(page, photo)
    run(page)
    page.get_by_role("button", name="Edit again").click()
    expect(page.locator("#drop-full")).to_contain_text("my photo-edited.png")
    expect(page.locator("#prompt")).to_be_focused()
    page.keyboard.type("invert it")
    run(page)
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(2)


def test_edit_again_keeps_what_was_typed_and_needs_no_link(open_page: OpenPage, site: Site, photo: Path) -> None:
    """The browser has the picture, so it is sent even when the result's link has expired."""
    page = open_page()
    choose(page, photo)
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    page.fill("#prompt", "invert it")
    page.get_by_role("tab", name="JSON").click()
    page.clock.set_fixed_time("2100-01-01")
    page.get_by_role("button", name="Edit again").click()
    expect(page.locator("#prompt")).to_be_focused()
    expect(page.locator("#prompt")).to_have_value("invert it")
    with page.expect_request("**/v2/*") as sent:
        run(page)
    assert '"input_image":"data:image/png;base64,' in (sent.value.post_data or "")
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(2)


def test_the_focus_stays_where_the_work_is(open_page: OpenPage, site: Site, photo: Path) -> None:
    """After a cancel, a removal and a clear a control has the focus; the skip link leads to what is shown."""
    page = open_page()
    choose(page, photo)
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    site.fleet.pause_at = 5
    run(page)
    expect(page.locator(".status")).to_contain_text("Step 5")
    page.get_by_role("button", name="Cancel").press("Enter")
    expect(page.get_by_role("button", name="Use these settings again")).to_be_focused()
    page.locator(".tile").nth(1).click()
    page.get_by_role("button", name="Remove from this session").press("Enter")
    expect(page.locator(".tile")).to_have_count(1)
    expect(page.locator(".verdict button")).to_be_focused()
    page.get_by_role("button", name="Clear").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="Clear").press("Enter")
    expect(page.locator("#run")).to_be_focused()
    page.get_by_role("tab", name="JSON").click()
    page.get_by_role("link", name="Skip to the prompt").press("Enter")
    expect(page.locator("#json")).to_be_focused()


def test_the_new_edit_is_seen_in_a_long_row(open_page: OpenPage, photo: Path) -> None:
    """The row scrolls to the edit that is on stage."""
    page = open_page(viewport={"width": 320, "height": 844})
    choose(page, photo)
    for done in range(1, 7):
        run(page)
        expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(done)
    page.locator("#strip").evaluate("row => { row.scrollLeft = row.scrollWidth }")
    run(page)
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(7)
    assert page.locator("#strip").evaluate("row => row.scrollLeft") < 10
