"""A seeded mixed load, replayed on a simulated clock: what a scheduling policy is worth. Pure; no device, no tensors.

The load: edits of several sizes come as a Poisson process, spread over ordinary accounts. One account is greedy: either
it always has more waiting, so that the device never rests, or it brings a good part of what comes. The same load runs
under the policy, under first-come-first-served, and once without the greedy account.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from statistics import fmean, median
from typing import Final

from rekontext.engine.scheduler import Policy, Scheduler

GREEDY: Final = "greedy"

STEP_SECONDS: Final = (0.047, 0.093, 0.146, 0.207)
"""A step on one H100 at 800 TFLOP/s: 512 + 512 px, text to 1 MP, 1 MP from half a megapixel, 1 MP + 1 MP."""

STEPS: Final = (4, 50)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One edit of the load."""

    at_s: float
    account: str
    steps: int
    step_s: float

    @property
    def work_s(self) -> float:
        """Device seconds."""
        return self.steps * self.step_s


@dataclass(frozen=True, kw_only=True)
class Load:
    """A load, drawn from a seed.

    Attributes:
        edits: how many come as a Poisson process.
        rate: device seconds of work that they bring per second.
        greedy_part: how many of them, out of 1, are the greedy account's.
        backlog: edits that the greedy account keeps waiting besides, until the last of the others came.
        step_s: seconds per step, one for each kind of edit.
        has_greedy: False leaves the greedy account's edits out of the same load.
    """

    seed: int = 0
    edits: int = 1500
    rate: float = 0.5
    greedy_part: float = 0.0
    backlog: int = 12
    accounts: int = 8
    step_s: tuple[float, ...] = STEP_SECONDS
    has_greedy: bool = True

    def arrivals(self) -> list[Arrival]:
        """The edits of the Poisson process, in order of arrival."""
        rng = random.Random(self.seed)  # noqa: S311 - a simulation
        mean_s = fmean(self.step_s) * sum(STEPS) / 2
        now_s, arrivals = 0.0, []
        for _ in range(self.edits):
            now_s += rng.expovariate(self.rate / mean_s)
            is_greedy = self.greedy_part > 0 and rng.random() < self.greedy_part
            account = GREEDY if is_greedy else f"account-{rng.randrange(self.accounts)}"
            arrivals.append(_draw(rng, now_s, account, self.step_s))
        return arrivals if self.has_greedy else [arrival for arrival in arrivals if arrival.account != GREEDY]

    def backlogged(self) -> Iterator[Arrival]:
        """What the greedy account keeps waiting, without end; each comes as soon as one that it brought is done."""
        rng = random.Random(self.seed + 1)  # noqa: S311 - a simulation
        while self.backlog:
            yield _draw(rng, 0.0, GREEDY, self.step_s)

    def without_greedy(self) -> Load:
        """The same load, but for the greedy account."""
        return replace(self, backlog=0, has_greedy=False)


@dataclass(frozen=True, kw_only=True)
class Promise:
    """At `at_s` an edit was expected to be done `finish_s` later; it was the one at the front, or had to queue."""

    at_s: float
    finish_s: float
    was_first: bool


@dataclass(kw_only=True)
class Outcome:
    """What became of a load.

    Attributes:
        latency_s: seconds from arrival to the end, by account.
        running_errors: (predicted - real) / real of the remaining time of the edit at the front, at every arrival.
        queued_errors: the same of every edit that had to queue, as predicted when it came, by account.
    """

    latency_s: dict[str, list[float]] = field(default_factory=dict)
    running_errors: list[float] = field(default_factory=list)
    queued_errors: dict[str, list[float]] = field(default_factory=dict)

    def add(self, account: str, *, latency_s: float, done_s: float, promises: Iterable[Promise]) -> None:
        """An edit is done, at `done_s` on the clock of its promises."""
        self.latency_s.setdefault(account, []).append(latency_s)
        queued = self.queued_errors.setdefault(account, [])
        for promise in promises:
            left_s = done_s - promise.at_s
            errors = self.running_errors if promise.was_first else queued
            errors.append((promise.finish_s - left_s) / left_s)

    def all(self) -> list[float]:
        """Latencies of every account's edits, sorted."""
        return sorted(latency for latencies in self.latency_s.values() for latency in latencies)

    def all_queued_errors(self) -> list[float]:
        """Of every account's edits."""
        return [error for errors in self.queued_errors.values() for error in errors]

    def ordinary_queued_errors(self) -> list[float]:
        """Of the ordinary accounts' edits."""
        return [error for account, errors in self.queued_errors.items() if account != GREEDY for error in errors]

    def ordinary_mean(self) -> float:
        """Mean latency of the ordinary accounts."""
        return fmean(x for account, latencies in self.latency_s.items() if account != GREEDY for x in latencies)


