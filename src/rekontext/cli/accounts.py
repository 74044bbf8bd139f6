"""`rekontext accounts|keys|credits`: what operators do, on the database that the settings name.

The server may run meanwhile. Each command is one transaction, with its record in the audit log.
"""

from __future__ import annotations

import json
import os
import pwd
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import typer
from sqlalchemy import Connection

from rekontext.accounts import (
    Account,
    AccountRefused,
    Acts,
    ApiKey,
    Balance,
    KeyPolicy,
    PepperChanged,
    format_usd,
    keys,
    ledger,
    parse_usd,
    registry,
    statement,
    usd,
)
from rekontext.accounts.described import described_account, described_balance, described_key
from rekontext.accounts.ledger import Source
from rekontext.accounts.registry import AccountLimits
from rekontext.accounts.statement import Movement
from rekontext.cli.failure import CommandFailed, not_permitted
from rekontext.cli.settings import keep_private, settings_of
from rekontext.database import DatabaseUnavailable, KeyId, unhurried
from rekontext.installation import open_database, pepper_of, secret_of, unmade_database, where_secret, wrong_secret
from rekontext.logs import printable
from rekontext.models import SLUG
from rekontext.moments import moment
from rekontext.secret import SecretError
from rekontext.settings import variable
from rekontext.sources import SystemClock, random_bytes, random_id

_NO_LIMIT: Final = "none"
_ACTOR_CHARACTERS_MAX: Final = 200
_ONCE: Final = "It is shown this once and kept as a hash only."
_DOUBT: Final = (
    "; it broke off in the commit, so this may have happened: look before you do it again (`rekontext accounts list`, "
    "`keys list`, `credits show`, or the audit log in the console)"
)
T = TypeVar("T")


def create_account(name: str, *, credits_usd: str, sync_response: str, data_dir: Path | None, as_json: bool) -> None:
    """Open an account with its first key."""
    micros = _amount(credits_usd)
    policy = _policy(sync_response=sync_response)
    # Before there may be a new database, which a call that is refused shouldn't leave behind.
    try:
        registry.check_name(name)
        if micros:
            ledger.check_amount(micros, "grant")
    except ValueError as fault:
        raise CommandFailed(str(fault)) from fault
    account, key = _transact(
        data_dir,
        lambda tx, acts: acts.create_account(tx, name, credits_micros=micros, policy=policy),
        may_be_new=True,
    )
    _say(
        as_json,
        described_account(account) | {"credits": usd(micros), "key_id": key.key.id, "api_key": key.secret},
        f'Account "{printable(account.name)}" ({account.id}) with {format_usd(micros)}.\n'
        f"Its API key: {key.secret}\n{_ONCE}",
    )


def list_accounts(*, data_dir: Path | None, as_json: bool) -> None:
    """Every account with what it has."""
    found = _transact(data_dir, lambda tx, _: registry.every_with_balance(tx), only_reads=True)
    rows = [described_account(account) | described_balance(balance) for account, balance in found]
    blocks = [_account_block(account, balance) for account, balance in found] or ["There is no account."]
    _say(as_json, {"accounts": rows}, "\n".join(blocks))


def set_limits(
    account: str, *, monthly_cap: str | None, in_flight: str | None, data_dir: Path | None, as_json: bool
) -> None:
    """Set what an account may spend in a month and have at once; without either, show it.

    Args:
        monthly_cap, in_flight: as typed; "none" lifts one, and one that is None stays as it is.
    """
    limits = AccountLimits()
    if monthly_cap is not None:
        limits["monthly_cap_micros"] = None if monthly_cap == _NO_LIMIT else _cap(monthly_cap)
    if in_flight is not None:
        limits["in_flight_max"] = None if in_flight == _NO_LIMIT else _at_once(in_flight)

    def work(tx: Connection, acts: Acts) -> Account:
        found = registry.find(tx, account)
        return acts.set_limits(tx, found.id, **limits) if limits else found

    found = _transact(data_dir, work, only_reads=not limits)
    _say(as_json, described_account(found), f"{_limits(found)}.")


