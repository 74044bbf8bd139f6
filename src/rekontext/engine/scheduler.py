"""Whose step runs next. Pure: time is passed in, nothing here knows tensors or threads.

A step is the quantum, and how long an edit still takes is known well before it is done, so the device can always
serve the shortest remaining edit first, at the price of a few bytes of kept latents. Four things temper that:

* **Ageing.** For every second since an edit came it counts as `ageing` seconds shorter, so it is overtaken by none
  that comes later than 1 / `ageing` times its length after it. All grow older alike: waiting changes no order.
* **Crowding.** An edit counts as longer by a part of what its account has waiting behind it. Who brings many lets those
  pass who bring one.
* **Fair shares.** An account that took more than its share lately, and much more with what it has waiting, is greedy:
  its edits go behind all others, and age faster, so that they are served more nearly in order. It still gets all that
  the others leave, and its share in any case. What was used is forgotten by and by.
* **Priority.** Each level makes an edit count as half, or double, as long as it is.

What is said of ageing holds between edits of one account, and between those of accounts that have nothing else waiting,
if both or neither are greedy.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from math import copysign, exp, inf, log
from typing import Final, Literal, NamedTuple

from rekontext.contract import Estimate

ARRIVALS_KEPT: Final = 400
_ARRIVALS_NEEDED: Final = 20
_LEARNING: Final = 0.01
_EXACT_S: Final = 1e-6
_FORGOTTEN_S: Final = 1e-3
_ORDINARY, _GREEDY = range(2)


@dataclass(frozen=True, kw_only=True)
class Policy:
    """How the order is made.

    Attributes:
        kind: "steps" is all of the above; "fifo" runs every edit to its end in order of arrival, to compare with.
        ageing: seconds that an edit counts as shorter for each second since it came.
        greedy_ageing: the same among greedy accounts' edits.
        crowding: seconds that an edit counts as longer for each second of work that its account has waiting behind it.
        share_slack: an account is greedy when it took more than an equal share, and its demand is more than an equal
            share plus this part of what is beyond one.
        waiting_max: an account's waiting edits count for its demand, and as a crowd, up to this part of all that isn't
            forgotten, so that whoever has to wait for long isn't taken for greedy.
        half_life_edits: after the time of how many edits past use is half forgotten.
    """

    kind: Literal["steps", "fifo"] = "steps"
    ageing: float = 0.07
    greedy_ageing: float = 0.3
    crowding: float = 0.3
    share_slack: float = 0.09
    waiting_max: float = 0.2
    half_life_edits: float = 40.0


@dataclass(kw_only=True)
class Waiting:
    """An edit that isn't done yet.

    Attributes:
        arrived_s: on the scheduler's clock.
        remaining_s: device seconds that it still needs.
        factor: what its priority makes of each of them.
        number: the edits in order of arrival.
        arrival: what is remembered of its coming; nothing of one that is only thought of.
        served: whether a step of it ran already.
        promised_s: when it was expected to be done as it came in, if others were before it.
        promised_as: its class then.
    """

    id: Hashable
    account: str
    arrived_s: float
    remaining_s: float
    factor: float
    number: int
    arrival: _Arrival | None = None
    served: bool = False
    promised_s: float | None = None
    promised_as: int = _ORDINARY

    @property
    def length(self) -> float:
        """How long it counts as, before ageing."""
        return self.remaining_s * self.factor


def equal_shares(_account: str) -> float:
    """Every account weighs the same."""
    return 1.0


@dataclass(kw_only=True)
class Scheduler:
    """The edits of one device, and the order in which their steps run.

    Attributes:
        weight: an account's share relative to the others'.
    """

    policy: Policy = field(default_factory=Policy)
    weight: Callable[[str], float] = equal_shares

    def __post_init__(self) -> None:
        self._waiting: dict[Hashable, Waiting] = {}
        self._use = _DecayingUse()
        self._arrivals = _Arrivals(ARRIVALS_KEPT)
        self._overtaking = {_ORDINARY: 1.0, _GREEDY: 1.0}
        self._number = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, id: object) -> bool:
        return id in self._waiting

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._waiting)

    def add(self, id: Hashable, *, account: str, work_s: float, now_s: float, priority: int = 0) -> None:
        """An edit that needs `work_s` device seconds came in."""
        assert id not in self._waiting, f"{id!r} was added before"
        newcomer = self._newcomer(id, account=account, work_s=work_s, now_s=now_s, priority=priority)
        self._waiting[id] = newcomer
        self._number += 1
        newcomer.arrival = self._arrivals.add(account, length=newcomer.length, work_s=work_s, now_s=now_s)
        self._use.half_life_s = self.policy.half_life_edits * self._arrivals.typical_s
        ranks = self._ranks(self._waiting.values(), now_s)
        estimate = self._accumulate(self._waiting.values(), ranks, now_s, [id])[id]
        if estimate.position:
            newcomer.promised_s = now_s + estimate.finish_s
            newcomer.promised_as = ranks[id].kind

    def served(self, id: Hashable, *, took_s: float, remaining_s: float, now_s: float) -> None:
        """The device worked `took_s` on this edit, which needs `remaining_s` more."""
        edit = self._waiting[id]
        edit.remaining_s = remaining_s
        edit.served = True
        self._use.add(edit.account, took_s / self.weight(edit.account), now_s)

    def remove(self, id: Hashable) -> None:
        """The edit is cancelled: what it would still have needed never came."""
        edit = self._waiting.pop(id)
        if edit.arrival is not None:
            self._arrivals.cut(edit.arrival, by_s=edit.remaining_s)

    def done(self, id: Hashable, *, now_s: float) -> None:
        """The edit is done. How far off its first estimate was corrects the later ones."""
        edit = self._waiting.pop(id)
        if edit.promised_s is not None:
            # A step towards the median: the sign of the error counts, not its size, so outliers don't.
            late_s = now_s - edit.promised_s
            step = 0.0 if abs(late_s) < _EXACT_S else copysign(_LEARNING, late_s)
            self._overtaking[edit.promised_as] = min(max(self._overtaking[edit.promised_as] + step, 0.0), 2.0)

    def order(self, now_s: float, among: Iterable[Hashable] | None = None) -> list[Hashable]:
        """The edits in the order in which they would run if no other came; the first one's step is next."""
        ranks = self._ranks(self._waiting.values(), now_s)
        return sorted(ranks if among is None else among, key=ranks.__getitem__)

    def next(self, now_s: float, among: Iterable[Hashable] | None = None) -> Hashable | None:
        """Whose step is next; None when there is none."""
        ranks = self._ranks(self._waiting.values(), now_s)
        return min(ranks if among is None else among, key=ranks.__getitem__, default=None)

    def estimates(self, now_s: float, of: Collection[Hashable] | None = None) -> dict[Hashable, Estimate]:
        """When each edit will be done: by the present order, and by how many will come in between.

        Args:
            of: which edits; those that aren't there any more are left out. None is all.
        """
        edits = self._waiting.values()
        return self._accumulate(edits, self._ranks(edits, now_s), now_s, of)

    def estimate(self, *, account: str, work_s: float, now_s: float, priority: int = 0) -> Estimate:
        """When an edit would be done if it came now."""
        newcomer = self._newcomer(object(), account=account, work_s=work_s, now_s=now_s, priority=priority)
        edits = [*self._waiting.values(), newcomer]
        return self._accumulate(edits, self._ranks(edits, now_s), now_s, [newcomer.id])[newcomer.id]

    def _newcomer(self, id: Hashable, *, account: str, work_s: float, now_s: float, priority: int) -> Waiting:
        return Waiting(
            id=id,
            account=account,
            arrived_s=now_s,
            remaining_s=work_s,
            factor=2.0**-priority,
            number=self._number,
        )

    def _accumulate(
        self,
        edits: Collection[Waiting],
        ranks: Mapping[Hashable, _Rank],
        now_s: float,
        of: Collection[Hashable] | None,
    ) -> dict[Hashable, Estimate]:
        greedy = frozenset(edit.account for edit in edits if ranks[edit.id].kind == _GREEDY)
        rates = self._arrivals.rates(greedy, now_s=now_s)
        in_order = sorted(edits, key=lambda edit: ranks[edit.id])
        bounds = _bounds(in_order, ranks, of)
        estimates, elapsed_s = {}, 0.0
        for position, edit in enumerate(in_order):
            kind = ranks[edit.id].kind
            wait_s, work_s = elapsed_s, edit.remaining_s
            elapsed_s += work_s
            if of is not None and edit.id not in of:
                continue
            if position and self.policy.kind == "steps":
                # While an edit waits, others come that go before it: those that are shorter than what is left of it,
                # less its age, and before a greedy account's all of the other accounts. At that rate they lengthen
                # every second of its wait, and of its work. Half way through each stands for the whole.
                ageing, rate = self.policy.ageing, rates.before_ordinary
                if kind == _GREEDY:
                    ageing, rate = self.policy.greedy_ageing, rates.before_greedy
                counts_s, trust = ranks[edit.id].key - ageing * now_s, self._overtaking[kind]
                waiting_s, running_s = ageing * wait_s / 2, edit.length / 2 + ageing * wait_s
                bound = {account: own_s - ageing * now_s for account, own_s in bounds[edit.id].items()}
                while_waiting = rate(counts_s, bound, older_s=waiting_s)
                while_running = rate(counts_s, bound, older_s=running_s)
                wait_s += trust * while_waiting.during(wait_s)
                work_s += trust * while_running.during(work_s)
            estimates[edit.id] = Estimate(
                position=position, wait_s=0.0 if edit.served else wait_s, finish_s=wait_s + work_s
            )
        return estimates

    def _ranks(self, present: Iterable[Waiting], now_s: float) -> dict[Hashable, _Rank]:
        """Where each edit stands: the least is served."""
        if self.policy.kind == "fifo":
            return {edit.id: _Rank(_ORDINARY, 0.0, 0.0, edit.number) for edit in present}
        of_account: dict[str, list[Waiting]] = {}
        for edit in present:
            of_account.setdefault(edit.account, []).append(edit)
        greedy = self._greedy(of_account, now_s)
        crowd_max_s = self._crowd_max_s
        ranks = {}
        for account, edits in of_account.items():
            kind, ageing, crowding = _ORDINARY, self.policy.ageing, self.policy.crowding
            if account in greedy:
                kind, ageing, crowding = _GREEDY, self.policy.greedy_ageing, 0.0
            # When each came says as much as its age, since all grow older alike.
            own = sorted((edit.length + ageing * edit.arrived_s, edit.number, edit) for edit in edits)
            behind_s, before, weight = sum(edit.remaining_s for edit in edits), -inf, self.weight(account)
            for key, number, edit in own:
                behind_s -= edit.remaining_s
                crowd_s = crowding * min(behind_s / weight, crowd_max_s)
                # Less is behind the later ones, but none overtakes those of its own account.
                before = max(before, key + crowd_s)
                ranks[edit.id] = _Rank(kind, before, key, number)
        return ranks

    @property
    def _crowd_max_s(self) -> float:
        return self.policy.waiting_max * self._use.at_most_s

    def _greedy(self, of_account: Mapping[str, Sequence[Waiting]], now_s: float) -> set[str]:
        """Accounts above an equal share; all who used something lately or wait now count."""
        used_s = self._use.by_account(now_s)
        demand_s = dict(used_s)
        crowd_max_s = self._crowd_max_s
        for account, edits in of_account.items():
            waiting_s = sum(edit.remaining_s for edit in edits) / self.weight(account)
            demand_s[account] = demand_s.get(account, 0.0) + min(waiting_s, crowd_max_s)
        if len(demand_s) < 2:
            return set()
        all_s, share = self._use.at_most_s, 1 / len(demand_s)
        most_s = (share + self.policy.share_slack * (1 - share)) * max(all_s, sum(demand_s.values()))
        return {account for account, used in used_s.items() if used > share * all_s and demand_s[account] > most_s}


