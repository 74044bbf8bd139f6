"""Looks into the database for all that wait for news in this process: one look for all of them, however many.

Ends that come here are told by the hub; the `Lookout` is for those that come in other processes. Knows not who waits.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import structlog

from rekontext.database import Database, DatabaseUnavailable, JobId
from rekontext.jobs import queries
from rekontext.jobs.events import EventHub

_log = structlog.get_logger(__name__)

AT_ONCE_MAX: Final = 200


class Places:
    """Where the waiting jobs stand, as of `every_s` ago at most. For one event loop."""

    def __init__(self, *, database: Database, every_s: float) -> None:
        self._database = database
        self._every_s = every_s
        self._read_at = float("-inf")
        self._found: asyncio.Future[dict[JobId, int]] | None = None

    async def of(self, job: JobId) -> int | None:
        """How many waiting jobs come before this one; None if it doesn't wait, or only since then.

        Raises:
            DatabaseUnavailable: there is no news.
        """
        now = asyncio.get_running_loop().time()
        # One that takes longer than that is waited for: others beside it would make a slow database slower.
        if self._found is None or (self._found.done() and now - self._read_at >= self._every_s):
            self._read_at = now
            self._found = asyncio.ensure_future(self._database.read(queries.places))
            self._found.add_done_callback(lambda found: found.cancelled() or found.exception())  # heard, if only here
        return (await asyncio.shield(self._found)).get(job)


class Lookout:
    """Publishes the ends of watched jobs at the hub, each at most `every_s` late. For one event loop."""

    def __init__(self, *, database: Database, hub: EventHub, every_s: float) -> None:
        self._database = database
        self._hub = hub
        self._every_s = every_s
        self._watched: Counter[JobId] = Counter()
        self._looking: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, job: JobId) -> Iterator[None]:
        """Look for the end of this job, inside the block."""
        self._watched[job] += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name="lookout")
        try:
            yield
        finally:
            self._watched[job] -= 1
            if not self._watched[job]:
                del self._watched[job]
            if not self._watched:
                self._looking.cancel()
                self._looking = None

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            watched = list(self._watched)
            try:
                for start in range(0, len(watched), AT_ONCE_MAX):
                    some = watched[start : start + AT_ONCE_MAX]
                    for job in await self._database.read(partial(queries.ended, jobs=some)):
                        self._hub.end(job, is_ours=False)
            except DatabaseUnavailable:
                continue  # the jobs are safe, and so is the wait
            except Exception as fault:  # nobody waits for this task: whoever waits for its news asks again at the end
                _log.exception("look_failed", fault=str(fault))
