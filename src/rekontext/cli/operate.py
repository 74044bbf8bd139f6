"""The options of `rekontext accounts|keys|credits`. Their work is in accounts.py, imported when a command runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from rekontext.cli.failure import CommandFailed

accounts = typer.Typer(help="Accounts: who pays.", no_args_is_help=True)
keys = typer.Typer(help="API keys of an account.", no_args_is_help=True)
credits = typer.Typer(help="What an account may spend, in US dollars.", no_args_is_help=True)


class Scope(StrEnum):
    edit = "edit"
    read = "read"
    admin = "admin"


class SyncResponse(StrEnum):
    image = "image"
    json = "json"


class Kind(StrEnum):
    payment = "payment"
    grant = "grant"
    correction = "correction"


_DAYS_MAX: Final = 36_500  # a hundred years: dates end somewhere

AccountName = Annotated[str, typer.Argument(metavar="ACCOUNT", help="Its name or its id.")]
DataDir = Annotated[Path | None, typer.Option(help="Where the service keeps its data.", show_default="data")]
AsJson = Annotated[bool, typer.Option("--json", help="Answer with one JSON document.")]
Sync = Annotated[
    SyncResponse,
    typer.Option(help="What v1 answers to a client that doesn't say what it accepts: the picture or JSON."),
]


@accounts.command("create")
def create_account(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name that no other account has.")],
    credits: Annotated[str, typer.Option(help="US dollars to begin with.")] = "0",
    sync_response: Sync = SyncResponse.image,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Open an account; its first API key is shown once."""
    from rekontext.cli import accounts

    accounts.create_account(
        name, credits_usd=credits, sync_response=sync_response.value, data_dir=data_dir, as_json=as_json
    )


@accounts.command("list")
def list_accounts(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Every account and what it has."""
    from rekontext.cli import accounts

    accounts.list_accounts(data_dir=data_dir, as_json=as_json)


@accounts.command("limits")
def set_limits(
    account: AccountName,
    monthly_cap: Annotated[
        str | None,
        typer.Option(
            metavar="USD|none",
            help="What it may spend in a calendar month (UTC); 0 stops its paid edits.",
            show_default="as it is",
        ),
    ] = None,
    in_flight: Annotated[
        str | None,
        typer.Option(
            metavar="N|none",
            help="How many unfinished edits it may have; none is as the service's setting has it.",
            show_default="as it is",
        ),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What an account may spend in a month and have at once: set what is given, show what holds."""
    from rekontext.cli import accounts

    accounts.set_limits(account, monthly_cap=monthly_cap, in_flight=in_flight, data_dir=data_dir, as_json=as_json)


@accounts.command("webhook-secret")
def webhook_secret(
    account: AccountName,
    replace: Annotated[bool, typer.Option(help="Make a new one; the old one signs nothing any more.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What signs messages to the webhook_url of an account's requests."""
    from rekontext.cli import accounts

    accounts.webhook_secret(account, replace=replace, data_dir=data_dir, as_json=as_json)


@keys.command("create")
def create_key(
    account: AccountName,
    name: Annotated[str, typer.Option(help="To tell keys apart.")] = "default",
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it is good for; may be given again.", show_default="edit and read"),
    ] = None,
    sync_response: Sync = SyncResponse.image,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="How many requests it may send.", show_default="the service's setting")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="Allow this model only, by its name in the API: flux-kontext-dev.", show_default="all"),
    ] = None,
    expires_in_days: Annotated[
        float | None, typer.Option(min=0, max=_DAYS_MAX, help="Its life.", show_default="for ever")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make an API key; it is shown once."""
    from rekontext.cli import accounts

    accounts.create_key(
        account,
        name=name,
        scopes=[each.value for each in scope or (Scope.edit, Scope.read)],
        sync_response=sync_response.value,
        requests_per_minute=requests_per_minute,
        models=model or (),
        expires_in_days=expires_in_days,
        data_dir=data_dir,
        as_json=as_json,
    )


@keys.command("list")
def list_keys(
    account: Annotated[
        str | None, typer.Argument(metavar="ACCOUNT", help="Its name or its id.", show_default="every account")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Keys of accounts, without the keys themselves: the open ones, and of each account the newest 100 closed ones."""
    from rekontext.cli import accounts

    accounts.list_keys(account, data_dir=data_dir, as_json=as_json)


@keys.command("revoke")
def revoke_key(
    key: Annotated[
        str | None,
        typer.Argument(
            metavar="KEY_ID", help="As `keys list` shows it: key_…; or the key itself.", show_default="none"
        ),
    ] = None,
    all_of: Annotated[
        str | None,
        typer.Option(metavar="ACCOUNT", help="Every open key of this account, at once.", show_default="none"),
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Close a key for good, or every key of an account."""
    from rekontext.cli import accounts

    if (key is None) == (all_of is None):
        raise CommandFailed("give either KEY_ID or --all-of ACCOUNT")
    if key is not None:
        accounts.revoke_key(key, data_dir=data_dir, as_json=as_json)
    if all_of is not None:
        accounts.revoke_keys(all_of, data_dir=data_dir, as_json=as_json)


@keys.command("reset")
def reset_keys(
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask whether it is meant.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Where the installation's secret is lost: close every key, so that new ones can be made under the new secret."""
    from rekontext.cli import accounts

    accounts.reset_keys(is_sure=yes, data_dir=data_dir, as_json=as_json)


@credits.command("add", context_settings={"ignore_unknown_options": True})
def add_credits(
    account: AccountName,
    amount: Annotated[str, typer.Argument(metavar="AMOUNT", help="US dollars, such as 10 or 0.5.")],
    kind: Annotated[
        Kind,
        typer.Option(
            help="Bought, given, or set right. A negative correction takes paid credits first, then given ones."
        ),
    ] = Kind.grant,
    note: Annotated[str, typer.Option(help="For the books.")] = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Put credits on an account."""
    from rekontext.cli import accounts

    accounts.add_credits(account, amount, kind=kind.value, note=note, data_dir=data_dir, as_json=as_json)


@credits.command("list")
def list_credits(
    account: AccountName,
    month: Annotated[
        str | None, typer.Option(metavar="YYYY-MM", help="Which month, in UTC.", show_default="this month")
    ] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """What was put on an account in a month, and what each edit took from it: the books, for a bill."""
    from rekontext.cli import accounts

    accounts.list_credits(account, month=month, data_dir=data_dir, as_json=as_json)


@credits.command("show")
def show_credits(account: AccountName, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """What an account has."""
    from rekontext.cli import accounts

    accounts.show_credits(account, data_dir=data_dir, as_json=as_json)
