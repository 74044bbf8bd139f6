"""What operators watch, in Prometheus' words.

Each process counts for itself; what is true for all of them comes from the database. Knows no users: nothing here
names an account, a key or a prompt.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter as Counts
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.registry import Collector
from sqlalchemy import Connection, func, select
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rekontext import __version__
from rekontext.accounts import usd
from rekontext.api.parts import Parts
from rekontext.contract import DEVICE_STATES
from rekontext.database import DatabaseUnavailable
from rekontext.database.tables import balances
from rekontext.jobs import ATTEMPT_FAULTS, Job, State, pending_messages, unfinished_by_state

_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320, 640)
_LOOK_S_MAX: Final = 5.0
_OF_PROXIES: Final = ("forwarded", "via", "x-real-ip", "x-forwarded-")
_PORT: Final = re.compile(r":\d*$")


@dataclass(frozen=True, kw_only=True)
class Books:
    """What is true for all processes, as the database has it.

    Attributes:
        jobs: unfinished ones, by state.
        pending_messages: to webhooks, not delivered yet.
        credits_usd: by book.
    """

    jobs: Mapping[str, int]
    pending_messages: int
    credits_usd: Mapping[str, float]


class Metrics(Collector):
    """The figures of one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        ProcessCollector(registry=own)
        Info("rekontext_build", "What runs here.", registry=own).info({"version": __version__})
        self.requests = Counter("rekontext_http_requests", "Answers.", ["operation", "status"], registry=own)
        self.request_seconds = Histogram(
            "rekontext_http_request_seconds", "Until an answer began.", ["operation"], registry=own, buckets=_SECONDS
        )
        self.edits = Counter("rekontext_edits", "Jobs that ended here.", ["status"], registry=own)
        for state in (State.COMPLETED, State.FAILED, State.CANCELLED):
            self.edits.labels(state.value.lower())  # there from the start: a rate sees no first one that comes as 1
        self.failed_edits = Counter("rekontext_failed_edits", "Edits that failed here.", ["code"], registry=own)
        self.faults = Counter(
            "rekontext_faults",
            "Attempts at edits that came to nothing here through a fault of ours, whatever the next one comes to.",
            ["code"],
            registry=own,
        )
        for code in ATTEMPT_FAULTS:
            self.faults.labels(code)
        for code in (*ATTEMPT_FAULTS, "queue_timeout"):
            self.failed_edits.labels(code)
        self.steps = Counter("rekontext_steps", "Denoising steps done.", registry=own)
        self.passes = Counter(
            "rekontext_passes", "Steps of edits completed here that really ran the transformer.", registry=own
        )
        self.edit_seconds = Histogram(
            "rekontext_edit_seconds",
            "Of completed edits: queue, inference, total.",
            ["part"],
            registry=own,
            buckets=_SECONDS,
        )
        self.captured = Counter(
            "rekontext_credits_captured_usd", "US dollars charged for edits that ended here.", registry=own
        )
        self.jobs = Gauge("rekontext_jobs", "Unfinished jobs of all processes.", ["state"], registry=own)
        self.webhooks = Gauge("rekontext_webhook_messages", "Messages of all processes.", ["state"], registry=own)
        self.running = Gauge("rekontext_running", "Jobs in work here.", registry=own)
        self.credits = Gauge("rekontext_credits_usd", "US dollars of all accounts.", ["book"], registry=own)
        self.devices = Gauge("rekontext_devices", "Devices of this process.", ["state"], registry=own)
        self.ready = Gauge("rekontext_ready", "1 when the model is loaded.", registry=own)
        self.database_up = Gauge(
            "rekontext_database_up",
            "1 when the database answered this scrape; else what comes from it is left out.",
            registry=own,
        )

    def answered(self, operation: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self.requests.labels(operation, str(status)).inc()
        self.request_seconds.labels(operation).observe(seconds)

    def refused(self, status: int) -> None:
        """What was no request yet was answered, such as one connection too many."""
        self.requests.labels("refused", str(status)).inc()

    def looked(self, books: Books | None) -> None:
        """The database was asked; after None, for no answer, no old figure stays that could pass for a new one."""
        self.database_up.set(books is not None)
        if books is None:
            self.jobs.clear()
            self.credits.clear()
            self.webhooks.clear()
            return
        self.webhooks.labels("pending").set(books.pending_messages)
        for state, count in books.jobs.items():
            self.jobs.labels(state).set(count)
        for book, amount in books.credits_usd.items():
            self.credits.labels(book).set(amount)

    def stepped(self) -> None:
        """A denoising step was done here."""
        self.steps.inc()

    def faulted(self, code: str) -> None:
        """An attempt came to nothing through a fault of ours."""
        self.faults.labels(code).inc()

    def ended(self, job: Job) -> None:
        """A job ended here."""
        self.edits.labels(job.state.value.lower()).inc()
        if job.state is State.FAILED:
            assert job.error_code is not None, f"job {job.id} failed and has no code"
            self.failed_edits.labels(job.error_code).inc()
        if job.state is State.COMPLETED:
            self._completed(job)

    def collect(self) -> Iterator[Metric]:
        """What is scraped: without when each series began, which is a ninth of the lines and nobody's question."""
        for metric in self.registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric

    def _completed(self, job: Job) -> None:
        passes = (job.made or {}).get("passes")
        assert isinstance(passes, int), f"job {job.id} is {job.state} and was made in {passes!r} passes"
        self.passes.inc(passes)
        self.captured.inc(usd(job.price_micros))
        self.edit_seconds.labels("queue").observe(job.queue_s or 0.0)
        self.edit_seconds.labels("inference").observe(job.inference_s or 0.0)
        self.edit_seconds.labels("total").observe(job.total_s or 0.0)


def route(parts: Parts, metrics: Metrics) -> Route:
    """`/metrics`: for this machine without a key, for others with the scope admin."""

    async def scrape(request: Request) -> Response:
        if not _is_from_here(request):
            await parts.caller(request, "admin")
        metrics.looked(await _ask(parts))
        metrics.running.set(parts.dispatcher.running)
        metrics.ready.set(parts.fleet.is_ready)
        states = Counts(parts.fleet.devices.values())
        for state in DEVICE_STATES:
            metrics.devices.labels(state).set(states[state])
        return Response(generate_latest(metrics), media_type=CONTENT_TYPE_LATEST)

    return Route("/metrics", scrape)


def _is_from_here(request: Request) -> bool:
    """Whether somebody on this machine asks this machine: a proxy here speaks for others.

    Not every proxy says that it is one, but most pass on the name that others call. Nor does a page get in that has a
    browser here take its own name for this address (DNS rebinding).
    """
    if request.client is None or any(name.startswith(_OF_PROXIES) for name in request.headers):
        return False
    return _is_loopback(request.client.host) and _is_loopback(_PORT.sub("", request.headers.get("host", "")))


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


async def _ask(parts: Parts) -> Books | None:
    """What the database says, or None if it doesn't: the other figures are wanted then most of all."""
    try:
        async with asyncio.timeout(_LOOK_S_MAX):
            return await parts.database.read(_look)
    except (DatabaseUnavailable, TimeoutError):
        return None


def _look(tx: Connection) -> Books:
    books = [column for column in balances.c if column.name.endswith("_micros")]
    row = tx.execute(select(*(func.coalesce(func.sum(column), 0).label(column.name) for column in books))).one()
    return Books(
        jobs={state.value.lower(): count for state, count in unfinished_by_state(tx).items()},
        pending_messages=pending_messages(tx),
        credits_usd={name.removesuffix("_micros"): usd(int(micros)) for name, micros in row._mapping.items()},
    )
