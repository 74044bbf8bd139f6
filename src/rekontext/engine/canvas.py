"""Which picture sizes the model knows, and which one an edit gets. No tensors and no pictures here.

FLUX.1 Kontext was trained on 17 sizes of about one megapixel (`PREFERED_KONTEXT_RESOLUTIONS` in black-forest-labs/flux,
src/flux/util.py). A model with a smaller native canvas has the same 17 shapes, scaled and snapped to whole tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from typing import Final

from rekontext.contract import AspectRatio

PIXELS_PER_TOKEN: Final = 16
"""Side of the square of pixels behind one token: 8x autoencoder, 2x2 packing."""

KONTEXT_AREA: Final = 1024 * 1024

Size = tuple[int, int]
"""Width, height in pixels."""

TRAINED_SIZES: Final[tuple[Size, ...]] = (
    (672, 1568),
    (688, 1504),
    (720, 1456),
    (752, 1392),
    (800, 1328),
    (832, 1248),
    (880, 1184),
    (944, 1104),
    (1024, 1024),
    (1104, 944),
    (1184, 880),
    (1248, 832),
    (1328, 800),
    (1392, 752),
    (1456, 720),
    (1504, 688),
    (1568, 672),
)

# The labels are nominal: 1328x800 is 1.66, not 1.78. This is the table that the model was released with.
_RATIO_SIZES: Final[dict[AspectRatio, Size]] = {
    "1:1": (1024, 1024),
    "16:9": (1328, 800),
    "21:9": (1568, 672),
    "3:2": (1248, 832),
    "2:3": (832, 1248),
    "4:5": (944, 1104),
    "5:4": (1104, 944),
    "3:4": (880, 1184),
    "4:3": (1184, 880),
    "9:16": (800, 1328),
    "9:21": (672, 1568),
}


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The sizes of one model.

    Attributes:
        area: native pixels per picture; 1048576 for the published weights.
    """

    area: int = KONTEXT_AREA

    def __post_init__(self) -> None:
        if self.area < (4 * PIXELS_PER_TOKEN) ** 2:
            raise ValueError(f"a canvas of {self.area} pixels is too small: at least 4096 (64 x 64) are needed")

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The trained sizes on this canvas, narrow to wide."""
        return tuple(self._scaled(size) for size in TRAINED_SIZES)

    def nearest(self, size: Size) -> Size:
        """The trained size whose width/height is nearest to that of `size`; of two equally near, the narrower one.

        Whole tokens of `size` count, as in diffusers, so that of two shapes that are about as near both take the same.
        What has one of the canvas's sizes keeps it. On canvases other than the published one that has to be said: their
        sizes are whole tokens, so that their ratios aren't those of the trained sizes any more.
        """
        if size in self.sizes:
            return size
        width, height = (max(side // PIXELS_PER_TOKEN, 1) for side in size)
        _, index = min((abs(width / height - w / h), i) for i, (w, h) in enumerate(TRAINED_SIZES))
        return self.sizes[index]

    def output(self, aspect_ratio: AspectRatio, photo: Size | None) -> Size:
        """The size of the edited picture; without a photo, "match_input_image" is a square."""
        if aspect_ratio == "match_input_image":
            return self.nearest(photo) if photo else self._scaled((1024, 1024))
        return self._scaled(_RATIO_SIZES[aspect_ratio])

    def _scaled(self, size: Size) -> Size:
        scale = sqrt(self.area / KONTEXT_AREA) / PIXELS_PER_TOKEN
        width, height = (max(1, round(side * scale)) * PIXELS_PER_TOKEN for side in size)
        return width, height
