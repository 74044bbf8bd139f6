"""The playground where answers are lost or refused: an edit is paid once, and none that was paid is lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, Route, expect

from tests.browser.conftest import OpenPage
from tests.browser.hands import change_kept_run, choose, run
from tests.browser.site import Site

SUBMIT = "**/v2/flux-kontext-dev"


def online_until(page: Page, is_so: Callable[[], bool]) -> None:
    """Whenever the page waits before it tries again, it hears that there is a network."""
    for _ in range(500):
        if is_so():
            return
        page.evaluate("dispatchEvent(new Event('online'))")
        page.wait_for_timeout(20)
    raise AssertionError("it never came")


def test_an_edit_outlasts_a_lost_connection(open_page: OpenPage, site: Site, photo: Path) -> None:
    """However often the server can't be reached: it is said, and the edit is followed to its picture once it can be."""
    page = open_page()
    choose(page, photo)
    site.fleet.pause_at = 5
    lost: list[Request] = []
    page.on("requestfailed", lambda request: lost.append(request))
    page.route("**/v2/requests/**", lambda route: route.abort())
    run(page)
    status = page.locator(".status")
    expect(status).to_have_text("Connection lost, trying again …")
    online_until(page, lambda: len(lost) >= 12)
    page.unroute("**/v2/requests/**")
    page.route("**/files/**", lambda route: route.abort())
    online_until(page, lambda: "Step 5" in status.inner_text())
    with page.expect_request("**/files/**"):
        site.go_on()
    expect(status).to_have_text("Connection lost, trying again …")
    page.unroute("**/files/**")
    online_until(page, page.locator(".facts").is_visible)


def lose(route: Route, status: int = 0) -> None:
    """The server takes the submit, and its answer never comes; a proxy says so with a status."""
    route.fetch()
    if status:
        route.fulfill(status=status, body="<h1>Bad gateway</h1>")
    else:
        route.abort()


