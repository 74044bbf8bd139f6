"""The code that the playground shows: copied and run as it is, in the language it is written in."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import playwright
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.api.brought import lora_file
from tests.browser.conftest import OpenPage
from tests.browser.hands import linked
from tests.browser.loras import forget_all, lora_site
from tests.browser.site import Site
from tests.needed import program

NODE = Path(playwright.__file__).parent / "driver" / "node"
RUN = {
    "curl": ("edit.sh", ["bash", "-eu"]),
    "Python": ("edit.py", [sys.executable]),
    "Segmind SDK": ("edit_sdk.py", [sys.executable]),
    "OpenAI SDK": ("edit_openai.py", [sys.executable]),
    "JavaScript": ("edit.mjs", [str(NODE)]),
}
SEED = 2**63 - 1
LORAS = (("ink", -0.5), ("watercolour", 1.0))
PROMPT = """it's "night" -- $HOME; @file, <b> & 100 %\\n"""


@pytest.fixture
def site(lasting_site: Site) -> Iterator[Site]:
    """Shared by the tests of this file: none asks what the account has or did."""
    lasting_site.fleet.loras = ("ink", "watercolour")
    yield lasting_site
    lasting_site.go_on()
    forget_all(lasting_site)


def copied(page: Page, language: str, mode: str) -> str:
    page.get_by_role("tab", name=language, exact=True).click()
    page.get_by_role("radio", name=mode).check()
    page.get_by_role("button", name="Copy", exact=True).click()
    expect(page.locator(".toast").last).to_have_text("Code copied")
    text = page.evaluate("navigator.clipboard.readText()")
    assert isinstance(text, str)
    return text


def executed(code: str, language: str, folder: Path, key: str) -> Image.Image:
    """Run what was copied in a folder of its own; the picture that it left there."""
    carry_out(code, language, folder, key)
    return Image.open(io.BytesIO((folder / "edited.webp").read_bytes()))


def carry_out(code: str, language: str, folder: Path, key: str) -> None:
    """Run what was copied in a folder of its own."""
    if language == "curl":
        program("curl", "curl")
    name, command = RUN[language]
    (folder / name).write_text(code)
    done = subprocess.run(
        [*command, name],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "REKONTEXT_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, f"{language} ended with {done.returncode}:\n{code}\n{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("language", RUN)
def test_copied_code_tells_why_it_was_refused(language: str, open_page: OpenPage, photo: Path, tmp_path: Path) -> None:
    """In the words of the API, not by a status alone."""
    page = open_page()
    page.set_input_files("#file", photo)
    page.fill("#prompt", "make it night")
    name, command = RUN[language]
    (tmp_path / name).write_text(copied(page, language, "Submit, then collect"))
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "REKONTEXT_KEY": "rk_wrong"}
    run = [*command, name]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "this is not an API key of this service" in done.stdout + done.stderr


@pytest.mark.parametrize("language", RUN)
def test_copied_code_runs_as_it_is(language: str, open_page: OpenPage, site: Site, photo: Path, tmp_path: Path) -> None:
    """Waiting and collecting, with a file, an uploaded link and an example; every value arrives unchanged."""
    with lora_site(site) as web:
        web.files["/it's, ink:2"] = lora_file()
        _is_run_as_it_is(language, open_page, site, photo, tmp_path, f"{web.url}/it's,%20ink:2")


def _is_run_as_it_is(language: str, open_page: OpenPage, site: Site, photo: Path, tmp_path: Path, address: str) -> None:
    page = open_page()
    page.set_input_files("#file", photo)
    page.fill("#prompt", PROMPT)
    for name, strength in LORAS:
        page.get_by_role("checkbox", name=name, exact=True).check()
        page.get_by_label(f"Strength of {name}", exact=True).fill(f"{strength:g}")
    page.get_by_role("button", name="Add one of your own").click()
    page.get_by_label("Address of a LoRA").fill(f"{address}:0.5")
    page.keyboard.press("Enter")
    page.fill("#p-seed", str(SEED))
    page.fill("#p-num_inference_steps", "4")
    page.get_by_text("Output and speed").click()
    page.get_by_role("radio", name="webp").check()
    page.get_by_text("Everything else").click()
    page.get_by_role("switch", name="No safety check").check()

    def run(mode: str, kind: str) -> None:
        folder = tmp_path / f"{mode} {kind}"
        folder.mkdir()
        if kind == "file":
            shutil.copy(photo, folder)
        code = copied(page, language, mode)
        assert site.key not in code
        before = len(site.fleet.requests)
        picture = executed(code, language, folder, site.key)
        assert picture.format == "WEBP"
        (asked,) = site.fleet.requests[before:]
        assert (asked.prompt, asked.seed, asked.steps, asked.guidance) == (PROMPT, SEED, 4, 7.0)
        assert {name.partition("@")[0]: by for name, by in asked.loras} == {**dict(LORAS), "it-s-ink-2": 0.5}
        assert asked.photo is not None

    run("Wait for it", "file")
    run("Submit, then collect", "file")
    page.get_by_role("button", name="upload the photo").click()
    expect(page.locator("#code-note")).not_to_contain_text("upload the photo")
    run("Wait for it", "link")
    page.locator(".example").first.click()
    expect(page.locator("#drop-full")).to_contain_text(".webp")
    page.fill("#prompt", PROMPT)
    run("Submit, then collect", "example")


def test_no_text_of_a_link_becomes_code(open_page: OpenPage) -> None:
    """The format names the file, and a link's can be any text: what isn't one is only ever quoted."""
    page = open_page("/" + linked('{"prompt": "x", "output_format": "png; touch here #", "num_images": 2}'), key=None)
    for language in RUN:
        page.get_by_role("tab", name=language, exact=True).click()
        for mode in ("Wait for it", "Submit, then collect"):
            page.get_by_role("radio", name=mode).check()
            lines = page.locator("#code").inner_text().splitlines()
            [line] = [each for each in lines if "touch here" in each]
            assert re.search(r"""["'=]png; touch here #["']""", line), line
