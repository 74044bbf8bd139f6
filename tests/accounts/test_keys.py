"""Keys are random, shown once, stored only as a keyed hash, and open exactly what they were made for."""

from __future__ import annotations

import math
import os
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from rekontext.accounts import (
    ApiKey,
    KeyPolicy,
    KeyRefused,
    KeyUnknown,
    ModelNotAllowed,
    NewKey,
    ScopeMissing,
    keys,
)
from rekontext.database import AccountId, Database, KeyId
from rekontext.database.tables import api_keys
from tests.fakes import FakeClock, FakeRandomness

PEPPER = b"0123456789abcdef0123456789abcdef"


@pytest.fixture
def make(database: Database, alice: AccountId, clock: FakeClock, randomness: FakeRandomness) -> Maker:
    return Maker(database, alice, clock, randomness)


class Maker:
    def __init__(self, database: Database, account: AccountId, clock: FakeClock, randomness: FakeRandomness) -> None:
        self.database, self.account, self.clock, self.randomness = database, account, clock, randomness
        self.made = 0

    def __call__(self, policy: KeyPolicy | None = None) -> NewKey:
        self.made += 1
        return self.database.transact_sync(
            lambda tx: keys.create(
                tx,
                self.account,
                policy or KeyPolicy(),
                key=KeyId(f"key_{self.made}"),
                pepper=PEPPER,
                randomness=self.randomness,
                now=self.clock.now(),
            )
        )

    def authenticate(self, secret: str, *, pepper: bytes = PEPPER) -> ApiKey:
        return self.database.read_sync(lambda tx: keys.authenticate(tx, secret, pepper=pepper, now=self.clock.now()))


def test_a_key_opens_its_account(make: Maker) -> None:
    """The answer is the key as it was made, without its secret."""
    new = make(
        KeyPolicy(
            name="ci",
            scopes=frozenset({"read"}),
            requests_per_minute=7,
            models=frozenset({"flux-kontext-dev"}),
            expires_at=make.clock.now() + timedelta(days=1),
            sync_response="json",
        )
    )
    assert make.authenticate(new.secret) == new.key
    assert new.key.account == make.account


def test_a_key_has_190_random_bits() -> None:
    """32 characters of 62, drawn evenly."""
    secret = keys.make_secret(os.urandom)
    assert secret.startswith("rk_")
    assert len(secret) == 3 + 32 + 6
    assert 32 * math.log2(62) > 160
    drawn = "".join(keys.make_secret(FakeRandomness(seed))[3:35] for seed in range(400))
    counts = [drawn.count(character) for character in set(drawn)]
    assert len(counts) == 62
    expected = len(drawn) / 62
    chi_squared = sum((count - expected) ** 2 / expected for count in counts)
    assert chi_squared < 112  # 61 degrees of freedom, p = 0.0001


def test_the_secret_is_nowhere_in_the_database_or_in_reprs(make: Maker) -> None:
    """Only its hash and its first characters are."""
    new = make()
    [row] = make.database.read_sync(lambda tx: tx.execute(select(api_keys)).all())
    assert new.secret[7:] not in repr(row)
    assert new.secret[7:] not in repr(new)
    assert row.hint == new.secret[:7]


def test_another_pepper_opens_nothing(make: Maker) -> None:
    """A stolen database is of no use without the server's pepper, and the other way round."""
    new = make()
    with pytest.raises(KeyRefused, match="unknown"):
        make.authenticate(new.secret, pepper=b"another pepper, as long as need be")


@given(position=st.integers(3, 40), replacement=st.sampled_from("0Aa9Zz"))
def test_a_mistyped_key_is_refused_before_the_database_is_asked(position: int, replacement: str) -> None:
    """The checksum finds every single wrong character."""
    secret = keys.make_secret(FakeRandomness(1))
    wrong = secret[:position] + replacement + secret[position + 1 :]
    if wrong == secret:
        keys.check_shape(secret)
        return
    with pytest.raises(KeyRefused, match="mistyped"):
        keys.check_shape(wrong)


@given(st.text())
def test_no_text_breaks_the_check(text: str) -> None:
    """Whatever a client sends is refused, not an error."""
    with pytest.raises(KeyRefused):
        keys.check_shape(text)


def test_a_well_formed_key_that_nobody_made_is_refused(make: Maker) -> None:
    """A right checksum is not enough."""
    with pytest.raises(KeyRefused, match="unknown"):
        make.authenticate(keys.make_secret(FakeRandomness(99)))


def test_a_revoked_key_is_refused_for_good(make: Maker) -> None:
    """From the same moment on; revoking it twice keeps the first moment."""
    new = make()
    at = make.clock.now()
    assert make.database.transact_sync(lambda tx: keys.revoke(tx, new.key.id, now=at))
    with pytest.raises(KeyRefused, match="revoked"):
        make.authenticate(new.secret)
    later = make.clock.advance(60)
    assert not make.database.transact_sync(lambda tx: keys.revoke(tx, new.key.id, now=later))
    assert make.database.read_sync(lambda tx: keys.get(tx, new.key.id)).revoked_at == at


