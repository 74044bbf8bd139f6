"""Accounts, keys and balances as JSON values, without their secrets: for the console and for commands alike."""

from __future__ import annotations

from rekontext.accounts.keys import ApiKey
from rekontext.accounts.ledger import Balance
from rekontext.accounts.money import usd
from rekontext.accounts.registry import Account
from rekontext.moments import moment


def described_account(account: Account) -> dict[str, object]:
    """Limits are null where it has none of its own."""
    cap = account.monthly_cap_micros
    return {
        "id": account.id,
        "name": account.name,
        "created_at": moment(account.created_at),
        "monthly_cap": None if cap is None else usd(cap),
        "in_flight_max": account.in_flight_max,
    }


def described_balance(balance: Balance) -> dict[str, float]:
    return {
        "credits": usd(balance.paid_micros),
        "free_credits": usd(balance.free_micros),
        "held": usd(balance.held_micros),
        "available": usd(balance.available_micros),
    }


def described_key(key: ApiKey) -> dict[str, object]:
    policy = key.policy
    return {
        "id": key.id,
        "name": policy.name,
        "hint": key.hint,
        "scopes": sorted(policy.scopes),
        "sync_response": policy.sync_response,
        "requests_per_minute": policy.requests_per_minute,
        "models": None if policy.models is None else sorted(policy.models),
        "created_at": moment(key.created_at),
        "expires_at": moment(policy.expires_at),
        "revoked_at": moment(key.revoked_at),
    }
