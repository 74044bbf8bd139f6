"""What both pages promise everybody: a keyboard is enough, a phone is wide enough, night is dark, nothing is heavy."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx2
import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Locator, Page, Route, expect

from tests.browser.conftest import OpenPage
from tests.browser.hands import drop
from tests.browser.loras import forget_all, own
from tests.browser.site import Site, photo_bytes

FIRST_LOAD_BYTES_MAX = 150_000
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
DARK_RULES = ("color-contrast", "link-in-text-block")
"""What can go wrong by night only."""
SETTLED = """async () => {
    // In a closed <details> one that has finished stays on the list: nothing there is drawn any more.
    const isChanging = each => each instanceof CSSTransition && each.playState !== "finished";
    const changing = () => document.getAnimations().filter(isChanging);
    const frame = () => new Promise(then => requestAnimationFrame(then));
    for (let quiet = 0; quiet < 3; await frame()) {
        const running = changing();
        quiet = running.length ? 0 : quiet + 1;
        await Promise.allSettled(running.map(each => each.finished));
    }
}"""
"""Colours have changed to what they are to be, those too that begin to when what they are inherited from has."""
DRAWN = "new Promise(then => requestAnimationFrame(() => requestAnimationFrame(() => then(null))))"
"""What follows a change of the window's size or colours has been drawn."""
VIEWS = ("overview", "requests", "keys", "webhooks", "files", "accounts", "queue", "all-requests", "audit")


@pytest.fixture
def site(lasting_site: Site) -> Iterator[Site]:
    """Shared by the tests of this file: none asks what the account has or did."""
    yield lasting_site
    lasting_site.go_on()
    lasting_site.fleet.loras = ()
    forget_all(lasting_site)


LORAS = (*(f"style-{at}" for at in range(49)), "watercolour_" * 8)


def choose_loras(page: Page) -> None:
    """One, and the one whose name is the longest."""
    page.get_by_role("searchbox", name="Search 50 LoRAs").fill("water")
    page.get_by_role("checkbox", name=LORAS[-1]).check()
    page.get_by_role("searchbox", name="Search 50 LoRAs").fill("")
    page.get_by_role("checkbox", name="style-3", exact=True).check()


def assert_accessible(page: Page, where: str, *, rules: Sequence[str] = ()) -> None:
    """axe-core finds nothing serious."""
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = list(rules)
    found = [
        f"{each['id']} ({each['impact']}): {[(at['html'][:160], at['failureSummary']) for at in each['nodes'][:3]]}"
        for each in Axe().run(page, options=options).response["violations"]
        if each["impact"] in ("serious", "critical")
    ]
    assert not found, f"{where}: " + "\n".join(found)


def assert_fits(page: Page) -> None:
    """Nothing is wider than the screen."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"the page is {wide} pixels too wide"


def focused(page: Page) -> str:
    """Id, label or text of what has the focus."""
    found = page.evaluate(
        "(e => e.id || e.getAttribute('aria-label') || e.textContent.trim().slice(0, 40))(document.activeElement)"
    )
    assert isinstance(found, str)
    return found


def tab_to(page: Page, target: str, *, presses_max: int = 80) -> None:
    for _ in range(presses_max):
        if focused(page) == target:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"{target} was not reached by Tab; the focus is on {focused(page)}")


def test_a_keyboard_is_enough(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Choose, describe, run, give the key, compare, edit again: no pointer."""
    page = open_page(key=None)
    page.on("filechooser", lambda _: None)  # from here on the browser leaves choosing to us; that takes effect late
    tab_to(page, "pick")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files(photo)
    expect(page.locator("#drop-full")).to_be_visible()
    tab_to(page, "prompt")
    page.keyboard.type("make it night")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.type(site.key)
    page.keyboard.press("Enter")
    expect(page.locator(".facts")).to_be_visible()
    tab_to(page, "Divider between before and after")
    page.keyboard.press("Home")
    expect(page.get_by_role("slider", name="Divider")).to_have_attribute("aria-valuenow", "0")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "the focus can't be seen"
    tab_to(page, "Edit again")
    page.keyboard.press("Enter")
    expect(page.locator("#prompt")).to_be_focused()


