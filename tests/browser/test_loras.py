"""LoRAs in the form: which are on offer, which are chosen and how strongly, and what is said of those that can't be."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Dialog, Locator, Page, Route, expect

from tests.api.brought import lora_file
from tests.browser.conftest import OpenPage
from tests.browser.hands import await_draft, choose, drop, linked, run
from tests.browser.loras import LARGE, forget_all, held_back, large_lora, lora_site, own
from tests.browser.site import Site, photo_bytes

MANY = tuple(f"{kind}-{at}" for kind in ("anime", "clay", "ink", "neon", "watercolour") for at in range(10))


@pytest.fixture
def site(lasting_site: Site) -> Iterator[Site]:
    """Shared by the tests of this file: none asks what the account has or did."""
    lasting_site.fleet.loras = ("ink", "sepia", "watercolour")
    yield lasting_site
    lasting_site.go_on()
    forget_all(lasting_site)


def field(page: Page) -> Locator:
    return page.locator("[data-parameter=loras]")


def strength(page: Page, name: str) -> Locator:
    return page.get_by_label(f"Strength of {name}", exact=True)


def test_loras_are_chosen_by_keyboard_and_stay_with_the_edit(open_page: OpenPage, site: Site, photo: Path) -> None:
    """In the JSON, the code, the caption and the result; after a reload, from a link, and from an earlier edit."""
    page = open_page()
    choose(page, photo)
    for name in ("watercolour", "ink"):
        page.get_by_role("checkbox", name=name).focus()
        page.keyboard.press("Space")
    strength(page, "ink").fill("-2.5")
    slider = page.get_by_role("slider", name="Strength of watercolour")
    slider.press("ArrowLeft")
    expect(strength(page, "watercolour")).to_have_value("0.95")
    expect(slider).to_have_value("0.95")
    expect(page.get_by_role("slider", name="Strength of ink")).to_have_value("-2")
    expect(page.locator("#code")).to_contain_text("--form-string 'loras=ink:-2.5,watercolour:0.95'")
    page.fill("#p-guidance", "3")
    await_draft(page, "my photo.jpg", "make it night", "3")
    page.reload()
    expect(strength(page, "ink")).to_have_value("-2.5")
    page.get_by_role("tab", name="JSON").click()
    shown = json.loads(page.locator("#json").input_value())
    assert shown["loras"] == [{"name": "ink", "strength": -2.5}, {"name": "watercolour", "strength": 0.95}]
    page.get_by_role("tab", name="Form").click()

    site.fleet.pause_at = 4
    run(page)
    expect(page.locator(".status")).to_contain_text("Step 4")
    expect(page.locator("#bar")).to_contain_text("with ink:-2.5, watercolour:0.95")
    site.go_on()
    expect(page.locator(".facts")).to_contain_text("mini + ink:-2.5 + watercolour:0.95")
    assert site.fleet.requests[-1].loras == (("ink", -2.5), ("watercolour", 0.95))

    page.locator("#share").click()
    expect(page.locator(".toast")).to_contain_text("Link copied")
    other = open_page(page.evaluate("navigator.clipboard.readText()").removeprefix(site.url), key=None)
    expect(strength(other, "ink")).to_have_value("-2.5")  # whether it is on offer isn't known without a key
    page.get_by_role("button", name="Reset LoRAs").click()
    expect(page.get_by_role("checkbox", name="ink")).not_to_be_checked()
    page.get_by_role("button", name="Put these settings back into the form").click()
    expect(strength(page, "ink")).to_have_value("-2.5")
    expect(page.get_by_role("checkbox", name="watercolour")).to_be_checked()


def test_strengths_that_are_not_allowed_are_told_at_the_loras(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """By the page once one is typed, by the service once it is run. The slider has no 0 to stop at."""
    refusals.append(400)
    page = open_page()
    choose(page, photo)
    page.get_by_role("checkbox", name="ink").check()
    strength(page, "ink").fill("0")
    strength(page, "ink").press("Tab")
    fault = page.locator("#loras-fault")
    expect(fault).to_have_text("ink at 0 is not allowed: from −4 to 4, but not 0.")
    expect(strength(page, "ink")).to_have_attribute("aria-invalid", "true")
    strength(page, "ink").fill("0.05")
    expect(fault).to_be_empty()
    page.get_by_role("slider", name="Strength of ink").press("ArrowLeft")
    expect(strength(page, "ink")).to_have_value("-0.05")
    strength(page, "ink").fill("9")
    run(page)
    expect(page.locator("#refusal")).to_contain_text("loras")
    expect(fault).to_have_text('This has "ink" with a strength of 9.')
    expect(strength(page, "ink")).to_be_focused()
    site.fleet.loras = ("sepia", "watercolour")
    strength(page, "ink").fill("1")
    run(page)
    gone = page.get_by_role("button", name="Remove ink, which isn't offered any more")
    expect(gone).to_be_focused()
    expect(gone).to_have_attribute("aria-invalid", "true")
    expect(fault).to_have_text('This asks for "ink", and this server offers sepia, watercolour.')
    page.keyboard.press("Enter")
    expect(page.get_by_role("checkbox", name="sepia")).to_be_focused()
    expect(fault).to_be_empty()


def test_loras_that_cannot_be_given_are_shown_and_removed(open_page: OpenPage, site: Site) -> None:
    """Those of an older edit, and what is no list of LoRAs; where none can be had or is chosen, none is spoken of."""
    page = open_page("/" + linked('{"prompt": "x", "loras": "ink:0.5,gone"}'))
    expect(strength(page, "ink")).to_have_value("0.5")
    expect(field(page)).to_contain_text("not offered any more")
    page.get_by_role("button", name="Remove gone, which isn't offered any more").press("Enter")
    expect(page.get_by_role("button", name="Remove ink")).to_be_focused()
    expect(field(page)).not_to_contain_text("not offered any more")
    page.get_by_role("tab", name="JSON").click()
    page.locator("#json").fill('{"prompt": "x", "loras": [{"name": "ink", "scale": 2}]}')
    page.get_by_role("tab", name="Form").click()
    expect(field(page)).to_contain_text('[{"name":"ink","scale":2}]')
    expect(field(page)).to_contain_text("no list of LoRAs")
    page.get_by_role("button", name="Remove what is no list of LoRAs").press("Enter")
    expect(page.get_by_role("checkbox", name="ink")).to_be_focused()
    site.fleet.loras = ()
    own(site, "sepia", "https://example.com/sepia.safetensors")
    page = open_page("/" + linked('{"prompt": "x", "loras": ["ink", "wash@0123456789abcdef", "a/b:0.5"]}'))
    page.get_by_role("button", name="Remove ink, which isn't offered any more").click()
    expect(strength(page, "b")).to_have_value("0.5")
    page.get_by_role("button", name="Remove wash, which isn't among those that your account brought").press("Enter")
    expect(page.get_by_role("button", name="Remove b")).to_be_focused()
    page.route("**/console/api/loras?*", lambda route: route.fulfill(json={"loras": []}))
    page.route("**/console/api/me", lambda route: with_bytes_max(route, 0))
    page.reload()
    page.get_by_role("button", name="Remove b, which this server takes by name only").click()
    expect(field(page)).to_be_hidden()
    expect(page.locator("#prompt")).to_be_focused()
    page.get_by_role("tab", name="JSON").click()
    expect(page.locator("#json")).not_to_have_value(re.compile("loras"))


def with_bytes_max(route: Route, most: int) -> None:
    """An answer of a server that takes LoRAs of so many bytes; of 0 none."""
    me = (response := route.fetch()).json()
    route.fulfill(response=response, json=me | {"lora_bytes_max": most})


def test_a_lora_is_brought_by_its_address(open_page: OpenPage, site: Site, photo: Path, refusals: list[int]) -> None:
    """Added by keyboard, fetched as the edit is sent, and then one of the account's, under a name."""
    refusals.append(400)
    site.fleet.loras = ()
    page = open_page()
    choose(page, photo)
    fault = page.locator("#loras-fault")
    expect(page.get_by_text("Styles and subjects")).to_be_hidden()  # where there is nothing to choose it is small
    page.get_by_role("button", name="Add a LoRA").press("Enter")
    address = page.get_by_label("Address of a LoRA")
    expect(address).to_be_focused()
    address.fill("ink")
    page.keyboard.press("Enter")
    expect(page.locator("#lora-address-fault")).to_have_text('"ink" is no address of a LoRA.')
    expect(address).to_have_attribute("aria-invalid", "true")
    with lora_site(site) as web:
        address.fill(f"{web.url}/<b>wet</b>.safetensors")
        run(page)  # what stands in the field is meant
        expect(fault).to_have_text(re.compile(r"This can't be used: http://.*answered 404, not 200\."))
        expect(strength(page, "b>")).to_be_focused()
        page.get_by_role("button", name="Remove b>").press("Enter")
        expect(page.get_by_role("button", name="Add a LoRA")).to_be_focused()
        web.files["/wet ink, no. 2.safetensors"] = lora_file()
        url = f"{web.url}/wet%20ink,%20no.%202.safetensors"
        page.keyboard.press("Enter")
        address.fill(f"{url}:0.8")
        page.keyboard.press("Enter")
        expect(strength(page, "wet%20ink,%20no.%202")).to_be_focused()
        asked = f'[{{"name":"{url}","strength":0.8}}]'
        expect(page.locator("#code")).to_contain_text(f"--form-string 'loras={asked}'")
        held: list[Route] = []
        page.route("**/v2/flux-kontext-dev", lambda route: held.append(route))
        with page.expect_request("**/v2/flux-kontext-dev"):
            run(page)
        expect(page.locator(".status")).to_have_text("Sending the photo, fetching the LoRA …")
        expect(page.locator("#said")).to_have_text("Sending the photo, fetching the LoRA …")
        expect(page.locator("#bar")).to_contain_text("with wet%20ink,%20no.%202:0.8")
        run(page)
        expect(page.locator(".toast")).to_contain_text("still waits for its LoRA")
        held[0].continue_()
        expect(page.locator(".facts")).to_contain_text("mini + wet-ink-no.-2@")
    [(name, by)] = site.fleet.requests[-1].loras
    assert (name[:12], by, len(held)) == ("wet-ink-no.-", 0.8, 1)

    chip = page.get_by_role("checkbox", name="wet-ink-no.-2")
    expect(chip).to_be_checked()
    await_draft(page, "my photo.jpg", "make it night", "7")
    page.reload()
    expect(chip).to_be_checked()
    expect(strength(page, "wet-ink-no.-2")).to_have_value("0.8")
    page.get_by_role("tab", name="JSON").click()
    assert json.loads(page.locator("#json").input_value())["loras"] == [{"name": url, "strength": 0.8}]
    page.get_by_role("tab", name="Form").click()
    page.locator("#share").click()
    expect(page.locator(".toast").last).to_contain_text("Link copied, with where its LoRA lies.")
    shared = page.evaluate("navigator.clipboard.readText()").partition("#edit=")[2]
    assert json.loads(base64.urlsafe_b64decode(shared + "=="))["loras"] == [{"name": url, "strength": 0.8}]
    chip.uncheck()
    chip.check()
    expect(page.locator("#code")).to_contain_text(f'"name": "{name}"')


