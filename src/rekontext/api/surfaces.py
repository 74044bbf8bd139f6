"""What every surface does with a request: one job of it, and its end where the caller waits for that."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Final

from starlette.requests import Request

from rekontext.accounts import Allowance, Balance
from rekontext.api import answers
from rekontext.api.auth import Caller
from rekontext.api.connection import CallerGone, unless_gone
from rekontext.api.edits import ResultOutOfReach, Submitted
from rekontext.api.links import FileGone
from rekontext.api.middleware import rename, request_id
from rekontext.api.orders import Draft
from rekontext.api.parts import Parts
from rekontext.api.room import let_go
from rekontext.database import DatabaseUnavailable, JobId
from rekontext.jobs import Job, Output
from rekontext.pictures import ObjectMissing, StoreUnavailable

_KEY: Final = "idempotency-key"
_CANCEL_AGAIN_S: Final = 1.0


@dataclass(frozen=True, kw_only=True)
class Done:
    """A job that has ended well, and what its account has then."""

    job: Job
    balance: Balance


async def submit(request: Request, caller: Caller, draft: Draft, parts: Parts) -> Submitted:
    """Make a job of a request, once per idempotency key. From here on the request goes by the job's name.

    Raises:
        ParametersRefused: with all that is wrong with the request, the picture too.
        InvalidIdempotencyKey, IdempotencyKeyReused, and what `Edits.submit` raises.
    """
    key = request.headers.get(_KEY)
    origin = parts.origins.of(request)
    submitted = None
    if key is not None:
        submitted = await parts.edits.earlier(caller, key, body_digest=draft.body_digest)
    if submitted is None:
        own = partial(parts.links.read_own, origin=origin)
        order = await parts.orders.finish(draft, account=caller.account, shortcut=own)
        job = JobId(request_id(request.scope))
        submitted = await parts.edits.submit(caller, order, job=job, origin=origin, idempotency_key=key)
    rename(request.scope, submitted.job.id)
    let_go(request.scope)
    return submitted


async def wait(request: Request, caller: Caller, submitted: Submitted, parts: Parts) -> Done:
    """The job's end. Hanging up before cancels it, unless it can be asked for again by an idempotency key.

    Raises:
        JobFailed, JobCancelled: how it ended instead.
        DeadlineExceeded: it hasn't, in time; it goes on.
        FileGone: it had long ago, and its picture is there no more.
        CallerGone: nobody waits any more.
    """
    job = submitted.job.id
    try:
        done, balance = await unless_gone(request, parts.edits.wait(submitted))
    except CallerGone:
        await abandon(request, caller, job, parts)
        raise
    if submitted.replayed and not parts.documents.hands_out(done):
        raise FileGone
    return Done(job=done, balance=balance)


async def picture_of(job: Job, parts: Parts) -> bytes:
    """The first picture of a job that has ended well, as the store has it.

    Raises:
        ResultOutOfReach, FileGone: there is none (now, or any more).
    """
    assert job.outputs, f"job {job.id} is {job.state} without a picture"
    return await _read(job, job.outputs[0], parts)


async def pictures_of(job: Job, parts: Parts) -> list[bytes]:
    """All of them, likewise."""
    assert job.outputs, f"job {job.id} is {job.state} without a picture"
    return [await _read(job, output, parts) for output in job.outputs]


async def _read(job: Job, output: Output, parts: Parts) -> bytes:
    try:
        return await parts.objects.get(output.key)
    except ObjectMissing as fault:
        raise FileGone from fault
    except StoreUnavailable as fault:
        raise ResultOutOfReach(job.id) from fault


async def abandon(request: Request, caller: Caller, job: JobId, parts: Parts) -> None:
    """Cancel a job whose caller has hung up; not one who may come back for the result by an idempotency key."""
    if _KEY not in request.headers:
        await asyncio.shield(_cancel(job, caller, parts))


def headers(submitted: Submitted, allowed: Allowance, parts: Parts) -> dict[str, str]:
    """What the answer to a submit says beside its body, in every dialect: what the key may still send."""
    reset_s = max(0, round((allowed.reset_at - parts.clock.now()).total_seconds()))
    named = answers.allowance(allowed, reset_s=reset_s)
    if submitted.replayed:
        named["idempotency-replayed"] = "true"
    return named


async def _cancel(job: JobId, caller: Caller, parts: Parts) -> None:
    """Cancel an edit that nobody waits for. It was promised: if the database is away, again until it is back."""
    while not parts.closing.is_set():
        try:
            await parts.desk.cancel(job, account=caller.account)
        except DatabaseUnavailable:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CANCEL_AGAIN_S):
                    await parts.closing.wait()
        else:
            return
