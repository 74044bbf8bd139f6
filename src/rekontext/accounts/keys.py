"""API keys: made once, shown once, kept only as a keyed hash.

A key is `rk_` + 32 random base62 characters (190 bits) + a 6-character checksum, so that a mistyped or cut key is
refused before the database is asked. It is random, so one HMAC-SHA256 with the server's pepper is enough; a slow
password hash would only let strangers burn our processor. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import string
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, Self, get_args

from sqlalchemy import ColumnElement, Connection, RowMapping, Text, bindparam, cast, func, insert, select, update

from rekontext.accounts.errors import KeyRefused, KeyUnknown, ModelNotAllowed, ScopeMissing
from rekontext.database.tables import AccountId, KeyId, api_keys
from rekontext.sources import Randomness

Scope = Literal["edit", "read", "admin"]
SyncResponse = Literal["image", "json"]
SCOPES: Final[tuple[Scope, ...]] = get_args(Scope)

NAME_CHARACTERS_MAX: Final = 200
REQUESTS_PER_MINUTE_MAX: Final = 1_000_000
PREFIX: Final = "rk_"
PEPPER_BYTES_MIN: Final = 16
_ALPHABET: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_RANDOM_CHARACTERS: Final = 32
_CHECKSUM_CHARACTERS: Final = 6
_HINT_CHARACTERS: Final = 4
MODEL_CHARACTERS_MAX: Final = 200
OPEN_MAX: Final = 100
"""Open keys that an account may make for itself. Each has a limit of requests of its own, so they have one too."""
CLOSED_SHOWN_MAX: Final = 100
"""Revoked and expired keys of an account that are listed."""


@dataclass(frozen=True, kw_only=True)
class KeyPolicy:
    """What a key may do.

    Attributes:
        scopes: "edit" submits and cancels, "read" sees what the account has, "admin" acts on every account.
        requests_per_minute: None takes the service's default.
        models: the only models that this key may use; None for all.
        expires_at: None for never.
        sync_response: what v1 answers to a client that doesn't say what it accepts.
    """

    name: str = "default"
    scopes: frozenset[Scope] = frozenset({"edit", "read"})
    requests_per_minute: int | None = None
    models: frozenset[str] | None = None
    expires_at: datetime | None = None
    sync_response: SyncResponse = "image"

    def __post_init__(self) -> None:
        if not self.scopes or not self.scopes <= set(SCOPES):
            raise ValueError(f"scopes are {sorted(self.scopes)}; allowed: one or more of {', '.join(SCOPES)}")
        if self.requests_per_minute is not None and self.requests_per_minute < 1:
            raise ValueError(f"requests_per_minute is {self.requests_per_minute}; allowed: 1 or more, or none")
        if self.sync_response not in get_args(SyncResponse):
            raise ValueError(f"sync_response is {self.sync_response!r}; allowed: image, json")

    def columns(self) -> dict[str, Any]:
        """As it is kept: sets as sorted lists."""
        return {
            **vars(self),
            "scopes": sorted(self.scopes),
            "models": None if self.models is None else sorted(self.models),
        }


@dataclass(frozen=True, kw_only=True)
class ApiKey:
    """A key as the database knows it. `hint` is the start of the key, enough for its owner to tell keys apart."""

    id: KeyId
    account: AccountId
    hint: str
    policy: KeyPolicy
    created_at: datetime
    revoked_at: datetime | None

    @classmethod
    def from_row(cls, row: RowMapping) -> Self:
        return cls(
            id=row["id"],
            account=row["account_id"],
            hint=row["hint"],
            created_at=row["created_at"],
            revoked_at=row["revoked_at"],
            policy=KeyPolicy(
                name=row["name"],
                scopes=frozenset(row["scopes"]),
                requests_per_minute=row["requests_per_minute"],
                models=None if row["models"] is None else frozenset(row["models"]),
                expires_at=row["expires_at"],
                sync_response=row["sync_response"],
            ),
        )

    def require_scope(self, scope: Scope) -> None:
        """Return if the key has `scope`.

        Raises:
            ScopeMissing: it hasn't.
        """
        if scope not in self.policy.scopes:
            raise ScopeMissing(
                f"This API key lacks the scope {scope!r}; it has {', '.join(sorted(self.policy.scopes))}."
            )

    def require_model(self, model: str) -> None:
        """Return if the key may use `model`.

        Raises:
            ModelNotAllowed: it is limited to others.
        """
        if self.policy.models is not None and model not in self.policy.models:
            allowed = ", ".join(sorted(self.policy.models))
            raise ModelNotAllowed(f"This API key may not use the model {model!r}; it may use {allowed}.")


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key at the one moment when its secret is known. `secret` is what the client sends."""

    key: ApiKey
    secret: str

    def __repr__(self) -> str:
        return f"NewKey(key={self.key!r}, secret=<not shown>)"