def test_a_lora_is_sent_as_a_file(
    open_page: OpenPage,
    site: Site,
    photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refusals: list[int],
) -> None:
    """By keyboard, in sight of how far it is; one that is cancelled is nobody's, a whole one is chosen and stays."""
    refusals.append(400)
    file = large_lora(tmp_path / "Aquarellé wash (2).safetensors")
    page = open_page()
    page.on("filechooser", lambda _: None)  # a listener that is added as it opens may come too late
    choose(page, photo)
    page.get_by_role("button", name="Add one of your own").press("Enter")
    button = page.get_by_role("button", name="Choose a file")
    expect(page.locator("#lora-file-help")).to_have_text("or drop it here, up to 1.1\u00a0GB")
    page.get_by_label("Address of a LoRA").press("Tab")
    page.keyboard.press("Tab")
    expect(button).to_be_focused()
    with held_back(site, monkeypatch):
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Enter")
        chooser.value.set_files(file)
        cancel = page.get_by_role("button", name="Cancel")
        expect(cancel).to_be_focused()
        expect(field(page)).to_contain_text(re.compile(rf"{re.escape(file.name)}[1-9][\d.]*\s[kM]B of 40.0\sMB sent"))
        sent = page.get_by_role("progressbar", name="Sent").evaluate("bar => bar.value")
        assert 0 < sent < LARGE, "the service doesn't read"
        run(page)
        expect(page.locator("#refusal")).to_have_text(f"{file.name} is still being sent.")
        drop(page, "body", "other.safetensors")
        expect(page.locator(".toast")).to_contain_text(f"One LoRA at a time: {file.name} is still being sent.")
        cancel.press("Enter")
        expect(button).to_be_focused()
        expect(page.locator("#lora-file-fault")).to_be_empty()
    page.set_input_files("#lora-file", file)
    expect(strength(page, "Aquarelle-wash-2")).to_be_focused()
    expect(page.locator(".toast").last).to_have_text("Aquarelle-wash-2 is sent and chosen.")
    expect(page.get_by_label("Address of a LoRA")).to_be_hidden()
    expect(page.locator("#refusal")).to_be_empty()
    run(page)
    expect(page.locator(".facts")).to_contain_text("mini + Aquarelle-wash-2@")
    [(name, _)] = site.fleet.requests[-1].loras
    await_draft(page, "my photo.jpg", "make it night", "7")
    page.reload()
    expect(strength(page, "Aquarelle-wash-2")).to_have_value("1")
    chip = page.get_by_role("checkbox", name="Aquarelle-wash-2")
    expect(chip).to_be_checked()
    page.get_by_role("button", name="Remove Aquarelle-wash-2").click()
    expect(chip).to_be_focused()
    drop(page, "[data-parameter=loras]", "again.safetensors", file.read_bytes()[: 2**17])
    expect(page.locator("#lora-file-fault")).to_contain_text("is cut short")
    renamed = file.rename(tmp_path / "again.safetensors")  # the same bytes are the same LoRA
    page.set_input_files("#lora-file", renamed)
    expect(chip).to_be_checked()
    page.get_by_role("button", name="Add one of your own").click()
    page.set_input_files("#lora-file", renamed)
    expect(page.locator(".toast").last).to_have_text("Aquarelle-wash-2 is chosen already.")
    page.get_by_role("tab", name="JSON").click()
    assert json.loads(page.locator("#json").input_value())["loras"] == [{"name": name, "strength": 1}]


