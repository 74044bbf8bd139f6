"""The page with the embedded model itself behind it: what a newcomer sees in the first minute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

import rekontext.models
from rekontext.fleet import LocalFleet, Opening
from tests.browser.conftest import OpenPage
from tests.browser.site import Site, served

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
        if os.environ.get("CI") == "true":
            pytest.fail(f"the embedded model is missing in {MODEL}")
        pytest.skip("the embedded model is missing")
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
