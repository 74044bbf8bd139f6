"""The load of `replay.py` on the real engine, in real time.

The model is the embedded one, cut to a few of its blocks and drawing small pictures: a step takes milliseconds, so that
hundreds of edits go through in minutes. What they show is nothing; the engine around it, its threads, its clock and
what it knows of costs are the real ones. Edits come as in the simulated load, whose seconds are as long as this device
makes them: see `_LoadClock`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from queue import Empty, SimpleQueue
from statistics import fmean
from typing import Final

import torch
from PIL import Image

from rekontext.contract import AspectRatio, EditRequest, Preview, Progress
from rekontext.engine.canvas import Canvas
from rekontext.engine.edit import plan
from rekontext.engine.engine import Engine
from rekontext.engine.placement import open_placed
from rekontext.engine.precision import choose_device
from rekontext.engine.replay import GREEDY, STEP_SECONDS, Arrival, Load, Outcome, Promise, Verdict, compare
from rekontext.engine.scheduler import Policy
from rekontext.engine.ticket import Ticket
from rekontext.models import MINI

_CANVAS: Final = Canvas(area=128 * 128)
_PHOTO: Final = Image.radial_gradient("L").convert("RGB")
_PROMPT: Final = "make it night"
_KINDS: Final[dict[float, tuple[AspectRatio, Image.Image | None]]] = dict(
    zip(STEP_SECONDS, (("9:21", None), ("1:1", None), ("9:21", _PHOTO), ("1:1", _PHOTO)), strict=True)
)
"""Which picture stands for which simulated edit: less and more tokens, in the same order."""

_TICK_S: Final = 0.002


def rehearse(load: Load, *, on_edit: Callable[[], None] = lambda: None) -> Verdict:
    """Run the load three times and compare, as `replay.judge` does.

    Args:
        on_edit: called as an ordinary account's edit is done, in each of the three runs.
    """
    with _one_core():
        return compare(
            ours=_run(load, Policy(), on_edit),
            fifo=_run(load, Policy(kind="fifo"), on_edit),
            alone=_run(load.without_greedy(), Policy(), on_edit),
        )


@contextmanager
def _one_core() -> Iterator[None]:
    """As beside a GPU: whoever submits edits and waits for them doesn't take from the device that runs them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _engine(policy: Policy) -> Iterator[Engine]:
    """The small model, with every kind of edit run and measured."""
    parts, plans = open_placed(MINI, device=choose_device(None), dtype=None)
    blocks = parts.transformer
    blocks.double_blocks, blocks.single_blocks = blocks.double_blocks[:1], blocks.single_blocks[-2:]
    with Engine(replace(parts, canvas=_CANVAS), is_mini=True, policy=policy, plans=plans) as engine:
        for kind in 3 * _every_kind():
            engine.submit(_request(kind)).result()
        yield engine


class _LoadClock:
    """The load's own seconds: the device takes one for what takes one in the simulation.

    How fast a shared machine is changes within a minute, by more than the policies differ. So this clock runs as fast
    as the steps at that moment: under each policy the device is as busy as the load says.
    """

    def __init__(self, engine: Engine, load: Load) -> None:
        self._engine = engine
        self._tokens = [plan(engine.model, _request(kind)).tokens for kind in _every_kind()]
        arrivals = load.arrivals()
        self._whole_s = fmean(engine.estimate(_request(a)).finish_s for a in arrivals) / fmean(
            a.work_s for a in arrivals
        )
        self._step_s = self._steps_s()
        self._seen_s = time.monotonic()
        self._now = 0.0

    @property
    def second_s(self) -> float:
        """How many real seconds it takes now."""
        return self._whole_s * self._steps_s() / self._step_s

    def now(self) -> float:
        """Load seconds since the clock was made. To be asked often: it takes the speed of the moment for all since."""
        seen_s = time.monotonic()
        self._now += (seen_s - self._seen_s) / self.second_s
        self._seen_s = seen_s
        return self._now

    def _steps_s(self) -> float:
        return sum(self._engine.costs.predict("step", tokens) for tokens in self._tokens)


def _run(load: Load, policy: Policy, on_edit: Callable[[], None]) -> Outcome:
    """The load under one policy."""
    outcome, upcoming, backlogged = Outcome(), deque(load.arrivals()), load.backlogged()
    finished: SimpleQueue[_Watched] = SimpleQueue()
    under_way = 0
    with _engine(policy) as engine:
        clock = _LoadClock(engine, load)

        def submit(arrival: Arrival) -> None:
            nonlocal under_way
            under_way += 1
            _Watched(arrival=arrival, engine=engine).submit(finished)

        for arrival in islice(backlogged, load.backlog):
            submit(arrival)
        while upcoming or under_way:
            while upcoming and upcoming[0].at_s <= clock.now():
                submit(upcoming.popleft())
            try:
                edit = finished.get(timeout=_TICK_S)
            except Empty:
                continue
            under_way -= 1
            done_s = edit.done_s()
            latency_s = clock.now() - edit.arrival.at_s
            outcome.add(edit.arrival.account, latency_s=latency_s, done_s=done_s, promises=edit.promises)
            if edit.arrival.account != GREEDY:
                on_edit()
            elif upcoming:
                for another in islice(backlogged, 1):
                    submit(replace(another, at_s=clock.now()))
    return outcome


@dataclass(kw_only=True)
class _Watched:
    """One edit on the engine: what was predicted for it and when, and when it was done."""

    arrival: Arrival
    engine: Engine
    promises: list[Promise] = field(default_factory=list)
    _ticket: Ticket | None = None
    _settled_s: float = 0.0

    def submit(self, finished: SimpleQueue[_Watched]) -> None:
        self._ticket = self.engine.submit(_request(self.arrival), on_progress=self._listen)
        self._promise(was_first=False)

        def settle(_: object) -> None:
            self._settled_s = time.monotonic()
            finished.put(self)

        self._ticket.future.add_done_callback(settle)

    def done_s(self) -> float:
        """When. Raises what the edit failed with."""
        assert self._ticket is not None, "submit first"
        self._ticket.result()
        return self._settled_s

    def _listen(self, news: Progress | Preview) -> None:
        if isinstance(news, Progress) and news.step and self._ticket is not None:
            self._promise(was_first=True)

    def _promise(self, *, was_first: bool) -> None:
        """Note what is expected now, if the edit is at the front or, if it was not to be, has to queue."""
        assert self._ticket is not None, "submit first"
        at_s, estimate = time.monotonic(), self.engine.estimate(self._ticket)
        if was_first == (estimate.position == 0):
            self.promises.append(Promise(at_s=at_s, finish_s=estimate.finish_s, was_first=was_first))


def _every_kind() -> list[Arrival]:
    return [Arrival(at_s=0.0, account="", steps=8, step_s=step_s) for step_s in STEP_SECONDS]


def _request(arrival: Arrival) -> EditRequest:
    ratio, photo = _KINDS[arrival.step_s]
    return EditRequest(
        id="",
        prompt=_PROMPT,
        photo=photo,
        steps=arrival.steps,
        seed=0,
        aspect_ratio=ratio,
        account=arrival.account,
    )
