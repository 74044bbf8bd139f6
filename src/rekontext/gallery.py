"""One picture that shows what a model does: a row per photo, a column per instruction, in bands as wide as a page.

Knows layout and labels. Knows the engine only by its `edit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Final, Protocol

from PIL import Image, ImageDraw, ImageFont, ImageOps

from rekontext.photos import seen

GROUND: Final = (250, 250, 248)
INK: Final = (40, 40, 44)
GAP: Final = 10
MARGIN: Final = 20
BAND_MAX: Final = 5
"""Instructions side by side at the most; more go below, since a page shows the sheet shrunk to its own width."""


class Editor(Protocol):
    """What draws the cells: an `Engine`, or a double of one."""

    def edit(
        self, photo: Image.Image | None, prompt: str, *, steps: int = ..., guidance: float = ..., seed: int | None = ...
    ) -> Image.Image:
        """The photo, edited as the prompt says."""
        ...


def draw(
    engine: Editor,
    photos: Sequence[Image.Image],
    instructions: Sequence[str],
    *,
    steps: int = 35,
    guidance: float = 7.0,
    seed: int = 42,
    cell_px: int = 220,
    on_cell: Callable[[int, int], None] | None = None,
) -> Image.Image:
    """Edit every photo by every instruction and lay the results out under their instructions, `BAND_MAX` in a band.

    Args:
        photos: at least one, of any size and mode. The first column shows them as they are.
        instructions: at least one. Their text is wrapped to the column's width.
        cell_px: side of the square that holds one picture; a picture keeps its own shape inside.
        on_cell: called with the cells done and all cells after each edit, for progress.

    Raises:
        ValueError: no photo or no instruction.
    """
    if not photos or not instructions:
        raise ValueError("a gallery needs at least one photo and one instruction")
    originals = [seen(photo) for photo in photos]
    bands = ceil(len(instructions) / BAND_MAX)
    columns = ceil(len(instructions) / bands)
    strips = []
    for first in range(0, len(instructions), columns):
        shown = instructions[first : first + columns]
        rows = [[photo] for photo in originals]
        for row, (photo, pictures) in enumerate(zip(originals, rows, strict=True)):
            for column, instruction in enumerate(shown):
                pictures.append(engine.edit(photo, instruction, steps=steps, guidance=guidance, seed=seed))
                if on_cell is not None:
                    done = first * len(photos) + row * len(shown) + column + 1
                    on_cell(done, len(photos) * len(instructions))
        strips.append(_band(["the photo", *shown], rows, cell_px))
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips) - MARGIN * (bands - 1)), GROUND)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height - MARGIN
    return sheet


def _band(columns: Sequence[str], rows: Sequence[Sequence[Image.Image]], cell_px: int) -> Image.Image:
    """Rows of pictures under the columns' names; each row is as high as its first picture is in a cell."""
    font = ImageFont.load_default(max(12, cell_px // 11))
    labels = [_wrapped(text, font, cell_px - 8) for text in columns]
    line = font.getbbox("Hg")[3] * 1.3
    header = int(max(label.count("\n") + 1 for label in labels) * line) + GAP
    pitch = cell_px + GAP
    heights = [min(cell_px, round(cell_px * row[0].height / row[0].width)) for row in rows]
    width = 2 * MARGIN + len(columns) * pitch - GAP
    band = Image.new("RGB", (width, 2 * MARGIN + header + sum(heights) + GAP * (len(rows) - 1)), GROUND)
    pen = ImageDraw.Draw(band)
    for column, label in enumerate(labels):
        centre = MARGIN + column * pitch + cell_px / 2
        pen.multiline_text((centre, MARGIN + header - GAP), label, fill=INK, font=font, anchor="md", align="center")
    top = MARGIN + header
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            fitted = ImageOps.contain(picture, (cell_px, height), Image.Resampling.LANCZOS)
            left = MARGIN + column * pitch + (cell_px - fitted.width) // 2
            band.paste(fitted, (left, top + (height - fitted.height) // 2))
        top += height + GAP
    return band


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width_px: int) -> str:
    """The text with line breaks between words, so that no line is wider than `width_px` where words allow it."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width_px:
            lines[-1] = longer
        else:
            lines.append(word)
    return "\n".join(lines)
