"""What every surface asks for: one checked order in, one durable job out, and its end to wait for.

A surface translates its own HTTP request into an `EditOrder`, calls `Edits.submit` once (and `Edits.wait` if its
caller waits) and translates the job back. Nothing here knows any surface, nor how an edit is run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

import structlog
from sqlalchemy import Connection

from rekontext.accounts import (
    Allowance,
    Balance,
    KeyPolicy,
    RequestLimiter,
    ScopeMissing,
    Tariff,
    ledger,
)
from rekontext.api.auth import Caller
from rekontext.api.forecast import Forecast
from rekontext.api.workbench import EditOrder, edit_request, parameters_of
from rekontext.contract import DeadlineUnmeetable, Estimate, Fleet
from rekontext.database import AccountId, Database, DatabaseUnavailable, JobId
from rekontext.jobs import (
    KEY_CHARACTERS_MAX,
    Accepted,
    Desk,
    Idempotency,
    Job,
    Objects,
    Order,
    QueueFull,
    State,
    TooManyInFlight,
    clear_away,
    input_key,
    mask_key,
    queries,
)
from rekontext.models import SLUG
from rekontext.sources import Clock

_RETRY_AFTER_S_MAX: Final = 300
_LOOKED_AT_MAX: Final = 64
"""Running edits that are asked for when the first of them ends."""
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A job that can't be lost any more.

    Attributes:
        replayed: an earlier request with the same idempotency key made it.
        estimate: when it will be done; None while that can't be told, or when it ended already.
    """

    job: Job
    balance: Balance
    replayed: bool
    estimate: Estimate | None


