"""A small service for tests: all of it, as the composition root makes it, around a fleet that edits with Pillow."""

from __future__ import annotations

import asyncio
import copy
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

import httpx2
from fastapi import FastAPI, routing
from fastapi.dependencies import models as classified
from fastapi.utils import create_model_field
from PIL import Image, ImageChops, ImageOps
from sqlalchemy import Connection

from rekontext.accounts import Acts, KeyPolicy, NewKey, keys
from rekontext.assembly import Service, assemble
from rekontext.contract import (
    SEED_MAX,
    DeviceState,
    EditRequest,
    EditResult,
    EngineFault,
    Estimate,
    ModelCard,
    OnProgress,
    Preview,
    Progress,
)
from rekontext.database import AccountId, DatabaseUnavailable
from rekontext.engine.canvas import Canvas
from rekontext.engine.costs import CostModel
from rekontext.engine.outlook import Outlook
from rekontext.fleet.profile import to_profile
from rekontext.installation import open_database, pepper_of, secret_of
from rekontext.settings import Settings
from rekontext.sources import SystemClock, random_bytes, random_id
from tests.fakes import FakeRandomness

STRANGER: Final = keys.make_secret(FakeRandomness(seed=99))
"""Shaped like a key, and nobody's."""

SOON_S: Final = 30.0
"""Within this everything happens that is to happen, on a slow machine too."""
SEED_DRAWN: Final = 777
SIZES: Final = {
    "1:1": (256, 256),
    "16:9": (332, 200),
    "21:9": (392, 168),
    "3:2": (312, 208),
    "2:3": (208, 312),
    "4:5": (236, 276),
    "5:4": (276, 236),
    "3:4": (220, 296),
    "4:3": (296, 220),
    "9:16": (200, 332),
    "9:21": (168, 392),
}
"""The published sizes at a quarter of their sides."""


class PillowFleet:
    """A `Fleet` that inverts the photo and tints it by the seed. Signals let a test stand between its steps.

    Args:
        step_s: how long it says that a step takes.
        loras: that are on offer.
    """

    def __init__(self, *, is_mini: bool = True, step_s: float = 0.5, loras: tuple[str, ...] = ()) -> None:
        self.loras = loras
        self._card = ModelCard(
            name="mini" if is_mini else "kontext-dev",
            canvas_area=256 * 256,
            parameters=1,
            device="cpu",
            dtype="float32",
            is_mini=is_mini,
            knows=("make it night",) if is_mini else (),
        )
        self._step_s = step_s
        self._left: dict[str, int] = {}
        self.is_ready = False
        self.requests: list[EditRequest] = []
        self.began = asyncio.Event()
        self.stopped = asyncio.Event()
        self.started = asyncio.Event()
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.may_step = asyncio.Event()
        self.may_step.set()
        self.may_break = asyncio.Event()
        self.steps_done = 0
        self.fault: Exception | None = None
        self.prompt_tokens: int | None = None
        self.tell: OnProgress = lambda _: None

    @property
    def devices(self) -> Mapping[str, DeviceState]:
        return {"cpu": "ready" if self.is_ready else "starting"}

    @property
    def card(self) -> ModelCard:
        if not self.is_ready:
            raise EngineFault("the model isn't loaded")
        return self._card

    async def offers(self) -> tuple[str, ...]:
        return self.loras

    async def profile(self) -> Mapping[str, object]:
        costs = CostModel(seconds={"step": {1: self._step_s}, "prepare": {1: 0.0}, "decode": {1: 0.0}})
        return to_profile(self._card, Outlook(canvas=Canvas(area=256 * 256), text_tokens=1, costs=costs), self.loras)

    async def start(self) -> None:
        await self.may_start.wait()
        self.is_ready = True
        self.started.set()

    async def watch(self) -> None:
        await self.may_break.wait()
        self.is_ready = False
        raise EngineFault("the engine broke: no device")

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        started = time.perf_counter()
        self.requests.append(request)
        self._left[request.id] = request.steps
        self.began.set()
        tell = self.tell = on_progress or self.tell
        try:
            tell(Progress(step=0, steps=request.steps, remaining_s=None))
            for step in range(1, request.steps + 1):
                await self.may_step.wait()
                await asyncio.sleep(0)
                self.steps_done += 1
                self._left[request.id] -= 1
                tell(Progress(step=step, steps=request.steps, remaining_s=self._step_s * self._left[request.id]))
                if request.preview_every and step % request.preview_every == 0:
                    tell(Preview(step=step, steps=request.steps, picture=Image.new("RGB", (6, 4), (step, 0, 0))))
            if self.fault:
                raise self.fault
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        finally:
            del self._left[request.id]
        return EditResult(
            picture=_edited(request),
            others=tuple(
                _edited(replace(request, seed=(request.seed + i) % (SEED_MAX + 1))) for i in range(1, request.pictures)
            ),
            seed=request.seed,
            steps=request.steps,
            passes=request.steps,
            acceleration=request.acceleration,
            loras=request.loras,
            prompt_tokens=self.prompt_tokens,
            inference_s=time.perf_counter() - started,
            timings={"denoise": time.perf_counter() - started},
        )

    def estimate(self, request: EditRequest) -> Estimate:
        """First come, first served: whoever is here ends before whoever isn't."""
        before = [left for name, left in self._left.items() if name != request.id]
        own = self._left.get(request.id)
        if own is not None:
            return Estimate(position=0, wait_s=0.0, finish_s=own * self._step_s)
        wait_s = sum(before) * self._step_s
        return Estimate(position=len(before), wait_s=wait_s, finish_s=wait_s + request.steps * self._step_s)

    async def close(self) -> None:
        self.is_ready = False


