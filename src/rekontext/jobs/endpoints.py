"""Where an account wants to hear of its jobs, and the log of what it was told. Sends nothing itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from sqlalchemy import (
    Connection,
    RowMapping,
    and_,
    bindparam,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from rekontext.accounts import registry
from rekontext.accounts.signing import webhook_secret
from rekontext.database import AccountId, DeliveryId, EndpointId, JobId
from rekontext.database.tables import webhook_attempts, webhook_deliveries, webhook_endpoints
from rekontext.jobs.errors import JobRefused
from rekontext.jobs.outbox import EVENT_TYPES, EventType
from rekontext.sources import Randomness

ENDPOINTS_PER_ACCOUNT_MAX: Final = 20
KEPT_PER_ACCOUNT_MAX: Final = 100
"""Endpoints with those that are switched off: these stay for the sake of their log, and can be switched on again."""

DELETED_AT_ONCE_MAX: Final = 1000
"""Messages of an endpoint that makes room: one with a longer log stays until sweeping has shortened it."""

URL_CHARACTERS_MAX: Final = 2000
PAGE_MAX: Final = 200
REQUESTED_PENDING_MAX: Final = 100
"""Messages that an account itself had sent (tests, replays) and that aren't delivered or given up yet."""

TEST_EVENT_TYPE: Final = "webhook.test"

_MINE: Final = webhook_endpoints.c.account_id == bindparam("account")
# By a scalar each and not by EXISTS: for that a planner may read everybody's messages instead of asking the index.
_ANY_MESSAGE: Final = (
    select(webhook_deliveries.c.state).where(webhook_deliveries.c.endpoint_id == webhook_endpoints.c.id).limit(1)
)
_HAS_LOG: Final = _ANY_MESSAGE.scalar_subquery().is_not(None)
_HAS_PENDING: Final = (
    _ANY_MESSAGE.where(webhook_deliveries.c.state == literal_column("'PENDING'")).scalar_subquery().is_not(None)
)
_ACTIVE_BESIDES: Final = (
    select(func.count())
    .select_from(webhook_endpoints)
    .where(_MINE, webhook_endpoints.c.active.is_(True), webhook_endpoints.c.id != bindparam("endpoint"))
)
_KEPT: Final = select(func.count()).select_from(webhook_endpoints).where(_MINE)
REQUESTED_PENDING: Final = (
    select(func.count())
    .select_from(webhook_deliveries)
    .where(
        webhook_deliveries.c.account_id == bindparam("account"),
        webhook_deliveries.c.state == literal_column("'PENDING'"),
        or_(
            webhook_deliveries.c.event_type == literal_column(f"'{TEST_EVENT_TYPE}'"),
            webhook_deliveries.c.replayed_at.is_not(None),
        ),
    )
)
LEAST_NEEDED: Final = (
    select(webhook_endpoints.c.id)
    .where(
        _MINE,
        webhook_endpoints.c.active.is_(False),
        ~_HAS_PENDING,
        _ANY_MESSAGE.offset(bindparam("messages_max")).scalar_subquery().is_(None),
    )
    .order_by(_HAS_LOG, webhook_endpoints.c.created_at, webhook_endpoints.c.id)
    .limit(1)
)


class WebhookUnknown(JobRefused):
    """The account has no such endpoint or delivery."""

    code = "webhook_not_found"


class WebhookRefused(JobRefused):
    """This can't be an endpoint."""

    code = "invalid_webhook"


class TooManyMessages(JobRefused):
    """So many messages that the account itself had sent wait already."""

    code = "too_many_messages"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """One URL that is told of an account's jobs. `secret` signs what it gets ("whsec_...")."""

    id: EndpointId
    account: AccountId
    url: str
    secret: str
    event_types: tuple[EventType, ...]
    active: bool
    created_at: datetime

    def __repr__(self) -> str:
        return f"Endpoint(id={self.id!r}, url={self.url!r}, active={self.active})"


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One try to deliver: an HTTP status, or the error that kept it from having one."""

    at: datetime
    duration_s: float
    status: int | None
    error: str | None


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One message to one URL. `state` is PENDING, DELIVERED or DEAD; `due_at` when it is tried (again)."""

    id: DeliveryId
    endpoint: EndpointId | None
    job: JobId | None
    url: str
    event_type: str
    body: str
    state: str
    tries: int
    created_at: datetime
    due_at: datetime
    finished_at: datetime | None
    attempts: tuple[Attempt, ...]


