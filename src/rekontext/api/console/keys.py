"""An account's keys. A key can neither make nor revoke one that may do more than itself, unless it is an operator's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection

from rekontext.accounts import AccountRefused, Acts, ApiKey, KeyPolicy, NewKey, Scope, SyncResponse, keys, registry
from rekontext.api.auth import Caller
from rekontext.api.console.account import described_for
from rekontext.api.keyed import Editor, Operator, Reader
from rekontext.api.parameters import Moment, Storable, Whole
from rekontext.api.parts import Parts
from rekontext.api.problems import ParametersRefused, Problem, shown
from rekontext.database import AccountId, KeyId
from rekontext.models import SLUG
from rekontext.moments import moment

ModelName = Annotated[str, Field(max_length=keys.MODEL_CHARACTERS_MAX, json_schema_extra={"enum": [SLUG]}), Storable]


class KeyWanted(BaseModel):
    """A key to be made."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=keys.NAME_CHARACTERS_MAX), Storable] = "default"
    scopes: Annotated[list[Scope], Field(min_length=1)] = ["edit", "read"]
    sync_response: SyncResponse = "image"
    requests_per_minute: Annotated[int | None, Field(strict=True, ge=1, le=keys.REQUESTS_PER_MINUTE_MAX), Whole] = None
    models: Annotated[list[ModelName] | None, Field(min_length=1, max_length=100)] = None
    expires_at: Moment | None = None

    def policy(self, *, now: datetime) -> KeyPolicy:
        for model in self.models or ():
            if model != SLUG:  # it would open nothing
                raise ParametersRefused(
                    [Problem(parameter="models", value=shown(model), reason=f'has "{shown(model)}"', allowed_text=SLUG)]
                )
        if self.expires_at is not None and self.expires_at <= now:  # it would open nothing, and not count as a key
            raise ParametersRefused(
                [
                    Problem(
                        parameter="expires_at",
                        value=moment(self.expires_at),
                        reason="lies in the past",
                        allowed_text="a moment to come, or nothing",
                    )
                ]
            )
        return KeyPolicy(
            name=self.name,
            scopes=frozenset(self.scopes),
            requests_per_minute=self.requests_per_minute,
            models=None if self.models is None else frozenset(self.models),
            expires_at=self.expires_at,
            sync_response=self.sync_response,
        )


class KeyTooNarrow(AccountRefused):
    """The key that asks may do less than the one that it wants to make or revoke."""

    code = "key_too_narrow"


