"""Somebody who takes messages, and what comes before them: an endpoint, and a job that ends."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlalchemy import Connection

from rekontext.database import EndpointId
from rekontext.jobs import EVENT_TYPES, endpoints
from rekontext.jobs.endpoints import Delivery, Endpoint
from rekontext.jobs.webhooks import Deliverer
from tests.fakes import FakeRandomness
from tests.jobs.office import ALICE, Office

URL = "https://example.com/hook"


@dataclass(kw_only=True)
class Receiver:
    """Answers each request with the next of `answers`, the last one for ever."""

    answers: list[int | Exception] = field(default_factory=lambda: [200])
    got: list[tuple[str, bytes, Mapping[str, str]]] = field(default_factory=list)

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> int:
        self.got.append((url, body, headers))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def add_endpoint(office: Office, *types: str, name: str = "end_1", url: str = URL) -> Endpoint:
    return office.database.transact_sync(lambda tx: add_in(tx, office, *types, name=name, url=url))


def add_in(tx: Connection, office: Office, *types: str, name: str, url: str = URL) -> Endpoint:
    return endpoints.add(
        tx,
        ALICE,
        endpoint=EndpointId(name),
        url=url,
        event_types=types or EVENT_TYPES,
        randomness=FakeRandomness(1),
        now=office.clock.now(),
    )


def log(office: Office) -> list[Delivery]:
    return office.database.read_sync(lambda tx: endpoints.deliveries(tx, ALICE))


def end_a_job(office: Office, *, webhook_url: str | None = None) -> str:
    job = office.start(office.order(webhook_url=webhook_url))
    return office.complete(job.lease).id


async def deliver_due(deliverer: Deliverer) -> int:
    """One turn of its `run`: as many due messages as may be under way, once each, waited for. How many these were."""
    claimed = await deliverer._claim(Counter())
    await asyncio.gather(*map(deliverer._deliver, claimed))
    return len(claimed)