class _Rank(NamedTuple):
    """Where an edit stands among those that wait.

    Attributes:
        key: seconds that it counts as, less its age but for a constant.
        own: the same without the crowd behind it.
    """

    kind: int
    key: float
    own: float
    number: int


def _bounds(
    in_order: Sequence[Waiting], ranks: Mapping[Hashable, _Rank], of: Collection[Hashable] | None
) -> dict[Hashable, dict[str, float]]:
    """For each edit: the accounts of its class with edits at its place or behind, and as what the first of them counts
    without a crowd. What comes later to such an account goes before the edit only if it goes before its own there."""
    bounds: dict[Hashable, dict[str, float]] = {}
    firsts: dict[int, dict[str, float]] = {_ORDINARY: {}, _GREEDY: {}}
    for edit in reversed(in_order):
        rank = ranks[edit.id]
        firsts[rank.kind][edit.account] = rank.own
        if of is None or edit.id in of:
            bounds[edit.id] = dict(firsts[rank.kind])
    return bounds


class _DecayingUse:
    """Device seconds by account, halved every half-life."""

    def __init__(self) -> None:
        self.half_life_s = inf
        self._use: dict[str, tuple[float, float]] = {}

    @property
    def at_most_s(self) -> float:
        """What isn't forgotten yet of a device that never idled."""
        return self.half_life_s / log(2)

    def add(self, account: str, seconds: float, now_s: float) -> None:
        self._use[account] = (self.of(account, now_s) + seconds, now_s)

    def of(self, account: str, now_s: float) -> float:
        return _decayed(*self._use.get(account, (0.0, now_s)), now_s, self.at_most_s)

    def by_account(self, now_s: float) -> dict[str, float]:
        """Of every account that isn't forgotten."""
        at_most_s = self.at_most_s
        use = {account: _decayed(*used, now_s, at_most_s) for account, used in self._use.items()}
        for account in [account for account, seconds in use.items() if seconds < _FORGOTTEN_S]:
            del self._use[account], use[account]
        return use


