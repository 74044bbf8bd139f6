"""Delivers the messages of the outbox, signed by the Standard Webhooks spec, until they are taken or a day is over.

At least once: a receiver tells repeats by the webhook-id. A message is claimed before it is sent, so that several
processes share the work; one that dies leaves it to be claimed again. Knows nothing of sockets: how a request is
sent, and to which addresses it may go, is passed in.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import urlsplit

import structlog
from sqlalchemy import (
    BindParameter,
    Connection,
    Row,
    Select,
    bindparam,
    func,
    insert,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)
from standardwebhooks import Webhook

from rekontext.database import AccountId, Database, DatabaseUnavailable, DeliveryId, EndpointId, JobId
from rekontext.database.tables import accounts, webhook_attempts, webhook_deliveries, webhook_endpoints
from rekontext.jobs.outage import Outage
from rekontext.sources import Clock, Randomness

_log = structlog.get_logger(__name__)

Send = Callable[[str, bytes, Mapping[str, str]], Awaitable[int]]
"""Posts a body to a URL with headers and returns the HTTP status. Follows no redirects; raises `NotDelivered`."""

RETRY_AFTER_S: Final = (5, 60, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 8 * 3600, 8 * 3600)
"""Seconds between tries: a day in all, then the message is dead."""

JITTER: Final = 0.1
LIFE: Final = timedelta(seconds=sum(RETRY_AFTER_S) * (1 + JITTER), hours=1)
"""A message that waits for its turns so long, since it was made or replayed, is given up. The tries take less."""

CATCH_UP: Final = timedelta(hours=1)
"""After no message could be sent for so long, nothing is given up for its age for as long."""

GIVEN_UP_AT_ONCE: Final = 200
PER_ACCOUNT_MAX: Final = 8
ERROR_CHARACTERS_MAX: Final = 500
_GONE: Final = 410
_OUTLIVED: Final = f"Given up: {LIFE / timedelta(hours=1):.0f} hours went by, and others waited before it."

LOOKED_AT: Final = 256
"""Oldest due messages that a claim looks through for accounts; where there are more it goes from account to account."""

_pending = webhook_deliveries.c.state == literal_column("'PENDING'")
_now: BindParameter[datetime] = bindparam("now", type_=webhook_deliveries.c.due_at.type)
DUE: Final = (
    select(webhook_deliveries.c.account_id, webhook_deliveries.c.due_at)
    .where(_pending, webhook_deliveries.c.due_at <= _now)
    .order_by(webhook_deliveries.c.due_at)
    .limit(bindparam("limit"))
)
# A range and not "=": that leaves PostgreSQL free to walk everybody's due messages in search of the account's.
_account: BindParameter[str] = bindparam("account", type_=webhook_deliveries.c.account_id.type)
DUE_OF: Final = (
    select(webhook_deliveries.c.id, webhook_deliveries.c.due_at)
    .where(
        _pending,
        webhook_deliveries.c.account_id >= _account,
        tuple_(webhook_deliveries.c.account_id, webhook_deliveries.c.due_at) <= tuple_(_account, _now),
    )
    .order_by(webhook_deliveries.c.account_id, webhook_deliveries.c.due_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
# From each account's first message in the index to the next account's: a backlog is passed over, not read.
_first = (
    select(webhook_deliveries.c.account_id, webhook_deliveries.c.due_at)
    .where(_pending)
    .order_by(webhook_deliveries.c.account_id, webhook_deliveries.c.due_at)
    .limit(1)
)
_waiting = select(_first.subquery()).cte("waiting", recursive=True)
_next = _first.where(webhook_deliveries.c.account_id > _waiting.c.account_id)
_waiting = _waiting.union_all(
    select(
        _next.with_only_columns(webhook_deliveries.c.account_id).scalar_subquery(),
        _next.with_only_columns(webhook_deliveries.c.due_at).scalar_subquery(),
    ).where(_waiting.c.account_id.is_not(None))
)
WAITING: Final = select(_waiting).where(_waiting.c.account_id.is_not(None))
# What is under way isn't due.
OUTLIVED: Final[Select[Any]] = (
    select(
        webhook_deliveries.c.id,
        webhook_deliveries.c.account_id,
        webhook_deliveries.c.endpoint_id,
        webhook_deliveries.c.job_id,
        webhook_deliveries.c.url,
        webhook_deliveries.c.tries,
    )
    .where(
        _pending,
        webhook_deliveries.c.created_at <= bindparam("before", type_=webhook_deliveries.c.created_at.type),
        or_(
            webhook_deliveries.c.replayed_at.is_(None),
            webhook_deliveries.c.replayed_at <= bindparam("before", type_=webhook_deliveries.c.replayed_at.type),
        ),
        webhook_deliveries.c.due_at <= _now,
    )
    .order_by(webhook_deliveries.c.created_at)
    .limit(bindparam("limit"))
    .with_for_update(skip_locked=True)
)
_PENDING: Final = select(func.count()).select_from(webhook_deliveries).where(_pending)
_BY_ID_LOCKED: Final = (
    select(webhook_deliveries.c.id).where(webhook_deliveries.c.id == bindparam("delivery")).with_for_update()
)


class NotDelivered(Exception):
    """No answer came. The message says why, for the delivery log."""


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A message that this process may send.

    Attributes:
        job: what it tells of; None for a test message.
        since: when it was made or replayed.
        attempt: the fence.
        tries: with this one.
    """

    id: DeliveryId
    account: AccountId
    job: JobId | None
    since: datetime
    attempt: int
    tries: int
    url: str
    body: str
    secret: str
    endpoint: EndpointId | None
    is_wanted: bool


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    status: int | None
    error: str | None