@pytest.mark.parametrize("path", ["/", "/console"])
def test_everything_fits_on_a_phone(path: str, open_page: OpenPage, site: Site, photo: Path) -> None:
    """From end to end without sideways scrolling."""
    page = open_page(path, **PHONE)
    assert_fits(page)
    if path == "/console":
        for view in VIEWS:
            page.locator(f'#side a[href="#{view}"]').click()
            page.locator(f"body[data-ready={view}]").wait_for()
            expect(page.locator(".loading")).to_have_count(0)
            assert_fits(page)
        return
    page.set_input_files("#file", photo)
    page.fill("#prompt", "make it night")
    page.locator("#run").tap()
    expect(page.locator(".facts")).to_be_visible()
    expect(page.locator(".compare")).to_be_in_viewport()
    assert_fits(page)
    page.get_by_role("tab", name="JSON").tap()
    assert_fits(page)


@pytest.mark.parametrize("width", [320, 390, 1440])
def test_what_is_long_and_what_is_open_fits_too(
    width: int, open_page: OpenPage, site: Site, photo: Path, tmp_path: Path
) -> None:
    """Every parameter shown and changed, and names without a space to break them at."""
    site.fleet.loras = LORAS
    page = open_page(viewport={"width": width, "height": 844})
    for summary in page.locator(".more summary").all():
        summary.click()
    page.fill("#p-num_inference_steps", "20")
    page.fill("#p-seed", "1")
    choose_loras(page)
    page.get_by_role("button", name="Show all 50").click()
    page.get_by_role("button", name="Add one of your own").click()
    page.get_by_label("Address of a LoRA").fill(f"{'x' * 200}/{'y' * 200}:0.5")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Add one of your own").click()
    page.get_by_label("Address of a LoRA").fill("z" * 200)
    page.keyboard.press("Enter")
    long = tmp_path / f"{'screenshot_' * 22}.jpg"
    long.write_bytes(photo.read_bytes())
    page.set_input_files("#file", long)
    expect(page.locator("#drop-full")).to_be_visible()
    assert_fits(page)


LONG_NAME = "marketing.and.communications@subsidiary-of-a-very-large-company.example.com"


def with_long_names(page: Page) -> None:
    """From now on who is signed in, what is served and what can be spent take the room that they may take."""

    def answer(route: Route) -> None:
        me = (response := route.fetch()).json()
        me["account"]["name"] = LONG_NAME
        me["model"] |= {"name": "black-forest-labs/FLUX.1-Kontext-dev", "device": "cuda:0"}
        me["balance"]["available"] = 12345.6789
        route.fulfill(response=response, json=me)

    page.route("**/console/api/me", answer)


def overflow(box: Locator) -> int:
    """By how many pixels its content is wider than it."""
    found = box.evaluate("each => each.scrollWidth - each.clientWidth")
    assert isinstance(found, int)
    return found


@pytest.mark.parametrize("path", ["/", "/console"])
def test_the_top_fits_whatever_stands_in_it(path: str, open_page: OpenPage) -> None:
    """Long names of account and model, at each width; who pays can be read and the last button is on the page."""
    page = open_page(path)
    with_long_names(page)
    page.reload()
    expect(page.locator("#key-button")).to_have_text(LONG_NAME)
    for width in (320, 390, 641, 768, 897, 1000):
        page.set_viewport_size({"width": width, "height": 844})
        assert overflow(page.locator(".top")) <= 0, f"at {width}"
        expect(page.locator("#theme")).to_be_in_viewport(ratio=1)
        assert page.locator("#key-button").evaluate("button => button.clientWidth") >= 45, f"at {width}"