def _decayed(seconds: float, then_s: float, now_s: float, at_most_s: float) -> float:
    return seconds * exp((then_s - now_s) / at_most_s)


@dataclass(kw_only=True, eq=False)
class _Arrival:
    """An edit that came in, as long as it is remembered."""

    at_s: float
    account: str
    length: float
    work_s: float


class _Arrivals:
    """The last `size` arrivals: how much work comes in per second."""

    def __init__(self, size: int) -> None:
        self._arrivals: deque[_Arrival] = deque(maxlen=size)
        self._sums: dict[frozenset[str], tuple[_Sums, _Sums]] = {}
        self._own_sums: dict[str, _Sums] = {}

    @property
    def typical_s(self) -> float:
        """The mean length of edits by how long the device works on them, which many tiny ones don't change."""
        works_s = [arrival.work_s for arrival in self._arrivals]
        return sum(work_s * work_s for work_s in works_s) / (sum(works_s) or 1.0) or 1.0

    def add(self, account: str, *, length: float, work_s: float, now_s: float) -> _Arrival:
        arrival = _Arrival(at_s=now_s, account=account, length=length, work_s=work_s)
        self._arrivals.append(arrival)
        self._forget_sums()
        return arrival

    def cut(self, arrival: _Arrival, *, by_s: float) -> None:
        """It turned out to be so many seconds less work, perhaps none."""
        arrival.work_s -= by_s
        if arrival.work_s <= 0:
            with suppress(ValueError):  # it is forgotten already
                self._arrivals.remove(arrival)
        self._forget_sums()

    def rates(self, greedy: frozenset[str], *, now_s: float) -> _Rates:
        """What comes in, given which accounts are greedy."""
        if len(self._arrivals) < _ARRIVALS_NEEDED or now_s <= self._arrivals[0].at_s:
            return _Rates(_Sums([]), _Sums([]), {}, elapsed_s=1.0)
        if greedy not in self._sums:
            came: tuple[list[tuple[float, float]], list[tuple[float, float]]] = [], []
            for arrival in self._arrivals:
                came[arrival.account in greedy].append((arrival.length, arrival.work_s))
            self._sums[greedy] = _Sums(came[False]), _Sums(came[True])
        if not self._own_sums:
            own: dict[str, list[tuple[float, float]]] = {}
            for arrival in self._arrivals:
                own.setdefault(arrival.account, []).append((arrival.length, arrival.work_s))
            self._own_sums = {account: _Sums(edits) for account, edits in own.items()}
        return _Rates(*self._sums[greedy], self._own_sums, elapsed_s=now_s - self._arrivals[0].at_s)

    def _forget_sums(self) -> None:
        self._sums.clear()
        self._own_sums = {}


