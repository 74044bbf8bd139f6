"""A job -> the JSON documents that say what is known of it. Pure: no database, no HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from rekontext.accounts import Balance, usd
from rekontext.api.links import Links
from rekontext.contract import Estimate, ModelCard, Progress
from rekontext.jobs import Job, Output, State
from rekontext.sources import Clock

MINI_NOTICE: Final = (
    "Answered by mini, the small embedded model: it knows a few simple edits and small pictures only. "
    "For all that FLUX.1 Kontext [dev] can do, start the server with its weights (--model)."
)
CANCELLED: Final = "The request was cancelled."
_CANCELLED_CODE: Final = "cancelled"
_TOOK: Final = ("steps", "passes", "acceleration")


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Makes the documents.

    Attributes:
        card: the model that is served, None while it is loading.
    """

    clock: Clock
    links: Links
    card: Callable[[], ModelCard | None]

    def urls(self, job: str, origin: str) -> dict[str, str]:
        """Where everything about a job is."""
        request = f"{origin}/v2/requests/{job}"
        return {
            "poll_url": f"{origin}/v1/requests/{job}",
            "status_url": f"{request}/status",
            "response_url": request,
            "cancel_url": f"{request}/cancel",
            "events_url": f"{request}/events",
        }

    def submitted(self, job: Job, origin: str, estimate: Estimate | None) -> dict[str, object]:
        """The answer to a submit."""
        return {"request_id": job.id, "status": job.state.value, **forecast(estimate), **self.urls(job.id, origin)}

    def status(
        self, job: Job, origin: str, *, estimate: Estimate | None, progress: Progress | None
    ) -> dict[str, object]:
        """Where a job stands. Never what it made."""
        return {
            "request_id": job.id,
            "status": job.state.value,
            **forecast(estimate),
            "progress": None if progress is None else {"step": progress.step, "steps": progress.steps},
            "cancel_requested": job.cancel_requested_at is not None,
            "error": error(job),
            "code": code(job),
            "metrics": metrics(job),
            **self.urls(job.id, origin),
        }

    def result(self, job: Job, origin: str, *, balance: Balance | None = None) -> dict[str, object]:
        """All that is known of a job that has ended.

        Args:
            balance: what its account has now.
        """
        document: dict[str, object] = {"status": job.state.value, "request_id": job.id, "error": error(job)}
        if job.state is not State.COMPLETED:
            return document | {"code": code(job), "metrics": metrics(job)}
        images = self.images(job, origin)
        document |= {
            "output": self.output_url(job, origin),
            "images": images,
            "seed": (job.made or {}).get("seed"),
            "prompt": job.parameters.get("prompt"),
            "timings": {stage: round(seconds, 4) for stage, seconds in (job.timings or {}).items()},
            "metrics": metrics(job, balance),
        }
        return document | maker(job)

    def images(self, job: Job, origin: str) -> list[dict[str, object]]:
        """The pictures that a job made, behind links; none once their time is up, though a sweep is still to come."""
        until = job.files_until
        if until is None or not self.hands_out(job):
            return []
        return [
            output_json(output) | {"url": self.links.to_output(origin, output.key, until=until)}
            for output in job.outputs or ()
        ]

    def output_url(self, job: Job, origin: str) -> str | None:
        """A link to the picture that a job made, while that is kept."""
        images = self.images(job, origin)
        return str(images[0]["url"]) if images else None

    def hands_out(self, job: Job) -> bool:
        """Whether its pictures' time isn't up."""
        return job.files_until is not None and self.clock.now() < job.files_until

    def model(self) -> dict[str, object]:
        """Which model is served, and a notice if it is only the embedded one."""
        card = self.card()
        if card is None:
            return {}
        return {"model": card.title, **({"notice": MINI_NOTICE} if card.is_mini else {})}

    def webhook(self, job: Job) -> dict[str, object]:
        """What the outbox says of a job that has just ended."""
        return self.result(job, str(job.parameters["origin"]))


def forecast(estimate: Estimate | None) -> dict[str, object]:
    """The two fields that say when."""
    if estimate is None:
        return {"queue_position": None, "eta_seconds": None}
    return {"queue_position": estimate.position, "eta_seconds": round(estimate.finish_s, 1)}


def metrics(job: Job, balance: Balance | None = None) -> dict[str, object]:
    """What a job took. Empty before its end; a charge is named only where there was one."""
    if not job.state.is_terminal:
        return {}
    found: dict[str, object] = {
        "inference_time": _seconds(job.inference_s),
        "queue_time": _seconds(job.queue_s),
        "total_time": _seconds(job.total_s),
    }
    if job.retries:
        found["retry_count"] = job.retries
    if job.state is State.COMPLETED:
        found["cost"] = usd(job.price_micros)
        if balance is not None:
            found["remaining_credits"] = usd(balance.available_micros)
        found |= {name: value for name, value in (job.made or {}).items() if name in _TOOK}
    return found


def maker(job: Job) -> dict[str, object]:
    """Which model made a job's pictures, whatever is served now, and a notice of what whoever sees them should know."""
    made = job.made or {}
    if "model" not in made:
        return {}
    notices = [MINI_NOTICE] if made["is_mini"] else []
    if "prompt_tokens" in made:
        notices.append(prompt_notice(made["prompt_tokens"]))
    return {"model": str(made["model"]), **({"notice": " ".join(notices)} if notices else {})}


def prompt_notice(tokens: object) -> str:
    """That a prompt was read up to so many tokens."""
    return f"The model reads {tokens} tokens of a prompt; what this one has beyond them was left out."


def output_json(output: Output) -> dict[str, Any]:
    """A picture, without the way to it."""
    return {
        "content_type": output.content_type,
        "file_name": output.file_name,
        "file_size": output.bytes,
        "width": output.width,
        "height": output.height,
    }


def error(job: Job) -> str | None:
    """Why there is no picture."""
    if job.state is State.CANCELLED:
        return CANCELLED
    return None if job.error is None else as_sentence(job.error)


def code(job: Job) -> str | None:
    """The same for programs."""
    return _CANCELLED_CODE if job.state is State.CANCELLED else job.error_code


def as_sentence(text: str) -> str:
    """With a capital and a full stop, as every error is told. A parameter's name stays as it is written."""
    is_name = "_" in text.partition(" ")[0]
    text = text if is_name else text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _seconds(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
