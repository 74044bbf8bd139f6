"""What a person does first on the playground, in every test of it, and what the browser keeps of it."""

from __future__ import annotations

import base64
from pathlib import Path

from playwright.sync_api import Page, expect


def choose(page: Page, photo: Path, prompt: str = "make it night") -> None:
    """A photo and an instruction."""
    page.set_input_files("#file", photo)
    expect(page.locator("#drop-full")).to_be_visible()
    page.fill("#prompt", prompt)


def drop(page: Page, where: str, name: str, data: bytes = b"", kind: str = "") -> None:
    """A file of this name and type, onto a part of the page."""
    page.evaluate(
        """([where, name, data, type]) => {
            const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, {type}));
            const how = {bubbles: true, cancelable: true, dataTransfer};
            for (const what of ["dragenter", "dragover", "drop"])
                document.querySelector(where).dispatchEvent(new DragEvent(what, how));
        }""",
        [where, name, base64.b64encode(data).decode(), kind],
    )


def run(page: Page) -> None:
    """By the keyboard, wherever the focus is."""
    page.keyboard.press("Control+Enter")


def linked(text: str) -> str:
    """The fragment of a share link with this request."""
    return "#edit=" + base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def await_draft(page: Page, *expected: str) -> None:
    """Whose photo, prompt and guidance are kept for this tab: nothing on the page tells when that is done."""
    kept = """() => new Promise((resolve) => {
        indexedDB.open("rekontext.draft").onsuccess = ({ target: { result: database } }) => {
            const store = database.transaction("draft").objectStore("draft");
            const tab = sessionStorage.getItem("rekontext.tab");
            const [photo, request] = ["photo", "request"].map((part) => store.get([part, tab]));
            store.transaction.oncomplete = () => {
                database.close();
                const {prompt, values} = request.result?.value ?? {};
                resolve([photo.result?.value?.name, prompt, String(values?.guidance)]);
            };
        };
    })"""
    for _ in range(500):
        if page.evaluate(kept) == list(expected):
            return
        page.wait_for_timeout(10)
    raise AssertionError(f"{page.evaluate(kept)} is kept, not {expected}")


def change_kept_run(page: Page, change: str) -> None:
    """The one edit that this browser keeps, as a function in JavaScript makes it of what it was; read at a reload."""
    page.evaluate(
        """() => new Promise((resolve) => {
            indexedDB.open("rekontext").onsuccess = ({ target: { result: database } }) => {
                const store = database.transaction("runs", "readwrite").objectStore("runs");
                store.getAll().onsuccess = ({ target: { result: [run] } }) => store.put((CHANGE)(run));
                store.transaction.oncomplete = () => resolve(database.close());
            };
        })""".replace("CHANGE", change)
    )
