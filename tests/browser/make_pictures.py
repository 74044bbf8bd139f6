"""Make the example pictures that the playground shows, and the screenshots in docs/img, with the embedded model.

    python -m tests.browser.make_pictures examples
    python -m tests.browser.make_pictures screenshots

The photos are those of scikit-image, all CC0: coffee (Rachel Michetti), chelsea (Stefan van der Walt), rocket (SpaceX).
"""

from __future__ import annotations

import argparse
import re
import shutil
import tempfile
from pathlib import Path

import skimage
from PIL import Image, ImageOps
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rekontext import web
from rekontext.fleet import LocalFleet, Opening
from tests.browser.conftest import ARGUMENTS
from tests.browser.site import Site, served

PHOTOS = {"coffee": "coffee.png", "cat": "chelsea.png", "rocket": "rocket.jpg"}
SIZE = (320, 240)
QUALITY = 55
PICTURES = Path("docs/img")
PICTURE_BYTES_MAX = 150_000
WAIT_MS = 120_000


def photo(name: str, size: tuple[int, int] = SIZE) -> Image.Image:
    """One of scikit-image's photos, cut to the shape of `size`."""
    path = Path(skimage.__file__).parent / "data" / PHOTOS[name]
    return ImageOps.fit(Image.open(path).convert("RGB"), size, Image.Resampling.LANCZOS)


def make_examples(model: str) -> None:
    """Every example that `examples.js` lists, edited by the model and stored small."""
    from rekontext.engine import Engine

    folder = web.STATIC / "examples"
    listed = (web.STATIC / "playground" / "examples.js").read_text()
    wanted = re.findall(r'\{ photo: "(\w+)", result: "([\w-]+)", prompt: "([^"]+)" \}', listed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in PHOTOS:
        photo(name).save(folder / f"{name}.webp", quality=QUALITY, method=6)
    with Engine.open(model) as engine:
        for name, result, prompt in wanted:
            edited = engine.edit(photo(name), prompt, seed=42)
            edited.resize(SIZE, Image.Resampling.LANCZOS).save(folder / f"{result}.webp", quality=QUALITY, method=6)
            print(f"{result}: {prompt}, {(folder / f'{result}.webp').stat().st_size} bytes")  # noqa: T201


def make_screenshots(model: str) -> None:
    """The playground by day, by night, marking and on a phone, and two views of the console, after real edits."""
    path = shutil.which("chromium")
    assert path, "apt-get install chromium"
    PICTURES.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        served(Path(folder), fleet=LocalFleet(Opening(model=model, device="cpu"))) as site,
        sync_playwright() as playwright,
    ):
        source = Path(folder) / "coffee.jpg"
        photo("coffee", (600, 400)).save(source, quality=92)
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        wide = _opened(browser, site, {"width": 1360, "height": 880})
        _edit(wide, source, ["turn it into a pencil sketch", "make it night", "give it warm sunset light"])
        wide.locator(".strip").scroll_into_view_if_needed()
        wide.evaluate("scrollTo(0, 0)")
        _keep(wide, "playground-light")
        wide.emulate_media(color_scheme="dark")
        _keep(wide, "playground-dark")
        wide.emulate_media(color_scheme="light")
        _mark(wide)
        _keep(wide, "playground-marking")
        wide.locator("#unmark").click()
        wide.goto(f"{site.url}/console")
        expect(wide.locator(".chart-svg").first).to_be_visible()
        wide.get_by_text("7 days").click()
        expect(wide.locator(".chart").first.locator(".as-table tbody tr")).to_have_count(7)
        _keep(wide, "console")
        wide.goto(f"{site.url}/console#requests")
        wide.locator(".row-open").first.click()
        expect(wide.locator("dialog .request-picture")).to_be_visible()
        _keep(wide, "console-request")
        phone = _opened(browser, site, {"width": 390, "height": 844}, is_mobile=True, has_touch=True)
        _edit(phone, source, ["make it night"])
        phone.evaluate("scrollTo(0, 0)")
        _keep(phone, "playground-phone")
        browser.close()


def _opened(browser: Browser, site: Site, viewport: dict[str, int], **options: bool) -> Page:
    context = browser.new_context(viewport=viewport, device_scale_factor=1.5, reduced_motion="reduce", **options)  # type: ignore[arg-type]
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.add_init_script(f"localStorage.setItem('rekontext.key', {site.key!r})")
    page.goto(site.url)
    page.locator("body[data-ready]").wait_for()
    return page


def _edit(page: Page, source: Path, prompts: list[str]) -> None:
    page.set_input_files("#file", source)
    for done, prompt in enumerate(prompts, start=1):
        page.fill("#prompt", prompt)
        page.keyboard.press("Control+Enter")
        expect(page.locator(".tile[data-state=COMPLETED]")).to_have_count(done, timeout=WAIT_MS)
    expect(page.locator(".compare.loaded")).to_be_visible()
    expect(page.locator("#estimate")).not_to_contain_text("before it")
    page.locator(".compare").hover()


def _mark(page: Page) -> None:
    """Paint over the middle of the photo."""
    page.locator("#mark").click()
    box = page.locator(".marking").bounding_box()
    assert box is not None
    for at, (x, y) in enumerate(((0.4, 0.42), (0.58, 0.42), (0.6, 0.55), (0.42, 0.55), (0.4, 0.42))):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=6)
        if at == 0:
            page.mouse.down()
    page.mouse.up()


def _keep(page: Page, name: str) -> None:
    """Store what is on the screen, as small as the README wants it."""
    with tempfile.NamedTemporaryFile(suffix=".png") as file:
        page.screenshot(path=file.name, animations="disabled")
        target = PICTURES / f"{name}.webp"
        Image.open(file.name).convert("RGB").save(target, quality=82, method=6)
    size = target.stat().st_size
    assert size < PICTURE_BYTES_MAX, f"{target} has {size} bytes"
    print(f"{target}: {size} bytes")  # noqa: T201


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["examples", "screenshots"])
    parser.add_argument("--model", default="mini")
    asked = parser.parse_args()
    (make_examples if asked.what == "examples" else make_screenshots)(asked.model)


if __name__ == "__main__":
    main()
