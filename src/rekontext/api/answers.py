"""A completed job -> the HTTP answer of a caller who waited: the picture, or JSON. The same facts either way."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

import orjson
from starlette.responses import Response

from rekontext.accounts import Allowance, Balance, usd
from rekontext.api.documents import Documents, maker, output_json
from rekontext.contract import Estimate
from rekontext.jobs import Job, Output

_JSON: Final = "application/json"

_LASTING: Final = ("status_url", "response_url")

HEADERS: Final = (
    "x-request-id",
    "x-generation-time",
    "x-cost",
    "x-remaining-credits",
    "x-seed-value",
    "x-output-metadata",
    "x-rekontext-model",
    "x-rekontext-notice",
    "x-eta-seconds",
    "x-queue-position",
    "idempotency-replayed",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-rate-limit-remaining",
    "x-rate-limit-reset-at-utc",
    "retry-after",
    "x-should-retry",
    "x-fal-request-id",
    "x-fal-error-type",
    "x-fal-request-timeout-type",
)
"""Every header of our own that an answer may have: scripts in web pages see only those that are named to them."""


def json_answer(document: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Any document as an answer."""
    return Response(orjson.dumps(document), status, headers=headers, media_type=_JSON)


def picture_answer(job: Job, data: bytes, headers: dict[str, str]) -> Response:
    """200 with the encoded picture as the body."""
    return Response(data, media_type=_output(job).content_type, headers=headers)


def inline_answer(
    documents: Documents, job: Job, pictures: Sequence[bytes], balance: Balance, origin: str, headers: dict[str, str]
) -> Response:
    """200 with the result, its pictures as data URIs, and where the same will be with links for a while.

    Takes milliseconds for a large one: not for the event loop.
    """
    images = inline(job, pictures)
    document = documents.result(job, origin, balance=balance)
    document |= {"output": images[0]["url"], "images": images}
    document |= {name: url for name, url in documents.urls(job.id, origin).items() if name in _LASTING}
    return json_answer(document, headers=headers)


def inline(job: Job, pictures: Sequence[bytes]) -> list[dict[str, Any]]:
    """A job's pictures as data URIs, each as it is described elsewhere. Takes milliseconds for a large one."""
    return [
        {"url": data_uri(data, output.content_type), **output_json(output)}
        for output, data in zip(job.outputs or (), pictures, strict=True)
    ]


def data_uri(data: bytes, content_type: str) -> str:
    """A picture as text. Takes milliseconds for a large one: not for the event loop."""
    return f"data:{content_type};base64,{base64.b64encode(data).decode()}"


def facts(job: Job, balance: Balance) -> dict[str, str]:
    """What the headers of either answer say."""
    output = _output(job)
    headers = {
        "x-generation-time": f"{job.inference_s or 0.0:.4f}",
        "x-cost": money(job.price_micros),
        "x-remaining-credits": money(balance.available_micros),
        "x-seed-value": str((job.made or {}).get("seed", "")),
        "x-output-metadata": orjson.dumps({"width": output.width, "height": output.height}).decode(),
    }
    made_by = maker(job)
    if "model" in made_by:
        headers["x-rekontext-model"] = quote(str(made_by["model"]), safe="/ ._-+:@")
    if "notice" in made_by:
        headers["x-rekontext-notice"] = str(made_by["notice"])
    return headers


def allowance(allowed: Allowance, *, reset_s: int) -> dict[str, str]:
    """How many more requests the key may send, and when it may send one more than that."""
    return {
        "ratelimit-limit": str(allowed.limit),
        "ratelimit-remaining": str(allowed.remaining),
        "ratelimit-reset": str(reset_s),
        "x-rate-limit-remaining": str(allowed.remaining),
        "x-rate-limit-reset-at-utc": f"{allowed.reset_at:%Y-%m-%dT%H:%M:%SZ}",
    }


def when(estimate: Estimate | None) -> dict[str, str]:
    """When the job will be done."""
    if estimate is None:
        return {}
    return {"x-eta-seconds": f"{estimate.finish_s:.1f}", "x-queue-position": str(estimate.position)}


def money(micros: int) -> str:
    """Dollars as a plain decimal number: 40_000 is "0.04"."""
    return f"{usd(micros):.6f}".rstrip("0").rstrip(".")


def prefers_json(accept: str, *, otherwise: bool = False) -> bool:
    """Whether an Accept header names application/json and ranks it above every picture.

    Args:
        otherwise: the answer for a header that doesn't decide: it names neither, or ranks both alike, as the
            "application/json, text/plain, */*" that many clients send whatever they ask for.
    """
    ranks: dict[str, float] = {}
    for part in accept.split(","):
        kind, _, options = part.partition(";")
        ranks[kind.strip().lower()] = _quality(options)
    named = [rank for kind, rank in ranks.items() if kind.startswith("image/")]
    if not named and _JSON not in ranks:
        return otherwise
    picture, json = max(named or [ranks.get("*/*", 0.0)]), ranks.get(_JSON, 0.0)
    return otherwise if picture == json > 0 else json > picture


def _quality(options: str) -> float:
    for option in options.split(";"):
        name, _, value = option.partition("=")
        if name.strip().lower() == "q":
            try:
                return min(max(float(value), 0.0), 1.0)
            except ValueError:
                return 0.0
    return 1.0


def _output(job: Job) -> Output:
    assert job.outputs, f"job {job.id} is {job.state} and has no picture"
    return job.outputs[0]