BY_DIGEST: Final = select(api_keys).where(api_keys.c.digest == bindparam("digest"))
_CLOSING: Final = select(api_keys.c.revoked_at, api_keys.c.expires_at).where(api_keys.c.id == bindparam("key"))


def make_secret(randomness: Randomness) -> str:
    """A new key in clear text."""
    body = "".join(_base62(randomness, _RANDOM_CHARACTERS))
    return f"{PREFIX}{body}{_checksum(body)}"


def check_shape(secret: str) -> None:
    """Return if `secret` could be one of our keys.

    Raises:
        KeyRefused: its prefix, length or checksum is wrong.
    """
    body, checksum = secret[len(PREFIX) : -_CHECKSUM_CHARACTERS], secret[-_CHECKSUM_CHARACTERS:]
    right_size = len(secret) == len(PREFIX) + _RANDOM_CHARACTERS + _CHECKSUM_CHARACTERS
    if not (secret.startswith(PREFIX) and right_size and secret.isascii() and checksum == _checksum(body)):
        raise KeyRefused("Unauthorized: this is not an API key of this service. It may be mistyped or cut short.")


def digest(secret: str, pepper: bytes) -> str:
    """The only form in which a key is stored: HMAC-SHA256 under the server's pepper, as hex."""
    assert len(pepper) >= PEPPER_BYTES_MIN, f"a pepper of {len(pepper)} bytes is too short to keep keys secret"
    return hmac.new(pepper, secret.encode(), hashlib.sha256).hexdigest()


def create(
    tx: Connection,
    account: AccountId,
    policy: KeyPolicy,
    *,
    key: KeyId,
    pepper: bytes,
    randomness: Randomness,
    now: datetime,
) -> NewKey:
    """Make a key for an account that exists. The secret can't be had again later.

    Raises:
        ValueError: the name, the rate or a model's name is out of bounds.
    """
    _check_bounds(policy)
    secret = make_secret(randomness)
    made = ApiKey(
        id=key,
        account=account,
        hint=secret[: len(PREFIX) + _HINT_CHARACTERS],
        policy=policy,
        created_at=now,
        revoked_at=None,
    )
    tx.execute(
        insert(api_keys).values(
            id=key,
            account_id=account,
            digest=digest(secret, pepper),
            hint=made.hint,
            created_at=now,
            **policy.columns(),
        )
    )
    return NewKey(key=made, secret=secret)


def authenticate(tx: Connection, secret: str, *, pepper: bytes, now: datetime) -> ApiKey:
    """The key that `secret` is.

    Raises:
        KeyRefused: it isn't one, or it is revoked or expired.
    """
    check_shape(secret)
    row = tx.execute(BY_DIGEST, {"digest": digest(secret, pepper)}).mappings().first()
    if row is None:
        raise KeyRefused("Unauthorized: this API key is unknown.")
    key = ApiKey.from_row(row)
    _check_open(key.revoked_at, key.policy.expires_at, now)
    return key


def check_open(tx: Connection, key: KeyId, *, now: datetime) -> None:
    """Look once more: between a request's head and its end a key may have been revoked.

    Raises:
        KeyRefused: it is revoked or expired.
    """
    row = tx.execute(_CLOSING, {"key": key}).one()
    _check_open(row.revoked_at, row.expires_at, now)


def _check_open(revoked_at: datetime | None, expires_at: datetime | None, now: datetime) -> None:
    if revoked_at is not None:
        raise KeyRefused("Unauthorized: this API key was revoked.")
    if expires_at is not None and expires_at <= now:
        raise KeyRefused(f"Unauthorized: this API key expired at {expires_at:%Y-%m-%dT%H:%M:%SZ}.")


def known_by(tx: Connection, secret: str, *, pepper: bytes) -> KeyId:
    """The id of the key that `secret` is, whether or not it is still open.

    Raises:
        KeyUnknown: it is none of ours.
    """
    row = tx.execute(BY_DIGEST, {"digest": digest(secret, pepper)}).first()
    if row is None:
        raise KeyUnknown("there is no such API key; it may be mistyped or cut short")
    return KeyId(row.id)


