"""The playground, as a person uses it."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from rekontext.accounts import Scope
from rekontext.api.parameters import schema
from tests.api.studio import SEED_DRAWN
from tests.browser.conftest import OpenPage
from tests.browser.hands import await_draft, choose, run
from tests.browser.site import Site, photo_bytes
from tests.jobs.office import Office


def balance(page: Page) -> str:
    return page.locator("#balance").inner_text()


def linked(text: str) -> str:
    """The path of a share link with this request."""
    return "/#edit=" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


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


def test_wrong_parameters_are_told_at_their_fields(open_page: OpenPage, photo: Path, refusals: list[int]) -> None:
    """Every one of them, in the API's words, and gone once it is mended."""
    refusals.append(400)
    page = open_page()
    run(page)
    expect(page.locator("#input_image-fault")).to_contain_text("choose, drop, paste or link a photo")
    expect(page.locator("#prompt-fault")).to_contain_text("say what should change")
    choose(page, photo)
    page.fill("#p-guidance", "99")
    page.fill("#p-num_inference_steps", "2")
    page.locator("#p-num_inference_steps").press("Tab")
    run(page)
    expect(page.locator("#refusal")).to_contain_text("guidance")
    expect(page.locator("#guidance-fault")).to_have_text("99 is not allowed: a number from 0 to 10.")
    expect(page.locator("#num_inference_steps-fault")).to_have_text("2 is not allowed: an integer from 4 to 50.")
    expect(page.locator("#p-guidance")).to_have_attribute("aria-invalid", "true")
    expect(page.locator("[aria-invalid=true]").first).to_be_focused()
    page.fill("#p-guidance", "3")
    page.locator("#p-guidance").press("Tab")
    expect(page.locator("#guidance-fault")).to_be_empty()


def test_form_and_json_edit_one_request(open_page: OpenPage, photo: Path) -> None:
    """Both ways, with integers that JavaScript alone would round."""
    page = open_page()
    choose(page, photo)
    page.get_by_role("tab", name="JSON").click()
    text = page.locator("#json")
    expect(text).to_have_value(re.compile(r'"input_image": "@my photo.jpg"'))
    text.fill('{"input_image": "@my photo.jpg", "prompt": "blur it", "seed": 9223372036854775807, "guidance": 3.5}')
    page.get_by_role("tab", name="Form").click()
    expect(page.locator("#prompt")).to_have_value("blur it")
    expect(page.locator("#p-seed")).to_have_value("9223372036854775807")
    expect(page.locator("#p-guidance")).to_have_value("3.5")
    page.fill("#p-guidance", "4")
    page.locator("#p-guidance").press("Tab")
    page.get_by_role("tab", name="JSON").click()
    expect(text).to_have_value(re.compile(r'"guidance": 4,'))
    expect(text).to_have_value(re.compile(r'"seed": 9223372036854775807,'))
    text.fill('{"prompt": "x", "sharpness": 3}')
    expect(page.locator("#json-fault")).to_contain_text("sharpness: no parameter of this API")
    text.fill("{")
    expect(page.locator("#json-fault")).to_contain_text("Not JSON yet")


