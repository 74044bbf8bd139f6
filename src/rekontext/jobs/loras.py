"""LoRAs that accounts bring for their edits: which there are and whose. Their bytes lie in the object store.

They are a copy of what lies elsewhere, and can be fetched again: where an account's have no room, those go that it
hasn't used for longest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, func, insert, select, update

from rekontext.accounts import registry
from rekontext.database import AccountId
from rekontext.database.tables import loras
from rekontext.jobs.errors import JobRefused

PAGE_MAX: Final = 200
_IN_USE_FOR: Final = timedelta(hours=1)
"""After an order for it a LoRA doesn't make room for others: its edit may still wait."""
_ID_DIGITS: Final = 16


@dataclass(frozen=True, kw_only=True)
class Lora:
    """One that an account brought.

    Attributes:
        id: as `id_of`.
        name: what it is called where it comes from.
        source: where that is, to be shown; its secrets aren't in it.
        source_digest: by which the whole address is known again; empty for one that was sent.
        tag: what its server calls this state of it; empty if it says nothing.
        seen_at: when that was last so.
        used_at: when an edit was last ordered with it.
    """

    id: str
    account: AccountId
    object_key: str
    name: str
    source: str
    source_digest: str
    tag: str
    bytes: int
    created_at: datetime
    seen_at: datetime
    used_at: datetime

    @property
    def reference(self) -> str:
        """By which edits ask for it, and are told with which they were made."""
        return f"{self.name}@{self.id}"


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


def keep(tx: Connection, new: Lora, *, bytes_max: int) -> tuple[Lora, list[str]]:
    """Write down one whose bytes are stored already, or that it was fetched again.

    Args:
        bytes_max: of all that the account has.

    Returns:
        It as it is known, under the name that it had before if it was there, and the keys of those that made room,
        whose bytes are to be removed now.

    Raises:
        LorasFull: there is no room. Then its bytes belong to nobody, unless it was there before.
        AccountUnknown: there is no such account.
    """
    # The lock makes those of one account come one after the other, which makes the sum exact.
    registry.lock(tx, new.account)
    values = {name: value for name, value in vars(new).items() if name != "account"}
    news = ("source", "source_digest", "tag", "seen_at", "used_at") if new.source_digest else ("used_at",)
    fresh = {name: values[name] for name in news}
    if tx.execute(update(loras).where(_is(new.id, new.account)).values(**fresh)).rowcount:
        return get(tx, new.id, account=new.account), []
    rows = tx.execute(
        select(loras.c.id, loras.c.object_key, loras.c.bytes, loras.c.used_at)
        .where(loras.c.account_id == new.account)
        .order_by(loras.c.used_at)
    ).all()
    kept = sum(row.bytes for row in rows) + new.bytes
    gone = []
    for row in rows:
        if kept <= bytes_max or row.used_at > new.used_at - _IN_USE_FOR:
            break
        kept -= row.bytes
        gone.append(row)
    if kept > bytes_max:
        raise LorasFull(in_use=kept - new.bytes, most=bytes_max)
    tx.execute(delete(loras).where(loras.c.id.in_([row.id for row in gone])))
    tx.execute(insert(loras).values(account_id=new.account, **values))
    return new, [row.object_key for row in gone]


def from_source(tx: Connection, account: AccountId, source_digest: str) -> Lora | None:
    """What the account has from an address."""
    query = select(loras).where(loras.c.account_id == account, loras.c.source_digest == source_digest)
    row = tx.execute(query.order_by(loras.c.seen_at.desc()).limit(1)).mappings().first()
    return None if row is None else _lora(row)


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


def get(tx: Connection, lora: str, *, account: AccountId) -> Lora:
    """One of the account's.

    Raises:
        LoraUnknown: it has no such.
    """
    row = tx.execute(select(loras).where(_is(lora, account))).mappings().first()
    if row is None:
        raise LoraUnknown(lora)
    return _lora(row)


def use(tx: Connection, ids: Iterable[str], *, account: AccountId, now: datetime) -> Sequence[str]:
    """Write down that an edit asks for these. Returns those of the ids that the account doesn't have."""
    strange = []
    for lora in ids:
        if not tx.execute(update(loras).where(_is(lora, account)).values(used_at=now)).rowcount:
            strange.append(lora)
    return strange


def see(tx: Connection, lora: Lora, *, now: datetime) -> None:
    """Write down that its server has it as it is here."""
    tx.execute(update(loras).where(loras.c.id == lora.id).values(seen_at=now, used_at=now))


def forget(tx: Connection, lora: Lora) -> None:
    """Cross out one whose bytes are removed already."""
    tx.execute(delete(loras).where(loras.c.id == lora.id))


def _is(lora: str, account: AccountId) -> ColumnElement[bool]:
    return (loras.c.id == lora) & (loras.c.account_id == account)


def _lora(row: RowMapping) -> Lora:
    values = dict(row)
    return Lora(account=values.pop("account_id"), **values)
