"""Around the console: its views, figures and rows, and edits by programs that are to be seen in it."""

from __future__ import annotations

from pathlib import Path

import httpx2
from playwright.sync_api import Locator, Page, expect

from tests.browser.site import WAIT_S, Site


def edit(site: Site, photo: Path, prompt: str, *, key: str | None = None, accept: str = "image/*", **more: str) -> None:
    """An edit by a program of this account."""
    answer = httpx2.post(
        f"{site.url}/v1/flux-kontext-dev",
        headers={"x-api-key": key or site.key, "accept": accept},
        data={"prompt": prompt, "num_inference_steps": "5"} | more,
        files={"input_image": photo.read_bytes()},
        timeout=WAIT_S,
    )
    assert answer.status_code == 200, answer.text


def go_to(page: Page, view: str) -> None:
    page.locator(f'#side a[href="#{view}"]').click()
    page.locator(f"body[data-ready={view}]").wait_for()
    expect(page.locator(".loading")).to_have_count(0)


def card(page: Page, name: str) -> Locator:
    return page.locator(".card", has=page.get_by_text(name, exact=True)).locator("dd").first


def rows(page: Page) -> Locator:
    return page.locator("main tbody tr:visible")


def begin_edit(site: Site, photo: Path, **more: str) -> None:
    """One that halts at its third step, until the site goes on."""
    site.fleet.pause_at = 3
    taken = httpx2.post(
        f"{site.url}/v2/flux-kontext-dev",
        headers={"x-api-key": site.key},
        data={"prompt": "make it night"} | more,
        files={"input_image": photo.read_bytes()},
        timeout=WAIT_S,
    )
    assert taken.is_success
