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
from starlette.responses import Response, StreamingResponse

from rekontext.jobs import Event

MEDIA_TYPE: Final = "text/event-stream"
HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}
KEEP_ALIVE_S: Final = 15.0
_PREVIEW_QUALITY: Final = 80
_KEEP_ALIVE: Final = b": still here\n\n"


def frame(name: str, data: Mapping[str, object], event_id: str | None = None) -> bytes:
    """One event with JSON."""
    return text_frame(name, orjson.dumps(data), event_id)


def text_frame(name: str, line: bytes, event_id: str | None = None) -> bytes:
    """One event with a text that has no line breaks in it. Without an id nobody can go on after it."""
    head = b"" if event_id is None else b"id: %b\n" % event_id.encode()
    return b"%bevent: %b\ndata: %b\n\n" % (head, name.encode(), line)


async def answer(frames: AsyncGenerator[bytes, None], *, has_ended: bool, closing: asyncio.Event) -> Response:
    """The events of a job as an answer: as they come, or those of one that has ended, at once.

    A client that has heard the end connects again and again, by the spec until it is told 204.
    """
    if has_ended:
        rest = b"".join([frame async for frame in frames])
        return Response(rest, 200 if rest else 204, media_type=MEDIA_TYPE, headers=HEADERS)
    return StreamingResponse(stream(frames, closing=closing), media_type=MEDIA_TYPE, headers=HEADERS)


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
    return _count(event, "step")


def steps(event: Event) -> int:
    """Of how many."""
    return _count(event, "steps")


def progress(event: Event) -> dict[str, object]:
    """What a "progress" event says on the wire; whatever has just made a step has nobody before it."""
    left = event.data["remaining_s"]
    eta = round(left, 1) if isinstance(left, (int, float)) else None
    done = {"step": step(event), "steps": steps(event)}
    return {"status": "PROCESSING", **done, "queue_position": 0, "eta_seconds": eta}


def preview(event: Event) -> dict[str, object]:
    """What a "preview" event says on the wire. Takes about a millisecond."""
    picture = event.data["picture"]
    assert isinstance(picture, Image.Image), f"event {event.id} has no picture"
    encoded = BytesIO()
    picture.copy().save(encoded, "JPEG", quality=_PREVIEW_QUALITY)
    image = f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
    return {
        "step": step(event),
        "steps": steps(event),
        "image": image,
        "width": picture.width,
        "height": picture.height,
    }


def _count(event: Event, name: str) -> int:
    value = event.data[name]
    assert isinstance(value, int), f"event {event.id} has {value!r} as its {name}"
    return value