@pytest.mark.parametrize("status", [0, 504])
def test_an_edit_whose_answer_was_lost_is_sent_again_and_paid_once(
    status: int, open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """By itself, under the same idempotency key."""
    refusals.append(504)
    page = open_page()
    choose(page, photo)
    keys: list[str | None] = []
    page.on("request", lambda request: keys.append(request.headers.get("idempotency-key")))
    page.route(SUBMIT, lambda route: lose(route, status), times=1)
    run(page)
    expect(page.locator(".status")).to_have_text("No answer yet, sending again …")
    online_until(page, page.locator(".facts").is_visible)
    assert len(site.fleet.requests) == 1
    first, second = filter(None, keys)
    assert first == second
    expect(page.locator("#balance")).to_have_text("$9.96")


@pytest.mark.parametrize("button", ["Run", "Send it again"])
def test_an_edit_that_was_never_answered_is_paid_once_however_it_is_sent_again(
    button: str, open_page: OpenPage, site: Site, photo: Path
) -> None:
    """It stays among the session's edits, also after a reload, and the same request is the same edit."""
    page = open_page()
    choose(page, photo)
    page.route(SUBMIT, lambda route: lose(route) if not site.fleet.requests else route.abort())
    run(page)
    online_until(page, page.locator(".verdict").is_visible)
    expect(page.locator(".verdict")).to_contain_text("sent again, it is paid once")
    page.unroute(SUBMIT)
    page.reload()
    page.locator("body[data-ready]").wait_for()
    page.locator("main").get_by_role("button", name=button).click()
    expect(page.locator(".facts")).to_be_visible()
    expect(page.locator(".tile")).to_have_count(1)
    assert len(site.fleet.requests) == 1
    run(page)
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(2)
    assert len(site.fleet.requests) == 2


def test_an_edit_that_is_sent_again_holds_up_no_other(open_page: OpenPage, site: Site, photo: Path) -> None:
    """But the same press is the same edit."""
    page = open_page()
    choose(page, photo)
    page.route(SUBMIT, lambda route: route.abort())
    run(page)
    expect(page.locator(".status")).to_have_text("No answer yet, sending again …")
    page.locator("#run").click()
    expect(page.locator(".tile")).to_have_count(1)
    page.unroute(SUBMIT)
    page.locator("#prompt").fill("make it bright")
    page.locator("#run").click()
    expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(2)
    assert sorted(request.prompt for request in site.fleet.requests) == ["make it bright", "make it night"]


def test_after_a_lost_answer_a_clear_no_is_one(open_page: OpenPage, photo: Path, refusals: list[int]) -> None:
    """The server looks the edit's key up before it says this: it has taken nothing."""
    refusals.append(406)
    page = open_page()
    choose(page, photo)
    no = {"error": "There are no credits.", "code": "insufficient_credits", "request_id": "r"}
    page.route(SUBMIT, lambda route: route.fulfill(status=406, json=no))
    page.route(SUBMIT, lambda route: route.abort(), times=1)
    run(page)
    expect(page.get_by_text("There are no credits.")).to_be_visible()
    expect(page.locator(".tile")).to_have_count(0)


def test_an_edit_whose_key_the_server_has_forgotten_is_not_sent_again(
    open_page: OpenPage, site: Site, photo: Path
) -> None:
    """It would be paid once more; where to look for it is said."""
    page = open_page()
    choose(page, photo)
    page.route(SUBMIT, lambda route: lose(route) if not site.fleet.requests else route.abort())
    run(page)
    again = page.get_by_role("button", name="Send it again")
    online_until(page, again.is_visible)
    page.unroute(SUBMIT)
    page.clock.set_fixed_time("2100-01-01")
    again.click()
    expect(page.locator(".verdict")).to_contain_text("shown in the console, under Requests")
    assert len(site.fleet.requests) == 1


def test_a_page_that_is_closed_before_the_answer_finds_its_edit_again(
    open_page: OpenPage, site: Site, photo: Path
) -> None:
    """And its picture, paid once."""
    page = open_page()
    choose(page, photo)
    page.route(SUBMIT, lambda route: route.fetch(), times=1)
    run(page)
    for _ in range(500):
        if site.fleet.requests:
            break
        page.wait_for_timeout(10)
    page.reload()
    expect(page.locator(".facts")).to_be_visible()
    assert len(site.fleet.requests) == 1


def test_what_the_server_refused_is_not_sent_again(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """A 503 of its own leaves no doubt."""
    refusals.append(503)
    page = open_page()
    choose(page, photo)
    sent: list[Request] = []
    page.on("request", lambda request: sent.append(request) if request.url.endswith("/v2/flux-kontext-dev") else None)
    refusal = {"error": "The model isn't loaded yet.", "code": "not_ready", "request_id": "x"}
    page.route(SUBMIT, lambda route: route.fulfill(status=503, json=refusal, headers={"retry-after": "1"}))
    run(page)
    expect(page.locator("#refusal")).to_contain_text("The model isn't loaded yet. Come back in 1.0 s.")
    expect(page.locator(".tile")).to_have_count(0)
    assert len(sent) == 1


@pytest.mark.parametrize(
    ("status", "said"), [(429, "Connection lost, trying again …"), (404, "This key can't see the edit now")]
)
def test_only_the_server_s_own_word_ends_an_edit(
    status: int, said: str, open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """Whatever refuses its stream: a limit, a key that was changed, a server that is being replaced."""
    refusals.append(status)
    page = open_page()
    choose(page, photo)
    site.fleet.pause_at = 5
    page.route("**/v2/requests/**", lambda route: route.fulfill(status=status, json={"error": "Not now."}))
    run(page)
    view = page.locator("#view")
    expect(view).to_contain_text(said)
    page.unroute("**/v2/requests/**")
    online_until(page, lambda: "Step 5" in view.inner_text())
    site.go_on()
    expect(page.locator(".facts")).to_be_visible()


def test_a_stream_is_asked_for_again_when_the_server_says(
    open_page: OpenPage, site: Site, photo: Path, refusals: list[int]
) -> None:
    """Not before its Retry-After is over."""
    refusals.append(429)
    page = open_page()
    choose(page, photo)
    page.clock.install()
    asked: list[Request] = []
    page.on("request", lambda request: asked.append(request) if "/requests/" in request.url else None)
    page.route("**/v2/requests/**", lambda route: route.fulfill(status=429, headers={"retry-after": "60"}))
    run(page)
    expect(page.locator(".status")).to_have_text("Connection lost, trying again …")
    page.clock.run_for(59_000)
    assert len(asked) == 1
    with page.expect_request("**/v2/requests/**"):
        page.clock.run_for(2_000)


def test_an_edit_that_this_page_gave_up_is_asked_about(open_page: OpenPage, photo: Path) -> None:
    """An earlier page took a refused stream for its end."""
    page = open_page()
    choose(page, photo)
    run(page)
    expect(page.locator(".facts")).to_be_visible()
    change_kept_run(page, '(run) => ({ ...run, state: "FAILED", error: "Not now.", result: null, output: null })')
    page.reload()
    expect(page.locator(".facts")).to_be_visible()
