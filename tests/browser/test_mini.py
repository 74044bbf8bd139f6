"""The page with the embedded model itself behind it: what a newcomer sees in the first minute."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

import rekontext.models
from rekontext.fleet import LocalFleet, Opening
from tests.browser.conftest import OpenPage
from tests.browser.site import Site, served
from tests.needed import missing

MODEL = Path(rekontext.models.__file__).parent / "mini"
EDIT_MS = 60_000
BRIGHTNESS = """image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [32, 32];
    const paper = canvas.getContext("2d");
    paper.drawImage(image, 0, 0, 32, 32);
    const pixels = paper.getImageData(0, 0, 32, 32).data;
    return pixels.filter((_, at) => at % 4 < 3).reduce((sum, one) => sum + one, 0) / (32 * 32 * 3);
}"""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    if not (MODEL / "model_index.json").exists():
        missing("the embedded model", f"it belongs in {MODEL}")
    with served(tmp_path, fleet=LocalFleet(Opening(device="cpu"))) as site:
        yield site


def test_an_example_is_edited_by_the_embedded_model(open_page: OpenPage) -> None:
    """Pick an example, run it, watch it come, and see night fall."""
    page = open_page()
    expect(page.locator("#model")).to_contain_text("mini", timeout=EDIT_MS)
    page.locator(".example", has_text="night").first.click()
    expect(page.locator("#drop-full")).to_be_visible()
    page.fill("#p-num_inference_steps", "10")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".preview")).to_be_visible(timeout=EDIT_MS)
    expect(page.locator(".facts")).to_be_visible(timeout=EDIT_MS)
    expect(page.locator(".notice")).to_contain_text("mini")
    before = page.locator(".layer.before img").evaluate(BRIGHTNESS)
    after = page.locator(".layer.after img").evaluate(BRIGHTNESS)
    assert after < 0.7 * before, f"brightness {before:.0f} became {after:.0f}"


CHANGE = """([before, after]) => {
    const pixels = [before, after].map((image) => {
        const paper = new OffscreenCanvas(80, 60).getContext("2d");
        paper.drawImage(image, 0, 0, 80, 60);
        return paper.getImageData(0, 0, 80, 60).data;
    });
    const change = (left, right) => {
        let sum = 0;
        for (let y = 15; y < 45; y += 1)
            for (let x = left; x < right; x += 1)
                for (let at = 4 * (80 * y + x), end = at + 3; at < end; at += 1)
                    sum += Math.abs(pixels[0][at] - pixels[1][at]);
        return sum / (30 * (right - left) * 3);
    };
    return [change(10, 30), change(50, 70)];
}"""
"""By how many levels of 255 the middles of the left and of the right half differ on average."""


def test_only_the_marked_part_of_an_example_changes(open_page: OpenPage) -> None:
    """Night falls on the left half alone."""
    page = open_page()
    expect(page.locator("#model")).to_contain_text("mini", timeout=EDIT_MS)
    page.locator(".example", has_text="night").first.click()
    expect(page.locator("#drop-full")).to_be_visible()
    page.locator("#mark").click()
    page.locator(".marking").press("Shift+ArrowLeft")
    for _ in range(7):
        page.keyboard.press("]")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Space")
    page.fill("#p-num_inference_steps", "10")
    page.keyboard.press("Control+Enter")
    expect(page.locator(".facts")).to_be_visible(timeout=EDIT_MS)
    expect(page.locator(".compare.loaded")).to_be_visible()
    pictures = page.evaluate_handle("['before', 'after'].map((each) => document.querySelector(`.layer.${each} img`))")
    marked, kept = page.evaluate(CHANGE, pictures)
    assert kept < 5 < marked / 3, f"what is to stay changed by {kept:.1f} levels, the marked part by {marked:.1f}"