def test_the_console_fits_whatever_it_is_about(open_page: OpenPage, site: Site, photo: Path) -> None:
    """An account, a file and an address of one long word each: no view and no dialog is wider than it may be."""
    site.studio.new_account(LONG_NAME, credits_micros=1_000_000)
    me = {"x-api-key": site.key}
    file = "IMG_20261130_062142_edited_for_print_final_and_once_more.png"
    httpx2.post(f"{site.url}/upload-asset", headers=me, files={"file": (file, photo.read_bytes())}).raise_for_status()
    own(site, "watercolour_" * 5, f"https://example.com/{'watercolour_' * 20}.safetensors")
    hook = {"url": f"http://127.0.0.1:9/{'a' * 60}", "event_types": ["edit.failed"]}
    httpx2.post(f"{site.url}/console/api/webhooks", headers=me, json=hook).raise_for_status()
    page = open_page("/console", viewport={"width": 320, "height": 844})
    with_long_names(page)
    page.reload()
    expect(page.get_by_text(LONG_NAME).last).to_be_visible()
    dialog = page.locator("dialog")

    def go_to(view: str) -> None:
        page.locator(f'#side a[href="#{view}"]').click()
        page.locator(f"body[data-ready={view}]").wait_for()
        expect(page.locator(".loading")).to_have_count(0)

    def assert_all_fits() -> None:
        for width in (320, 390, 1440):
            page.set_viewport_size({"width": width, "height": 844})
            assert_fits(page)
            assert all(overflow(each) <= 0 for each in dialog.all()), f"the dialog scrolls at {width}"
        page.keyboard.press("Escape")

    assert_all_fits()
    go_to("accounts")
    for name in ("Keys of owner", f"Keys of {LONG_NAME}", f"Credits of {LONG_NAME}", f"Limits of {LONG_NAME}"):
        page.get_by_title(name, exact=True).click()
        expect(dialog).to_be_visible()
        expect(page.locator(".loading")).to_have_count(0)
        assert_all_fits()
    go_to("files")
    for each in (file, "watercolour_"):
        page.get_by_role("button", name=f"Delete {each}").click()
        expect(dialog).to_be_visible()
        assert_all_fits()
    go_to("webhooks")
    page.get_by_role("button", name="Log").click()
    expect(page.get_by_role("heading", name=f"Deliveries to {hook['url']}")).to_be_visible()
    assert_all_fits()


@pytest.mark.parametrize(
    ("cost", "latency_ms", "ticks"),
    [
        (2_000_000, 200_000, ["0", "1 min 40 s", "3 min 20 s", "$0.00", "$1,000,000.00", "$2,000,000.00"]),
        (0, None, ["0", "$0.00"]),
    ],
)
def test_a_chart_s_labels_lie_within_it(
    cost: float, latency_ms: float | None, ticks: list[str], open_page: OpenPage
) -> None:
    """Whatever they say, also on a phone; where there is nothing to measure no scale is made up."""
    page = open_page("/console#keys", viewport={"width": 320, "height": 844})

    def answer(route: Route) -> None:
        usage = (response := route.fetch()).json()
        for day in usage["days"]:
            day |= {"cost": cost, "latency_ms": dict.fromkeys(("p50", "p95", "p99"), latency_ms)}
        route.fulfill(response=response, json=usage)

    page.route("**/console/api/usage?*", answer)
    page.locator('#side a[href="#overview"]').click()
    expect(page.locator(".chart-svg")).to_have_count(3)
    for width in (320, 1440):
        page.set_viewport_size({"width": width, "height": 844})
        page.evaluate(DRAWN)
        assert page.locator(".grid + .tick").all_text_contents()[-len(ticks) :] == ticks
        cut = page.evaluate(
            """[...document.querySelectorAll(".tick")].filter(each => {
                const [{left, right}, chart] = [each, each.ownerSVGElement].map(one => one.getBoundingClientRect());
                return left < chart.left - 1 || right > chart.right + 1;
            }).map(each => each.textContent)"""
        )
        assert cut == [], f"at {width}"
    expect(page.get_by_text("Days are in UTC.")).to_be_visible()


