"""One key and one body are one job, however often and however many at once ask for it."""

from __future__ import annotations

import asyncio

import pytest

from rekontext.database import JobId
from tests.api.conftest import MakeStudio
from tests.api.orders import GOOD, V1, V2, followed
from tests.api.studio import Studio

pytestmark = pytest.mark.anyio


async def test_one_key_and_one_body_are_one_job(studio: Studio) -> None:
    """Also across v1 and v2, also as a form; it is charged once and runs once. Another body is a 409."""
    key = {"idempotency-key": "order-17"}
    form = {name: (None, str(value)) for name, value in GOOD.items()}
    async with studio.open() as client:
        first = await client.post(V2, json=GOOD, headers=key)
        again = await client.post(V2, json=dict(reversed(GOOD.items())), headers=key)
        waited = await client.post(V1, json=GOOD, headers=key)
        as_form = await client.post(V2, files=form, headers=key)
        spelled = await client.post(V2, json=GOOD | {"seed": None, "ignored": 1}, headers=key)
        defaults = {"guidance": 7, "num_inference_steps": 35.0, "output_format": "png", "seed": -1, "previews": 0}
        spelled_out = await client.post(V2, json=defaults | GOOD, headers=key)
        wrong = await client.post(V2, json=GOOD | {"guidance": 11}, headers=key)
        other = await client.post(V2, json=GOOD | {"seed": 1}, headers=key)
        balance = (await client.get("/v1/get-user-credits")).json()["free-credits"]
    job = first.json()["request_id"]
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert [each.json()["request_id"] for each in (again, as_form, spelled, spelled_out)] == [job] * 4
    assert (wrong.status_code, wrong.json()["code"]) == (409, "idempotency_key_reused")
    assert (waited.status_code, waited.headers["x-request-id"]) == (200, job)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_key_reused")
    assert len(studio.fleet.requests) == 1
    assert balance == pytest.approx(9.96)


async def test_a_repeated_request_for_a_picture_whose_time_is_up(make_studio: MakeStudio) -> None:
    """Also before a sweep has been by; whoever waits for the edit itself gets it, however short its time is."""
    key = {"idempotency-key": "late"}
    async with make_studio(keep_outputs_s=0.001).open() as client:
        first = await client.post(V1, json=GOOD, headers=key)
        again = await client.post(V1, json=GOOD, headers=key)
    assert (first.status_code, first.headers["content-type"]) == (200, "image/png")
    assert (again.status_code, again.json()["code"]) == (404, "file_gone")


async def test_a_repeated_request_for_a_picture_that_is_gone(studio: Studio) -> None:
    """The job is known and not charged again; its picture can't be had any more."""
    key = {"idempotency-key": "late"}
    async with studio.open() as client:
        first = await client.post(V1, json=GOOD, headers=key)
        job = await studio.service.parts.desk.job(JobId(first.headers["x-request-id"]), account=None)
        assert job.outputs is not None
        await studio.service.parts.objects.delete(job.outputs[0].key)
        again = await client.post(V1, json=GOOD, headers=key)
        balance = (await client.get("/v1/get-user-credits")).json()["free-credits"]
    assert (again.status_code, again.json()["code"]) == (404, "file_gone")
    assert balance == pytest.approx(9.96)


async def test_thirty_two_submits_at_once_with_one_key_make_one_job(studio: Studio) -> None:
    """Whoever comes first makes it; all get it."""
    async with studio.open() as client:
        answers = await asyncio.gather(
            *(client.post(V2, json=GOOD, headers={"idempotency-key": "k"}) for _ in range(32))
        )
        await followed(client, answers[0].json()["events_url"])
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["request_id"] for answer in answers}) == 1
    assert len(studio.fleet.requests) == 1
    assert [answer.headers.get("idempotency-replayed") for answer in answers].count(None) == 1
