"""`rekontext edit`: a picture in, the edited one out."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from rekontext.photos import stretch
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
    """A drawn seed is told, and giving it back makes the same file; a name that asks for no format takes any."""
    options = ["--model", model, "--steps", "4", "--aspect-ratio", "1:1", "--output-format", "png"]
    first = run(["edit", "photo.jpg", "blur it", "-o", "one.picture", *options])
    seed = first.out.split("seed ")[1].split()[0]
    run(["edit", "photo.jpg", "blur it", "-o", "two.picture", *options, "--seed", seed])
    assert Path("one.picture").read_bytes() == Path("two.picture").read_bytes()
    with Image.open("one.picture") as written:
        assert (written.format, written.width) == ("PNG", written.height)


def test_a_failed_edit_leaves_the_old_file(run: Run) -> None:
    """OUT is replaced whole or not at all."""
    Path("a.png").write_bytes(b"precious")
    assert run(["edit", "photo.jpg", "x", "-o", "a.png", "--model", "./nowhere"]).code == 2
    assert Path("a.png").read_bytes() == b"precious"


def test_an_edit_can_be_kept_to_a_part(run: Run, model: str) -> None:
    """Elsewhere the photo's own pixels are written, at the picture's size."""
    with Image.open("photo.jpg") as opened:
        photo = opened.convert("RGB")
    mask = Image.new("L", photo.size)
    mask.paste(255, (0, 0, photo.width // 2, photo.height))
    mask.save("mask.png")
    options = ["--mask", "mask.png", "--model", model, "--steps", "4", "--seed", "7"]
    outcome = run(["edit", "photo.jpg", "make it night", "-o", "a.png", *options])
    assert outcome.code == 0, outcome.err
    with Image.open("a.png") as written:
        right = (3 * written.width // 4, 0, written.width, written.height)
        kept = stretch(photo, written.size).crop(right)
        assert written.crop(right).tobytes() == kept.tobytes()
        left = (0, 0, written.width // 4, written.height)
        assert written.crop(left).tobytes() != stretch(photo, written.size).crop(left).tobytes()


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        (Image.new("L", (9, 9)), "mask.png marks nothing: it must be white where the photo may change"),
        (Image.new("L", (9, 900), "white"), "mask is 9 x 900 and photo"),
    ],
)
def test_a_mask_that_does_not_fit_is_named(run: Run, model: str, mask: Image.Image, says: str) -> None:
    mask.save("mask.png")
    outcome = run(["edit", "photo.jpg", "x", "-o", "a.png", "--mask", "mask.png", "--model", model])
    assert outcome.code == 2
    assert says in outcome.err
    assert not Path("a.png").exists()