def test_one_account_cannot_revoke_another_ones_key(make: Maker) -> None:
    """It doesn't even learn that the key exists."""
    new = make()
    with pytest.raises(KeyUnknown):
        make.database.transact_sync(
            lambda tx: keys.revoke(tx, new.key.id, now=make.clock.now(), account=AccountId("acc_mallory"))
        )
    make.authenticate(new.secret)


def test_a_key_expires_at_its_moment(make: Maker) -> None:
    """Good until then, refused from then on."""
    new = make(KeyPolicy(expires_at=make.clock.now() + timedelta(seconds=60)))
    make.clock.advance(59)
    make.authenticate(new.secret)
    make.clock.advance(1)
    with pytest.raises(KeyRefused, match="expired at 2026"):
        make.authenticate(new.secret)


def test_scopes_and_models_say_what_is_missing(make: Maker) -> None:
    """The refusal names what the key has."""
    key = make(KeyPolicy(scopes=frozenset({"read"}), models=frozenset({"a", "b"}))).key
    key.require_scope("read")
    key.require_model("a")
    with pytest.raises(ScopeMissing, match="'edit'; it has read"):
        key.require_scope("edit")
    with pytest.raises(ModelNotAllowed, match="'c'; it may use a, b"):
        key.require_model("c")


def test_an_account_sees_its_keys_in_order(make: Maker) -> None:
    """Revoked ones too."""
    first = make().key
    make.clock.advance(1)
    second = make().key
    make.database.transact_sync(lambda tx: keys.revoke(tx, first.id, now=make.clock.now()))
    listed = make.database.read_sync(lambda tx: keys.of_account(tx, make.account, now=make.clock.now()))
    assert [key.id for key in listed] == [first.id, second.id]
    assert listed[0].revoked_at is not None


def test_of_the_closed_keys_the_newest_are_listed(make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Revoked or expired; an open one always is, however old."""
    monkeypatch.setattr(keys, "CLOSED_SHOWN_MAX", 2)
    made = list[KeyId]()
    for _ in range(5):
        made.append(make(KeyPolicy(expires_at=make.clock.now() + timedelta(hours=1))).key.id if made else make().key.id)
        make.clock.advance(1)
    make.database.transact_sync(lambda tx: keys.revoke(tx, made[2], now=make.clock.now()))
    for closed, listed in ((0, made), (3 * 3600, [made[0], made[3], made[4]])):
        now = make.clock.advance(closed)
        found = make.database.read_sync(lambda tx, now=now: keys.of_account(tx, make.account, now=now))  # type: ignore[misc]
        assert [key.id for key in found] == listed


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        ({"name": ""}, "1 to 200 characters, this one has 0"),
        ({"name": "x" * 201}, "1 to 200 characters, this one has 201"),
        ({"models": frozenset({"x" * 201})}, "at most 200 characters, this one has 201"),
        ({"requests_per_minute": 3_000_000_000}, "requests_per_minute is 3000000000; allowed: 1 to 1000000"),
    ],
)
def test_a_key_beyond_the_bounds_isn_t_made(make: Maker, policy: dict[str, Any], complaint: str) -> None:
    """In the same words on both databases, of which one would take it and the other break."""
    with pytest.raises(ValueError, match=complaint):
        make(KeyPolicy(**policy))
    assert make(KeyPolicy(name="x" * 200, requests_per_minute=1_000_000)).key.policy.requests_per_minute == 1_000_000


def test_a_key_from_before_the_bounds_goes_on(make: Maker) -> None:
    """Its owner may have been given it for good reasons."""
    new = make()
    make.database.transact_sync(lambda tx: tx.execute(update(api_keys).values(name="", requests_per_minute=2**31 - 1)))
    assert make.authenticate(new.secret).policy.requests_per_minute == 2**31 - 1


@pytest.mark.parametrize(
    ("policy", "complaint"),
    [
        ({"scopes": frozenset()}, "scopes are"),
        ({"scopes": frozenset({"root"})}, "root"),
        ({"requests_per_minute": 0}, "requests_per_minute is 0"),
        ({"sync_response": "xml"}, "'xml'; allowed: image, json"),
    ],
)
def test_a_policy_that_means_nothing_is_refused(policy: dict[str, object], complaint: str) -> None:
    """By the name of the field."""
    with pytest.raises(ValueError, match=complaint):
        KeyPolicy(**policy)  # type: ignore[arg-type]


def test_whether_somebody_may_administer(make: Maker) -> None:
    """Only an open key counts, and only its scope: a name may say anything."""

    def is_administered() -> bool:
        return make.database.read_sync(lambda tx: keys.is_administered(tx, now=make.clock.now()))

    make(KeyPolicy(name='"admin"'))
    assert not is_administered()
    brief = KeyPolicy(scopes=frozenset({"admin"}), expires_at=make.clock.now() + timedelta(seconds=60))
    make(brief)
    assert is_administered()
    make.clock.advance(60)
    assert not is_administered()
    key = make(KeyPolicy(scopes=frozenset({"edit", "read", "admin"}))).key
    assert is_administered()
    make.database.transact_sync(lambda tx: keys.revoke(tx, key.id, now=make.clock.now()))
    assert not is_administered()