def replay(load: Load, policy: Policy) -> Outcome:
    """Run the load to its end under a policy."""
    scheduler = Scheduler(policy=policy)
    arrivals = load.arrivals()
    backlogged = load.backlogged()
    edits: dict[int, Arrival] = {}
    steps_left: dict[int, int] = {}
    promises: dict[int, list[Promise]] = {}
    outcome = Outcome()
    now_s, upcoming, number, seen = 0.0, 0, 0, 0

    def admit(arrival: Arrival) -> None:
        nonlocal number
        scheduler.add(number, account=arrival.account, work_s=arrival.work_s, now_s=now_s)
        edits[number], steps_left[number], promises[number] = arrival, arrival.steps, []
        number += 1

    for arrival in islice(backlogged, load.backlog):
        admit(arrival)
    while upcoming < len(arrivals) or steps_left:
        if not steps_left:
            now_s = max(now_s, arrivals[upcoming].at_s)
        while upcoming < len(arrivals) and arrivals[upcoming].at_s <= now_s:
            admit(arrivals[upcoming])
            upcoming += 1
        for id, estimate in scheduler.estimates(now_s).items() if number > seen else ():
            assert isinstance(id, int)
            if estimate.position == 0 or id >= seen:
                promise = Promise(at_s=now_s, finish_s=estimate.finish_s, was_first=estimate.position == 0)
                promises[id].append(promise)
        seen = number
        id = scheduler.next(now_s)
        assert isinstance(id, int)
        arrival = edits[id]
        now_s += arrival.step_s
        steps_left[id] -= 1
        scheduler.served(id, took_s=arrival.step_s, remaining_s=steps_left[id] * arrival.step_s, now_s=now_s)
        if steps_left[id] == 0:
            scheduler.done(id, now_s=now_s)
            del steps_left[id]
            outcome.add(arrival.account, latency_s=now_s - arrival.at_s, done_s=now_s, promises=promises.pop(id))
            if arrival.account == GREEDY and upcoming < len(arrivals):
                for another in islice(backlogged, 1):
                    admit(replace(another, at_s=now_s))
    return outcome


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The policy against first-come-first-served on the same load; ratios below 1 are better than it.

    Attributes:
        ordinary_mean_vs_alone: ordinary accounts' mean latency with the greedy account around, to that without it.
        eta_error_running, eta_error_queued: median relative error of the predicted remaining time.
        eta_error_queued_ordinary: the same without the greedy account, whose edits wait behind all that is yet to come.
    """

    mean_latency_vs_fifo: float
    p99_vs_fifo: float
    ordinary_mean_vs_fifo: float
    ordinary_mean_vs_alone: float
    eta_error_running: float
    eta_error_queued: float
    eta_error_queued_ordinary: float


def judge(load: Load, policy: Policy) -> Verdict:
    """Replay the load three times and compare."""
    return compare(
        ours=replay(load, policy),
        fifo=replay(load, Policy(kind="fifo")),
        alone=replay(load.without_greedy(), policy),
    )


def compare(*, ours: Outcome, fifo: Outcome, alone: Outcome) -> Verdict:
    """The same load under the policy, under first-come-first-served, and under the policy with no greedy account."""
    return Verdict(
        mean_latency_vs_fifo=fmean(ours.all()) / fmean(fifo.all()),
        p99_vs_fifo=_p99(ours.all()) / _p99(fifo.all()),
        ordinary_mean_vs_fifo=ours.ordinary_mean() / fifo.ordinary_mean(),
        ordinary_mean_vs_alone=ours.ordinary_mean() / alone.ordinary_mean(),
        eta_error_running=_size(ours.running_errors),
        eta_error_queued=_size(ours.all_queued_errors()),
        eta_error_queued_ordinary=_size(ours.ordinary_queued_errors()),
    )


def _size(errors: Iterable[float]) -> float:
    return median(map(abs, errors))


def _p99(ordered: Sequence[float]) -> float:
    return ordered[int(0.99 * len(ordered))]


def _draw(rng: random.Random, at_s: float, account: str, step_s: tuple[float, ...]) -> Arrival:
    return Arrival(at_s=at_s, account=account, steps=rng.randint(*STEPS), step_s=rng.choice(step_s))