def test_the_facts_of_a_result_fit_a_phone(open_page: OpenPage, photo: Path) -> None:
    """A long seed, a time that was waited, passes that were left out, a long name of the model."""
    page = open_page(viewport={"width": 390, "height": 844})

    def answer(route: Route) -> None:
        events = (response := route.fetch()).text()
        told = {"model": '"FLUX.1-Kontext-dev"', "total_time": "7.2", "queue_time": "0.11", "passes": "12"}
        for field, value in told.items():
            events = re.sub(rf'"{field}": ?[^,}}]+', f'"{field}": {value}', events)
        route.fulfill(response=response, body=events)

    page.route("**/events", answer)
    page.set_input_files("#file", photo)
    page.fill("#prompt", "make it night")
    for summary in page.locator(".more summary").all():
        summary.click()
    page.fill("#p-seed", str(2**53 - 1))
    page.keyboard.press("Control+Enter")
    for fact in ("0.11 s waiting", "35 (12 computed)", "FLUX.1-Kontext-dev"):
        expect(page.locator(".facts")).to_contain_text(fact)
    for width in (390, 375, 360, 320):
        page.set_viewport_size({"width": width, "height": 844})
        assert_fits(page)


def test_a_picture_keeps_its_shape_on_the_full_screen(open_page: OpenPage, tmp_path: Path) -> None:
    """Upright or wide, on a wide screen: as high or as wide as the screen, and not stretched over all of it."""
    page = open_page(viewport={"width": 1440, "height": 900})
    picture = page.locator(".layer.after img")
    for size, shown in (((100, 200), (450, 900)), ((240, 80), (1440, 480))):
        photo = tmp_path / f"{size}.jpg"
        photo.write_bytes(photo_bytes(size=size))
        page.set_input_files("#file", photo)
        page.fill("#prompt", "make it night")
        page.keyboard.press("Control+Enter")
        expect(page.locator(".facts")).to_contain_text(f"{size[0]} × {size[1]}")
        page.get_by_role("button", name="Full screen").click()
        expect(page.locator(".frame:fullscreen")).to_have_count(1)
        page.evaluate(DRAWN)
        box = picture.bounding_box()
        assert box is not None
        assert (box["width"], box["height"]) == pytest.approx(shown, rel=0.01)
        page.evaluate("document.exitFullscreen()")
        expect(page.locator(".frame:fullscreen")).to_have_count(0)


def tops(page: Page, selector: str) -> set[float]:
    """At which heights these begin."""
    found = page.evaluate(
        "selector => [...document.querySelectorAll(selector)].map(each => each.getBoundingClientRect().top)", selector
    )
    assert found
    return set(found)


def test_what_belongs_together_stands_in_a_row(open_page: OpenPage, photo: Path) -> None:
    """No tool of the result falls out of its row on a narrow phone, and no field of a filter out of its line."""
    page = open_page(viewport={"width": 360, "height": 780})
    page.set_input_files("#file", photo)
    page.fill("#prompt", "make it night")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".facts")).to_be_visible()
    for width in (360, 320):
        page.set_viewport_size({"width": width, "height": 780})
        assert len(tops(page, ".acting > *")) == 1, f"at {width}"
    console = open_page("/console#all-requests", viewport={"width": 1440, "height": 900})
    assert len(tops(console, ".filters .input")) == 1