class Deliverer:
    """Sends what is due. Use `run` in a task of its own and cancel it to end.

    Args:
        sending_max: messages under way at the same time.
        per_account_max: of these, as many may be one account's, so that receivers which hang hold up their own account.
        send_s_max: a receiver that takes longer has not answered.
        poll_s: how long a message may lie unseen.
    """

    def __init__(
        self,
        *,
        database: Database,
        send: Send,
        clock: Clock,
        randomness: Randomness,
        sending_max: int = 64,
        per_account_max: int = PER_ACCOUNT_MAX,
        send_s_max: float = 15.0,
        poll_s: float = 1.0,
    ) -> None:
        self._database = database
        self._send = send
        self._clock = clock
        self._outage = Outage(by="deliverer", clock=clock, log=_log)
        self._randomness = randomness
        self._sending_max = sending_max
        self._per_account_max = per_account_max
        self._send_s_max = send_s_max
        self._poll_s = poll_s
        self._news = asyncio.Event()
        self._looked_at = self._at_work_since = datetime.min.replace(tzinfo=UTC)

    def wake(self) -> None:
        """Look for due messages now."""
        self._news.set()

    async def run(self) -> None:
        """Work until cancelled; what is under way then is sent again later. Faults of the database are waited out."""
        sending: dict[asyncio.Task[None], AccountId] = {}
        try:
            while True:
                self._news.clear()
                for message in await self._claim(Counter(sending.values())):
                    task = asyncio.create_task(self._deliver(message))
                    sending[task] = message.account
                    task.add_done_callback(sending.pop)
                    task.add_done_callback(lambda _task: self.wake())
                # Not wait_for: before Python 3.12 it loses a cancel that comes together with the news.
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._news.wait()
        finally:
            for task in sending:
                task.cancel()
            await asyncio.gather(*sending, return_exceptions=True)

    async def _claim(self, held: Counter[AccountId]) -> list[Claimed]:
        limit = self._sending_max - held.total()
        if limit <= 0:
            return []
        now = self._clock.now()
        if now - self._looked_at > CATCH_UP:
            self._at_work_since = now
        # Should this process die, the message is due again once it can't be under way any more.
        again_at = now + timedelta(seconds=2 * self._send_s_max)

        def work(tx: Connection) -> tuple[Sequence[Row[Any]], list[Claimed]]:
            outlived = give_up(tx, now=now) if now >= self._at_work_since + CATCH_UP else []
            return outlived, claim(
                tx, limit=limit, now=now, again_at=again_at, held=held, per_account_max=self._per_account_max
            )

        try:
            outlived, claimed = await self._database.transact(work)
        except DatabaseUnavailable as fault:
            self._outage.met(fault)
            return []
        self._outage.over()
        self._looked_at = now
        for row in outlived:
            given_up = _Outcome(status=None, error=_OUTLIVED)
            _log_undelivered(
                given_up,
                delivery=row.id,
                account=row.account_id,
                job=row.job_id,
                webhook=row.endpoint_id,
                url=row.url,
                tries=row.tries,
                again_in_s=None,
            )
        return claimed

    async def _deliver(self, message: Claimed) -> None:
        started = self._clock.now()
        if message.is_wanted:
            outcome = await self._post(message, started)
        else:
            outcome = _Outcome(status=None, error="The webhook was switched off.")
        ended = self._clock.now()
        wait_s = None if not message.is_wanted or outcome.status == _GONE else self._wait_s(message, ended)
        try:
            await self._database.transact(
                lambda tx: record(
                    tx, message, outcome.status, outcome.error, started=started, ended=ended, wait_s=wait_s
                )
            )
        except DatabaseUnavailable as fault:
            _log.error("delivery_not_recorded", delivery=message.id, fault=str(fault))  # it will be sent again
            return
        if message.is_wanted and not _is_delivered(outcome.status):
            _log_undelivered(
                outcome,
                delivery=message.id,
                account=message.account,
                job=message.job,
                webhook=message.endpoint,
                url=message.url,
                tries=message.tries,
                again_in_s=wait_s,
            )

    async def _post(self, message: Claimed, now: datetime) -> _Outcome:
        headers = {
            "content-type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(message.secret).sign(message.id, now, message.body),
        }
        try:
            async with asyncio.timeout(self._send_s_max):
                status = await self._send(message.url, message.body.encode(), headers)
        except TimeoutError:
            return _Outcome(status=None, error=f"No answer within {self._send_s_max:.0f} s.")
        except NotDelivered as fault:
            return _Outcome(status=None, error=str(fault)[:ERROR_CHARACTERS_MAX])
        except Exception as fault:
            _log.exception("webhook_failed", delivery=message.id, fault=type(fault).__name__)
            return _Outcome(status=None, error="The request could not be sent.")
        return _Outcome(status=status, error=None)

    def _wait_s(self, message: Claimed, now: datetime) -> float | None:
        """Until the next try, spread a little so that receivers aren't hit all at once. None: there is none."""
        if message.tries > len(RETRY_AFTER_S):
            return None
        fraction = int.from_bytes(self._randomness(4)) / 2**32
        wait_s = RETRY_AFTER_S[message.tries - 1] * (1 + JITTER * (2 * fraction - 1))
        until = max(message.since + LIFE, self._at_work_since + CATCH_UP)
        return wait_s if now + timedelta(seconds=wait_s) <= until else None


