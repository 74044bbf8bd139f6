"""What a person does first on the playground, in every test of it."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page, expect


def choose(page: Page, photo: Path, prompt: str = "make it night") -> None:
    """A photo and an instruction."""
    page.set_input_files("#file", photo)
    expect(page.locator("#drop-full")).to_be_visible()
    page.fill("#prompt", prompt)


def run(page: Page) -> None:
    """By the keyboard, wherever the focus is."""
    page.keyboard.press("Control+Enter")
