"""What an edit costs. Knows no accounts and no money that anyone has."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Final

PER_GENERATION_MICROS_DEFAULT: Final = 40_000
_PIXELS_PER_MEGAPIXEL: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Tariff:
    """Prices in micro-dollars, added up: per edit, per megapixel, per step, per megapixel and step.

    Megapixels are those of the model's canvas, whatever shape within it is asked for: so a price is known beforehand.
    """

    per_generation_micros: int = PER_GENERATION_MICROS_DEFAULT
    per_megapixel_micros: int = 0
    per_step_micros: int = 0
    per_megapixel_step_micros: int = 0

    def __post_init__(self) -> None:
        for name, micros in vars(self).items():
            if micros < 0:
                raise ValueError(f"{name} is {micros}; a price can't be negative")

    def price_micros(self, *, pixels: int, steps: int) -> int:
        """The whole micro-dollars for one edit on a canvas of `pixels`, made in `steps`, rounded up."""
        assert min(pixels, steps) >= 0, f"an edit of {pixels} pixels in {steps} steps"
        megapixels = Fraction(pixels, _PIXELS_PER_MEGAPIXEL)
        price = (
            self.per_generation_micros
            + self.per_megapixel_micros * megapixels
            + self.per_step_micros * steps
            + self.per_megapixel_step_micros * megapixels * steps
        )
        return -(-price.numerator // price.denominator)