def check_url(url: str) -> None:
    """Return if `url` may be called at all; where it leads is checked when it is dialled.

    Raises:
        WebhookRefused: it is no http(s) URL, has a name and password or a blank or control character in it, or is
            too long.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.username is None
        usable = usable and parts.port != 0
    except ValueError:  # such as a port that isn't one
        usable = False
    # urlsplit drops some of these without a word; no space but the plain one counts as printable.
    usable = usable and url.isprintable() and " " not in url
    if not usable or len(url) > URL_CHARACTERS_MAX:
        raise WebhookRefused(
            f"webhook url {url[:100]!r} can't be used; allowed: http:// or https:// with a host, without a user, "
            f"blanks or control characters, at most {URL_CHARACTERS_MAX} characters"
        )


def add(
    tx: Connection,
    account: AccountId,
    *,
    endpoint: EndpointId,
    url: str,
    event_types: Sequence[str],
    randomness: Randomness,
    now: datetime,
) -> Endpoint:
    """Tell `url` of the account's jobs from now on.

    Where the account keeps as many as it may, one that is switched off and has nothing to send makes room: the oldest,
    of those without a log if there are any. Its log goes with it, so it can't be one of more than
    `DELETED_AT_ONCE_MAX` messages.

    Raises:
        WebhookRefused: the URL or an event type can't be used, or there are too many endpoints.
        AccountUnknown: there is no such account.
    """
    check_url(url)
    _lock_with_room(tx, account, endpoint)
    if tx.execute(_KEPT, {"account": account}).scalar_one() >= KEPT_PER_ACCOUNT_MAX:
        _make_room(tx, account)
    row = tx.execute(
        insert(webhook_endpoints)
        .values(
            id=endpoint,
            account_id=account,
            url=url,
            secret=webhook_secret(randomness),
            event_types=list(_checked(event_types)),
            active=True,
            created_at=now,
        )
        .returning(webhook_endpoints)
    )
    return _endpoint(row.mappings().one())


def change(
    tx: Connection,
    account: AccountId,
    endpoint: EndpointId,
    *,
    url: str | None = None,
    event_types: Sequence[str] | None = None,
    active: bool | None = None,
) -> Endpoint:
    """Change what is given, leave the rest. What waits to be sent goes where it was addressed to.

    Raises:
        WebhookUnknown: the account has no such endpoint.
        WebhookRefused: the URL or an event type can't be used, or there are too many active endpoints.
        AccountUnknown: there is no such account.
    """
    if active:
        _lock_with_room(tx, account, endpoint)
    values: dict[str, object] = {}
    if url is not None:
        check_url(url)
        values["url"] = url
    if event_types is not None:
        values["event_types"] = list(_checked(event_types))
    if active is not None:
        values["active"] = active
    mine = (webhook_endpoints.c.id == endpoint, webhook_endpoints.c.account_id == account)
    statement = update(webhook_endpoints).where(*mine).values(**values).returning(webhook_endpoints)
    row = tx.execute(statement if values else select(webhook_endpoints).where(*mine)).mappings().first()
    if row is None:
        raise WebhookUnknown(f"webhook {endpoint} not found")
    return _endpoint(row)


def of_account(tx: Connection, account: AccountId) -> list[Endpoint]:
    """The account's endpoints, oldest first, inactive ones too."""
    query = (
        select(webhook_endpoints)
        .where(webhook_endpoints.c.account_id == account)
        .order_by(webhook_endpoints.c.created_at, webhook_endpoints.c.id)
    )
    return [_endpoint(row) for row in tx.execute(query).mappings()]


def deliveries(
    tx: Connection, account: AccountId, *, endpoint: EndpointId | None = None, limit: int = 50
) -> list[Delivery]:
    """What was sent and what waits, newest first, each with its attempts; at most `PAGE_MAX`.

    Raises:
        WebhookUnknown: the account has no such endpoint.
    """
    query = (
        select(webhook_deliveries)
        .where(webhook_deliveries.c.account_id == account)
        .order_by(webhook_deliveries.c.created_at.desc(), webhook_deliveries.c.id.desc())
        .limit(min(limit, PAGE_MAX))
    )
    if endpoint is not None:
        known = select(webhook_endpoints.c.id).where(_MINE, webhook_endpoints.c.id == bindparam("endpoint"))
        if tx.execute(known, {"account": account, "endpoint": endpoint}).first() is None:
            raise WebhookUnknown(f"webhook {endpoint} not found")
        query = query.where(webhook_deliveries.c.endpoint_id == endpoint)
    found = tx.execute(query).mappings().all()
    tried: dict[str, list[Attempt]] = {row["id"]: [] for row in found}
    log = (
        select(webhook_attempts).where(webhook_attempts.c.delivery_id.in_(list(tried))).order_by(webhook_attempts.c.id)
    )
    for row in tx.execute(log):
        tried[row.delivery_id].append(Attempt(at=row.at, duration_s=row.duration_s, status=row.status, error=row.error))
    return [_delivery(row, tuple(tried[row["id"]])) for row in found]