def test_a_lora_that_cannot_be_sent_is_told_of(
    open_page: OpenPage, site: Site, refusals: list[int], tmp_path: Path
) -> None:
    """Where it was chosen: before anything is sent, as far as a page can know, and else in the service's own words."""
    refusals.append(400)
    page = open_page(viewport={"width": 320, "height": 700})
    page.route("**/console/api/me", lambda route: with_bytes_max(route, 10_000))
    page.reload()
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url) if request.method == "PUT" else None)
    fault = page.locator("#lora-file-fault")
    page.get_by_role("button", name="Add one of your own").click()
    large = tmp_path / "large.safetensors"
    large.write_bytes(bytes(10_001))
    page.set_input_files("#lora-file", large)
    expect(fault).to_have_text("large.safetensors is larger than 10\u00a0kB, the most that this server takes.")
    drop(page, ".address", "ink.ckpt")
    expect(fault).to_have_text("ink.ckpt is no .safetensors file.")
    assert not sent
    large.write_bytes(bytes(10_000))
    page.set_input_files("#lora-file", large)
    expect(fault).to_have_text(re.compile(r"Wrong parameter: file is no safetensors file: its header can't be read"))
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels too wide"
    page.context.set_offline(True)
    page.set_input_files("#lora-file", large)
    expect(fault).to_have_text("The server can't be reached. Is it running?")
    page.context.set_offline(False)
    large.write_bytes(lora_file())
    page.set_input_files("#lora-file", large)
    expect(strength(page, "large")).to_have_value("1")
    expect(fault).to_be_empty()


