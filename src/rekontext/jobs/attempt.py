"""One attempt at a job: input from the store, through the fleet, outputs into the store. Values in, an ending out.

Knows the job that it is given and nothing of queues, leases or money; `settle` hands the ending to `JobLife`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, assert_never

import structlog
from sqlalchemy import Connection

from rekontext.contract import EditRefused, EditRequest, EditResult, Fleet, OnProgress
from rekontext.jobs.life import JobLife
from rekontext.jobs.model import Job, Lease, Output
from rekontext.jobs.objects import Objects, output_key
from rekontext.jobs.workbench import Workbench
from rekontext.safety import SafetyUnavailable

_REFUSAL_CHARACTERS_MAX: Final = 1000
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Made:
    """The outputs are stored."""

    outputs: Sequence[Output]
    made: Mapping[str, object]
    inference_s: float
    timings: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Failed:
    """It came to nothing. `retry`: the fault was ours."""

    code: str
    error: str
    retry: bool


@dataclass(frozen=True)
class Stopped:
    """Its cancel was asked for."""


@dataclass(frozen=True)
class HandedBack:
    """This process goes away; another shall do it."""


Ending = Made | Failed | Stopped | HandedBack


@dataclass(kw_only=True)
class Traces:
    """What can be seen of an attempt from outside as it goes on.

    Attributes:
        has_left_fleet: its edit has ended there, well or not; what is left is to store and settle.
        stored: each key that was written, so that an attempt that comes to nothing can be cleared away.
    """

    has_left_fleet: bool = False
    stored: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """Runs attempts. `run_s_max`: one that takes longer, for each of its pictures, is a fault of ours."""

    fleet: Fleet
    objects: Objects
    workbench: Workbench
    run_s_max: float

    async def run(self, job: Job, *, on_progress: OnProgress, traces: Traces) -> Made | Failed:
        """Run the edit. Cancelling it stops the edit within one step."""
        try:
            async with asyncio.timeout(self._limit_s(job)):
                # Not held here while it waits: a photo may be large.
                edit = self.fleet.edit(await self._request(job), on_progress=on_progress)
                began = asyncio.get_running_loop().time()
                try:
                    result = await edit
                finally:
                    traces.has_left_fleet = True
                waited_s = asyncio.get_running_loop().time() - began - result.inference_s
                card = self.fleet.card
                outputs = await self._store(job, result, traces.stored)
        except EditRefused as refusal:
            return Failed(code=refusal.code, error=_told(refusal), retry=False)
        except TimeoutError:
            error = f"The edit was not done within {self._limit_s(job):g} s."
            _log.error("edit_failed", job=job.id, attempt=job.attempt, code="edit_timeout", why=error)
            return Failed(code="edit_timeout", error=error, retry=True)
        except SafetyUnavailable as fault:
            _log.error("safety_unavailable", job=job.id, attempt=job.attempt, fault=str(fault))
            unchecked = "The picture couldn't be checked, so it isn't handed out."
            return Failed(code="safety_unavailable", error=unchecked, retry=True)
        except Exception as fault:
            why = str(fault).partition("\n")[0]  # the operator's first question; the rest is below
            code = "engine_fault"
            _log.exception(
                "edit_failed", job=job.id, attempt=job.attempt, code=code, fault=type(fault).__name__, why=why
            )
            return Failed(code=code, error="The edit failed through a fault of ours.", retry=True)
        return Made(
            outputs=outputs,
            made={
                "seed": result.seed,
                "steps": result.steps,
                "passes": result.passes,
                "acceleration": result.acceleration,
                "model": card.title_with(result.loras),
                "is_mini": card.is_mini,
                **({"served": card.title} if result.loras else {}),
                **({} if result.prompt_tokens is None else {"prompt_tokens": result.prompt_tokens}),
            },
            inference_s=result.inference_s,
            timings={"wait": max(0.0, waited_s), **result.timings},
        )

    def _limit_s(self, job: Job) -> float:
        return self.run_s_max * self.workbench.outline(job).pictures

    async def _request(self, job: Job) -> EditRequest:
        assert job.input_key is not None, f"job {job.id} is {job.state}, and its input was swept"
        photo = await self.objects.get(job.input_key)
        mask = None if job.mask_key is None else await self.objects.get(job.mask_key)
        return await self.workbench.unpack(job, photo, mask)

    async def _store(self, job: Job, result: EditResult, stored: list[str]) -> list[Output]:
        outputs = []
        for file in await self.workbench.pack(job, result):
            key = output_key(job.id, job.attempt, file.name)
            stored.append(key)
            await self.objects.put(key, file.data, content_type=file.content_type)
            outputs.append(
                Output(
                    key=key,
                    content_type=file.content_type,
                    file_name=file.name,
                    bytes=len(file.data),
                    width=file.width,
                    height=file.height,
                )
            )
        return outputs


def _told(refusal: EditRefused) -> str:
    """A refusal's sentence, which may have a caller's words in it, as every database can hold it."""
    words = str(refusal).encode("utf-8", "backslashreplace").decode().replace("\0", "")
    return words if len(words) <= _REFUSAL_CHARACTERS_MAX else f"{words[:_REFUSAL_CHARACTERS_MAX]} …"


def settle(tx: Connection, *, life: JobLife, lease: Lease, ending: Ending, now: datetime) -> Job:
    """Write an ending.

    Raises:
        LeaseLost: the job is another attempt's, or ended.
    """
    match ending:
        case Made():
            return life.complete(
                tx,
                lease,
                outputs=ending.outputs,
                made=ending.made,
                inference_s=ending.inference_s,
                timings=ending.timings,
                now=now,
            )
        case Failed():
            return life.fail(tx, lease, code=ending.code, error=ending.error, retry=ending.retry, now=now)
        case Stopped():
            return life.stop(tx, lease, now=now)
        case HandedBack():
            return life.hand_back(tx, lease, now=now)
    assert_never(ending)