def webhook_secret(account: str, *, replace: bool, data_dir: Path | None, as_json: bool) -> None:
    """What signs messages to the webhook_url of an account's requests, the present one or a new one."""

    def work(tx: Connection, acts: Acts) -> Account:
        found = registry.find(tx, account)
        return acts.replace_webhook_secret(tx, found.id) if replace else found

    found = _transact(data_dir, work, only_reads=not replace)
    _say(as_json, {"id": found.id, "webhook_secret": found.webhook_secret}, found.webhook_secret)


def create_key(
    account: str,
    *,
    name: str,
    scopes: Sequence[str],
    sync_response: str,
    requests_per_minute: int | None,
    models: Sequence[str],
    expires_in_days: float | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Make a key for an account."""
    for model in models:
        if model != SLUG:
            raise CommandFailed(f'--model is "{model}": the key would open no edit; allowed: {SLUG}')
    policy = _policy(
        name=name,
        scopes=frozenset(scopes),
        sync_response=sync_response,
        requests_per_minute=requests_per_minute,
        models=frozenset(models) or None,
        expires_at=None if expires_in_days is None else SystemClock().now() + _life(expires_in_days),
    )
    made = _transact(data_dir, lambda tx, acts: acts.create_key(tx, registry.find(tx, account).id, policy))
    _say(as_json, _key(made.key) | {"api_key": made.secret}, f"API key: {made.secret}\n{_ONCE}")


def list_keys(account: str | None, *, data_dir: Path | None, as_json: bool) -> None:
    """Open keys and the newest closed ones, without the keys themselves.

    Args:
        account: whose; None for everybody's.
    """
    now = SystemClock().now()

    def look(tx: Connection, _: Acts) -> list[tuple[Account, Sequence[ApiKey]]]:
        if account is None:
            owners = [each for each, _ in registry.every_with_balance(tx)]
        else:
            owners = [registry.find(tx, account)]
        return [(owner, keys.of_account(tx, owner.id, now=now)) for owner in owners]

    found = _transact(data_dir, look, only_reads=True)
    blocks = []
    for owner, its in found:
        if account is None:
            blocks.append(f"{printable(owner.name)} ({owner.id})")
        blocks += [_key_block(each, now) for each in its] or ["The account has no API key."]
    listed = [_key(each) for _, its in found for each in its]
    _say(as_json, {"keys": listed}, "\n".join(blocks or ["There is no account."]))


def revoke_key(key: str, *, data_dir: Path | None, as_json: bool) -> None:
    """Close a key for good, which is named by its id or by itself."""

    def work(tx: Connection, acts: Acts) -> ApiKey:
        is_secret = key.startswith(keys.PREFIX)
        return acts.revoke_key(tx, keys.known_by(tx, key, pepper=acts.pepper) if is_secret else KeyId(key))

    revoked = _transact(data_dir, work)
    _say(as_json, _key(revoked), f"{revoked.id} ({revoked.hint}…) opens nothing any more.")


def revoke_keys(account: str, *, data_dir: Path | None, as_json: bool) -> None:
    """Close every open key of an account for good, at once."""
    revoked = _transact(data_dir, lambda tx, acts: acts.revoke_keys(tx, registry.find(tx, account).id))
    lines = [f"{each.id} ({each.hint}…) opens nothing any more." for each in revoked]
    _say(
        as_json,
        {"revoked": [_key(each) for each in revoked]},
        "\n".join(lines) or "The account has no open API key.",
    )


def reset_keys(*, is_sure: bool, data_dir: Path | None, as_json: bool) -> None:
    """Close every key of a database whose secret is lost, and go on with the present one, or a new one."""
    if not is_sure:
        settings = settings_of(data_dir=data_dir)
        database = variable("database_url") if settings.database_url else settings.database_file
        typer.confirm(
            f"This closes every API key in {database} for good; new ones are for {where_secret(settings)}.\n"
            "Have you stopped every server, and is the old secret really lost?",
            abort=True,
            err=True,
        )
    closed = _transact(data_dir, lambda tx, acts: acts.reset_keys(tx), old_secret_is_lost=True)
    _say(as_json, {"revoked": closed}, f"Revoked: {closed}. `rekontext keys create ACCOUNT` makes new ones.")


def add_credits(account: str, amount: str, *, kind: Source, note: str, data_dir: Path | None, as_json: bool) -> None:
    """Put credits on an account."""
    micros = _amount(amount)
    balance = _transact(
        data_dir,
        lambda tx, acts: acts.add_credits(tx, registry.find(tx, account).id, micros, source=kind, note=note),
    )
    _say(as_json, described_balance(balance), f"{format_usd(balance.available_micros)} can be spent now.")


def show_credits(account: str, *, data_dir: Path | None, as_json: bool) -> None:
    """What an account has."""
    balance = _transact(data_dir, lambda tx, _: ledger.balance(tx, registry.find(tx, account).id), only_reads=True)
    _say(as_json, described_balance(balance), f"{_spendable(balance)}.")


def list_credits(account: str, *, month: str | None, data_dir: Path | None, as_json: bool) -> None:
    """What moved on an account in a calendar month (UTC): its bill."""
    start, end = _month(month)

    def look(tx: Connection, _: Acts) -> tuple[Account, Sequence[Movement]]:
        unhurried(tx)
        owner = registry.find(tx, account)
        return owner, statement.between(tx, owner.id, start, end)

    owner, moved = _transact(data_dir, look, only_reads=True)
    charges = [each for each in moved if each.kind == "capture"]
    paid, given, corrected, charged = (
        statement.total_micros(moved, kind) for kind in ("payment", "grant", "correction", "capture")
    )
    of_paid = sum(each.of_paid_micros for each in charges)
    sums = {
        "payments": usd(paid),
        "grants": usd(given),
        "corrections": usd(corrected),
        "charged": usd(charged),
        "charged_of_paid": usd(of_paid),
        "edits": len(charges),
    }
    edits = f"{format_usd(charged)} charged for edits ({len(charges)}), {format_usd(of_paid)} of it from paid credits"
    put = f"{format_usd(paid)} were paid, {format_usd(given)} granted, {format_usd(corrected)} corrected"
    _say(
        as_json,
        {"account_id": owner.id, "month": f"{start:%Y-%m}", **sums, "transfers": [_movement(each) for each in moved]},
        "\n".join([*map(_movement_block, moved), f"{start:%Y-%m} (UTC): {edits}.", f"{put}."]),
    )


def _transact(
    data_dir: Path | None,
    work: Callable[[Connection, Acts], T],
    *,
    may_be_new: bool = False,
    only_reads: bool = False,
    old_secret_is_lost: bool = False,
) -> T:
    """Run one act on the database of the settings.

    Args:
        may_be_new: whether to make a database where there is none. Else a command in the wrong folder would leave an
            empty one there, and say that nobody has an account.
        only_reads: whether it waits for nobody who writes, and nobody for it.
        old_secret_is_lost: whether to make a secret beside a database that had another.

    Raises:
        CommandFailed: the settings or the database can't be used, or the act is refused.
    """
    keep_private()
    settings = settings_of(data_dir=data_dir)
    try:
        if not may_be_new and (missing := unmade_database(settings)):
            says = variable("database_url") if settings.database_url else f"--data-dir or {variable('data_dir')}"
            raise CommandFailed(f"there is no database {missing}; {says} says where it is")
        acts = Acts(
            actor=_actor(),
            ids=random_id,
            randomness=random_bytes,
            pepper=pepper_of(secret_of(settings, old_is_lost=old_secret_is_lost)),
            now=SystemClock().now,
        )
        database = open_database(settings)
    except DatabaseUnavailable as fault:
        raise CommandFailed(str(fault), exit_code=1) from fault
    except PermissionError as fault:
        raise CommandFailed(not_permitted(fault), exit_code=1) from fault
    except (SecretError, ValueError, OSError) as fault:
        raise CommandFailed(str(fault)) from fault
    try:
        run = database.read_sync if only_reads else database.transact_sync
        return run(lambda tx: work(tx, acts))
    except PepperChanged as fault:
        raise CommandFailed(str(wrong_secret(settings))) from fault
    except (AccountRefused, ValueError) as fault:
        raise CommandFailed(str(fault)) from fault
    except DatabaseUnavailable as fault:
        raise CommandFailed(f"{fault}{_DOUBT if fault.is_in_doubt else ''}", exit_code=1) from fault
    finally:
        database.close()


def _actor() -> str:
    """Which of the machine's users acts: whoever called sudo, or as whom this runs."""
    user = os.environ.get("SUDO_USER") or _login()
    return printable(f"cli:{user}")[:_ACTOR_CHARACTERS_MAX]


def _login() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, say
        return str(os.getuid())


def _life(days: float) -> timedelta:
    life = timedelta(days=days)
    if not life:
        raise CommandFailed(f"--expires-in-days is {days:g}: the key would never open anything; allowed: more than 0")
    return life


def _month(text: str | None) -> tuple[datetime, datetime]:
    """The first moments of the month that is meant, and of the one after it."""
    try:
        some = SystemClock().now() if text is None else datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
        start = ledger.month_start(some.astimezone(UTC))
        return start, ledger.month_start(start + timedelta(days=31))
    except (ValueError, OverflowError):
        raise CommandFailed(f'--month is "{text}"; allowed: a year and a month, such as 2026-11') from None


def _policy(**values: Any) -> KeyPolicy:
    try:
        return KeyPolicy(**values)
    except ValueError as fault:
        raise CommandFailed(str(fault)) from fault


def _amount(text: str) -> int:
    try:
        return parse_usd(text)
    except ValueError as fault:
        raise CommandFailed(str(fault)) from fault


def _cap(text: str) -> int:
    micros = _amount(text)
    if micros < 0:
        raise CommandFailed(f'--monthly-cap is "{text}"; allowed: 0 US dollars or more, or {_NO_LIMIT}')
    return micros


def _at_once(text: str) -> int:
    count = int(text) if re.fullmatch("[0-9]{1,9}", text) else 0
    if not 1 <= count <= registry.IN_FLIGHT_MAX:
        raise CommandFailed(f'--in-flight is "{text}"; allowed: 1 to {registry.IN_FLIGHT_MAX} edits, or {_NO_LIMIT}')
    return count


def _movement(each: Movement) -> dict[str, object]:
    return {
        "at": moment(each.at),
        "kind": each.kind,
        "amount": usd(each.amount_micros),
        "request_id": each.job_id,
        "actor": each.actor,
        "note": each.note,
    }


def _key(key: ApiKey) -> dict[str, object]:
    return {"account_id": key.account} | described_key(key)


def _spendable(balance: Balance) -> str:
    held = f", {format_usd(balance.held_micros)} more are held for unfinished edits" if balance.held_micros else ""
    return f"{format_usd(balance.available_micros)} can be spent{held}"


def _limits(account: Account) -> str:
    cap, at_once = account.monthly_cap_micros, account.in_flight_max
    spends = "without a cap" if cap is None else f"{format_usd(cap)} in a month at most"
    has = "as many edits at once as the service's setting allows" if at_once is None else f"{at_once} edits at once"
    return f"{printable(account.name)} ({account.id}) may spend {spends}, and have {has}"


def _account_block(account: Account, balance: Balance) -> str:
    """For narrow windows and pipes: what may be long, its name, has a line of its own."""
    return f"{account.id}  opened {moment(account.created_at)}\n  {_spendable(balance)}\n  {printable(account.name)}"


def _movement_block(each: Movement) -> str:
    """As `_account_block`: a note has a line of its own."""
    whose = each.job_id or printable(each.actor)
    note = f"\n  {printable(each.note)}" if each.note else ""
    return f"{moment(each.at)}  {each.kind}  {format_usd(each.amount_micros)}  {whose}{note}"


def _key_block(key: ApiKey, now: datetime) -> str:
    """As `_account_block`."""
    policy = key.policy
    if key.revoked_at is not None:
        state = f"revoked {moment(key.revoked_at)}"
    elif policy.expires_at is None:
        state = "open"
    else:
        state = f"{'open until' if policy.expires_at > now else 'expired'} {moment(policy.expires_at)}"
    what = ", ".join(sorted(policy.scopes))
    if policy.requests_per_minute is not None:
        what += f"; {policy.requests_per_minute} requests a minute"
    if policy.models is not None:
        what += f"; {', '.join(sorted(policy.models))} only"
    return f"{key.id}  {state}\n  {key.hint}…  {what}; answers {policy.sync_response}\n  {printable(policy.name)}"


def _say(as_json: bool, document: Mapping[str, object], sentence: str) -> None:
    typer.echo(json.dumps(document) if as_json else sentence)
