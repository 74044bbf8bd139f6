"""What operators do, from the command line or the console: each act with its record in the audit log.

Repository functions, as everywhere in this room: the caller's transaction makes act and record one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Unpack

from sqlalchemy import Connection, func, select

from rekontext.accounts import audit, keys, ledger, peppers, registry
from rekontext.accounts.errors import TooManyKeys
from rekontext.accounts.keys import ApiKey, KeyPolicy, NewKey
from rekontext.accounts.ledger import Balance, Source
from rekontext.accounts.money import usd
from rekontext.accounts.registry import Account, AccountLimits
from rekontext.database.tables import AccountId, KeyId, accounts
from rekontext.sources import Ids, Randomness

FIRST_ACCOUNT: Final = "owner"


@dataclass(frozen=True, kw_only=True)
class Acts:
    """Who acts, and what acts draw on.

    Attributes:
        actor: "cli:" and a user of the machine, "first start", or the id of a key.
    """

    actor: str
    ids: Ids
    randomness: Randomness
    pepper: bytes
    now: Callable[[], datetime]

    def create_account(
        self, tx: Connection, name: str, *, credits_micros: int = 0, policy: KeyPolicy | None = None
    ) -> tuple[Account, NewKey]:
        """Open an account with some credits and its first key.

        Raises:
            NameTaken: another account has this name.
            ValueError: the name or the amount can't be.
        """
        now = self.now()
        account = registry.create(tx, name, account=AccountId(f"acc_{self.ids()}"), randomness=self.randomness, now=now)
        self._record(tx, "account.create", account.id, name=name)
        if credits_micros:
            self.add_credits(tx, account.id, credits_micros, source="grant", note="at the account's opening")
        return account, self.create_key(tx, account.id, policy or KeyPolicy())

    def set_limits(self, tx: Connection, account: AccountId, **limits: Unpack[AccountLimits]) -> Account:
        """Replace the limits that are given; where they are these already there is nothing to record.

        Raises as `registry.set_limits`.
        """
        registry.lock(tx, account)  # of two who set them, the second compares with what the first has set
        before = registry.get(tx, account)
        changed = registry.set_limits(tx, account, **limits)
        if changed == before:
            return changed
        details: dict[str, object] = dict(limits)
        if "monthly_cap_micros" in limits:
            cap = limits["monthly_cap_micros"]
            del details["monthly_cap_micros"]
            details["monthly_cap"] = None if cap is None else usd(cap)
        self._record(tx, "account.limits", account, **details)
        return changed

    def replace_webhook_secret(self, tx: Connection, account: AccountId) -> Account:
        """Sign with a new secret. Raises as `registry.replace_webhook_secret`."""
        changed = registry.replace_webhook_secret(tx, account, randomness=self.randomness)
        self._record(tx, "account.webhook_secret", account)
        return changed

    def add_credits(
        self, tx: Connection, account: AccountId, micros: int, *, source: Source, note: str = ""
    ) -> Balance:
        """Put credits on an account. Raises as `ledger.add`."""
        balance = ledger.add(tx, account, micros, source=source, actor=self.actor, now=self.now(), note=note)
        self._record(tx, f"credits.{source}", account, amount=usd(micros), note=note)
        return balance

    def create_key(
        self, tx: Connection, account: AccountId, policy: KeyPolicy, *, open_max: int | None = None
    ) -> NewKey:
        """Make a key. Its secret can't be had again later.

        Args:
            open_max: how many open keys the account may have with it; None for as many as an operator likes.

        Raises:
            AccountUnknown: there is no such account.
            TooManyKeys: it has `open_max` already.
            ValueError: the name, the rate or a model's name is out of bounds.
            PepperChanged: the key would be unknown to whoever has the right one.
        """
        peppers.claim_or_require(tx, self.pepper)
        # The lock makes those who make keys of one account come one after the other, which makes the count exact.
        registry.lock(tx, account)
        if open_max is not None and keys.count_open(tx, account, now=self.now()) >= open_max:
            raise TooManyKeys(limit=open_max)
        made = keys.create(
            tx,
            account,
            policy,
            key=KeyId(f"key_{self.ids()}"),
            pepper=self.pepper,
            randomness=self.randomness,
            now=self.now(),
        )
        ends = policy.expires_at
        may = policy.columns() | {"expires_at": None if ends is None else ends.astimezone(UTC).isoformat()}
        self._record(tx, "key.create", made.key.id, account=account, **may)
        return made

    def revoke_key(self, tx: Connection, key: KeyId, *, account: AccountId | None = None) -> ApiKey:
        """Close a key for good; one that is closed stays as it is. Raises as `keys.revoke`."""
        was_open = keys.revoke(tx, key, now=self.now(), account=account)
        found = keys.get(tx, key, account=account)
        if was_open:
            self._record(tx, "key.revoke", key, account=found.account)
        return found

    def revoke_keys(self, tx: Connection, account: AccountId) -> Sequence[ApiKey]:
        """Close every open key of an account for good, which stops whoever uses it. Returns these keys.

        Raises:
            AccountUnknown: there is no such account.
        """
        registry.lock(tx, account)  # a key that is being made is waited for and closed, or is made after this
        return [
            self.revoke_key(tx, each.id, account=account) for each in keys.open_of_account(tx, account, now=self.now())
        ]

    def reset_keys(self, tx: Connection) -> int:
        """Go on with this pepper where the old one is lost: every key is closed. Returns how many were open.

        Raises:
            ValueError: the old one is not lost, it is this.
        """
        if peppers.fits(tx, self.pepper) is True:
            raise ValueError("the API keys in this database are hashed under this secret: there is nothing to reset")
        closed = peppers.reset(tx, self.pepper, now=self.now())
        self._record(tx, "keys.reset", "every key", closed=closed)
        return closed

    def open_first(self, tx: Connection, *, credits_micros: int) -> NewKey | None:
        """The first account with a key that may do everything; None if there are accounts already.

        Raises:
            PepperChanged: there are, and their keys are hashed under another pepper.
        """
        peppers.claim_or_require(tx, self.pepper)
        if tx.execute(select(func.count()).select_from(accounts)).scalar_one():
            return None
        policy = KeyPolicy(name="first", scopes=frozenset({"edit", "read", "admin"}))
        return self.create_account(tx, FIRST_ACCOUNT, credits_micros=credits_micros, policy=policy)[1]

    def _record(self, tx: Connection, action: str, subject: str, **details: object) -> None:
        audit.record(tx, actor=self.actor, action=action, subject=subject, now=self.now(), details=details)