def _log_undelivered(
    outcome: _Outcome,
    *,
    delivery: DeliveryId,
    account: AccountId,
    job: JobId | None,
    webhook: EndpointId | None,
    url: str,
    tries: int,
    again_in_s: float | None,
) -> None:
    """Of the URL only the host: path and query may hold a secret."""
    _log.warning(
        "webhook_not_delivered",
        delivery=delivery,
        account=account,
        job=job,
        webhook=webhook,
        host=urlsplit(url).hostname,
        tries=tries,
        status=outcome.status,
        error=outcome.error,
        again_in_s=None if again_in_s is None else round(again_in_s),
    )


def pending_messages(tx: Connection) -> int:
    """How many messages of all accounts wait to be delivered."""
    return int(tx.execute(_PENDING).scalar_one())


def claim(
    tx: Connection,
    *,
    limit: int,
    now: datetime,
    again_at: datetime,
    held: Mapping[AccountId, int] = MappingProxyType({}),
    per_account_max: int = PER_ACCOUNT_MAX,
) -> list[Claimed]:
    """Take due messages; unless their outcome is recorded they are due again at `again_at`.

    Of each account the oldest; accounts that have fewer under way come first.

    Args:
        held: what each account has under way already.
        per_account_max: no account gets more than so many with those.
    """
    under_way, first_due = Counter(held), _first_due(tx, now)
    with_room = [account for account in first_due if under_way[account] < per_account_max]
    with_room.sort(key=lambda account: (under_way[account], first_due[account]))
    due = list[tuple[int, datetime, str]]()
    for account in with_room[:limit]:
        room = min(limit, per_account_max - under_way[account])
        oldest = tx.execute(DUE_OF, {"account": account, "now": now, "limit": room})
        due += [(place, row.due_at, row.id) for place, row in enumerate(oldest, under_way[account])]
    taken = [message for _, _, message in sorted(due)[:limit]]
    if not taken:
        return []
    tx.execute(
        update(webhook_deliveries)
        .where(webhook_deliveries.c.id.in_(taken))
        .values(attempt=webhook_deliveries.c.attempt + 1, due_at=again_at)
    )
    rows = tx.execute(
        select(
            webhook_deliveries,
            accounts.c.webhook_secret,
            webhook_endpoints.c.secret,
            webhook_endpoints.c.active,
        )
        .join(accounts, accounts.c.id == webhook_deliveries.c.account_id)
        .outerjoin(webhook_endpoints, webhook_endpoints.c.id == webhook_deliveries.c.endpoint_id)
        .where(webhook_deliveries.c.id.in_(taken))
        .order_by(webhook_deliveries.c.created_at, webhook_deliveries.c.id)
    ).mappings()
    return [
        Claimed(
            id=row["id"],
            account=row["account_id"],
            job=row["job_id"],
            since=row["replayed_at"] or row["created_at"],
            attempt=row["attempt"],
            tries=row["tries"] + 1,
            url=row["url"],
            body=row["body"],
            secret=row["webhook_secret"] if row["endpoint_id"] is None else row["secret"],
            endpoint=row["endpoint_id"],
            is_wanted=row["endpoint_id"] is None or row["active"],
        )
        for row in rows
    ]


