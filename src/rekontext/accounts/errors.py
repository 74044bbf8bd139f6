"""What an account can be refused for. Each has a stable `code`; the wire decides which HTTP status that is."""

from __future__ import annotations

from datetime import datetime
from typing import ClassVar

from rekontext.accounts.money import format_usd


class AccountRefused(Exception):
    """The caller's account or key does not allow this. The message is for the caller to read."""

    code: ClassVar[str] = "refused"


class KeyRefused(AccountRefused):
    """The API key opens nothing."""

    code = "invalid_api_key"


class ScopeMissing(AccountRefused):
    """The key is good, but not for this."""

    code = "scope_missing"


class ModelNotAllowed(AccountRefused):
    """The key is limited to other models."""

    code = "model_not_allowed"


class PepperChanged(AccountRefused):
    """The secret of this installation isn't the one under which the database's keys are hashed."""

    code = "pepper_changed"

    def __init__(self) -> None:
        super().__init__("the API keys in this database were hashed under another secret")


class TooManyKeys(AccountRefused):
    """The account has as many open keys as it may make for itself."""

    code = "too_many_keys"

    def __init__(self, *, limit: int) -> None:
        super().__init__(f"The account has {limit} open API keys, the most that it may make: revoke one first.")
        self.limit = limit


class AccountUnknown(AccountRefused):
    """No such account."""

    code = "account_unknown"


class KeyUnknown(AccountRefused):
    """No such key."""

    code = "key_unknown"


class NameTaken(AccountRefused):
    """Another account has this name."""

    code = "name_taken"


class InsufficientCredits(AccountRefused):
    """The available credits are below the price."""

    code = "insufficient_credits"

    def __init__(self, *, available_micros: int, price_micros: int) -> None:
        super().__init__(
            f"Insufficient credits: this edit costs {format_usd(price_micros)} "
            f"and the available balance is {format_usd(available_micros)}."
        )
        self.available_micros = available_micros
        self.price_micros = price_micros


class CorrectionTooLarge(AccountRefused):
    """The correction takes away more than can be spent."""

    code = "correction_too_large"

    def __init__(self, *, available_micros: int, held_micros: int, taken_micros: int) -> None:
        held = f" ({format_usd(held_micros)} more are held for unfinished edits)" if held_micros else ""
        super().__init__(
            f"A correction can't take {format_usd(taken_micros)} away: "
            f"{format_usd(available_micros)} can be spent{held}."
        )
        self.available_micros = available_micros
        self.held_micros = held_micros
        self.taken_micros = taken_micros


class SpendCapReached(AccountRefused):
    """The account's monthly cap would be passed."""

    code = "spend_cap_reached"

    def __init__(self, *, cap_micros: int, spent_micros: int, price_micros: int) -> None:
        super().__init__(
            f"Monthly spend cap reached: this edit costs {format_usd(price_micros)}, {format_usd(spent_micros)} are "
            f"spent or held this month (UTC) and the cap is {format_usd(cap_micros)}."
        )
        self.cap_micros = cap_micros
        self.spent_micros = spent_micros
        self.price_micros = price_micros


class RateLimited(AccountRefused):
    """The key sent more requests per minute than it may."""

    code = "rate_limited"

    def __init__(self, *, limit: int, reset_at: datetime, retry_after_s: int) -> None:
        super().__init__(f"Rate limit reached: {limit} requests per minute for this key. Retry in {retry_after_s} s.")
        self.limit = limit
        self.reset_at = reset_at
        self.retry_after_s = retry_after_s
