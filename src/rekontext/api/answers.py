"""An edited picture -> the HTTP answer: its bytes, or JSON for those who prefer it. The same facts either way."""

from __future__ import annotations

import base64
from pathlib import PurePath
from typing import Final
from urllib.parse import quote

import orjson
from starlette.responses import Response

from rekontext.api.edits import Edited
from rekontext.contract import ModelCard

MINI_NOTICE: Final = (
    "Answered by mini, the small embedded model: it knows a few simple edits and small pictures only. "
    "For all that FLUX.1 Kontext [dev] can do, start the server with its weights (--model)."
)


def picture_answer(edited: Edited) -> Response:
    """200 with the encoded picture as the body."""
    return Response(edited.data, media_type=edited.media_type, headers=facts(edited))


def json_answer(edited: Edited, prompt: str, request_id: str) -> Response:
    """200 with the picture as a data URI. Takes milliseconds for a large one: call it off the event loop."""
    uri = f"data:{edited.media_type};base64,{base64.b64encode(edited.data).decode()}"
    document: dict[str, object] = {
        "status": "COMPLETED",
        "request_id": request_id,
        "output": uri,
        "images": [
            {
                "url": uri,
                "content_type": edited.media_type,
                "file_name": f"{request_id}.{edited.media_type.removeprefix('image/').replace('jpeg', 'jpg')}",
                "file_size": len(edited.data),
                "width": edited.width,
                "height": edited.height,
            }
        ],
        "seed": edited.seed,
        "prompt": prompt,
        "timings": {stage: round(seconds, 4) for stage, seconds in edited.timings.items()},
        "metrics": {
            "inference_time": round(edited.inference_s, 4),
            "queue_time": round(edited.queue_s, 4),
            "total_time": round(edited.total_s, 4),
        },
        "model": shown_name(edited.model),
    }
    if edited.model.is_mini:
        document["notice"] = MINI_NOTICE
    return Response(orjson.dumps(document), media_type="application/json", headers=facts(edited))


def facts(edited: Edited) -> dict[str, str]:
    """What the headers of either answer say."""
    headers = {
        "x-generation-time": f"{edited.inference_s:.4f}",
        "x-seed-value": str(edited.seed),
        "x-output-metadata": orjson.dumps({"width": edited.width, "height": edited.height}).decode(),
        "x-rekontext-model": quote(shown_name(edited.model), safe="/ ._-"),
    }
    if edited.model.is_mini:
        headers["x-rekontext-notice"] = MINI_NOTICE
    return headers


def shown_name(card: ModelCard) -> str:
    """The model's name for strangers: of a local path only its last part."""
    path = PurePath(card.name)
    return path.name if path.is_absolute() else card.name


def prefers_json(accept: str) -> bool:
    """Whether an Accept header names application/json and ranks it above every picture.

    A tie goes to the picture: many clients send "application/json, text/plain, */*" whatever they ask for.
    """
    ranks: dict[str, float] = {}
    for part in accept.split(","):
        kind, _, options = part.partition(";")
        ranks[kind.strip().lower()] = _quality(options)
    pictures = [rank for kind, rank in ranks.items() if kind.startswith("image/")] or [ranks.get("*/*", 0.0)]
    return ranks.get("application/json", 0.0) > max(pictures)


def _quality(options: str) -> float:
    for option in options.split(";"):
        name, _, value = option.partition("=")
        if name.strip().lower() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0