def test_what_stands_in_the_json_is_what_is_run(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Broken text runs nothing, a name that is unknown is only left out, and what is missing is said there."""
    page = open_page()
    page.get_by_role("tab", name="JSON").click()
    text = page.locator("#json")
    page.locator("#run").click()
    expect(page.locator("#json-fault")).to_contain_text("input_image: Missing")
    expect(text).to_be_focused()
    page.get_by_role("tab", name="Form").click()
    choose(page, photo, "an older prompt")
    page.get_by_role("tab", name="JSON").click()
    text.fill('{"input_image": "@my photo.jpg", "prompt": "blur it"')
    page.locator("#run").click()
    expect(text).to_be_focused()
    expect(page.locator(".tile")).to_have_count(0)
    text.fill('{"input_image": "@my photo.jpg", "prompt": null}')
    page.locator("#run").click()
    expect(page.locator("#json-fault")).to_contain_text("prompt: Missing")
    text.fill('{"input_image": "@my photo.jpg", "prompt": "blur it", "sharpness": 3}')
    page.locator("#run").click()
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(1)
    assert [each.prompt for each in site.fleet.requests] == ["blur it"]


def test_values_that_no_form_would_hold_are_told(open_page: OpenPage, photo: Path, refusals: list[int]) -> None:
    """By the page where it can't read them, by the service where it can."""
    refusals += [400, 422]
    page = open_page(linked("null"))
    expect(page.locator("#refusal")).to_contain_text("This share link is damaged.")
    page = open_page(linked('{"aspect_ratio": 5, "prompt": "x", "input_image": 5}'))
    expect(page.locator("#refusal")).to_contain_text("the photo is not")
    choose(page, photo)
    run(page)
    expect(page.locator("#aspect_ratio-fault")).to_contain_text("5 is not allowed")
    page = open_page(linked('{"aspect_ratio": ["1:1"], "prompt": "x"}'))
    choose(page, photo)
    run(page)
    expect(page.locator("#aspect_ratio-fault")).to_contain_text("is not allowed: one of match_input_image")


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
    third = open_page(linked('{"prompt": "x", "webhook_url": "https://example.com/thief"}'))
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


def test_the_photo_chosen_last_stays(open_page: OpenPage, site: Site, photo: Path) -> None:
    """A link that answers late is seen to be fetched, runs nothing, and replaces nothing."""
    page = open_page()
    held: list[Route] = []
    page.route("**/console/api/photo", lambda route: held.append(route))
    page.fill("#prompt", "make it night")
    page.get_by_role("button", name="use a link").click()
    page.fill("#link", f"{site.url.replace('127.0.0.1', 'localhost')}/web/examples/cat.webp")
    with page.expect_request("**/console/api/photo"):
        page.locator("#link").press("Enter")
    expect(page.locator("#fetching")).to_be_visible()
    expect(page.get_by_role("button", name="Use", exact=True)).to_be_disabled()
    run(page)
    expect(page.locator("#refusal")).to_contain_text("still being fetched")
    page.set_input_files("#file", photo)
    expect(page.locator("#drop-full")).to_contain_text("my photo.jpg")
    expect(page.locator("#fetching")).to_be_hidden()
    with page.expect_event("requestfinished", lambda request: request.url.endswith("/console/api/photo")):
        held[0].continue_()
    page.evaluate("new Promise(requestAnimationFrame)")
    expect(page.locator("#drop-full")).to_contain_text("my photo.jpg")


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


def test_of_several_dropped_files_a_picture_is_taken(open_page: OpenPage) -> None:
    """And the page says which."""
    page = open_page()
    page.evaluate(
        """photo => {
            const bytes = Uint8Array.from(atob(photo), letter => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File(["words"], "notes.txt", {type: "text/plain"}));
            for (const name of ["one.jpg", "two.jpg"])
                transfer.items.add(new File([bytes], name, {type: "image/jpeg"}));
            document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
        }""",
        base64.b64encode(photo_bytes()).decode(),
    )
    expect(page.locator("#drop-full")).to_contain_text("one.jpg")
    expect(page.locator(".toast")).to_have_text("One photo at a time: of 3 files this is one.jpg.")
    expect(page.locator("#input_image-fault")).to_be_empty()


def test_text_in_hand_stays_text(open_page: OpenPage, site: Site) -> None:
    """Dragged words are the browser's, a spreadsheet's cells are pasted as words; of two dropped links one is taken."""
    page = open_page()
    give = """([kind, selector, given]) => {
        const transfer = new DataTransfer();
        for (const [type, text] of given) {
            if (type === "file") transfer.items.add(new File([new Uint8Array(9)], "cells.png", {type: text}));
            else transfer.setData(type, text);
        }
        const how = {bubbles: true, cancelable: true};
        const event = kind === "paste"
            ? new ClipboardEvent("paste", {clipboardData: transfer, ...how})
            : new DragEvent(kind, {dataTransfer: transfer, ...how});
        return document.querySelector(selector).dispatchEvent(event);
    }"""
    words = [["text/plain", "make it night"]]
    assert page.evaluate(give, ["dragover", "#prompt", words])
    assert page.evaluate(give, ["drop", "#prompt", words])
    assert page.evaluate(give, ["paste", "#prompt", [*words, ["file", "image/png"]]])
    links = f"# two of them\r\n{site.url}/web/examples/cat.webp\r\n{site.url}/web/examples/rocket.webp"
    assert not page.evaluate(give, ["drop", "body", [["text/uri-list", links]]])
    expect(page.locator("#drop-full")).to_contain_text("cat.webp")


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


def await_held(page: Page, count: int) -> None:
    """The page forbids what `wait_for_function` does."""
    for _ in range(500):
        if page.evaluate("held.size") == count:
            return
        page.wait_for_timeout(10)
    raise AssertionError(f"{page.evaluate('held.size')} pictures are held, not {count}")


@pytest.mark.parametrize(
    ("kind", "corner"),
    [
        ("PNG", [255, 255, 255, 255]),
        ("GIF", [200, 40, 40, 255]),
        ("animated PNG", [200, 40, 40, 255]),
        ("animated WEBP", [200, 40, 40, 255]),
    ],
)
def test_a_photo_is_shown_as_the_model_sees_it(
    kind: str, corner: list[int], open_page: OpenPage, tmp_path: Path
) -> None:
    """On white where it is transparent, and of an animation only the first frame; what is sent is the file itself."""
    file = tmp_path / f"photo.{kind.split()[-1].lower()}"
    clear, red, blue = (Image.new("RGBA", (40, 30), c) for c in ((0, 0, 0, 0), (200, 40, 40, 255), (0, 0, 200, 255)))
    if kind == "PNG":
        clear.save(file)
    else:
        first, second = (each.convert("P" if kind == "GIF" else "RGB") for each in (red, blue))
        first.save(file, save_all=True, append_images=[second], duration=20, loop=0)
    page = open_page()
    page.evaluate(
        """() => {
            window.shown = [];
            const make = URL.createObjectURL;
            URL.createObjectURL = (blob) => { shown.push([blob.type, blob.size]); return make.call(URL, blob); };
        }"""
    )
    choose(page, file)
    expect(page.locator("img.fit")).to_be_visible()
    [[shown, size]] = page.evaluate("shown")
    assert shown == "image/png"
    assert size != file.stat().st_size, "an animation plays on"
    pixel = page.locator("img.fit").evaluate(
        """async (picture) => {
            await picture.decode();
            const pen = new OffscreenCanvas(1, 1).getContext("2d");
            pen.drawImage(picture, 0, 0);
            return [...pen.getImageData(0, 0, 1, 1).data];
        }"""
    )
    assert pixel == pytest.approx(corner, abs=4)
    with page.expect_request("**/v2/flux-kontext-dev") as sent:
        run(page)
    assert base64.b64encode(file.read_bytes()).decode() in (sent.value.post_data or "")


def test_pictures_that_nothing_shows_are_freed(open_page: OpenPage, photo: Path) -> None:
    """Each edit holds its photo and its picture once, until it is removed."""
    page = open_page()
    page.evaluate(
        """() => {
            window.held = new Set();
            const [make, free] = [URL.createObjectURL, URL.revokeObjectURL];
            URL.createObjectURL = (blob) => { const url = make.call(URL, blob); held.add(url); return url; };
            URL.revokeObjectURL = (url) => { held.delete(url); free.call(URL, url); };
        }"""
    )
    for _ in range(3):
        choose(page, photo)
    expect(page.locator("#drop-full img")).to_be_visible()
    await_held(page, 1)
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    assert page.evaluate("held.size") == 2
    page.get_by_role("button", name="Edit again").click()
    await_held(page, 3)
    page.locator(".tile").click()
    page.get_by_role("button", name="Remove from this session").click()
    await_held(page, 1)


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


def test_no_estimate_is_shown_for_what_cannot_be_run(open_page: OpenPage, photo: Path) -> None:
    """The one before doesn't stay; the price does."""
    page = open_page()
    choose(page, photo)
    expect(page.locator("#estimate")).to_contain_text("about")
    page.fill("#p-num_inference_steps", "500")
    expect(page.locator("#estimate")).to_have_text("$0.04")


def test_photos_come_by_drop_by_paste_by_link_and_from_examples(open_page: OpenPage, site: Site) -> None:
    """Whatever isn't a picture is refused with a sentence."""
    page = open_page()
    send = """([kind, bytes, name, type]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(bytes)], name, {type}));
        const event = kind === "drop"
            ? new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true})
            : new ClipboardEvent("paste", {clipboardData: transfer, bubbles: true, cancelable: true});
        document.body.dispatchEvent(event);
    }"""
    jpeg = list(photo_bytes())
    page.evaluate(send, ["drop", jpeg, "dropped.jpg", "image/jpeg"])
    expect(page.locator("#drop-full")).to_contain_text("dropped.jpg")
    page.evaluate(send, ["paste", jpeg, "image.png", "image/jpeg"])
    expect(page.locator("#drop-full")).to_contain_text("pasted.png")
    page.evaluate(send, ["drop", [1, 2, 3], "notes.txt", "text/plain"])
    expect(page.locator("#input_image-fault")).to_contain_text("notes.txt isn't a picture")
    page.get_by_role("button", name="Remove the photo").click()
    page.get_by_role("button", name="use a link").click()
    page.fill("#link", "ftp://example.com/a.jpg")
    page.locator("#link").press("Enter")
    expect(page.locator("#input_image-fault")).to_contain_text("Only http and https")
    page.fill("#link", f"{site.url.replace('127.0.0.1', 'localhost')}/web/examples/cat.webp")
    page.get_by_role("button", name="Use", exact=True).click()
    expect(page.locator("#drop-full")).to_contain_text("320 × 240")
    page.locator(".example").nth(1).click()
    expect(page.locator("#drop-full")).to_contain_text(".webp")
    expect(page.locator("#prompt")).not_to_be_empty()
    page = open_page(key=None)
    page.get_by_role("button", name="use a link").click()
    page.fill("#link", "https://example.com/100%.jpg")
    page.locator("#link").press("Enter")
    expect(page.locator("#drop-full")).to_contain_text("100%.jpg")


def test_a_photo_is_known_by_its_bytes(open_page: OpenPage, tmp_path: Path) -> None:
    """A type that is missing or not quite right refuses nothing that the server takes, nor does base64 alone."""
    page = open_page()
    jpeg = photo_bytes()
    nameless = tmp_path / "IMG_0001"
    nameless.write_bytes(jpeg)
    choose(page, nameless)
    page.get_by_role("tab", name="JSON").click()
    shown = page.locator("#bar b")
    spelled = base64.b64encode(jpeg).decode()
    safe = base64.urlsafe_b64encode(jpeg).decode().rstrip("=")
    for source in (f"data:image/jpg;base64,{spelled}", spelled, safe):
        page.locator("#json").fill('{"input_image": null}')
        expect(shown).to_have_text("mini")  # of the first example, where no photo is
        page.locator("#json").fill(json.dumps({"input_image": source, "prompt": "make it night"}))
        expect(shown).to_have_text("photo.jpg")
        expect(page.locator("#json-fault")).to_be_empty()
    with page.expect_request("**/v2/*") as sent:
        run(page)
    assert '"input_image":"data:image/jpeg;base64,' in (sent.value.post_data or "")
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(1)


def test_the_server_says_how_large_a_photo_may_be(open_page: OpenPage, site: Site, tmp_path: Path) -> None:
    """Its bound is told before anything is sent."""
    page = open_page()
    large = tmp_path / "large.jpg"
    large.write_bytes(photo_bytes() + bytes(site.studio.options.picture_bytes_max))
    page.set_input_files("#file", large)
    expect(page.locator("#input_image-fault")).to_have_text("large.jpg is larger than 1.0\u00a0MB.")
    large.write_bytes(photo_bytes())
    choose(page, large)
    expect(page.locator("#input_image-fault")).to_be_empty()


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


def test_the_form_knows_what_the_server_takes(open_page: OpenPage) -> None:
    """Names, ranges and defaults on the page are those of the API's own schema."""
    page = open_page()
    shown = {
        each["name"]: each
        for each in page.evaluate(
            """import("/web/playground/parameters.js").then(({PARAMETERS}) => PARAMETERS.map(each => ({
                name: each.name, default: each.default, options: each.options ?? null,
                min: each.min ?? null, max: each.max === undefined ? null : String(each.max)})))"""
        )
    }
    properties = schema(as_form=False)["properties"]
    assert {"input_image", "prompt", *shown} == set(properties)
    for name, parameter in shown.items():
        described = properties[name]
        kinds = [described, *described.get("anyOf", [])]
        assert parameter["default"] == described.get("default"), name
        assert set(parameter["options"] or ()) == {value for each in kinds for value in each.get("enum", ())}, name
        bounds: dict[str, Any] = next((each for each in kinds if "minimum" in each), {})
        if parameter["min"] is not None:
            assert parameter["min"] == bounds.get("minimum"), name
            assert int(parameter["max"]) == bounds.get("maximum"), name
