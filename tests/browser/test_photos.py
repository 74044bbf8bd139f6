"""The photo to edit: the ways it comes by, and how it is shown."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, Route, expect

from tests.browser.conftest import OpenPage
from tests.browser.hands import choose, run
from tests.browser.site import Site, photo_bytes


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


def test_a_photo_that_is_still_being_read_is_waited_for(open_page: OpenPage, photo: Path) -> None:
    """Whoever chooses a file and runs it at once needn't press twice."""
    page = open_page()
    page.evaluate(
        """() => {
            const read = Blob.prototype.arrayBuffer;
            const pressed = new Promise((then) => document.addEventListener("keyup", then, { once: true }));
            Blob.prototype.arrayBuffer = async function () { await pressed; return read.call(this); };
        }"""
    )
    page.set_input_files("#file", photo)
    page.fill("#prompt", "make it night")
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    expect(page.locator("#refusal")).to_be_empty()


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
