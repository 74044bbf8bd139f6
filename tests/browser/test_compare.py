"""Before and after, looked at closely."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.hands import choose, run


def seen(page: Page) -> tuple[float, float]:
    """The left and the upper end of what is shown of the picture, in parts of its size."""
    [x, y] = page.evaluate(
        """() => {
            const frame = document.querySelector(".compare").getBoundingClientRect();
            const picture = document.querySelector(".after img").getBoundingClientRect();
            return [(frame.left - picture.left) / picture.width, (frame.top - picture.top) / picture.height];
        }"""
    )
    return x, y


def test_a_zoomed_picture_stays_in_a_frame_that_changes(open_page: OpenPage, photo: Path) -> None:
    """The same part of it, as when a phone is turned; and a keyboard moves it as far as it goes."""
    page = open_page()
    choose(page, photo)
    run(page)
    expect(page.locator(".compare.loaded")).to_be_visible()
    divider = page.get_by_role("slider", name="Divider between before and after")
    for _ in range(6):
        divider.press("+")
    expect(page.locator(".scale")).to_have_text("800 %")
    divider.press("Home")
    x, y = seen(page)
    divider.press("Control+ArrowRight")
    divider.press("Alt+ArrowUp")
    assert seen(page) == pytest.approx((x + 0.1 / 8, y - 0.1 / 8), abs=0.001)
    expect(divider).to_have_attribute("aria-valuenow", "0")
    for _ in range(60):
        divider.press("Control+ArrowRight")
        divider.press("Control+ArrowDown")
    assert seen(page) == pytest.approx((7 / 8, 7 / 8), abs=0.001)
    wide = page.locator(".compare").evaluate("frame => frame.clientWidth")
    page.set_viewport_size({"width": 480, "height": 800})
    assert page.locator(".compare").evaluate("frame => frame.clientWidth") < wide
    page.evaluate("() => new Promise(drawn => requestAnimationFrame(() => requestAnimationFrame(drawn)))")
    assert seen(page) == pytest.approx((7 / 8, 7 / 8), abs=0.001)
    divider.press("0")
    divider.press("Control+ArrowRight")
    assert seen(page) == pytest.approx((0, 0), abs=0.001)
