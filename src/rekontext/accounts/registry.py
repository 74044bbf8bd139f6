"""Accounts: who pays, and within which limits. Each has books from its start; what is in them is known elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, TypedDict, Unpack

from sqlalchemy import ColumnElement, Connection, RowMapping, bindparam, func, insert, select, true, update
from sqlalchemy.exc import IntegrityError

from rekontext.accounts import ledger
from rekontext.accounts.errors import AccountUnknown, NameTaken
from rekontext.accounts.ledger import Balance
from rekontext.accounts.signing import webhook_secret
from rekontext.database.tables import AccountId, accounts, balances
from rekontext.sources import Randomness

NAME_CHARACTERS_MAX: Final = 200
NAME_ALLOWED: Final = f"1 to {NAME_CHARACTERS_MAX} characters that can be seen, and spaces between them"
IN_FLIGHT_MAX: Final = 100_000
"""What an account's limit of unfinished edits can be."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """Who pays.

    Attributes:
        monthly_cap_micros: what may be spent in a calendar month (UTC); None for no cap.
        in_flight_max: unfinished edits at a time; None takes the service's default.
        webhook_secret: signs deliveries to a job's own webhook_url ("whsec_...").
    """

    id: AccountId
    name: str
    created_at: datetime
    monthly_cap_micros: int | None
    in_flight_max: int | None
    webhook_secret: str

    def __repr__(self) -> str:
        return f"Account(id={self.id!r}, name={self.name!r})"


@dataclass(frozen=True, kw_only=True)
class AccountsPage:
    """Some accounts with what they have, and how many there are in all."""

    accounts: Sequence[tuple[Account, Balance]]
    total: int


class AccountLimits(TypedDict, total=False):
    """Limits of an account to be set, as in `Account`; one that is missing stays as it is."""

    monthly_cap_micros: int | None
    in_flight_max: int | None


_BY_ID: Final = select(accounts).where(accounts.c.id == bindparam("account"))
_WITH_BALANCE: Final = select(accounts, *ledger.BALANCE_COLUMNS).join(balances, balances.c.account_id == accounts.c.id)
_WITH_BALANCE_LOCKED: Final = _WITH_BALANCE.where(accounts.c.id == bindparam("account")).with_for_update(of=balances)


def check_name(name: str) -> None:
    """Return if a new account may have this name, as far as it is for the name. Those that there are keep theirs.

    Operators tell accounts apart by their names: none may look like another, or speak to a terminal.

    Raises:
        ValueError: it is blank or too long, begins or ends with a blank, or has characters that can't be seen.
    """
    if len(name) > NAME_CHARACTERS_MAX:
        raise ValueError(f"an account's name has {len(name)} characters; allowed: {NAME_ALLOWED}")
    if not name or name != name.strip() or not name.isprintable():
        raise ValueError(f"an account's name is {name!r}; allowed: {NAME_ALLOWED}")


def create(
    tx: Connection,
    name: str,
    *,
    account: AccountId,
    randomness: Randomness,
    now: datetime,
) -> Account:
    """Open an account with empty books and no limits of its own.

    Raises:
        NameTaken: another account has this name.
        ValueError: as `check_name`.
    """
    check_name(name)
    made = Account(
        id=account,
        name=name,
        created_at=now,
        monthly_cap_micros=None,
        in_flight_max=None,
        webhook_secret=webhook_secret(randomness),
    )
    try:
        tx.execute(insert(accounts).values(**vars(made)))
    except IntegrityError as error:
        raise NameTaken(f"there is an account named {name!r} already") from error
    ledger.open_books(tx, account)
    return made


def get(tx: Connection, account: AccountId) -> Account:
    """The account with this id.

    Raises:
        AccountUnknown: there is none.
    """
    row = tx.execute(_BY_ID, {"account": account}).mappings().first()
    if row is None:
        raise AccountUnknown(f"there is no account {account!r}")
    return Account(**row)


def lock(tx: Connection, account: AccountId) -> tuple[Account, Balance]:
    """The account and what it has; nobody else may hold credits of it before this transaction ends.

    Raises:
        AccountUnknown: there is none.
    """
    row = tx.execute(_WITH_BALANCE_LOCKED, {"account": account}).mappings().first()
    if row is None:
        raise AccountUnknown(f"there is no account {account!r}")
    return _with_balance(row)


def find(tx: Connection, name_or_id: str) -> Account:
    """The account that an operator means by its name or its id.

    Raises:
        AccountUnknown: there is none.
    """
    matches = (accounts.c.id == name_or_id) | (accounts.c.name == name_or_id)
    # A name that looks like another account's id must not shadow it: the id wins.
    row = tx.execute(select(accounts).where(matches).order_by(accounts.c.id != name_or_id)).mappings().first()
    if row is None:
        raise AccountUnknown(f"there is no account {name_or_id!r}")
    return Account(**row)


def every_with_balance(tx: Connection) -> Sequence[tuple[Account, Balance]]:
    """All accounts with what they have, oldest first."""
    query = _WITH_BALANCE.order_by(accounts.c.created_at, accounts.c.id)
    return [_with_balance(row) for row in tx.execute(query).mappings()]


def page_with_balance(
    tx: Connection, *, name_contains: str | None = None, page: int = 1, per_page: int = 20
) -> AccountsPage:
    """One page of the accounts with what they have, the newest first.

    Args:
        name_contains: to be found in its name, capitals or not; or it is its id.
        page, per_page: 1 or more.
    """
    assert page >= 1, f"page {page} of accounts"
    assert per_page >= 1, f"{per_page} accounts on a page"
    found: ColumnElement[bool] = true()
    if name_contains:
        found = accounts.c.name.icontains(name_contains, autoescape=True) | (accounts.c.id == name_contains)
    query = (
        _WITH_BALANCE.where(found)
        .order_by(accounts.c.created_at.desc(), accounts.c.id.desc())
        .limit(per_page)
        .offset((page - 1) * per_page)
    )
    total = tx.execute(select(func.count()).select_from(accounts).where(found)).scalar_one()
    return AccountsPage(accounts=[_with_balance(row) for row in tx.execute(query).mappings()], total=total)


def oldest(tx: Connection) -> Account:
    """The account that was opened first, where there is any."""
    query = select(accounts).order_by(accounts.c.created_at, accounts.c.id).limit(1)
    return Account(**tx.execute(query).mappings().one())


def set_limits(tx: Connection, account: AccountId, **limits: Unpack[AccountLimits]) -> Account:
    """Replace the limits that are given; None lifts the cap, or takes the service's default.

    Raises:
        AccountUnknown: there is no such account.
        ValueError: a limit is out of range.
    """
    _check_limits(limits.get("monthly_cap_micros"), limits.get("in_flight_max"))
    if limits:
        tx.execute(update(accounts).where(accounts.c.id == account).values(**limits))
    return get(tx, account)


def replace_webhook_secret(tx: Connection, account: AccountId, *, randomness: Randomness) -> Account:
    """Sign what is sent to a job's own webhook_url with a new secret, from now on; what is still to be sent, too.

    Raises:
        AccountUnknown: there is no such account.
    """
    tx.execute(update(accounts).where(accounts.c.id == account).values(webhook_secret=webhook_secret(randomness)))
    return get(tx, account)


def _with_balance(row: RowMapping) -> tuple[Account, Balance]:
    values = dict(row)
    held = {column.name: values.pop(column.name) for column in ledger.BALANCE_COLUMNS}
    return Account(**values), Balance(**held)


def _check_limits(monthly_cap_micros: int | None, in_flight_max: int | None) -> None:
    if monthly_cap_micros is not None and monthly_cap_micros < 0:
        raise ValueError(f"monthly_cap_micros is {monthly_cap_micros}; allowed: 0 or more, or none")
    if in_flight_max is not None and not 1 <= in_flight_max <= IN_FLIGHT_MAX:
        raise ValueError(f"in_flight_max is {in_flight_max}; allowed: 1 to {IN_FLIGHT_MAX}, or none")
