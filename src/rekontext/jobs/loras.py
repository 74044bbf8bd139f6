"""LoRAs that accounts bring for their edits: which there are and whose. Their bytes lie in the object store.

They are a copy of what lies elsewhere, and can be fetched again: where an account's have no room, those go that it
hasn't used for longest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from rekontext.accounts import registry
from rekontext.database import AccountId
from rekontext.database.tables import lora_sources, loras
from rekontext.jobs.errors import JobRefused

PAGE_MAX: Final = 200
KEPT_MAX: Final = 500
"""LoRAs that an account has at a time, however small they are."""
_IN_USE_FOR: Final = timedelta(hours=1)
"""After an order for it a LoRA doesn't make room for others: its edit may still wait."""
_ID_DIGITS: Final = 16
_SOURCES_MAX: Final = 8
"""Of one LoRA. Those are forgotten that were seen longest ago: they are fetched again."""


@dataclass(frozen=True, kw_only=True)
class Lora:
    """One that an account brought.

    Attributes:
        id: as `id_of`.
        name: what it is called where it comes from.
        source: where that is, or was the last time, to be shown; its secrets aren't in it.
        used_at: when an edit was last ordered with it.
    """

    id: str
    account: AccountId
    object_key: str
    name: str
    source: str
    bytes: int
    created_at: datetime
    used_at: datetime

    @property
    def reference(self) -> str:
        """By which edits ask for it, and are told with which they were made."""
        return f"{self.name}@{self.id}"


@dataclass(frozen=True, kw_only=True)
class Source:
    """An address that an account had one from. The same LoRA may lie at several.

    Attributes:
        digest: by which the whole address is known again.
        tag: what its server calls this state of it; empty if it says nothing.
        seen_at: when that was last so.
    """

    digest: str
    tag: str
    seen_at: datetime


class LorasFull(Exception):
    """The account's LoRAs have as many bytes as they may, and it used them all just now. In words for the caller."""

    def __init__(self, *, in_use: int, most: int) -> None:
        super().__init__(
            f"the LoRAs that this account used within the last hour have {in_use} bytes, and may have {most} together; "
            "delete some (DELETE /console/api/loras/{id}), or bring it later"
        )


class LoraUnknown(JobRefused):
    """The account has no such LoRA, or it is gone."""

    code = "lora_unknown"

    def __init__(self, lora: str) -> None:
        super().__init__(f"There is no LoRA {lora}")


def id_of(account: AccountId, content_digest: str) -> str:
    """The same for the same bytes of the same account: what was fetched twice is one."""
    return hashlib.sha256(f"{account}\n{content_digest}".encode()).hexdigest()[:_ID_DIGITS]


def making_room(tx: Connection, new: Lora, *, bytes_max: int) -> list[Lora]:
    """Those that are to make room for one that isn't known yet.

    Args:
        bytes_max: of all that the account has.

    Raises:
        LorasFull: there is no room.
    """
    query = select(loras).where(loras.c.account_id == new.account).order_by(loras.c.used_at)
    found = [_lora(row) for row in tx.execute(query).mappings()]
    kept = sum(each.bytes for each in found) + new.bytes
    gone = []
    for i, each in enumerate(found):
        is_many = len(found) - i >= KEPT_MAX
        if not is_many and (kept <= bytes_max or each.used_at > new.used_at - _IN_USE_FOR):
            break
        kept -= each.bytes
        gone.append(each)
    if kept > bytes_max:
        raise LorasFull(in_use=kept - new.bytes, most=bytes_max)
    return gone


def keep(tx: Connection, new: Lora, source: Source | None, *, bytes_max: int) -> tuple[Lora, list[Lora]]:
    """Write down one whose bytes are stored already, or that it was brought again.

    Args:
        source: where it was fetched from; None if it was sent.
        bytes_max: of all that the account has.

    Returns:
        It as it is known, under the name that it had before if it was there, and those that made room, whose bytes are
        to be removed now.

    Raises:
        LorasFull: there is no room. Then it isn't known.
        AccountUnknown: there is no such account.
    """
    # The lock makes those of one account come one after the other, which makes the sum exact.
    registry.lock(tx, new.account)
    fresh = {"used_at": new.used_at} | ({} if source is None else {"source": new.source})
    gone: list[Lora] = []
    if not tx.execute(update(loras).where(_is(new.id, new.account)).values(**fresh)).rowcount:
        gone = making_room(tx, new, bytes_max=bytes_max)
        tx.execute(delete(loras).where(loras.c.id.in_([each.id for each in gone])))
        values = {name: value for name, value in vars(new).items() if name != "account"}
        tx.execute(insert(loras).values(account_id=new.account, **values))
    if source is not None:
        _have_source(tx, new, source)
    return get(tx, new.id, account=new.account), gone


