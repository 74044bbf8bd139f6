"""The embedded fleet, with the embedded model."""

from __future__ import annotations

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any, cast

import pytest
from PIL import Image

from rekontext.contract import EditRequest, EngineFault
from rekontext.fleet import LocalFleet, Opening
from rekontext.jobs.attempt import Attempts, Traces


class _Workbench:
    """Makes a photo and doesn't keep it."""

    def __init__(self) -> None:
        self.photo: weakref.ref[Image.Image] | None = None

    def outline(self, _job: object) -> EditRequest:
        return EditRequest(id="job", prompt="make it night", seed=1, steps=50)

    async def unpack(self, _job: object, _photo: bytes, _mask: bytes | None) -> EditRequest:
        photo = Image.new("RGB", (640, 480), "gray")
        self.photo = weakref.ref(photo)
        return EditRequest(id="job", prompt="make it night", photo=photo, seed=1, steps=50)


class _Objects:
    """One photo under every key."""

    async def get(self, _key: str) -> bytes:
        return b"photo"


@pytest.mark.anyio
async def test_a_fleet_whose_engine_broke_is_not_ready_and_says_so() -> None:
    """Before, a process without an engine went on looking well."""
    fleet = LocalFleet(Opening())
    await fleet.start()
    watching = asyncio.ensure_future(fleet.watch())
    try:
        await asyncio.sleep(0)
        assert fleet.is_ready
        assert fleet._engine is not None
        fleet._engine.broken.set_exception(RuntimeError("no device"))
        with pytest.raises(EngineFault, match="the engine broke: RuntimeError: no device"):
            await asyncio.wait_for(watching, 10)
        assert not fleet.is_ready
        with pytest.raises(EngineFault):
            await fleet.edit(EditRequest(id="job", prompt="make it night", photo=None, seed=1, steps=4))
    finally:
        await fleet.close()


@pytest.mark.anyio
async def test_a_photo_is_not_kept_at_full_size_while_its_edit_waits_or_runs() -> None:
    """The engine has it resized and compressed; a dozen that wait at fifty megapixels would take gigabytes."""
    fleet, workbench, begun = LocalFleet(Opening()), _Workbench(), asyncio.Event()
    await fleet.start()
    try:
        attempts = Attempts(fleet=fleet, objects=cast(Any, _Objects()), workbench=cast(Any, workbench), run_s_max=60)
        job = cast(Any, SimpleNamespace(id="job", attempt=1, input_key="photo", mask_key=None))
        running = asyncio.ensure_future(attempts.run(job, on_progress=lambda _news: begun.set(), traces=Traces()))
        await asyncio.wait_for(begun.wait(), 60)
        gc.collect()
        assert workbench.photo is not None
        assert workbench.photo() is None
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    finally:
        await fleet.close()