def test_the_focus_stays_clear_of_the_bar_that_runs(open_page: OpenPage) -> None:
    """Tab never leads behind the bar at the lower end."""
    page = open_page(viewport={"width": 390, "height": 700})
    for summary in page.locator(".more summary").all():
        summary.click()
    page.evaluate("scrollTo(0, 0)")
    page.locator("#prompt").focus()
    for _ in range(30):
        page.keyboard.press("Tab")
        covered = page.evaluate(
            """(() => {
                const [bar, at] = [document.querySelector(".go"), document.activeElement];
                if (bar.contains(at) || !at.closest(".view")) return null;
                const [{top}, {bottom}] = [bar.getBoundingClientRect(), at.getBoundingClientRect()];
                return bottom > top + 1 ? at.outerHTML.slice(0, 120) : null;
            })()"""
        )
        assert covered is None, f"the bar covers {covered}"


def test_dark_follows_the_system_and_the_switch_is_kept(open_page: OpenPage) -> None:
    """System, light, dark; the choice survives a reload without a flash of the other."""
    background = "getComputedStyle(document.body).backgroundColor"
    page = open_page(color_scheme="dark")
    dark = page.evaluate(background)
    switch = page.get_by_role("button", name="Theme")
    switch.click()
    light = page.evaluate(background)
    assert sum(map(int, dark[4:-1].split(","))) < 120 < 600 < sum(map(int, light[4:-1].split(",")))
    page.reload(wait_until="commit")
    page.locator("html[data-theme=light]").wait_for()
    assert page.evaluate(background) == light
    expect(switch).to_have_attribute("aria-label", "Theme: light")  # the switch works once the page's code has run
    switch.click()
    expect(switch).to_have_attribute("aria-label", "Theme: dark")
    assert page.evaluate(background) == dark


def test_states_are_seen_in_forced_colours(open_page: OpenPage) -> None:
    """What is chosen has an outline, a switch is the system's, and the bar with Run hides what scrolls under it."""
    outline = "each => getComputedStyle(each).outlineStyle"
    page = open_page(forced_colors="active")
    expect(page.get_by_role("tab", name="Form")).to_have_css("outline-style", "solid")
    expect(page.get_by_role("tab", name="JSON")).to_have_css("outline-style", "none")
    assert [each.evaluate(outline) for each in page.locator(".ratio").all()[:2]] == ["solid", "none"]
    expect(page.locator(".switch")).to_have_css("appearance", "auto")
    expect(page.locator(".go")).not_to_have_css("background-color", "rgba(0, 0, 0, 0)")
    console = open_page("/console", forced_colors="active")
    expect(console.locator('#side a[href="#overview"]')).to_have_css("outline-style", "solid")
    expect(console.locator('#side a[href="#keys"]')).to_have_css("outline-style", "none")
    swatch = console.locator(".swatch").first
    expect(swatch).not_to_have_css(
        "background-color", console.evaluate("getComputedStyle(document.body).backgroundColor")
    )


@pytest.mark.parametrize("path", ["/", "/console"])
def test_on_paper_nothing_lies_over_the_text(path: str, open_page: OpenPage) -> None:
    """And it is dark on white, also from a page that is dark."""
    page = open_page(path, color_scheme="dark")
    page.get_by_role("button", name="Theme").click(click_count=2)
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.emulate_media(media="print")
    over = page.evaluate(
        """[...document.querySelectorAll("body *")].filter(each => each.checkVisibility())
            .filter(each => ["sticky", "fixed"].includes(getComputedStyle(each).position))
            .map(each => each.className)"""
    )
    assert over == []
    expect(page.locator("h1")).to_have_css("color", "rgb(26, 25, 22)")


def check(page: Page, where: str) -> None:
    """In both colour schemes; by night only what colours decide."""
    schemes: dict[Literal["dark", "light"], Sequence[str]] = {"dark": DARK_RULES, "light": ()}
    for scheme, rules in schemes.items():
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.evaluate(DRAWN)
        page.evaluate(SETTLED)
        assert_accessible(page, f"{where}, {scheme}", rules=rules)