def replay(tx: Connection, account: AccountId, delivery: DeliveryId, *, now: datetime) -> None:
    """Send a message again that was delivered or given up, with its old id and all tries before it; one that waits for
    another try goes now.

    Raises:
        WebhookUnknown: the account has no such delivery, or it is about to be sent anyway.
        TooManyMessages: too many that were asked for wait already.
        AccountUnknown: there is no such account.
    """
    lock_with_room_to_send(tx, account)
    again = tx.execute(
        update(webhook_deliveries)
        .where(
            webhook_deliveries.c.id == delivery,
            webhook_deliveries.c.account_id == account,
            or_(
                webhook_deliveries.c.state.in_(("DELIVERED", "DEAD")),
                # The receiver may be back long before that. If this very try is under way, two are.
                and_(webhook_deliveries.c.tries > 0, webhook_deliveries.c.due_at > now),
            ),
        )
        .values(
            state="PENDING",
            attempt=webhook_deliveries.c.attempt + 1,  # one that is under way can't put it off: it is only logged
            tries=0,
            due_at=now,
            replayed_at=now,
            finished_at=None,
        )
    )
    if again.rowcount != 1:
        raise WebhookUnknown(f"there is no delivery {delivery} that was sent or given up before")


def lock_with_room_to_send(tx: Connection, account: AccountId) -> None:
    """Return if the account may ask for one more message. What jobs have to tell isn't asked for and always sent.

    Raises:
        TooManyMessages: too many that were asked for wait already.
        AccountUnknown: there is no such account.
    """
    registry.lock(tx, account)
    if tx.execute(REQUESTED_PENDING, {"account": account}).scalar_one() >= REQUESTED_PENDING_MAX:
        raise TooManyMessages(
            f"{REQUESTED_PENDING_MAX} test messages and replays of this account wait to be delivered already; "
            "try again when one is delivered or given up"
        )


def _lock_with_room(tx: Connection, account: AccountId, endpoint: EndpointId) -> None:
    """Return if `endpoint` may be active beside the account's others.

    The lock makes changes of one account come one after the other, which makes the counts exact. Whoever ends a job
    takes it too, so no endpoint goes between being looked up and being written to.
    """
    registry.lock(tx, account)
    if (
        tx.execute(_ACTIVE_BESIDES, {"account": account, "endpoint": endpoint}).scalar_one()
        >= ENDPOINTS_PER_ACCOUNT_MAX
    ):
        raise WebhookRefused(f"an account has at most {ENDPOINTS_PER_ACCOUNT_MAX} active webhooks")


def _make_room(tx: Connection, account: AccountId) -> None:
    least = tx.execute(LEAST_NEEDED, {"account": account, "messages_max": DELETED_AT_ONCE_MAX}).scalar()
    if least is None:
        raise WebhookRefused(
            f"an account has at most {KEPT_PER_ACCOUNT_MAX} webhooks, with those that are switched off; "
            f"each of these is on, has messages that wait or a log of more than {DELETED_AT_ONCE_MAX} messages"
        )
    tx.execute(delete(webhook_deliveries).where(webhook_deliveries.c.endpoint_id == least))
    tx.execute(delete(webhook_endpoints).where(webhook_endpoints.c.id == least))


def _checked(event_types: Sequence[str]) -> tuple[str, ...]:
    unknown = sorted(set(event_types) - set(EVENT_TYPES))
    if unknown or not event_types:
        raise WebhookRefused(
            f"event types are {', '.join(unknown) or 'none'}; allowed: one or more of {', '.join(EVENT_TYPES)}"
        )
    return tuple(dict.fromkeys(event_types))


def _endpoint(row: RowMapping) -> Endpoint:
    return Endpoint(
        id=row["id"],
        account=row["account_id"],
        url=row["url"],
        secret=row["secret"],
        event_types=tuple(row["event_types"]),
        active=row["active"],
        created_at=row["created_at"],
    )


def _delivery(row: RowMapping, attempts: tuple[Attempt, ...]) -> Delivery:
    return Delivery(
        id=row["id"],
        endpoint=row["endpoint_id"],
        job=row["job_id"],
        url=row["url"],
        event_type=row["event_type"],
        body=row["body"],
        state=row["state"],
        tries=row["tries"],
        created_at=row["created_at"],
        due_at=row["due_at"],
        finished_at=row["finished_at"],
        attempts=attempts,
    )
