"""`rekontext edit`: a picture in, the edited one out."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.cli.commands import Run


@pytest.mark.parametrize(("name", "expected"), [("a.png", "PNG"), ("b.JPG", "JPEG"), ("c.webp", "WEBP")])
def test_edit_writes_the_picture(run: Run, model: str, name: str, expected: str) -> None:
    """The format follows the name, and the line on standard output says what was made."""
    outcome = run(["edit", "photo.jpg", "make it night", "-o", name, "--model", model, "--steps", "4", "--seed", "7"])
    assert outcome.code == 0, outcome.err
    with Image.open(name) as written:
        assert written.format == expected
        assert f"{name}  {written.width}x{written.height}  seed 7" in outcome.out
    assert sorted(each.name for each in Path.cwd().iterdir()) == sorted([name, "photo.jpg"])


def test_edit_is_repeatable_by_its_seed(run: Run, model: str) -> None:
    """A drawn seed is told, and giving it back makes the same file; --output-format beats the name."""
    options = ["--model", model, "--steps", "4", "--aspect-ratio", "1:1", "--output-format", "png"]
    first = run(["edit", "photo.jpg", "blur it", "-o", "one.jpg", *options])
    seed = first.out.split("seed ")[1].split()[0]
    run(["edit", "photo.jpg", "blur it", "-o", "two.jpg", *options, "--seed", seed])
    assert Path("one.jpg").read_bytes() == Path("two.jpg").read_bytes()
    with Image.open("one.jpg") as written:
        assert (written.format, written.width) == ("PNG", written.height)


def test_a_failed_edit_leaves_the_old_file(run: Run) -> None:
    """OUT is replaced whole or not at all."""
    Path("a.png").write_bytes(b"precious")
    assert run(["edit", "photo.jpg", "x", "-o", "a.png", "--model", "./nowhere"]).code == 2
    assert Path("a.png").read_bytes() == b"precious"
