"""The gallery: one cell per photo and instruction, labels above, photos' shapes kept."""

from __future__ import annotations

import pytest
from PIL import ExifTags, Image

from rekontext.gallery import BAND_MAX, GROUND, draw


class Painter:
    """Answers with a plain picture whose colour tells the prompt."""

    def __init__(self) -> None:
        self.asked: list[tuple[tuple[int, int], str, int | None]] = []

    def edit(
        self,
        photo: Image.Image | None,
        prompt: str,
        *,
        steps: int = 35,
        guidance: float = 7.0,
        seed: int | None = None,
    ) -> Image.Image:
        assert photo is not None
        self.asked.append((photo.size, prompt, seed))
        return Image.new("RGB", photo.size, {"make it red": "red", "make it blue": "blue"}[prompt])


def test_each_photo_gets_a_row_and_each_instruction_a_column() -> None:
    painter, progress = Painter(), list[tuple[int, int]]()
    photos = [Image.new("RGB", (200, 100), "lime"), Image.new("L", (100, 100), 128)]
    sheet = draw(
        painter,
        photos,
        ["make it red", "make it blue"],
        seed=5,
        cell_px=100,
        on_cell=lambda done, cells: progress.append((done, cells)),
    )
    assert painter.asked == [
        ((200, 100), "make it red", 5),
        ((200, 100), "make it blue", 5),
        ((100, 100), "make it red", 5),
        ((100, 100), "make it blue", 5),
    ]
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    counts = {colour: count for count, colour in sheet.getcolors(2**20) or []}
    assert counts[(0, 255, 0)] == 100 * 50
    assert counts[(255, 0, 0)] == counts[(0, 0, 255)] == 100 * 50 + 100 * 100
    assert counts[GROUND] > 0


def test_more_instructions_than_a_page_is_wide_go_below() -> None:
    """Eleven columns side by side, shrunk to a page's width, had labels that nobody could read."""
    painter, progress = Painter(), list[int]()
    photo = Image.new("RGB", (100, 100), "lime")
    instructions = ["make it red", "make it blue"] * 3
    full = draw(painter, [photo], instructions[:BAND_MAX], cell_px=100)
    split = draw(painter, [photo] * 2, instructions, cell_px=100, on_cell=lambda done, _: progress.append(done))
    assert progress == list(range(1, 13))
    assert split.width < full.width, "six are three and three, not five and a lone one"
    counts = {colour: count for count, colour in split.getcolors(2**20) or []}
    assert counts[(0, 255, 0)] == 4 * 100 * 100, "each band shows the photos again"
    assert counts[(255, 0, 0)] == counts[(0, 0, 255)] == 6 * 100 * 100


def test_a_photo_that_was_taken_turned_stands_upright_in_a_row_of_its_own_shape() -> None:
    """Its file says that it lies on its side."""
    photo = Image.new("RGB", (100, 50), "lime")
    photo.getexif()[ExifTags.Base.Orientation] = 6
    sheet = draw(Painter(), [photo], ["make it red"], cell_px=100)
    counts = {colour: count for count, colour in sheet.getcolors(2**20) or []}
    assert counts[(0, 255, 0)] == counts[(255, 0, 0)] == 50 * 100


def test_a_long_instruction_is_wrapped_above_its_column() -> None:
    """The page's own prompt has thirty words: it must not run into its neighbours."""

    class Echo(Painter):
        def edit(self, photo: Image.Image | None, prompt: str, **_: object) -> Image.Image:
            assert photo is not None
            return photo

    photo = Image.new("RGB", (64, 64))
    short, long = (draw(Echo(), [photo], [text], cell_px=100) for text in ("blur", "blur " * 30))
    assert long.width == short.width
    assert long.height > short.height + 50


@pytest.mark.parametrize(("photos", "instructions"), [(0, 1), (1, 0)])
def test_an_empty_gallery_is_refused(photos: int, instructions: int) -> None:
    with pytest.raises(ValueError, match="at least one photo and one instruction"):
        draw(Painter(), [Image.new("RGB", (8, 8))] * photos, ["make it red"] * instructions)
