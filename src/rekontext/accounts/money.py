"""Dollars as people write them <-> whole micro-dollars as we count them. No floats on the way in."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

MICROS_PER_USD: Final = 1_000_000
AMOUNT_MICROS_MAX: Final = 10**15
"""One transfer's limit, a billion dollars: far from the edge of a 64-bit balance."""

_DOLLARS_MAX: Final = AMOUNT_MICROS_MAX // MICROS_PER_USD
_MICRO: Final = Decimal("0.000001")
PLAIN: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?")
"""Decimal itself also reads 1_5 as 15, 1e3, and the digits of other scripts: slips that would be booked."""


def is_plain(text: str) -> bool:
    """Whether it is a number in plain digits, like "10", "0.04" or "-2.5"."""
    return PLAIN.fullmatch(text) is not None


def parse_usd(text: str) -> int:
    """Micro-dollars for "10", "0.04" or "-2.5".

    Raises:
        ValueError: not a plain decimal number, finer than a micro-dollar, or beyond `AMOUNT_MICROS_MAX`.
    """
    if not is_plain(text):
        raise ValueError(f"{text!r} is not an amount in US dollars; write it in plain digits, like 10 or 0.04")
    dollars = Decimal(text)
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
