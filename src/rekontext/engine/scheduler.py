"""Whose step runs next. Pure: time is passed in, nothing here knows tensors or threads.

A step is the quantum, and how long an edit still takes is known well before it is done, so the device can always
serve the shortest remaining edit first, at the price of a few bytes of kept latents. Three things bound that:

* **Fair shares.** An account that took much more than its share lately goes behind the others, and among its own
  edits the earliest is served first. It still gets all that the others leave.
* **Ageing.** First-come-first-served would have given every edit a certain latency. An edit that is about to
  take longer than `ageing` times that (or than what most edits would have had, if that is more) goes to the front.
* **Priority.** Each level makes an edit count as half, or double, as long as it is.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp, inf, log
from typing import Final, Literal

from rekontext.contract import Estimate

ARRIVALS_KEPT: Final = 400
_ARRIVALS_NEEDED: Final = 20
_LEARNING: Final = 0.01
_LATE, _ORDINARY, _GREEDY = range(3)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How the order is made.

    Attributes:
        kind: "steps" is all of the above; "fifo" runs every edit to its end in order of arrival, to compare with.
        ageing: how many times its first-come-first-served latency an edit may take before it goes to the front.
        ageing_quantile: of recent first-come-first-served latencies; below it nobody counts as late.
        share_slack: an account is greedy when it lately took more of the device than an equal share plus this
            part of what is beyond an equal share.
        share_half_life_s: how fast past use is forgotten.
    """

    kind: Literal["steps", "fifo"] = "steps"
    ageing: float = 1.3
    ageing_quantile: float = 0.95
    share_slack: float = 0.04
    share_half_life_s: float = 300.0


@dataclass(kw_only=True)
class Waiting:
    """An edit that isn't done yet.

    Attributes:
        arrived_s, late_s: on the scheduler's clock; from `late_s` on it must run without pause.
        remaining_s: device seconds that it still needs.
        served: whether a step of it ran already.
        promised_s: when it was expected to be done as it came in, if others were before it.
        promised_as: its class then.
    """

    id: Hashable
    account: str
    arrived_s: float
    remaining_s: float
    late_s: float
    length: float
    number: int
    served: bool = False
    promised_s: float | None = None
    promised_as: int = _ORDINARY


@dataclass(kw_only=True)
class Scheduler:
    """The edits of one device, and the order in which their steps run.

    Attributes:
        weight: an account's share relative to the others'.
    """

    policy: Policy = field(default_factory=Policy)
    weight: Callable[[str], float] = lambda _: 1.0

    def __post_init__(self) -> None:
        self._waiting: dict[Hashable, Waiting] = {}
        self._use = _DecayingUse(self.policy.share_half_life_s)
        self._latencies = _Recent(ARRIVALS_KEPT)
        self._arrivals = _Arrivals(ARRIVALS_KEPT)
        self._overtaking = {_LATE: 1.0, _ORDINARY: 1.0, _GREEDY: 1.0}
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, id: Hashable, *, account: str, work_s: float, now_s: float, priority: int = 0) -> None:
        """An edit that needs `work_s` device seconds came in."""
        assert id not in self._waiting, f"{id!r} was added before"
        in_order_s = work_s + sum(other.remaining_s for other in self._waiting.values())
        self._latencies.add(in_order_s)
        patience_s = max(in_order_s, self._latencies.quantile(self.policy.ageing_quantile))
        self._waiting[id] = Waiting(
            id=id,
            account=account,
            arrived_s=now_s,
            remaining_s=work_s,
            late_s=now_s + self.policy.ageing * patience_s,
            length=2.0**-priority,
            number=self._number,
        )
        self._number += 1
        self._arrivals.add(account, work_s * 2.0**-priority, now_s)
        estimate = self.estimates(now_s)[id]
        if estimate.position:
            newcomer = self._waiting[id]
            newcomer.promised_s = now_s + estimate.finish_s
            newcomer.promised_as = self._rank(now_s)(newcomer)[0]

    def served(self, id: Hashable, *, took_s: float, remaining_s: float, now_s: float) -> None:
        """The device worked `took_s` on this edit, which needs `remaining_s` more."""
        edit = self._waiting[id]
        edit.remaining_s = remaining_s
        edit.served = True
        self._use.add(edit.account, took_s / self.weight(edit.account), now_s)

    def remove(self, id: Hashable) -> None:
        """The edit is cancelled."""
        del self._waiting[id]

    def done(self, id: Hashable, *, now_s: float) -> None:
        """The edit is done. How far off its first estimate was corrects the later ones."""
        edit = self._waiting.pop(id)
        if edit.promised_s is not None:
            # A step towards the median: the sign of the error counts, not its size, so outliers don't.
            factor = self._overtaking[edit.promised_as] + (_LEARNING if now_s > edit.promised_s else -_LEARNING)
            self._overtaking[edit.promised_as] = min(max(factor, 0.0), 2.0)

    def order(self, now_s: float, among: Iterable[Hashable] | None = None) -> list[Hashable]:
        """The edits in the order in which they would run if no other came; the first one's step is next."""
        edits = self._waiting.values() if among is None else [self._waiting[id] for id in among]
        rank = self._rank(now_s)
        return [edit.id for edit in sorted(edits, key=rank)]

    def next(self, now_s: float, among: Iterable[Hashable] | None = None) -> Hashable | None:
        """Whose step is next; None when there is none."""
        edits = self._waiting.values() if among is None else [self._waiting[id] for id in among]
        first = min(edits, key=self._rank(now_s), default=None)
        return None if first is None else first.id

    def estimates(self, now_s: float) -> dict[Hashable, Estimate]:
        """When each edit will be done: by the present order, and by how many will come in between."""
        return self._accumulate([self._waiting[id] for id in self.order(now_s)], now_s)

    def estimate(self, *, account: str, work_s: float, now_s: float, priority: int = 0) -> Estimate:
        """When an edit would be done if it came now."""
        newcomer = Waiting(
            id=object(),
            account=account,
            arrived_s=now_s,
            remaining_s=work_s,
            late_s=now_s + self.policy.ageing * (work_s + sum(edit.remaining_s for edit in self._waiting.values())),
            length=2.0**-priority,
            number=self._number,
        )
        edits = sorted([*self._waiting.values(), newcomer], key=self._rank(now_s))
        return self._accumulate(edits, now_s)[newcomer.id]

    def _accumulate(self, edits: list[Waiting], now_s: float) -> dict[Hashable, Estimate]:
        rank = self._rank(now_s)
        classes = [rank(edit)[0] for edit in edits]
        greedy = {edit.account for edit, kind in zip(edits, classes, strict=True) if kind == _GREEDY}
        rate = self._arrivals.rates(without=greedy, now_s=now_s)
        estimates, elapsed_s = {}, 0.0
        for position, (edit, kind) in enumerate(zip(edits, classes, strict=True)):
            wait_s, work_s = elapsed_s, edit.remaining_s
            elapsed_s += work_s
            if position and self.policy.kind == "steps":
                # While an edit waits, others come that go before it: all ordinary ones before a greedy account's,
                # shorter ones before an ordinary account's. At that rate they lengthen every second of its wait.
                # While it runs, fewer and fewer are shorter than what is left of it.
                length = work_s * edit.length
                waiting = _stretch(rate(inf if kind == _GREEDY else length))
                running = waiting if kind == _GREEDY else (waiting + 4 * _stretch(rate(length / 2)) + 1) / 6
                wait_s *= 1 + self._overtaking[kind] * (waiting - 1)
                work_s *= 1 + self._overtaking[kind] * (running - 1)
            estimates[edit.id] = Estimate(
                position=position, wait_s=0.0 if edit.served else wait_s, finish_s=wait_s + work_s
            )
        return estimates

    def _rank(self, now_s: float) -> Callable[[Waiting], tuple[int, float, int]]:
        if self.policy.kind == "fifo":
            return lambda edit: (0, 0.0, edit.number)
        greedy = self._use.above({edit.account for edit in self._waiting.values()}, self.policy.share_slack, now_s)

        def rank(edit: Waiting) -> tuple[int, float, int]:
            if edit.account in greedy:
                return _GREEDY, 0.0, edit.number
            if now_s + edit.remaining_s >= edit.late_s:
                return _LATE, edit.late_s, edit.number
            return _ORDINARY, edit.remaining_s * edit.length, edit.number

        return rank