def _have_source(tx: Connection, lora: Lora, source: Source) -> None:
    of_account, digest = lora_sources.c.account_id == lora.account, lora_sources.c.digest
    tx.execute(delete(lora_sources).where(of_account, digest == source.digest))
    tx.execute(insert(lora_sources).values(account_id=lora.account, lora_id=lora.id, **vars(source)))
    seen = select(digest).where(lora_sources.c.lora_id == lora.id).order_by(lora_sources.c.seen_at.desc(), digest)
    forgotten = tx.execute(seen.offset(_SOURCES_MAX).limit(PAGE_MAX)).scalars().all()
    tx.execute(delete(lora_sources).where(of_account, digest.in_(forgotten)))


def from_source(tx: Connection, account: AccountId, digest: str) -> tuple[Lora, Source] | None:
    """What the account has from an address."""
    there = (lora_sources.c.account_id == account) & (lora_sources.c.digest == digest)
    query = select(loras, lora_sources.c.tag, lora_sources.c.seen_at).join_from(loras, lora_sources).where(there)
    row = tx.execute(query).mappings().first()
    if row is None:
        return None
    values = dict(row)
    source = Source(digest=digest, tag=values.pop("tag"), seen_at=values.pop("seen_at"))
    return _lora(values), source


def of_account(tx: Connection, account: AccountId, *, limit: int = 50) -> list[Lora]:
    """The account's, those first that it used last, at most `PAGE_MAX`."""
    query = (
        select(loras)
        .where(loras.c.account_id == account)
        .order_by(loras.c.used_at.desc(), loras.c.id)
        .limit(min(limit, PAGE_MAX))
    )
    return [_lora(row) for row in tx.execute(query).mappings()]


def kept_bytes(tx: Connection, account: AccountId) -> int:
    """How many bytes the account's have."""
    total = select(func.coalesce(func.sum(loras.c.bytes), 0)).where(loras.c.account_id == account)
    return int(tx.execute(total).scalar_one())


def in_use_bytes(tx: Connection, account: AccountId, *, now: datetime) -> int:
    """How many of them those have that don't make room for others."""
    query = select(func.coalesce(func.sum(loras.c.bytes), 0))
    used = query.where(loras.c.account_id == account, loras.c.used_at > now - _IN_USE_FOR)
    return int(tx.execute(used).scalar_one())


def has(tx: Connection, lora: str, *, account: AccountId) -> bool:
    """Whether the account has this one."""
    return tx.execute(select(loras.c.id).where(_is(lora, account))).first() is not None


def get(tx: Connection, lora: str, *, account: AccountId) -> Lora:
    """One of the account's.

    Raises:
        LoraUnknown: it has no such.
    """
    row = tx.execute(select(loras).where(_is(lora, account))).mappings().first()
    if row is None:
        raise LoraUnknown(lora)
    return _lora(row)


def use(tx: Connection, ids: Iterable[str], *, account: AccountId, now: datetime) -> list[Lora]:
    """Write down that an edit asks for these. Returns those that the account has."""
    found = []
    for lora in sorted(set(ids)):  # in the same order in every transaction: none waits for another that waits for it
        if tx.execute(update(loras).where(_is(lora, account)).values(used_at=now)).rowcount:
            found.append(get(tx, lora, account=account))
    return found


def see(tx: Connection, lora: Lora, source: Source, *, now: datetime) -> bool:
    """Write down that an edit asks for one, and that its server has it as it is here. False if it is gone."""
    if not use(tx, [lora.id], account=lora.account, now=now):
        return False
    there = (lora_sources.c.account_id == lora.account) & (lora_sources.c.digest == source.digest)
    tx.execute(update(lora_sources).where(there).values(seen_at=now))
    return True


def forget(tx: Connection, lora: Lora) -> None:
    """Cross out one whose bytes are removed already."""
    tx.execute(delete(loras).where(loras.c.id == lora.id))


def _is(lora: str, account: AccountId) -> ColumnElement[bool]:
    return (loras.c.id == lora) & (loras.c.account_id == account)


def _lora(row: Mapping[Any, Any]) -> Lora:
    values = dict(row)
    return Lora(account=values.pop("account_id"), **values)
