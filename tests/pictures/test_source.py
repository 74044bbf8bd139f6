"""The forms in which a picture may come as text."""

from __future__ import annotations

import base64
from typing import Final
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekontext.pictures import PictureLimits, PictureRefused, PictureTooLarge
from rekontext.pictures.source import bytes_from_text

LIMITS: Final = PictureLimits(bytes_max=1000, pixels_max=1000)


@given(st.binary(min_size=1, max_size=300), st.integers(1, 80), st.booleans(), st.booleans())
def test_base64_in_any_dress(data: bytes, line: int, is_padded: bool, is_url_safe: bool) -> None:
    """Lines of any length, with or without padding, in either alphabet, bare or as a data URI."""
    text = (base64.urlsafe_b64encode if is_url_safe else base64.b64encode)(data).decode()
    text = text if is_padded else text.rstrip("=")
    wrapped = "\r\n".join(text[start : start + line] for start in range(0, len(text), line))
    assert bytes_from_text(wrapped, LIMITS) == data
    assert bytes_from_text(f"data:image/png;base64,{wrapped}", LIMITS) == data
    assert bytes_from_text(f"DATA:;charset=x;BASE64,{quote(text)}", LIMITS) == data
    assert bytes_from_text(f"data:image/png; base64 , {wrapped}", LIMITS) == data


def test_a_data_uri_may_be_percent_encoded() -> None:
    """RFC 2397 without base64."""
    assert bytes_from_text("data:image/gif,GIF89a%00%ff", LIMITS) == b"GIF89a\x00\xff"


@pytest.mark.parametrize("text", ["A", "AAAAA", "cat.jpg", "AA==AA", "data:image/png;base64,AA AA*"])
def test_what_is_not_base64_is_refused(text: str) -> None:
    """The sentence says what may be sent instead."""
    with pytest.raises(PictureRefused, match=r"not base64.*send an http\(s\) URL, a data URI"):
        bytes_from_text(text, LIMITS)


def test_the_limit_holds_before_decoding() -> None:
    """1000 bytes pass and 1001 do not."""
    assert len(bytes_from_text(base64.b64encode(bytes(1000)).decode(), LIMITS)) == 1000
    with pytest.raises(PictureTooLarge, match="1001 bytes; at most 1000"):
        bytes_from_text(base64.b64encode(bytes(1001)).decode(), LIMITS)
