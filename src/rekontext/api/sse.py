"""Server-sent events: frames, and a stream of them that never falls silent for long.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, Mapping
from contextlib import suppress
from io import BytesIO
from typing import Final

import orjson
from PIL import Image

from rekontext.jobs import Event

MEDIA_TYPE: Final = "text/event-stream"
HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}
KEEP_ALIVE_S: Final = 15.0
_PREVIEW_QUALITY: Final = 80
_KEEP_ALIVE: Final = b": still here\n\n"


def frame(name: str, data: Mapping[str, object], event_id: str) -> bytes:
    """One event. JSON without line breaks fits in one data line."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event_id.encode(), name.encode(), orjson.dumps(data))


async def stream(frames: AsyncGenerator[bytes, None], *, closing: asyncio.Event) -> AsyncGenerator[bytes, None]:
    """The frames as they come, and a comment whenever none came for `KEEP_ALIVE_S`. Ends once `closing` is set."""
    going_down = asyncio.ensure_future(closing.wait())
    coming = asyncio.ensure_future(anext(frames, None))
    try:
        while True:
            await asyncio.wait((coming, going_down), timeout=KEEP_ALIVE_S, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                ready = coming.result()
                if ready is None:
                    return
                yield ready
                coming = asyncio.ensure_future(anext(frames, None))
            elif going_down.done():
                return
            else:
                yield _KEEP_ALIVE
    finally:
        for task in (going_down, coming):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await frames.aclose()


def step(event: Event) -> int:
    """Which step a "progress" or "preview" event belongs to."""
    value = event.data["step"]
    assert isinstance(value, int), f"event {event.id} has the step {value!r}"
    return value


def progress(event: Event) -> dict[str, object]:
    """What a "progress" event says on the wire; whatever has just made a step has nobody before it."""
    left = event.data["remaining_s"]
    eta = round(left, 1) if isinstance(left, (int, float)) else None
    steps = {"step": step(event), "steps": event.data["steps"]}
    return {"status": "PROCESSING", **steps, "queue_position": 0, "eta_seconds": eta}


def preview(event: Event) -> dict[str, object]:
    """What a "preview" event says on the wire. Takes about a millisecond."""
    picture = event.data["picture"]
    assert isinstance(picture, Image.Image), f"event {event.id} has no picture"
    encoded = BytesIO()
    picture.copy().save(encoded, "JPEG", quality=_PREVIEW_QUALITY)
    image = f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    return {
        "step": step(event),
        "steps": event.data["steps"],
        "image": image,
        "width": picture.width,
        "height": picture.height,
    }
