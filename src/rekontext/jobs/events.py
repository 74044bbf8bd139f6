"""What happens to jobs, as it happens, for whoever listens in this process.

Nothing here is the truth: events are kept in memory, a bounded number of them for a bounded number of jobs, and a
slow listener misses steps rather than holding anybody up. The last event of a job is never missed.
Knows no database and no HTTP.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal, Protocol

from rekontext.database import JobId
from rekontext.jobs.model import Job

EventKind = Literal["queued", "processing", "progress", "preview", "quiet", "ended"]

EVENTS_PER_JOB_MAX: Final = 128
JOBS_MAX: Final = 4096
_DIGITS_MAX: Final = 18


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened.

    Attributes:
        id: grows within a job; a listener that comes back names the last one it has.
        data: JSON values. "queued": ahead. "processing": attempt. "progress": attempt, step, steps, remaining_s.
            "preview": what the wire makes of it. "quiet": nothing, as nothing happened since the event before, whose id
            it has; it is never kept. "ended": status.
    """

    id: str
    kind: EventKind
    data: Mapping[str, object]


class Meter(Protocol):
    """Counts the work of one process."""

    def stepped(self) -> None:
        """A step was done."""
        ...

    def faulted(self, code: str) -> None:
        """An attempt came to nothing through a fault of ours."""
        ...

    def ended(self, job: Job) -> None:
        """A job was ended."""
        ...


class _Channel:
    """The events of one job and those who wait for the next."""

    def __init__(self) -> None:
        self.events: deque[tuple[int, Event]] = deque(maxlen=EVENTS_PER_JOB_MAX)
        self.last_number = 0
        self.news = asyncio.Event()
        self.listeners = 0
        self.ended = False
        self.record: Job | None = None


class EventHub:
    """Publishes and replays the events of jobs. For one event loop.

    Args:
        epoch: differs between any two processes, so that numbers of an earlier one are not taken for ours.
        meter: counts what happens in this process.
    """

    def __init__(self, *, epoch: str, meter: Meter | None = None) -> None:
        assert "-" not in epoch, f"the epoch {epoch!r} would not part from the number after it"
        self._epoch = epoch
        self._meter = meter
        self._channels: OrderedDict[JobId, _Channel] = OrderedDict()
        # Counted over all jobs: the numbers of one that was forgotten and comes back must not begin anew.
        self._last_number = 0

    def publish(self, job: JobId, kind: EventKind, data: Mapping[str, object], *, is_ours: bool = True) -> None:
        """Tell every listener of `job` what has just happened. Returns at once. After "ended" nothing more is taken.

        Args:
            is_ours: False for what is only seen here, and happened in another process or before.
        """
        if is_ours and kind == "progress" and data["step"] and self._meter is not None:
            self._meter.stepped()
        channel = self._channel(job)
        if channel.ended:
            return
        if kind in ("preview", "ended"):  # previews are large: only the newest is of use, and none after the end
            channel.events = deque((each for each in channel.events if each[1].kind != "preview"), EVENTS_PER_JOB_MAX)
        number = channel.last_number = self._last_number = self._last_number + 1
        channel.events.append((number, Event(id=f"{self._epoch}-{number}", kind=kind, data=data)))
        channel.ended = kind == "ended"
        if channel.listeners:
            channel.news.set()
            channel.news = asyncio.Event()

    def end(self, job: Job, *, is_ours: bool = True) -> None:
        """Publish that `job` has ended as it is, for good.

        Args:
            is_ours: this process has just ended it, which is said once of each; False for another's end, or an old one.
        """
        if is_ours and self._meter is not None:
            self._meter.ended(job)
        self._channel(job.id).record = job
        self.publish(job.id, "ended", {"status": job.state.value})

    def faulted(self, code: str) -> None:
        """Count an attempt, ours or one that this process took back: it came to nothing through a fault of ours."""
        if self._meter is not None:
            self._meter.faulted(code)

    def newest(self, job: JobId) -> Event | None:
        """What was published of `job` last and is remembered."""
        channel = self._channels.get(job)
        return channel.events[-1][1] if channel is not None and channel.events else None

    def has_ended(self, job: JobId) -> bool:
        """Whether the end of `job` was published here."""
        channel = self._channels.get(job)
        return channel is not None and channel.ended

    async def listen(self, job: JobId, *, after: str | None = None) -> AsyncGenerator[Event, None]:
        """The events of `job` that are remembered and all that come, up to the last.

        Args:
            after: the id of the last event that the listener has; one that isn't ours, or beyond what is remembered of
                this job, starts from the beginning: whoever names it still hears the end.

        Never ends for a job whose end is published in another process: bound the wait.
        """
        seen = self._number(after)
        channel = self._channel(job)
        if seen > channel.last_number:
            seen = 0
        channel.listeners += 1
        try:
            while True:
                for number, event in list(channel.events):
                    if number > seen:
                        seen = number
                        yield event
                if channel.ended and seen >= channel.last_number:
                    return
                if seen >= channel.last_number:
                    await channel.news.wait()
        finally:
            channel.listeners -= 1

    async def wait_ended(self, job: JobId) -> Job:
        """The job as it ended, once its end is published here."""
        channel = self._channel(job)
        channel.listeners += 1
        try:
            while channel.record is None:
                await channel.news.wait()
            return channel.record
        finally:
            channel.listeners -= 1

    def _number(self, event_id: str | None) -> int:
        epoch, _, number = (event_id or "").partition("-")
        is_ours = epoch == self._epoch and len(number) <= _DIGITS_MAX and number.isascii() and number.isdigit()
        return int(number) if is_ours else 0

    def _channel(self, job: JobId) -> _Channel:
        channel = self._channels.get(job)
        if channel is None:
            self._forget_oldest()
            channel = self._channels[job] = _Channel()
        self._channels.move_to_end(job)
        return channel

    def _forget_oldest(self) -> None:
        """Make room for one more job: drop those that were quiet longest, never one that is listened to."""
        excess = len(self._channels) + 1 - JOBS_MAX
        if excess > 0:
            quiet = (job for job, channel in self._channels.items() if not channel.listeners)
            for job in list(islice(quiet, excess)):
                del self._channels[job]
