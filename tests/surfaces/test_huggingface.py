"""Hugging Face's own client, pointed at this server by its base_url."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.surfaces.served import Served


@pytest.fixture
def client(served: Served) -> InferenceClient:
    return InferenceClient(base_url=f"{served.url}/hf/flux-kontext-dev", api_key=served.key)


def test_image_to_image_brings_the_picture(client: InferenceClient, photo: Path) -> None:
    """From a path, in the shape that was asked for."""
    picture = client.image_to_image(
        str(photo),
        prompt="invert it",
        num_inference_steps=4,
        guidance_scale=2.5,
        target_size={"width": 768, "height": 512},  # type: ignore[arg-type]  # what its own class is sent as
    )
    assert (picture.format, picture.size) == ("PNG", (312, 208))


def test_loras_are_sent_on(
    client: InferenceClient, served: Served, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As any argument that the client doesn't know."""
    monkeypatch.setattr(served.studio.fleet, "loras", ("ink",))
    client.image_to_image(str(photo), prompt="invert it", num_inference_steps=4, loras=["ink:0.5"])
    assert served.studio.fleet.requests[-1].loras == (("ink", 0.5),)


def test_what_is_wrong_is_said_by_the_client(client: InferenceClient, photo: Path) -> None:
    """In its own names."""
    with pytest.raises(HfHubHTTPError, match="guidance_scale is 99"):
        client.image_to_image(str(photo), prompt="invert it", guidance_scale=99)


def test_a_photo_alone_lacks_its_prompt(client: InferenceClient, photo: Path) -> None:
    """Without parameters this client sends the bare file."""
    with pytest.raises(HfHubHTTPError, match="prompt is missing"):
        client.image_to_image(str(photo))