def test_a_file_is_dropped_where_it_is_meant(open_page: OpenPage, site: Site) -> None:
    """A LoRA's is one wherever it falls, and a photo is a photo; where none is taken there is no place for it."""
    page = open_page()
    page.get_by_role("tab", name="JSON").click()
    drop(page, "body", "100 % İnk!.SAFETENSORS", lora_file(seed=5))
    expect(strength(page, "100-Ink")).to_have_value("1")
    drop(page, "[data-parameter=loras]", "photo.jpg", photo_bytes(), "image/jpeg")
    expect(page.locator("#drop-full")).to_contain_text("photo.jpg")
    for name in ("ink", "sepia", "watercolour"):
        page.get_by_role("checkbox", name=name, exact=True).check()
    drop(page, "body", "more.safetensors", lora_file(seed=6))
    expect(page.locator(".toast").last).to_have_text("4 are chosen, as many as an edit may have.")
    page.route("**/console/api/me", lambda route: with_bytes_max(route, 0))
    page.reload()
    expect(page.get_by_role("checkbox", name="ink", exact=True)).to_be_visible()
    expect(page.get_by_role("button", name="Add one of your own")).to_be_hidden()
    expect(page.locator("#lora-file")).to_be_hidden()
    drop(page, "body", "more.safetensors", lora_file(seed=6))
    expect(page.locator("#input_image-fault")).to_contain_text("more.safetensors isn't a picture that can be edited")