def add(routes: APIRouter, parts: Parts) -> None:
    @routes.get("/keys", summary="The account's keys")
    async def list_keys(caller: Reader) -> dict[str, object]:
        return await _listed(caller, caller.account)

    @routes.post("/keys", summary="Make a key", status_code=201)
    async def create_key(caller: Editor, wanted: KeyWanted) -> dict[str, object]:
        """The answer holds the key itself, which is never shown again. Counts as a request of the key that asks."""
        await parts.edits.allow(caller)
        own, policy = caller.key.policy, wanted.policy(now=parts.clock.now())
        if more := _more(policy, own, parts):
            raise KeyTooNarrow(f"This API key can't make one that has more than itself: {', '.join(more)}.")
        return await _made(caller, caller.account, policy, open_max=None if _is_operators(own) else keys.OPEN_MAX)

    @routes.delete("/keys/{key_id}", summary="Revoke a key")
    async def revoke_key(caller: Editor, key_id: str) -> dict[str, object]:
        acts = acts_of(parts, caller)

        def revoke(tx: Connection) -> ApiKey:
            found = keys.get(tx, KeyId(key_id), account=caller.account)
            if not _is_operators(caller.key.policy) and (more := _more(found.policy, caller.key.policy, parts)):
                raise KeyTooNarrow(f"This API key can't revoke one that has more than itself: {', '.join(more)}.")
            return acts.revoke_key(tx, found.id)

        revoked = await parts.database.transact(revoke)
        return {"key": described_for(caller.key, revoked)}

    @routes.get("/admin/accounts/{account_id}/keys", summary="An account's keys")
    async def list_keys_of(caller: Operator, account_id: str) -> dict[str, object]:
        return await _listed(caller, AccountId(account_id))

    @routes.post("/admin/accounts/{account_id}/keys", summary="Make a key for an account", status_code=201)
    async def create_key_for(caller: Operator, account_id: str, wanted: KeyWanted) -> dict[str, object]:
        return await _made(caller, AccountId(account_id), wanted.policy(now=parts.clock.now()))

    @routes.delete("/admin/accounts/{account_id}/keys/{key_id}", summary="Revoke a key of an account")
    async def revoke_key_of(caller: Operator, account_id: str, key_id: str) -> dict[str, object]:
        acts = acts_of(parts, caller)

        def revoke(tx: Connection) -> ApiKey:
            return acts.revoke_key(tx, KeyId(key_id), account=registry.get(tx, AccountId(account_id)).id)

        return {"key": described_for(caller.key, await parts.database.transact(revoke))}

    @routes.delete("/admin/accounts/{account_id}/keys", summary="Revoke every open key of an account")
    async def revoke_keys_of(caller: Operator, account_id: str) -> dict[str, object]:
        """It can order nothing more, nor look at anything. What it has ordered goes on."""
        acts = acts_of(parts, caller)
        revoked = await parts.database.transact(lambda tx: acts.revoke_keys(tx, AccountId(account_id)))
        return {"keys": [described_for(caller.key, each) for each in reversed(revoked)]}

    async def _listed(caller: Caller, account: AccountId) -> dict[str, object]:
        def look(tx: Connection) -> Sequence[ApiKey]:
            return keys.of_account(tx, registry.get(tx, account).id, now=parts.clock.now())

        found = await parts.database.read(look)
        return {"keys": [described_for(caller.key, each) for each in reversed(found)]}

    async def _made(
        caller: Caller, account: AccountId, policy: KeyPolicy, *, open_max: int | None = None
    ) -> dict[str, object]:
        acts = acts_of(parts, caller)

        def make(tx: Connection) -> NewKey:
            made = acts.create_key(tx, account, policy, open_max=open_max)
            # With the account locked, as whoever closes all of its keys has it: none of these makes another.
            keys.check_open(tx, caller.key.id, now=parts.clock.now())
            return made

        made = await parts.database.transact(make)
        return {"key": described_for(caller.key, made.key), "api_key": made.secret}


def acts_of(parts: Parts, caller: Caller) -> Acts:
    """What the caller does, to be found under its key in the audit log."""
    return Acts(
        actor=caller.key.id,
        ids=parts.ids,
        randomness=parts.randomness,
        pepper=parts.pepper,
        now=parts.clock.now,
    )


def _is_operators(policy: KeyPolicy) -> bool:
    return "admin" in policy.scopes


def _more(other: KeyPolicy, own: KeyPolicy, parts: Parts) -> list[str]:
    """What a key of `other` may do and one of `own` may not."""
    # An operator's key without a limit of its own gives out any: for another account it may do so anyway.
    has_any_rate = _is_operators(own) and own.requests_per_minute is None
    is_above = parts.edits.requests_per_minute(other) > parts.edits.requests_per_minute(own)
    return [
        *sorted(other.scopes - own.scopes),
        *(["more requests per minute"] if is_above and not has_any_rate else []),
        *(["more models"] if _beyond(other.models, own.models) else []),
        *(["a longer life"] if _later(other.expires_at, own.expires_at) else []),
    ]


def _beyond(other: frozenset[str] | None, own: frozenset[str] | None) -> bool:
    return own is not None and (other is None or not other <= own)


def _later(other: datetime | None, own: datetime | None) -> bool:
    return own is not None and (other is None or other > own)