class Edits:
    """Takes orders for edits.

    Args:
        deadline_s: how long a waiting caller is kept waiting.
        requests_per_minute: for keys without a limit of their own.
        log_prompts: whether a prompt may be written to the log.
    """

    def __init__(
        self,
        *,
        desk: Desk,
        database: Database,
        objects: Objects,
        fleet: Fleet,
        forecast: Forecast,
        limiter: RequestLimiter,
        tariff: Tariff,
        clock: Clock,
        deadline_s: float,
        requests_per_minute: int,
        log_prompts: bool = False,
    ) -> None:
        self._desk = desk
        self._database = database
        self._objects = objects
        self._fleet = fleet
        self._forecast = forecast
        self._limiter = limiter
        self._tariff = tariff
        self._clock = clock
        self._deadline_s = deadline_s
        self._requests_per_minute = requests_per_minute
        self._log_prompts = log_prompts

    def price_micros(self, *, steps: int, pictures: int = 1) -> int:
        """What an edit of so many steps and pictures costs.

        Raises:
            PriceUnknown: it depends on the size of pictures, and the model isn't loaded.
        """
        tariff = self._tariff
        if not (tariff.per_megapixel_micros or tariff.per_megapixel_step_micros):
            return pictures * tariff.price_micros(pixels=0, steps=steps)
        if not self._fleet.is_ready:
            raise PriceUnknown
        return pictures * tariff.price_micros(pixels=self._fleet.card.canvas_area, steps=steps)

    def requests_per_minute(self, policy: KeyPolicy) -> int:
        """How many requests a minute a key of this policy may send."""
        own = policy.requests_per_minute
        return self._requests_per_minute if own is None else own

    async def allow(self, caller: Caller) -> Allowance:
        """Count one request of the caller.

        Raises:
            RateLimited: it was one too many.
        """
        return await self._limiter.count(caller.key.id, requests_per_minute=self.requests_per_minute(caller.key.policy))

    async def earlier(self, caller: Caller, key: str, *, body_digest: str) -> Submitted | None:
        """What an earlier request with this idempotency key made, or None if there was none.

        Raises:
            IdempotencyKeyReused: it asked for something else.
            InvalidIdempotencyKey: the key is empty, too long, or not printable.
        """
        if not (0 < len(key) <= KEY_CHARACTERS_MAX and key.isascii() and key.isprintable()):
            raise InvalidIdempotencyKey(key)

        accepted = await self._desk.earlier(caller.account, Idempotency(key=key, body_digest=body_digest))
        return None if accepted is None else self._submitted(accepted)

    async def check(self, caller: Caller, *, steps: int, pictures: int, priority: int) -> None:
        """Return if an order like this would be accepted as things stand: before anything is brought for it.

        Raises:
            ModelNotAllowed, ScopeMissing, Busy, InsufficientCredits, SpendCapReached, PriceUnknown: as `submit`.
        """
        _require(caller, priority)
        price_micros = self.price_micros(steps=steps, pictures=pictures)
        try:
            await self._desk.check(caller.account, price_micros)
        except (QueueFull, TooManyInFlight) as fault:
            raise await self._busy(fault, caller) from fault

    async def submit(
        self, caller: Caller, order: EditOrder, *, job: JobId, origin: str, idempotency_key: str | None
    ) -> Submitted:
        """Accept an order. Once this returns, the edit can't be lost.

        Args:
            job: a new id.
            origin: under which its caller reaches us.

        Raises:
            ModelNotAllowed, ScopeMissing: the key is not good for this.
            DeadlineUnmeetable: it can't be done by `order.deadline_s`.
            Busy: there are too many unfinished edits.
            StoreUnavailable: the picture can't be kept; nothing was held.
            InsufficientCredits, SpendCapReached, IdempotencyKeyReused, PriceUnknown, DatabaseUnavailable.
        """
        _require(caller, order.priority)
        parameters = parameters_of(order, origin=origin)
        price_micros = self.price_micros(steps=order.steps, pictures=order.pictures)
        if order.deadline_s is not None:
            ahead = await self._database.read(lambda tx: queries.ahead_of_new(tx, caller.account))
            request = edit_request(parameters, job=job, account=caller.account, photo=None)
            self._check_deadline(order.deadline_s, self._forecast.of_new(request, ahead=ahead))
        keys = [input_key(job)] if order.mask is None else [input_key(job), mask_key(job)]
        await self._objects.put(keys[0], order.photo.data, content_type=f"image/{order.photo.format}")
        try:
            if order.mask is not None:
                await self._objects.put(keys[1], order.mask, content_type="image/png")
            accepted = await self._desk.submit(
                Order(
                    job=job,
                    account=caller.account,
                    key=caller.key.id,
                    model=SLUG,
                    price_micros=price_micros,
                    parameters=parameters,
                    input_key=keys[0],
                    mask_key=None if order.mask is None else keys[1],
                    webhook_url=order.webhook_url,
                    idempotency=None
                    if idempotency_key is None
                    else Idempotency(key=idempotency_key, body_digest=order.body_digest),
                )
            )
        except Exception as fault:
            # In doubt it may be accepted; the sweeper sees by and by.
            if not (isinstance(fault, DatabaseUnavailable) and fault.is_in_doubt):
                await clear_away(self._objects, *keys)
            if isinstance(fault, QueueFull | TooManyInFlight):
                raise await self._busy(fault, caller) from fault
            if isinstance(fault, DatabaseUnavailable) and fault.is_in_doubt:
                raise AcceptInDoubt(str(fault), is_in_doubt=True) from fault
            raise
        if accepted.replayed:  # by a request that came at the same moment
            await clear_away(self._objects, *keys)
        else:
            shown = {"prompt": order.prompt} if self._log_prompts else {}
            _log.info(
                "edit_accepted", job=job, account=caller.account, steps=order.steps, ahead=accepted.ahead, **shown
            )
        return self._submitted(accepted)

    def _submitted(self, accepted: Accepted) -> Submitted:
        return Submitted(
            job=accepted.job,
            balance=accepted.balance,
            replayed=accepted.replayed,
            estimate=self._forecast.of_job(accepted.job, ahead=accepted.ahead),
        )

    async def wait(self, submitted: Submitted) -> tuple[Job, Balance]:
        """The job once it has ended well, and what its account has then.

        Raises:
            DeadlineExceeded: it hasn't ended in time, or the server goes down; it goes on.
            JobFailed, JobCancelled: how it ended instead.
        """
        known = submitted.job
        account = known.account
        found = await self._desk.wait(known.id, account=account, timeout_s=self._deadline_s, known=known)
        if not found.state.is_terminal:
            raise DeadlineExceeded(found.id, deadline_s=None if self._desk.has_let_go else self._deadline_s)
        if found.state is State.FAILED:
            raise JobFailed(found)
        if found.state is State.CANCELLED:
            raise JobCancelled(found)
        balance = submitted.balance
        # Read again: other edits may have been paid meanwhile. Without the database what was left at the submit will
        # do: this edit is paid, and whoever is told otherwise orders another.
        with suppress(DatabaseUnavailable):
            balance = await self._database.read(lambda tx: ledger.balance(tx, account))
        return found, balance

    async def _busy(self, fault: QueueFull | TooManyInFlight, caller: Caller) -> Busy:
        room_in_s = await self._room_in_s(caller.account if isinstance(fault, TooManyInFlight) else None)
        wait_s = min(max(math.ceil(room_in_s), 1), _RETRY_AFTER_S_MAX)
        return Busy(str(fault), code=fault.code, retry_after_s=wait_s)

    async def _room_in_s(self, account: AccountId | None) -> float:
        """When the first edit of this account, or of all for None, is expected to end.

        What an edit usually takes where nothing is known of them: while the model loads, or where others run them.
        """

        def look(tx: Connection) -> list[tuple[Job, int | None]]:
            running = queries.running(tx, account, most=_LOOKED_AT_MAX)
            if running or account is None:  # in a full queue whoever waits ends later
                return [(job, None) for job in running]
            return [(job, queries.ahead(tx, job)) for job in queries.waiting(tx, account, most=1)]

        found = await self._database.read(look)
        told = [self._forecast.of_job(job, ahead=ahead) for job, ahead in found]
        return min((each.finish_s for each in told if each is not None), default=self._forecast.edit_s)

    def _check_deadline(self, deadline_s: float, estimate: Estimate | None) -> None:
        if estimate is not None and estimate.finish_s > deadline_s:
            raise DeadlineUnmeetable(deadline_s=deadline_s, finish_s=estimate.finish_s)


