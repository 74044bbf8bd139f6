"""Dollars as people write them <-> whole micro-dollars as we count them. No floats on the way in."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Final

MICROS_PER_USD: Final = 1_000_000
AMOUNT_MICROS_MAX: Final = 10**15
"""One transfer's limit, a billion dollars: far from the edge of a 64-bit balance."""

_DOLLARS_MAX: Final = AMOUNT_MICROS_MAX // MICROS_PER_USD
_MICRO: Final = Decimal("0.000001")


def parse_usd(text: str) -> int:
    """Micro-dollars for "10", "0.04" or "-2.5".

    Raises:
        ValueError: not a plain decimal number, finer than a micro-dollar, or beyond `AMOUNT_MICROS_MAX`.
    """
    try:
        dollars = Decimal(text)
    except InvalidOperation:
        dollars = Decimal("NaN")
    if not dollars.is_finite():
        raise ValueError(f"{text!r} is not an amount in US dollars; write it like 10 or 0.04")
    # Comparing is exact whatever the digits, and below the bound so is rounding; arithmetic would round to 28 digits.
    if dollars.copy_abs() > _DOLLARS_MAX:
        raise ValueError(f"{text!r} is beyond the largest amount, {_DOLLARS_MAX} dollars")
    rounded = dollars.quantize(_MICRO)
    if rounded != dollars:
        raise ValueError(f"{text!r} is finer than a micro-dollar (0.000001)")
    return int(rounded * MICROS_PER_USD)


def usd(micros: int) -> float:
    """Dollars as a JSON number: 40_000 is 0.04. For showing only, never for counting."""
    return micros / MICROS_PER_USD


def format_usd(micros: int) -> str:
    """Dollars for a sentence: at least two decimals and as many more as are needed."""
    sign = "-" if micros < 0 else ""
    whole, fraction = divmod(abs(micros), MICROS_PER_USD)
    return f"{sign}${whole}.{f'{fraction:06d}'.rstrip('0').ljust(2, '0')}"
