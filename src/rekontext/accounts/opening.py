"""Acts of an operator that touch several things at once, each with its line in the audit log."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from rekontext.accounts import audit, keys, ledger, registry
from rekontext.accounts.keys import KeyPolicy, NewKey
from rekontext.accounts.ledger import Balance, Source
from rekontext.accounts.registry import Account
from rekontext.database.tables import AccountId, KeyId
from rekontext.sources import Ids, Randomness


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A new account, its first key (whose secret is shown only now) and what it has."""

    account: Account
    key: NewKey
    balance: Balance


def open_account(
    tx: Connection,
    name: str,
    *,
    actor: str,
    ids: Ids,
    randomness: Randomness,
    pepper: bytes,
    now: datetime,
    credits_micros: int = 0,
    source: Source = "payment",
    policy: KeyPolicy | None = None,
    monthly_cap_micros: int | None = None,
    in_flight_max: int | None = None,
) -> Opened:
    """Open an account with credits and a first key.

    Raises:
        NameTaken: another account has this name.
        ValueError: the name, the amount or a limit is out of range.
    """
    account = registry.create(
        tx,
        name,
        account=AccountId(f"acc_{ids()}"),
        randomness=randomness,
        now=now,
        monthly_cap_micros=monthly_cap_micros,
        in_flight_max=in_flight_max,
    )
    audit.record(tx, actor=actor, action="account.create", subject=account.id, now=now, details={"name": name})
    key = make_key(
        tx, account.id, policy or KeyPolicy(), actor=actor, ids=ids, randomness=randomness, pepper=pepper, now=now
    )
    if credits_micros:
        add_credits(tx, account.id, credits_micros, source=source, actor=actor, now=now)
    return Opened(account=account, key=key, balance=ledger.balance(tx, account.id))


def make_key(
    tx: Connection,
    account: AccountId,
    policy: KeyPolicy,
    *,
    actor: str,
    ids: Ids,
    randomness: Randomness,
    pepper: bytes,
    now: datetime,
) -> NewKey:
    """Make one more key for an account.

    Raises:
        AccountUnknown: there is no such account.
    """
    registry.get(tx, account)
    made = keys.create(tx, account, policy, key=KeyId(f"key_{ids()}"), pepper=pepper, randomness=randomness, now=now)
    details = {"account": account, "name": policy.name, "scopes": sorted(policy.scopes)}
    audit.record(tx, actor=actor, action="key.create", subject=made.key.id, now=now, details=details)
    return made


def revoke_key(
    tx: Connection, key: KeyId, *, actor: str, now: datetime, account: AccountId | None = None
) -> keys.ApiKey:
    """Close a key for good; as `keys.revoke`."""
    revoked = keys.revoke(tx, key, now=now, account=account)
    audit.record(tx, actor=actor, action="key.revoke", subject=key, now=now, details={"account": revoked.account})
    return revoked


def add_credits(
    tx: Connection, account: AccountId, micros: int, *, source: Source, actor: str, now: datetime, note: str = ""
) -> Balance:
    """Put credits on an account, or correct them; as `ledger.add`."""
    after = ledger.add(tx, account, micros, source=source, actor=actor, now=now, note=note)
    details = {"micros": micros, "source": source, "note": note}
    audit.record(tx, actor=actor, action="credits.add", subject=account, now=now, details=details)
    return after
