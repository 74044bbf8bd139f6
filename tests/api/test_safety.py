"""What the safety check says reaches whoever ordered: a withheld picture is free, and nothing of it is seen."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Final

import httpx2
import pytest

from rekontext.api.workbench import EditWorkbench
from rekontext.safety import PictureWithheld, SafetyCheck, SafetyUnavailable
from tests.api.conftest import MakeStudio
from tests.api.orders import followed
from tests.api.studio import Studio
from tests.pictures.samples import photo_bytes

pytestmark = pytest.mark.anyio

V1: Final = "/v1/flux-kontext-dev"
V2: Final = "/v2/flux-kontext-dev"
GOOD: Final = {
    "prompt": "invert it",
    "input_image": base64.b64encode(photo_bytes()).decode(),
    "num_inference_steps": 4,
    "output_format": "webp",
}


class Said(SafetyCheck):
    """A check whose answers are known."""

    def __init__(self, *faults: Exception | None, is_optional: bool = False) -> None:
        super().__init__("http://nowhere/", is_optional=is_optional, timeout_s=1, agent="test")
        self.faults = list(faults)
        self.seen: list[tuple[bytes, str, str]] = []

    async def clear(
        self,
        picture: bytes,
        *,
        content_type: str,
        prompt: str,
        request_id: str,
        pauses_s: Sequence[float] = (),
    ) -> None:
        self.seen.append((picture[:4], content_type, prompt))
        if (fault := self.faults.pop(0)) is not None:
            raise fault


def checked(studio: Studio, check: Said) -> Studio:
    workbench = studio.service.parts.dispatcher._workbench
    assert isinstance(workbench, EditWorkbench)
    workbench._safety = check
    return studio


async def credits(client: httpx2.AsyncClient) -> float:
    told = (await client.get("/v1/get-user-credits")).json()
    return float(told["credits"] + told["free-credits"])


async def test_a_withheld_picture_is_told_and_free(studio: Studio) -> None:
    check = Said(PictureWithheld("a face"), PictureWithheld("a face"))
    async with checked(studio, check).open() as client:
        waited = await client.post(V1, json=GOOD)
        submitted = (await client.post(V2, json=GOOD)).json()
        await followed(client, submitted["events_url"])
        result = await client.get(submitted["response_url"])
        assert await credits(client) == 10
    sentence = "The safety check of this server withholds the picture: a face."
    for answer in (waited, result):
        assert (answer.status_code, answer.json()["code"]) == (422, "picture_withheld")
        assert answer.json()["error"] == sentence
    assert check.seen == [(b"RIFF", "image/webp", "invert it")] * 2
    assert [object async for object in studio.service.parts.objects.list("outputs")] == []


async def test_without_an_answer_the_edit_is_tried_again_and_then_fails_free(make_studio: MakeStudio) -> None:
    """As every fault of ours, a bounded number of times."""
    away = SafetyUnavailable("away")
    async with checked(make_studio(faults_max=2), Said(away, None, away, away)).open() as client:
        assert (await client.post(V1, json=GOOD)).status_code == 200
        failed = await client.post(V1, json=GOOD)
        assert await credits(client) == 10 - 0.04
    assert (failed.status_code, failed.json()["code"]) == (500, "safety_unavailable")


@pytest.mark.parametrize("is_optional", [False, True])
async def test_callers_turn_the_check_off_only_where_they_may(studio: Studio, is_optional: bool) -> None:
    """And an early look is made only of a picture that isn't checked."""
    check = Said(None, None, is_optional=is_optional)
    async with checked(studio, check).open() as client:
        for off in (False, True):
            order = GOOD | {"disable_safety_checker": off, "previews": 1}
            events = await followed(client, (await client.post(V2, json=order)).json()["events_url"])
            is_checked = not (off and is_optional)
            assert ("preview" in {name for name, _, _ in events}) is not is_checked
    assert len(check.seen) == (1 if is_optional else 2)