def _edited(request: EditRequest) -> Image.Image:
    assert request.photo is not None
    size = request.photo.size if request.aspect_ratio == "match_input_image" else SIZES[request.aspect_ratio]
    draw = random.Random(request.seed)
    tint = Image.new("RGB", size, (draw.randrange(64), draw.randrange(64), draw.randrange(64)))
    return ImageChops.add(ImageOps.invert(request.photo.resize(size)), tint)


async def gone(*_asked: object, **_how: object) -> NoReturn:
    """In place of what asks the database: it can't be reached."""
    raise DatabaseUnavailable("gone for a moment")


class _Bounded(httpx2.ASGITransport):
    """An answer is here when it is whole, a stream's too: one that never ends fails the test that waits for it."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        async with asyncio.timeout(2 * SOON_S):
            return await super().handle_async_request(request)


@dataclass(frozen=True)
class Template:
    """A data folder as the first start leaves it, made once and copied for each studio."""

    folder: Path
    first_key: NewKey


@cache
def _template() -> Template:
    folder = Path(tempfile.mkdtemp(prefix="rekontext-template-"))
    service = assemble(
        Settings(_env_file=None, data_dir=folder),  # type: ignore[call-arg]
        fleet=PillowFleet(),
        on_ready=lambda _: None,
        on_broken=_raise,
    )
    service.parts.database.close()
    assert service.first_key is not None
    return Template(folder=folder, first_key=service.first_key)


def _raise(fault: Exception) -> None:
    raise fault


def _forget_apps() -> None:
    """Let go of the apps of earlier tests.

    FastAPI remembers some thousand functions that it has looked at. Through them every app would live on, and each
    pass of the garbage collector take longer than the last.
    """
    for each in vars(classified).values():
        if hasattr(each, "cache_clear"):
            each.cache_clear()


_answer_field = cache(create_model_field)


def _name_answer_field(*, name: str, **told: Any) -> object:
    field = copy.copy(_answer_field("", **told))
    field.name = name
    return field


# FastAPI makes a validator for each kind of answer of each route, twice, and most of them are the same: that took as
# long as all else in an app. Here each is made once for all routes and apps.
vars(routing)["create_model_field"] = _name_answer_field


@dataclass
class Studio:
    """A service on SQLite in a folder of its own, with one account of ten dollars, and what a test may hold of it.

    Attributes:
        settings: what differs from the defaults of tests.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    fleet: PillowFleet = field(default_factory=PillowFleet)

    def __post_init__(self) -> None:
        _forget_apps()
        template = _template()
        data_dir = self.folder / "data"
        if not data_dir.exists():
            shutil.copytree(template.folder, data_dir)
        self.key = template.first_key.secret
        self.account = template.first_key.key.account
        self.key_id = template.first_key.key.id
        defaults: dict[str, Any] = {
            "body_bytes_max": 400_000,
            "picture_bytes_max": 100_000,
            "picture_pixels_max": 250_000,
            "requests_per_minute": 10_000,
            "faults_max": 1,
            "shutdown_grace_s": 0,
            "fetch_timeout_s": 5,
            "fetch_redirects_max": 2,
        }
        self.options = Settings(_env_file=None, data_dir=data_dir, **defaults | self.settings)  # type: ignore[call-arg]
        self.broken: list[Exception] = []
        self.service: Service = assemble(
            self.options,
            fleet=self.fleet,
            on_ready=lambda _: None,
            on_broken=self.broken.append,
            seeds=lambda: SEED_DRAWN,
        )

    @property
    def app(self) -> FastAPI:
        return self.service.app

    @property
    def headers(self) -> dict[str, str]:
        return {"x-api-key": self.key}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[httpx2.AsyncClient]:
        """The service at work, and a client with the first key."""
        async with self.app.router.lifespan_context(self.app), self.client() as client:
            yield client
        assert not self.broken, self.broken

    def client(self, key: str | None = None) -> httpx2.AsyncClient:
        """A client with a key of its own."""
        transport = _Bounded(app=self.app, raise_app_exceptions=False)
        return httpx2.AsyncClient(
            transport=transport, base_url="http://studio", headers={"x-api-key": self.key if key is None else key}
        )

    def act(self, work: Callable[[Connection, Acts], Any]) -> Any:
        """Do what an operator does."""
        return act(self.options, work)

    def new_key(self, account: AccountId | None = None, **policy: Any) -> NewKey:
        """A key of the studio's account, or of another one."""
        made: NewKey = self.act(lambda tx, acts: acts.create_key(tx, account or self.account, KeyPolicy(**policy)))
        return made

    def new_account(self, name: str, *, credits_micros: int = 0) -> NewKey:
        """Another account; its first key."""
        made: NewKey = self.act(lambda tx, acts: acts.create_account(tx, name, credits_micros=credits_micros)[1])
        return made


def act(settings: Settings, work: Callable[[Connection, Acts], Any]) -> Any:
    """Do what an operator does, on a database that a server may have open."""
    database = open_database(settings)
    acts = Acts(
        actor="test",
        ids=random_id,
        randomness=random_bytes,
        pepper=pepper_of(secret_of(settings)),
        now=SystemClock().now,
    )
    try:
        return database.transact_sync(lambda tx: work(tx, acts))
    finally:
        database.close()
