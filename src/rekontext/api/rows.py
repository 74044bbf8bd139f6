"""Jobs as rows of a history, for the SDK's calls and for the console. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Annotated, Any, Final

from fastapi import Query

from rekontext.accounts import usd
from rekontext.api.documents import Documents, error, maker, metrics
from rekontext.jobs import Job, Page, State
from rekontext.moments import moment

PageNumber = Annotated[int, Query(ge=1, le=100_000)]
PageSize = Annotated[int, Query(ge=1, le=100)]
_OURS: Final = ("origin", "input_size", "dialect")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Makes rows for one origin."""

    documents: Documents
    origin: str

    def segmind(self, job: Job) -> dict[str, object]:
        """A row with the field names of the vendor's SDK."""
        is_pending = not job.state.is_terminal
        return {
            "request_id": job.id,
            "model_name": job.model,
            "model_status": "PENDING" if is_pending else job.state.value,
            "status": job.state.value,
            "credits_deduction": _cost(job),
            "latency_ms": _ms(job.total_s),
            "prompt": job.parameters.get("prompt"),
            "parameters": sent(job),
            "request_body": sent(job),
            "generation_url": self.output(job),
            "created_at": moment(job.accepted_at),
            "model_created": moment(job.accepted_at),
            "finished_at": moment(job.finished_at),
            "error": error(job),
        }

    def console(self, job: Job) -> dict[str, object]:
        """A row of the console."""
        return {
            "request_id": job.id,
            "model": job.model,
            "status": job.state.value,
            "prompt": job.parameters.get("prompt"),
            "seed": (job.made or job.parameters).get("seed"),
            "num_images": job.parameters.get("num_images", 1),
            "steps": job.parameters.get("num_inference_steps"),
            "aspect_ratio": job.parameters.get("aspect_ratio"),
            "loras": job.parameters.get("loras", []),
            "cost": _cost(job),
            "queue_ms": _ms(job.queue_s),
            "latency_ms": _ms(job.total_s),
            "inference_ms": _ms(job.inference_s),
            "output": self.output(job),
            "created_at": moment(job.accepted_at),
            "started_at": moment(job.started_at),
            "finished_at": moment(job.finished_at),
            "error": error(job),
        }

    def whole(self, job: Job) -> dict[str, object]:
        """All that there is to know of one job."""
        return self.console(job) | {
            "parameters": sent(job),
            "images": self.documents.images(job, self.origin),
            "timings": dict(job.timings or {}),
            "metrics": metrics(job),
            "made_by": maker(job).get("model"),
            "attempt": job.attempt,
            "error_code": job.error_code,
        }

    def output(self, job: Job) -> str | None:
        """A link to the first picture, while it is kept."""
        return self.documents.output_url(job, self.origin)


def page(found: Page, row: Callable[[Job], object], *, number: int, size: int) -> dict[str, object]:
    """A page of rows with what it takes to ask for the others."""
    return {"data": [row(job) for job in found.jobs], **place(number=number, size=size, total=found.total)}


def place(*, number: int, size: int, total: int) -> dict[str, object]:
    """Which page of a list this is, and how many there are."""
    return {"page": number, "per_page": size, "total": total, "total_pages": ceil(total / size)}


def sent(job: Job) -> dict[str, Any]:
    """A job's parameters as its owner knows them."""
    return {name: value for name, value in job.parameters.items() if name not in _OURS}


def states_named(word: str) -> Sequence[State]:
    """The states that a filter's word stands for; PENDING are the unfinished ones."""
    return (State.QUEUED, State.PROCESSING) if word == "PENDING" else (State(word),)


def _cost(job: Job) -> float:
    return usd(job.price_micros) if job.state is State.COMPLETED else 0.0


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
