"""A small service for tests: the real app around a fleet that edits with Pillow instead of a model."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import httpx2
from fastapi import FastAPI
from PIL import Image, ImageChops, ImageOps

from rekontext.api import DirectEdits, SingleKey, create_app
from rekontext.contract import EditRequest, EditResult, Estimate, ModelCard, OnProgress, Progress
from rekontext.pictures import AllowList, CodecThreads, Fetcher, PhotoReader, PictureLimits

KEY: Final = "rk_test"
HEADERS: Final = {"x-api-key": KEY}
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
    """A `Fleet` that inverts the photo and tints it by the seed. Signals let a test stand between its steps."""

    def __init__(self, *, is_mini: bool = True) -> None:
        self.card = ModelCard(
            name="mini" if is_mini else "/srv/weights/kontext-dev",
            canvas_area=256 * 256,
            parameters=1,
            device="cpu",
            dtype="float32",
            is_mini=is_mini,
        )
        self.is_ready = False
        self.requests: list[EditRequest] = []
        self.began = asyncio.Event()
        self.stopped = asyncio.Event()
        self.may_step = asyncio.Event()
        self.may_step.set()
        self.steps_done = 0
        self.fault: Exception | None = None

    async def start(self) -> None:
        self.is_ready = True

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        started = time.perf_counter()
        self.requests.append(request)
        self.began.set()
        try:
            for step in range(request.steps):
                await self.may_step.wait()
                await asyncio.sleep(0)
                self.steps_done += 1
                if on_progress:
                    on_progress(Progress(step=step + 1, steps=request.steps, remaining_s=None))
            if self.fault:
                raise self.fault
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        return EditResult(
            picture=_edited(request),
            seed=request.seed,
            steps=request.steps,
            passes=request.steps,
            inference_s=time.perf_counter() - started,
            timings={"denoise": time.perf_counter() - started},
        )

    def estimate(self, request: EditRequest) -> Estimate:
        return Estimate(position=0, wait_s=0.0, finish_s=0.0)

    async def close(self) -> None:
        self.is_ready = False


def _edited(request: EditRequest) -> Image.Image:
    assert request.photo is not None
    size = request.photo.size if request.aspect_ratio == "match_input_image" else SIZES[request.aspect_ratio]
    draw = random.Random(request.seed)
    tint = Image.new("RGB", size, (draw.randrange(64), draw.randrange(64), draw.randrange(64)))
    return ImageChops.add(ImageOps.invert(request.photo.resize(size)), tint)


@dataclass
class Studio:
    """The app and what a test may hold of its parts."""

    fleet: PillowFleet = field(default_factory=PillowFleet)
    queue_max: int = 8
    running_max: int = 4
    deadline_s: float = 30.0
    body_bytes_max: int = 400_000
    picture_bytes_max: int = 100_000
    picture_pixels_max: int = 250_000
    fetch_allow: Sequence[str] = ()
    is_open: bool = True

    def __post_init__(self) -> None:
        threads = CodecThreads(2)
        self.fetcher = Fetcher(timeout_s=5, redirects_max=2, agent="test", allow=AllowList(self.fetch_allow))
        self.edits = DirectEdits(
            fleet=self.fleet,
            threads=threads,
            queue_max=self.queue_max,
            running_max=self.running_max,
            deadline_s=self.deadline_s,
            now=time.monotonic,
        )
        if self.is_open:
            self.edits.open()
        ids = count(1)
        limits = PictureLimits(bytes_max=self.picture_bytes_max, pixels_max=self.picture_pixels_max)
        self.app: FastAPI = create_app(
            edits=self.edits,
            keys=SingleKey(KEY),
            fleet=self.fleet,
            photos=PhotoReader(limits=limits, fetcher=self.fetcher, threads=threads),
            threads=threads,
            body_bytes_max=self.body_bytes_max,
            draw_seed=lambda: SEED_DRAWN,
            new_id=lambda: f"request-{next(ids)}",
        )

    def client(self) -> httpx2.AsyncClient:
        transport = httpx2.ASGITransport(app=self.app, raise_app_exceptions=False)
        return httpx2.AsyncClient(transport=transport, base_url="http://studio", headers=HEADERS)
