"""Who is calling. Keys come in a header, in one of several; where they are kept is the accounts' business."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Scope as ASGIScope

from rekontext.accounts import ApiKey, Scope, keys
from rekontext.api.middleware import note
from rekontext.database import AccountId, Database
from rekontext.sources import Clock

KEY_HEADER: Final = "x-api-key"
OTHER_HEADER: Final = "x-key"
_SCHEMES: Final = ("bearer", "key", "token")
_CALLER_KEY: Final = "rekontext.caller"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Somebody whose key was found good."""

    key: ApiKey

    @property
    def account(self) -> AccountId:
        """Who pays, and whose jobs, files and webhooks these are."""
        return self.key.account


class Keys(Protocol):
    """Tells whose a key is."""

    async def authenticate(self, secret: str) -> Caller:
        """The caller that this key belongs to.

        Raises:
            KeyRefused: it belongs to nobody, or was revoked, or is expired.
        """
        ...


class DatabaseKeys:
    """`Keys` in the database.

    Args:
        pepper: under which the keys were hashed.
    """

    def __init__(self, *, database: Database, pepper: bytes, clock: Clock) -> None:
        self._database = database
        self._pepper = pepper
        self._clock = clock

    async def authenticate(self, secret: str) -> Caller:
        """As `Keys.authenticate`."""
        keys.check_shape(secret)  # most strangers end here, before the database is asked
        now = self._clock.now()
        found = await self._database.read(lambda tx: keys.authenticate(tx, secret, pepper=self._pepper, now=now))
        return Caller(key=found)


class MissingKey(PermissionError):
    """The request carries no key where one is looked for."""

    def __init__(self, *, has_authorization: bool) -> None:
        super().__init__(
            'Authorization has no key in it: send "Bearer" and the key, or the key in the x-api-key header'
            if has_authorization
            else "Missing Authorization or x-api-key in header"  # Segmind's own words, which its clients know
        )


def shown_key(headers: Headers) -> str:
    """The key that a request shows, wherever it stands; empty for none. Our own header comes first.

    Behind a proxy that has a use of its own for Authorization, that one isn't ours.
    """
    for name in (KEY_HEADER, OTHER_HEADER):
        if secret := headers.get(name, ""):
            return secret
    scheme, _, secret = headers.get("authorization", "").strip().partition(" ")
    return secret.strip() if scheme.lower() in _SCHEMES else ""


def sender(scope: ASGIScope) -> Caller | None:
    """Who sends this; None as long as it isn't known."""
    caller: Caller | None = scope.get(_CALLER_KEY)
    return caller


def known_caller(request: Request) -> Caller:
    """Who sends this, where `caller_of` has been asked before."""
    caller: Caller = request.scope[_CALLER_KEY]
    return caller


def make_known(request: Request, caller: Caller) -> None:
    """From here on this is who sends it, and the log says so."""
    request.scope[_CALLER_KEY] = caller
    note(request.scope, account=caller.account, key_id=caller.key.id)


async def caller_of(request: Request, keys: Keys, scope: Scope | None) -> Caller:
    """Who sends this. Asked before the body is read, so that strangers can't make the server read one.

    Asked once for each request; after that it is known.

    Args:
        scope: what the key must be good for; None takes any good key.

    Raises:
        MissingKey, KeyRefused, ScopeMissing.
    """
    caller = sender(request.scope)
    if caller is None:
        secret = shown_key(request.headers)
        if not secret:
            raise MissingKey(has_authorization="authorization" in request.headers)
        caller = await keys.authenticate(secret)
        make_known(request, caller)
    if scope is not None:
        caller.key.require_scope(scope)
    return caller
