"""What the tests of the pages start from: a running service, Debian's Chromium, and a page that keeps its promises."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, expect, sync_playwright

from tests.browser.site import Site, photo_bytes, served
from tests.needed import program

# Its address bar has two pages of its own, each in a process that takes longer to start than ours to load; and the
# process that is kept ready for a next page is of no use to one in another profile.
NEEDLESS = ("WebUIOmniboxPopup", "WebUIOmniboxAimPopup", "SpareRendererForSitePerProcess")
# Of two lists of features Chromium takes the last: what Playwright turns off is in ours too.
UNWANTED = (
    "AimEnabled",
    "AvoidCorsURLLoaderRestartOnRedirect",
    "AvoidUnnecessaryBeforeUnloadCheckSync",
    "DestroyProfileOnBrowserClose",
    "HttpsFirstBalancedModeAutoEnable",
    "HttpsUpgrades",
    "LensOverlay",
    "MediaRouter",
    "NetworkTimeServiceQuerying",
    "OptimizationHints",
    "PaintHolding",
    "PreconnectToSearch",
    "TcpPortRandomizationWin",
    "ThirdPartyStoragePartitioning",
)
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    f"--disable-features={','.join((*UNWANTED, *NEEDLESS))}",
]
WAIT_MS = 30_000


@dataclass
class Watch:
    """What a page did that a test may want to forbid.

    Attributes:
        refused: answers of 400 and above, which the test expects; each is also an error on the browser's console.
    """

    origin: str
    errors: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)

    def follow(self, page: Page) -> None:
        page.on("console", self._said)
        page.on("pageerror", lambda fault: self.errors.append(str(fault)))
        page.on("request", self._asked)
        page.on("response", lambda answer: self.refused.append(answer.status) if answer.status >= 400 else None)

    def _said(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            self.errors.append(message.text)

    def _asked(self, request: Request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and f"{parts.scheme}://{parts.netloc}" != self.origin:
            self.strangers.append(request.url)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One Chromium for the tests of a file. Skips without one, except in CI."""
    path = program("chromium", "chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        expect.set_options(timeout=WAIT_MS)
        yield browser
        browser.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with served(tmp_path) as site:
        yield site


@pytest.fixture(scope="module")
def lasting_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One site for all tests of a file that don't mind what the others left there."""
    with served(tmp_path_factory.mktemp("site")) as site:
        yield site


OpenPage = Callable[..., Page]


@pytest.fixture
def refusals() -> list[int]:
    """Statuses of 400 and above that the test expects to see; any other fails it."""
    return []


@pytest.fixture
def open_page(browser: Browser, site: Site, refusals: list[int]) -> Iterator[OpenPage]:
    """Opens pages of the site, each in a browser profile of its own, signed in unless told otherwise.

    In the end no page may have reported an error or asked another host for anything.
    """
    opened: list[tuple[BrowserContext, Watch]] = []

    def open_page(path: str = "/", *, key: str | None = "first", **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}} | options)
        context.set_default_timeout(WAIT_MS)
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.url)
        watch = Watch(site.url)
        opened.append((context, watch))
        page = context.new_page()
        watch.follow(page)
        if key is not None:
            secret = site.key if key == "first" else key
            page.add_init_script(f"localStorage.setItem('rekontext.key', {secret!r})")
        page.goto(site.url + path)
        page.locator("body[data-ready]").wait_for()
        return page

    yield open_page
    for context, watch in opened:
        context.close()
        assert not watch.errors, f"the page reported errors: {watch.errors}"
        assert not watch.strangers, f"the page asked other hosts: {watch.strangers}"
        assert set(watch.refused) <= set(refusals), f"the service refused with {watch.refused}"


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "my photo.jpg"
    path.write_bytes(photo_bytes())
    return path
