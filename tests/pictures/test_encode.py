"""RGB pixels become png, jpg or webp bytes as asked, from any number of threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from xml.etree import ElementTree

import pytest
from PIL import Image, ImageChops

from rekontext.pictures import MEDIA_TYPES, OUTPUT_FORMATS, OutputFormat, encode, sniff
from tests.pictures.samples import gradient


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_each_format_is_what_it_says(output_format: OutputFormat) -> None:
    """The bytes are of the format that the media type names, and of the picture's size."""
    data = encode(gradient(), output_format)
    assert f"image/{sniff(data)}" == MEDIA_TYPES[output_format]
    assert Image.open(BytesIO(data)).size == (24, 16)


@pytest.mark.parametrize("output_format", OUTPUT_FORMATS)
def test_each_file_says_that_a_model_made_it(output_format: OutputFormat) -> None:
    """By IPTC's word for it, where programs look: in the XMP of any format."""
    with Image.open(BytesIO(encode(gradient(), output_format))) as picture:
        xmp = ElementTree.fromstring(picture.info["xmp"])
    [source] = [
        value
        for element in xmp.iter()
        for name, value in element.attrib.items()
        if name == "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    ]
    assert source == "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"


def test_png_is_exact_and_takes_no_notice_of_quality() -> None:
    """Every pixel survives."""
    data = encode(gradient(), "png", 0)
    assert ImageChops.difference(Image.open(BytesIO(data)), gradient()).getbbox() is None
    assert data == encode(gradient(), "png", 100)


@pytest.mark.parametrize("output_format", ["jpg", "webp"])
def test_quality_sets_the_size_down_to_zero(output_format: OutputFormat) -> None:
    """0 is the smallest, not a stand-in for a default."""
    noise = Image.effect_noise((128, 128), 80).convert("RGB")
    sizes = [len(encode(noise, output_format, quality)) for quality in (0, 30, 75, 100)]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] / 2


def test_one_picture_can_be_saved_by_many_threads() -> None:
    """No thread's options leak into another's file."""
    picture = gradient(200, 200)
    expected = {quality: encode(picture, "jpg", quality) for quality in (5, 95)}
    with ThreadPoolExecutor(8) as threads:
        jobs = [(quality, threads.submit(encode, picture, "jpg", quality)) for quality in (5, 95) * 20]
        assert all(job.result() == expected[quality] for quality, job in jobs)