def _stretch(rate: float) -> float:
    """How much longer a second takes when work that goes first comes in at `rate` seconds per second."""
    return 1 / (1 - min(rate, 0.9))


class _DecayingUse:
    """Device seconds by account, halved every half-life."""

    def __init__(self, half_life_s: float) -> None:
        self._rate = log(2) / half_life_s
        self._use: dict[str, tuple[float, float]] = {}

    def add(self, account: str, seconds: float, now_s: float) -> None:
        self._use[account] = (self.of(account, now_s) + seconds, now_s)

    def of(self, account: str, now_s: float) -> float:
        seconds, then_s = self._use.get(account, (0.0, now_s))
        return seconds * exp(-self._rate * (now_s - then_s))

    def above(self, present: set[str], slack: float, now_s: float) -> set[str]:
        """Accounts that took more than an equal share; all who used something lately or wait now count."""
        forgotten = [account for account in self._use if self.of(account, now_s) < 1e-3]
        for account in forgotten:
            del self._use[account]
        use = {account: self.of(account, now_s) for account in present | self._use.keys()}
        if len(use) < 2:
            return set()
        share = 1 / len(use)
        # A device that never idled would have worked 1 / rate of the seconds that aren't forgotten yet.
        limit = (share + slack * (1 - share)) / self._rate
        return {account for account, seconds in use.items() if seconds > limit}


class _Arrivals:
    """The last `size` arrivals: how much work comes in per second."""

    def __init__(self, size: int) -> None:
        self._arrivals: deque[tuple[float, str, float]] = deque(maxlen=size)

    def add(self, account: str, length_s: float, now_s: float) -> None:
        self._arrivals.append((now_s, account, length_s))

    def rates(self, *, without: set[str], now_s: float) -> Callable[[float], float]:
        """A function of a length: device seconds that come in per second, of other accounts' edits shorter than it."""
        if len(self._arrivals) < _ARRIVALS_NEEDED or now_s <= self._arrivals[0][0]:
            return lambda _: 0.0
        lengths = sorted(length for _, account, length in self._arrivals if account not in without)
        totals = [0.0, *accumulate(lengths)]
        elapsed_s = now_s - self._arrivals[0][0]
        return lambda shorter_than_s: totals[bisect_left(lengths, shorter_than_s)] / elapsed_s


class _Recent:
    """The last `size` values and their quantiles."""

    def __init__(self, size: int) -> None:
        self._in_order: deque[float] = deque()
        self._sorted: list[float] = []
        self._size = size

    def add(self, value: float) -> None:
        self._in_order.append(value)
        insort(self._sorted, value)
        if len(self._in_order) > self._size:
            self._sorted.remove(self._in_order.popleft())

    def quantile(self, q: float) -> float:
        return self._sorted[min(int(q * len(self._sorted)), len(self._sorted) - 1)]