def _first_due(tx: Connection, now: datetime) -> dict[AccountId, datetime]:
    """Accounts with due messages, and since when the oldest of each is due."""
    due = tx.execute(DUE, {"now": now, "limit": LOOKED_AT}).all()
    if len(due) == LOOKED_AT:  # others' may lie behind a backlog of an account that is full
        due = [row for row in tx.execute(WAITING) if row.due_at <= now]
    return {row.account_id: row.due_at for row in reversed(due)}


def give_up(tx: Connection, *, now: datetime) -> Sequence[Row[Any]]:
    """Have some of the messages that outlived `LIFE` dead, the oldest, and say so in their logs. Returns these."""
    outlived = tx.execute(OUTLIVED, {"before": now - LIFE, "now": now, "limit": GIVEN_UP_AT_ONCE}).all()
    if outlived:
        tx.execute(
            insert(webhook_attempts),
            [{"delivery_id": row.id, "at": now, "duration_s": 0.0, "error": _OUTLIVED} for row in outlived],
        )
        tx.execute(
            update(webhook_deliveries)
            .where(webhook_deliveries.c.id.in_([row.id for row in outlived]))
            .values(state="DEAD", finished_at=now)
        )
    return outlived


def record(
    tx: Connection,
    message: Claimed,
    status: int | None,
    error: str | None,
    *,
    started: datetime,
    ended: datetime,
    wait_s: float | None,
) -> None:
    """Write down how a try went, and what follows: delivered, tried again in `wait_s`, or dead if that is None.

    A try counts only here: one that a stop or a kill broke off costs none. One that was overtaken by a later one is
    only logged. A receiver that says it is gone (410) is switched off, unless its address was changed since.
    """
    if tx.execute(_BY_ID_LOCKED, {"delivery": message.id}).first() is None:
        return  # a later try was the last, and its endpoint has made room for another meanwhile
    tx.execute(
        insert(webhook_attempts).values(
            delivery_id=message.id,
            at=started,
            duration_s=(ended - started).total_seconds(),
            status=status,
            error=error,
        )
    )
    if _is_delivered(status):
        values: dict[str, object] = {"state": "DELIVERED", "finished_at": ended}
    elif wait_s is None:
        values = {"state": "DEAD", "finished_at": ended}
    else:
        values = {"due_at": ended + timedelta(seconds=wait_s)}
    tx.execute(
        update(webhook_deliveries)
        .where(
            webhook_deliveries.c.id == message.id,
            webhook_deliveries.c.attempt == message.attempt,
            webhook_deliveries.c.state == "PENDING",
        )
        .values(tries=message.tries, **values)
    )
    if status == _GONE and message.endpoint is not None:
        # A message goes where it was addressed to: the address it is gone from may be one that its owner has changed.
        addressed = (webhook_endpoints.c.id == message.endpoint, webhook_endpoints.c.url == message.url)
        tx.execute(update(webhook_endpoints).where(*addressed).values(active=False))


def _is_delivered(status: int | None) -> bool:
    return status is not None and 200 <= status < 300
