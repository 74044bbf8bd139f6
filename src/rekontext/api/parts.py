"""What the surfaces are made of: the parts that the composition root puts together and every router takes from."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from starlette.requests import Request

from rekontext.accounts import Scope
from rekontext.api.auth import Caller, Keys, caller_of
from rekontext.api.brought import BroughtLoras
from rekontext.api.disk import DiskCheck
from rekontext.api.documents import Documents
from rekontext.api.edits import Edits
from rekontext.api.forecast import Forecast
from rekontext.api.links import Links
from rekontext.api.orders import OrderReader
from rekontext.api.origins import Origins
from rekontext.contract import Fleet
from rekontext.database import Database
from rekontext.dialling import AllowList
from rekontext.jobs import Deliverer, Desk, Dispatcher, Objects
from rekontext.pictures import CodecThreads, PhotoReader
from rekontext.sources import Clock, Ids, Randomness


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """Bounds that several surfaces say or keep.

    Attributes:
        body_bytes_max: of one request.
        bodies_bytes_max: of all bodies that this process holds at a time.
        picture_bytes_max: of one photo.
        idempotency_s: an idempotency key is known for so long.
        uploads_bytes_max, loras_bytes_max: of all that are kept of an account.
        lora_bytes_max: of one that an account brings; 0 where none is taken.
        queued_max, in_flight_max, running_max: jobs that wait, that an account may have, that run here.
    """

    body_bytes_max: int
    bodies_bytes_max: int
    picture_bytes_max: int
    idempotency_s: float
    uploads_bytes_max: int
    loras_bytes_max: int
    lora_bytes_max: int
    queued_max: int
    in_flight_max: int
    running_max: int


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that answers are made from. Lives as long as the app.

    Attributes:
        fleet: asked only what model it serves, with which LoRAs on offer, whether it is ready and how its devices are.
        receivers: what of webhooks' addresses that aren't public may be dialled all the same.
        pepper: under which keys are hashed.
        closing: set when the server goes down: answers that could go on for long end then.
    """

    database: Database
    desk: Desk
    dispatcher: Dispatcher
    deliverer: Deliverer
    objects: Objects
    disk: DiskCheck
    fleet: Fleet
    forecast: Forecast
    edits: Edits
    keys: Keys
    orders: OrderReader
    photos: PhotoReader
    brought: BroughtLoras
    threads: CodecThreads
    links: Links
    origins: Origins
    documents: Documents
    clock: Clock
    ids: Ids
    randomness: Randomness
    receivers: AllowList
    pepper: bytes
    limits: ServiceLimits
    closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def caller(self, request: Request, scope: Scope | None) -> Caller:
        """As `auth.caller_of`."""
        return await caller_of(request, self.keys, scope)