def staying(page: Page) -> list[str]:
    """Whoever is asked whether to leave the page stays. Returns what is asked, as it comes."""
    asked: list[str] = []

    def stay(dialog: Dialog) -> None:
        asked.append(dialog.type)
        dialog.dismiss()

    page.on("dialog", stay)
    return asked


def test_a_file_is_sent_for_one_account(
    open_page: OpenPage, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once another tab has signed out it is sent no further; before, a page that would be left asks first."""
    page = open_page()
    page.fill("#prompt", "make it night")
    asked = staying(page)
    page.get_by_role("button", name="Add one of your own").click()
    with held_back(site, monkeypatch):
        page.set_input_files("#lora-file", large_lora(tmp_path / "wash.safetensors"))
        expect(page.get_by_role("progressbar", name="Sent")).to_be_visible()
        page.close(run_before_unload=True)
        other = page.context.new_page()
        other.goto(f"{site.url}/console")
        assert asked == ["beforeunload"]
        other.evaluate("localStorage.removeItem('rekontext.key')")
        expect(page.get_by_role("progressbar", name="Sent")).to_be_hidden()
    expect(page.get_by_role("button", name="Add one of your own")).to_be_hidden()


def test_a_file_is_sent_in_the_background(
    open_page: OpenPage, site: Site, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: list[int]
) -> None:
    """What is wrong with it is told wherever its user is by then, and what is written there meanwhile stays."""
    refusals.append(400)
    page = open_page()
    choose(page, photo)
    bad = large_lora(tmp_path / "bad.safetensors")
    with bad.open("r+b") as file:
        file.write(b"\xff" * 8)
    page.get_by_role("button", name="Add one of your own").click()
    with held_back(site, monkeypatch):
        page.set_input_files("#lora-file", bad)
        expect(page.get_by_role("progressbar", name="Sent")).to_be_visible()
        page.get_by_label("Address of a LoRA").press("Escape")
    expect(page.locator(".toast").last).to_contain_text("bad.safetensors isn't sent. Wrong parameter: file is no")
    page.get_by_role("button", name="Add one of your own").click()
    expect(page.locator("#lora-file-fault")).to_contain_text("file is no safetensors file")
    with held_back(site, monkeypatch):
        page.set_input_files("#lora-file", large_lora(tmp_path / "wash.safetensors"))
        expect(page.get_by_role("progressbar", name="Sent")).to_be_visible()
        page.get_by_role("tab", name="JSON").click()
        page.fill("#json", '{"prompt": "make it')
    expect(page.locator(".toast").last).to_have_text("wash is sent.")
    expect(page.locator("#json")).to_have_value('{"prompt": "make it')
    page.get_by_role("tab", name="Form").click()
    expect(page.get_by_role("checkbox", name="wash")).not_to_be_checked()


def test_where_no_more_can_be_chosen_the_place_goes_once_nothing_is_sent(
    open_page: OpenPage, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a file is on its way there it stays, so that it can be cancelled."""
    own(site, "wash", "https://example.com/wash.safetensors")
    page = open_page()
    page.get_by_role("button", name="Add one of your own").click()
    with held_back(site, monkeypatch):
        page.set_input_files("#lora-file", large_lora(tmp_path / "more.safetensors"))
        expect(page.get_by_role("progressbar", name="Sent")).to_be_visible()
        for name in ("ink", "sepia", "watercolour", "wash"):
            page.get_by_role("checkbox", name=name, exact=True).check()
        page.get_by_role("button", name="Cancel").click()
    expect(page.get_by_label("Address of a LoRA")).to_be_hidden()


@pytest.mark.parametrize("is_here", [True, False], ids=["in this tab", "in another"])
def test_who_signs_out_sends_nothing_any_further(
    open_page: OpenPage, site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_here: bool
) -> None:
    """With nothing written yet, too, and with a key that may send but not look: nothing asks whether to stay."""
    page = open_page(key=site.key if is_here else site.studio.new_key(scopes=frozenset({"edit"})).secret)
    asked = staying(page)
    page.get_by_role("button", name="Add one of your own").click()
    with held_back(site, monkeypatch):
        page.set_input_files("#lora-file", large_lora(tmp_path / "wash.safetensors"))
        expect(page.get_by_role("progressbar", name="Sent")).to_be_visible()
        with page.expect_event("requestfailed", lambda request: request.method == "PUT"):
            if is_here:
                page.locator("#key-button").click()
                page.get_by_role("button", name="Forget the key").click()
            else:
                other = page.context.new_page()
                other.goto(f"{site.url}/console")
                other.evaluate("localStorage.removeItem('rekontext.key')")
    expect(page.get_by_role("progressbar", name="Sent")).to_be_hidden()
    assert not asked


def test_loras_of_one_name_are_told_apart(open_page: OpenPage, site: Site) -> None:
    """The account's own come first, those that it used last before others; they are found by where they are from."""
    first = own(site, "watercolour", "https://example.com/watercolour.safetensors")
    last = own(site, "watercolour", "https://example.org/watercolour.safetensors")
    page = open_page()
    shown = [f"watercolour @{each.id[:4]}" for each in (last, first)]
    expect(field(page).get_by_role("listitem")).to_have_text([*shown, "ink", "sepia", "watercolour"])
    title = f"{first.reference}, from {first.source}"
    expect(field(page).locator("label", has_text=shown[1])).to_have_attribute("title", title)
    page.get_by_role("checkbox", name=shown[1]).check()
    expect(strength(page, shown[1])).to_have_value("1")
    page.get_by_role("button", name="Add one of your own").click()
    page.get_by_label("Address of a LoRA").fill(first.source)
    page.get_by_role("button", name="Add", exact=True).click()
    expect(field(page)).to_contain_text("watercolour is chosen already.")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Add one of your own")).to_be_focused()


def test_many_loras_are_searched(open_page: OpenPage, site: Site) -> None:
    """A few are shown at first, those that are found, or all; and no more are chosen than an edit may have."""
    site.fleet.loras = MANY
    page = open_page(viewport={"width": 320, "height": 700})
    boxes = field(page).get_by_role("checkbox")
    expect(boxes).to_have_count(12)
    page.get_by_role("button", name="Show all 50").click()
    expect(boxes).to_have_count(50)
    page.get_by_role("button", name="Show fewer").click()
    expect(boxes).to_have_count(12)
    search = page.get_by_role("searchbox", name="Search 50 LoRAs")
    search.fill("Colour-")
    expect(boxes).to_have_count(10)
    expect(field(page).get_by_role("status")).to_have_text("10 of 50 found.")
    for box in boxes.all()[:4]:
        box.check()
    expect(field(page).get_by_role("status")).to_contain_text("4 are chosen, as many as an edit may have.")
    expect(boxes.nth(4)).to_be_disabled()
    search.fill("")
    expect(field(page).get_by_role("listitem").filter(has=page.get_by_role("slider"))).to_have_count(4)
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels too wide"
    page.get_by_role("button", name="Remove watercolour-1").click()
    expect(boxes.first).to_be_enabled()
    page.get_by_role("button", name="Show all 50").click()
    page.get_by_role("button", name="Remove watercolour-0").click()
    expect(page.get_by_role("checkbox", name="watercolour-0")).to_be_focused()
