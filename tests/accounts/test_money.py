"""Dollars are counted in whole micro-dollars and never pass through a float on the way in."""

from __future__ import annotations

import re
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekontext.accounts import Tariff, format_usd, parse_usd, usd

NOT_AMOUNTS: Final = [
    *("", "ten", "nan", "snan", "-inf", "$5"),
    *("1_5", "\uff11\uff10", "\u0661", "1e3", "1E-2", "1e999999", " 5", "5\n", "+5", "5.", ".5", "--5", "1,5"),
    *("0.0000001", "1000000.00000000000000000000000001", f"0.{'0' * 999}1"),
    *("1000000000.000001", "-1000000000.000001", "9" * 999),
]


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("10", 10_000_000),
        ("0.04", 40_000),
        ("-2.5", -2_500_000),
        ("007", 7_000_000),
        ("0.0400000000000000000000000000000000", 40_000),
        ("-1000000000", -(10**15)),
    ],
)
def test_amounts_are_read_exactly(text: str, micros: int) -> None:
    """0.04 is 40 000, not 39 999.999..."""
    assert parse_usd(text) == micros


@pytest.mark.parametrize("text", NOT_AMOUNTS)
def test_what_is_no_amount_is_refused_by_its_name(text: str) -> None:
    """The operator sees what was typed, and nobody's 1_5 is booked as 15."""
    with pytest.raises(ValueError, match=f"^{re.escape(repr(text))} is "):
        parse_usd(text)


@given(st.integers(-(10**15), 10**15))
def test_writing_and_reading_an_amount_changes_nothing(micros: int) -> None:
    """What a message shows can be typed back in."""
    assert parse_usd(format_usd(micros).replace("$", "")) == micros


def test_amounts_read_well() -> None:
    """At least two decimals, and no more than are needed."""
    assert [format_usd(m) for m in (0, 40_000, 10_000_000, -2_500_000, 1)] == [
        "$0.00",
        "$0.04",
        "$10.00",
        "-$2.50",
        "$0.000001",
    ]
    assert usd(40_000) == 0.04


def test_an_edit_costs_four_cents_by_default() -> None:
    """Whatever its size."""
    assert Tariff().price_micros(pixels=1024 * 1024, steps=35) == 40_000


def test_prices_by_size_and_steps_add_up_and_round_up() -> None:
    """A fraction of a micro-dollar is charged as a whole one."""
    tariff = Tariff(
        per_generation_micros=100, per_megapixel_micros=1_000, per_step_micros=10, per_megapixel_step_micros=1
    )
    assert tariff.price_micros(pixels=1_000_000, steps=20) == 100 + 1_000 + 200 + 20
    assert tariff.price_micros(pixels=1, steps=1) == 100 + 10 + 1


def test_a_negative_price_stops_the_start() -> None:
    """And says which it is."""
    with pytest.raises(ValueError, match="per_step_micros is -1"):
        Tariff(per_step_micros=-1)
