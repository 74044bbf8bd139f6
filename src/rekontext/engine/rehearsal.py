"""The scheduler's comparison with first-come-first-served on the real engine, in real time, with the embedded model.

Small, because it takes as long as it takes: the same few edits, at the same times, under either policy.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

from PIL import Image

from rekontext.contract import AspectRatio, EditRequest, Progress
from rekontext.engine.engine import Engine
from rekontext.engine.replay import STEPS
from rekontext.engine.scheduler import Policy
from rekontext.engine.ticket import Ticket

EDITS: Final = 24
ACCOUNTS: Final = 4
LOAD: Final = 1.2
"""Above 1 for the short while that it lasts: a queue must form for the order to matter."""

_RATIOS: Final[tuple[AspectRatio, ...]] = ("1:1", "21:9", "2:3")


@dataclass(frozen=True, kw_only=True)
class Rehearsal:
    """Ratios to first-come-first-served, and the error of the predicted remaining time (median, relative)."""

    mean_latency_vs_fifo: float
    p99_vs_fifo: float
    eta_error_running: float
    eta_error_queued: float


@dataclass(kw_only=True)
class _Run:
    latency_s: list[float]
    running_errors: list[float]
    queued_errors: list[float]


def rehearse(*, seed: int, model: str = "mini", edits: int = EDITS) -> Rehearsal:
    """Run the same load under both policies on `model`."""
    ours, fifo = (_run(seed, model, edits, policy) for policy in (Policy(), Policy(kind="fifo")))
    return Rehearsal(
        mean_latency_vs_fifo=fmean(ours.latency_s) / fmean(fifo.latency_s),
        p99_vs_fifo=max(ours.latency_s) / max(fifo.latency_s),
        eta_error_running=median(ours.running_errors),
        eta_error_queued=median(ours.queued_errors or [0.0]),
    )


def _run(seed: int, model: str, edits: int, policy: Policy) -> _Run:
    rng = random.Random(seed)  # noqa: S311 - a load, not a secret
    photo = Image.radial_gradient("L").convert("RGB")
    requests = [
        EditRequest(
            id=str(i),
            prompt="make it night",
            photo=photo if rng.random() < 0.75 else None,
            steps=rng.randint(*STEPS),
            seed=i,
            aspect_ratio=rng.choice(_RATIOS),
            account=f"account-{i % ACCOUNTS}",
        )
        for i in range(edits)
    ]
    with Engine.open(model, policy=policy) as engine:
        for ratio in _RATIOS:
            for reference in (photo, None):
                engine.edit(reference, "make it night", steps=2, seed=0, aspect_ratio=ratio)
        mean_s = fmean(engine.estimate(request).finish_s for request in requests)
        watches = [_Watch(request) for request in requests]
        for watch in watches:
            time.sleep(rng.expovariate(LOAD / mean_s))
            watch.submit(engine)
        for watch in watches:
            watch.wait()
    return _Run(
        latency_s=[watch.latency_s for watch in watches],
        running_errors=[error for watch in watches for error in watch.running_errors()],
        queued_errors=[error for watch in watches for error in watch.queued_errors()],
    )


class _Watch:
    """One edit: what was predicted for it and when, and when it was done."""

    def __init__(self, request: EditRequest) -> None:
        self._request = request
        self._promises: list[tuple[float, float]] = []
        self._first: tuple[float, float] | None = None
        self._submitted_s = self._done_s = 0.0
        self._ticket: Ticket | None = None

    def submit(self, engine: Engine) -> None:
        self._submitted_s = time.monotonic()
        estimate = engine.estimate(self._request)
        if estimate.position:
            self._first = self._submitted_s, estimate.finish_s
        self._ticket = engine.submit(self._request, on_progress=self._listen)
        self._ticket.future.add_done_callback(lambda _: setattr(self, "_done_s", time.monotonic()))

    def wait(self) -> None:
        assert self._ticket is not None, "submit first"
        self._ticket.result()

    @property
    def latency_s(self) -> float:
        return self._done_s - self._submitted_s

    def running_errors(self) -> list[float]:
        return _errors(self._promises, self._done_s)

    def queued_errors(self) -> list[float]:
        return _errors([self._first] if self._first else [], self._done_s)

    def _listen(self, news: object) -> None:
        if isinstance(news, Progress) and news.remaining_s:
            self._promises.append((time.monotonic(), news.remaining_s))


def _errors(promises: Sequence[tuple[float, float]], done_s: float) -> list[float]:
    return [abs(remaining_s - (done_s - at_s)) / (done_s - at_s) for at_s, remaining_s in promises if done_s > at_s]