def _require(caller: Caller, priority: int) -> None:
    """Return if the key is good for an edit of this priority."""
    caller.key.require_model(SLUG)
    if priority > 0 and "admin" not in caller.key.policy.scopes:
        raise ScopeMissing(f"priority is {priority}; above 0 it needs an API key with the scope 'admin'.")


Missing = Literal["model", "database", "disk"]
_MISSING: Final[dict[Missing, str]] = {
    "model": "the model isn't loaded yet; edits sent now wait for it",
    "database": "the database can't be reached",
    "disk": "the disk is full or can't be written",
}


class NotReady(RuntimeError):
    """Something that edits need is not there (yet). `missing` is what."""

    def __init__(self, missing: Sequence[Missing] = ("model",)) -> None:
        super().__init__("; ".join(_MISSING[each] for each in missing))
        self.missing = tuple(missing)


class PriceUnknown(NotReady):
    """The price depends on the model's size of pictures, so without one no edit is accepted."""

    def __str__(self) -> str:
        return "the price depends on the model, which isn't loaded yet; nothing was accepted, send it again later"


class Busy(RuntimeError):
    """There are too many unfinished edits for one more. `retry_after_s` is when there may be fewer."""

    def __init__(self, sentence: str, *, code: str, retry_after_s: int) -> None:
        super().__init__(sentence)
        self.code = code
        self.retry_after_s = retry_after_s


class DeadlineExceeded(RuntimeError):
    """The edit takes longer than its caller may wait. It goes on.

    Args:
        deadline_s: how long that was; None when the server goes down before.
    """

    def __init__(self, job: JobId, *, deadline_s: float | None) -> None:
        why = "before the server went down" if deadline_s is None else f"within {deadline_s:g} s"
        super().__init__(f"the edit was not done {why}; it goes on, and its result will be there")
        self.job = job


class ResultOutOfReach(RuntimeError):
    """The edit is done and paid, but the store doesn't give its picture just now."""

    def __init__(self, job: JobId) -> None:
        super().__init__("the edit is done, but its picture can't be read just now; ask for the result later")
        self.job = job


class JobFailed(RuntimeError):
    """The job that a caller waited for has failed."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.error or "the edit failed")
        self.job = job


class JobCancelled(RuntimeError):
    """The job that a caller waited for was cancelled by another request."""

    def __init__(self, job: Job) -> None:
        super().__init__("the edit was cancelled by another request")
        self.job = job


class AcceptInDoubt(DatabaseUnavailable):
    """The database broke off just as the edit was written down. Its idempotency key tells, if it came with one."""


class InvalidIdempotencyKey(ValueError):
    """The header Idempotency-Key can't be one."""

    def __init__(self, key: str) -> None:
        super().__init__(
            f"Idempotency-Key has {len(key)} characters or some that are not printable ASCII; "
            f"allowed: 1 to {KEY_CHARACTERS_MAX} printable characters"
        )


class UnknownModel(LookupError):
    """No model has this name here."""

    def __init__(self, slug: str, *, known: Sequence[str]) -> None:
        super().__init__(f'there is no model "{slug[:80]}" here; known are: {", ".join(known)}')
