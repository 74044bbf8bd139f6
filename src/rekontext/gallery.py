"""One picture that shows what a model does: a row per photo, a column per instruction.

Knows layout and labels. Knows the engine only by its `edit`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, Protocol

from PIL import Image, ImageDraw, ImageFont, ImageOps

GROUND: Final = (250, 250, 248)
INK: Final = (40, 40, 44)
GAP: Final = 10
MARGIN: Final = 20


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
    """Edit every photo by every instruction and lay the results out under their instructions.

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
    font = ImageFont.load_default(max(12, cell_px // 14))
    columns = ["the photo", *instructions]
    labels = [_wrapped(text, font, cell_px - 8) for text in columns]
    line = font.getbbox("Hg")[3] * 1.3
    header = int(max(label.count("\n") + 1 for label in labels) * line) + GAP
    pitch = cell_px + GAP
    upright = [ImageOps.exif_transpose(photo).convert("RGB") for photo in photos]
    heights = [min(cell_px, round(cell_px * photo.height / photo.width)) for photo in upright]
    width = 2 * MARGIN + len(columns) * pitch - GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + header + sum(heights) + GAP * (len(photos) - 1)), GROUND)
    pen = ImageDraw.Draw(sheet)
    for column, label in enumerate(labels):
        centre = MARGIN + column * pitch + cell_px / 2
        pen.multiline_text((centre, MARGIN + header - GAP), label, fill=INK, font=font, anchor="md", align="center")
    done, top = 0, MARGIN + header
    for photo, height in zip(upright, heights, strict=True):
        for column in range(len(columns)):
            picture = photo
            if column:
                picture = engine.edit(photo, columns[column], steps=steps, guidance=guidance, seed=seed)
                done += 1
            fitted = ImageOps.contain(picture, (cell_px, height), Image.Resampling.LANCZOS)
            left = MARGIN + column * pitch + (cell_px - fitted.width) // 2
            sheet.paste(fitted, (left, top + (height - fitted.height) // 2))
            if column and on_cell is not None:
                on_cell(done, len(photos) * len(instructions))
        top += height + GAP
    return sheet


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