class _Sums:
    """How many of some edits are shorter than a length, and how much work they are."""

    def __init__(self, edits: list[tuple[float, float]]) -> None:
        edits.sort()
        self._lengths = [length for length, _ in edits]
        self._works_s = [*accumulate((work_s for _, work_s in edits), initial=0.0)]

    def of(self, shorter_than: float) -> tuple[int, float]:
        count = bisect_left(self._lengths, shorter_than)
        return count, self._works_s[count]


class _Rate(NamedTuple):
    """What comes in per second: how many edits, and how many device seconds they need."""

    edits: float
    work_s: float

    def during(self, seconds: float) -> float:
        """By how much so many seconds of other work become longer if this goes first: as likely more as less."""
        longer = seconds / (1 - min(self.work_s, 0.9))
        come = self.edits * longer
        # In the mean it would be all of it. But where one edit or none is to come, mostly none does: the median of
        # a sum of random edits lies about two thirds of an edit below the mean.
        return (longer - seconds) * max(0.0, 1 - 2 / (3 * come)) if come else 0.0


class _Rates:
    """What comes in that goes before an edit.

    Args:
        ordinary, greedy: what came of either kind of account in `elapsed_s`.
        own: the same by account.
    """

    def __init__(self, ordinary: _Sums, greedy: _Sums, own: Mapping[str, _Sums], *, elapsed_s: float) -> None:
        self._ordinary = ordinary
        self._greedy = greedy
        self._own = own
        self._elapsed_s = elapsed_s

    def before_ordinary(self, length: float, bounds: Mapping[str, float], *, older_s: float) -> _Rate:
        """Shorter edits of ordinary accounts.

        Args:
            length: as which the edit counts.
            bounds: as which something must count less if it is of these accounts.
            older_s: by how much less the edit counts by then.
        """
        return self._rate(self._ordinary, length, bounds, older_s)

    def before_greedy(self, length: float, bounds: Mapping[str, float], *, older_s: float) -> _Rate:
        """All edits of ordinary accounts, and shorter ones of greedy accounts."""
        every = self._rate(self._ordinary, inf, {}, 0.0)
        shorter = self._rate(self._greedy, length, bounds, older_s)
        return _Rate(every.edits + shorter.edits, every.work_s + shorter.work_s)

    def _rate(self, sums: _Sums, length: float, bounds: Mapping[str, float], older_s: float) -> _Rate:
        edits, work_s = sums.of(length - older_s)
        for account, bound in bounds.items():
            if bound < length and account in self._own:
                less, less_s = self._own[account].of(length - older_s)
                still, still_s = self._own[account].of(bound - older_s)
                edits, work_s = edits - less + still, work_s - less_s + still_s
        return _Rate(edits / self._elapsed_s, work_s / self._elapsed_s)
