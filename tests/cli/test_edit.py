"""`rekontext edit`: a picture in, the edited one out."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import pytest
from PIL import Image

from rekontext.contract import SEED_MAX
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


def test_several_pictures_are_files_beside_the_first(run: Run, model: str) -> None:
    """Each is told with its seed, and is what an edit with that seed alone writes."""
    options = ["edit", "photo.jpg", "make it night", "--model", model, "--steps", "4"]
    outcome = run([*options, "-o", "night.PNG", "--num-images", "3", "--seed", str(SEED_MAX)])
    assert outcome.code == 0, outcome.err
    files = {"night.PNG": SEED_MAX, "night-2.PNG": 0, "night-3.PNG": 1}
    assert sorted(each.name for each in Path.cwd().iterdir()) == sorted([*files, "photo.jpg"])
    for line, (name, seed) in zip(outcome.out.splitlines(), files.items(), strict=True):
        with Image.open(name) as written:
            assert re.fullmatch(rf"{name}  {written.width}x{written.height}  seed {seed}  [\d.]+ s for 3", line)
        run([*options, "-o", "alone.png", "--seed", str(seed)])
        assert Path("alone.png").read_bytes() == Path(name).read_bytes()


@pytest.mark.parametrize("count", [0, 5])
def test_how_many_pictures_there_may_be_is_told(run: Run, count: int) -> None:
    """In one line, before anything is loaded."""
    outcome = run(["edit", "photo.jpg", "x", "-o", "a.png", "--num-images", str(count)])
    assert (outcome.code, outcome.err) == (2, f"error: --num-images is {count} (allowed: an integer from 1 to 4)\n")


def test_a_place_that_can_not_take_one_of_several_pictures_is_told_before_the_work(run: Run) -> None:
    """The model would be asked for next."""
    Path("a-3.png").mkdir()
    options = ["--num-images", "3", "--model", "./nowhere"]
    outcome = run(["edit", "photo.jpg", "x", "-o", "a.png", *options])
    assert (outcome.code, outcome.err) == (2, "error: a-3.png is a folder; give the name of a file in it\n")


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: a-3.png can't be written: No space left"),
    ],
)
def test_pictures_whose_writing_breaks_off_leave_what_was_there(
    run: Run, model: str, monkeypatch: pytest.MonkeyPatch, fault: BaseException, code: int, says: str
) -> None:
    """All of it and nothing besides, also where some of them had been written."""
    Path("a.png").write_bytes(b"precious")
    before = sorted(Path.cwd().iterdir())
    whole = Path.write_bytes
    room = iter([True, True])

    def write_bytes(path: Path, data: bytes) -> int:
        if next(room, False):
            return whole(path, data)
        whole(path, data[:9])
        raise fault

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    options = ["--num-images", "3", "--model", model, "--steps", "4"]
    outcome = run(["edit", "photo.jpg", "x", "-o", "a.png", *options])
    assert (outcome.code, outcome.out) == (code, "")
    assert says in outcome.err
    assert (sorted(Path.cwd().iterdir()), Path("a.png").read_bytes()) == (before, b"precious")


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