def test_the_playground_has_no_serious_accessibility_fault(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """Empty, wrong, running, done, as JSON, in a dialog."""
    refusals.append(400)
    site.fleet.loras = LORAS
    page = open_page(reduced_motion="reduce")
    for summary in page.locator(".more summary").all():
        summary.click()
    check(page, "empty")
    page.set_input_files("#file", photo)
    page.fill("#prompt", "make it night")
    page.fill("#p-guidance", "99")
    choose_loras(page)
    page.get_by_label("Strength of style-3", exact=True).fill("9")
    page.get_by_role("button", name="Add one of your own").click()
    page.keyboard.press("Enter")
    page.keyboard.press("Control+Enter")
    expect(page.locator("#refusal")).to_be_visible()
    check(page, "wrong")
    page.fill("#p-guidance", "7")
    page.get_by_label("Strength of style-3", exact=True).fill("0.5")
    site.fleet.pause_at = 4
    page.keyboard.press("Control+Enter")
    expect(page.locator(".status")).to_contain_text("Step 4")
    page.route("**/v1/loras/*", lambda _: None)
    drop(page, "body", "ink.safetensors", bytes(100))
    expect(page.get_by_role("progressbar", name="Sent")).to_be_visible()
    check(page, "running")
    site.go_on()
    expect(page.locator(".facts")).to_be_visible()
    page.get_by_role("tab", name="JSON").click()
    check(page, "done")
    page.locator("#key-button").click()
    expect(page.get_by_role("dialog")).to_be_visible()
    check(page, "dialog")


def test_the_console_has_no_serious_accessibility_fault(open_page: OpenPage, site: Site, photo: Path) -> None:
    """Each view, with something in it."""
    page = open_page(reduced_motion="reduce")
    page.set_input_files("#file", photo)
    page.fill("#prompt", "make it night")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".facts")).to_be_visible()
    own(site, "watercolour", "https://example.com/watercolour.safetensors")
    page.goto(f"{site.url}/console")
    page.locator("body[data-ready]").wait_for()
    for view in VIEWS:
        page.locator(f'#side a[href="#{view}"]').click()
        page.locator(f"body[data-ready={view}]").wait_for()
        expect(page.locator(".loading")).to_have_count(0)
        check(page, view)
    page.locator('#side a[href="#requests"]').click()
    page.locator(".row-open").first.click()
    expect(page.locator("dialog .pairs").first).to_be_visible()
    check(page, "one request")


@pytest.mark.parametrize("path", ["/", "/console"])
def test_the_first_load_is_light(path: str, open_page: OpenPage, site: Site) -> None:
    """Everything that a first visit brings over the wire, headers included."""
    page = open_page(path, key=None)
    page.wait_for_load_state("networkidle")  # or what is still on its way would count twice
    session = page.context.new_cdp_session(page)
    loaded: list[float] = []
    session.on("Network.loadingFinished", lambda event: loaded.append(event["encodedDataLength"]))
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    page.reload(wait_until="networkidle")
    page.locator("body[data-ready]").wait_for()
    assert len(loaded) > 5
    assert sum(loaded) < FIRST_LOAD_BYTES_MAX, f"{path} loads {sum(loaded):.0f} bytes"


@pytest.mark.parametrize("path", ["/", "/console", "/web/playground/main.js"])
def test_the_pages_allow_nothing_but_themselves(path: str, open_page: OpenPage, site: Site) -> None:
    """The policy is strict, and the pages hold no inline script, style or address of another host."""
    page = open_page(key=None)
    answer = page.request.get(site.url + path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    if answer.headers["content-type"].startswith("text/html"):
        text = answer.text()
        assert "<style" not in text
        assert " style=" not in text
        assert "//" not in text.replace("https://…", "")


def test_the_api_s_page_opens_under_its_policy(open_page: OpenPage, site: Site) -> None:
    """Its script and styles run; the browser would report each that the policy keeps out."""
    page = open_page()
    page.goto(f"{site.url}/docs")
    page.get_by_text("Upload pictures").click()
    expect(page.get_by_text("/upload-asset").first).to_be_visible()
    expect(page.get_by_text("file_urls").first).to_be_visible()