def of_account(tx: Connection, account: AccountId, *, now: datetime) -> Sequence[ApiKey]:
    """The account's open keys and the newest `CLOSED_SHOWN_MAX` closed ones, oldest first."""
    is_its = api_keys.c.account_id == account
    closed = (
        select(api_keys.c.id)
        .where(is_its, ~_is_open(now))
        .order_by(api_keys.c.created_at.desc(), api_keys.c.id.desc())
        .limit(CLOSED_SHOWN_MAX)
    )
    query = (
        select(api_keys)
        .where(is_its, _is_open(now) | api_keys.c.id.in_(closed))
        .order_by(api_keys.c.created_at, api_keys.c.id)
    )
    return [ApiKey.from_row(row) for row in tx.execute(query).mappings()]


def open_of_account(tx: Connection, account: AccountId, *, now: datetime) -> Sequence[ApiKey]:
    """Those of the account's keys that open something, oldest first."""
    query = (
        select(api_keys)
        .where(api_keys.c.account_id == account, _is_open(now))
        .order_by(api_keys.c.created_at, api_keys.c.id)
    )
    return [ApiKey.from_row(row) for row in tx.execute(query).mappings()]


def count_open(tx: Connection, account: AccountId, *, now: datetime) -> int:
    """How many of the account's keys open something."""
    query = select(func.count()).select_from(api_keys).where(api_keys.c.account_id == account, _is_open(now))
    return tx.execute(query).scalar_one()


def is_administered(tx: Connection, *, now: datetime) -> bool:
    """Whether any account has an open key with the scope admin."""
    is_admin = cast(api_keys.c.scopes, Text).contains('"admin"')
    return tx.execute(select(api_keys.c.id).where(_is_open(now), is_admin).limit(1)).first() is not None


def get(tx: Connection, key: KeyId, *, account: AccountId | None = None) -> ApiKey:
    """The key with this id, revoked or not.

    Args:
        account: if given, the key must be this account's.

    Raises:
        KeyUnknown: there is no such key.
    """
    query = select(api_keys).where(api_keys.c.id == key)
    if account is not None:
        query = query.where(api_keys.c.account_id == account)
    row = tx.execute(query).mappings().first()
    if row is None:
        raise KeyUnknown(f"there is no API key {key!r}")
    return ApiKey.from_row(row)


def revoke(tx: Connection, key: KeyId, *, now: datetime, account: AccountId | None = None) -> bool:
    """Close a key for good. False if it was revoked already, be it by another at this moment. Raises as `get`."""
    closing = update(api_keys).where(api_keys.c.id == key, api_keys.c.revoked_at.is_(None)).values(revoked_at=now)
    if account is not None:
        closing = closing.where(api_keys.c.account_id == account)
    if tx.execute(closing).rowcount:
        return True
    get(tx, key, account=account)
    return False


def _is_open(now: datetime) -> ColumnElement[bool]:
    return api_keys.c.revoked_at.is_(None) & (api_keys.c.expires_at.is_(None) | (api_keys.c.expires_at > now))


def _check_bounds(policy: KeyPolicy) -> None:
    # Here and not in the policy, since keys that were made beyond these bounds go on.
    if not 0 < len(policy.name) <= NAME_CHARACTERS_MAX:
        raise ValueError(f"a key's name has 1 to {NAME_CHARACTERS_MAX} characters, this one has {len(policy.name)}")
    rate = policy.requests_per_minute
    if rate is not None and rate > REQUESTS_PER_MINUTE_MAX:
        raise ValueError(f"requests_per_minute is {rate}; allowed: 1 to {REQUESTS_PER_MINUTE_MAX}, or none")
    longest = max(map(len, policy.models or ()), default=0)
    if longest > MODEL_CHARACTERS_MAX:
        raise ValueError(f"a model's name has at most {MODEL_CHARACTERS_MAX} characters, this one has {longest}")


def _base62(randomness: Randomness, count: int) -> list[str]:
    # Bytes of 248 and above are dropped: 248 = 4 * 62, so the rest is even over the alphabet.
    drawn: list[str] = []
    while len(drawn) < count:
        drawn += [_ALPHABET[byte % 62] for byte in randomness(count) if byte < 248]
    return drawn[:count]


def _checksum(body: str) -> str:
    value = zlib.crc32(body.encode())
    digits = []
    for _ in range(_CHECKSUM_CHARACTERS):
        value, digit = divmod(value, 62)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
