"""Accounts are found by name or id, and their limits are checked."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, event, update

from rekontext.accounts import AccountUnknown, Balance, NameTaken, audit, ledger, registry
from rekontext.database import AccountId, Database
from rekontext.database.tables import accounts
from tests.fakes import FakeClock, FakeRandomness


def test_a_new_account_has_empty_books_and_a_secret_of_its_own(database: Database, alice: AccountId) -> None:
    """Nothing on it, nothing held."""
    account = database.read_sync(lambda tx: registry.get(tx, alice))
    assert account.webhook_secret.startswith("whsec_")
    assert account.webhook_secret not in repr(account)
    assert database.read_sync(lambda tx: ledger.balance(tx, alice)) == Balance(
        free_micros=0, paid_micros=0, held_free_micros=0, held_paid_micros=0
    )


def test_accounts_are_found_by_name_and_by_id(database: Database, alice: AccountId) -> None:
    """As an operator types them."""
    by_name = database.read_sync(lambda tx: registry.find(tx, "Alice"))
    by_id = database.read_sync(lambda tx: registry.find(tx, alice))
    assert by_name.id == by_id.id == alice
    with pytest.raises(AccountUnknown, match="'Bob'"):
        database.read_sync(lambda tx: registry.find(tx, "Bob"))


def test_an_id_wins_over_a_name_that_looks_like_it(
    database: Database, alice: AccountId, clock: FakeClock, randomness: FakeRandomness
) -> None:
    """Nobody can take over another account's commands by choosing a name."""
    database.transact_sync(
        lambda tx: registry.create(tx, alice, account=AccountId("acc_mallory"), randomness=randomness, now=clock.now())
    )
    assert database.read_sync(lambda tx: registry.find(tx, alice)).name == "Alice"


def test_names_are_unique(database: Database, alice: AccountId, clock: FakeClock, randomness: FakeRandomness) -> None:
    """The second one is told."""
    with pytest.raises(NameTaken, match="'Alice'"):
        database.transact_sync(
            lambda tx: registry.create(tx, "Alice", account=AccountId("b"), randomness=randomness, now=clock.now())
        )
    assert [account.id for account, _ in database.read_sync(registry.every_with_balance)] == [alice]


@pytest.mark.parametrize(
    "name", ["", " ", "Alice ", "\tAlice", "A\u200blice", "Alice\u202e", "A\xa0lice", "\x1b]0;pwn\a", "A\nlice"]
)
def test_a_new_account_can_t_look_like_another(
    database: Database, clock: FakeClock, randomness: FakeRandomness, name: str
) -> None:
    """Blanks at the edges and what can't be seen are refused, and shown as escapes."""
    with pytest.raises(ValueError, match="1 to 200 characters that can be seen, and spaces between them") as refused:
        database.transact_sync(
            lambda tx: registry.create(tx, name, account=AccountId("b"), randomness=randomness, now=clock.now())
        )
    assert repr(name) in str(refused.value)
    assert str(refused.value).isprintable()


def test_an_account_that_is_there_keeps_its_name(database: Database, alice: AccountId) -> None:
    """It was opened when more was allowed; it is found and limited as any."""
    database.transact_sync(lambda tx: tx.execute(update(accounts).values(name=" Al\u200bice ")))
    assert database.read_sync(lambda tx: registry.find(tx, " Al\u200bice ")).id == alice
    assert database.transact_sync(lambda tx: registry.set_limits(tx, alice, in_flight_max=2)).in_flight_max == 2


def test_accounts_are_listed_with_what_they_have_in_one_question(
    database: Database, alice: AccountId, clock: FakeClock, randomness: FakeRandomness
) -> None:
    """However many there are; the oldest first."""
    bob, asked = AccountId("acc_bob"), list[str]()
    now = clock.advance(1)

    def open_bob(tx: Connection) -> None:
        registry.create(tx, "Bob", account=bob, randomness=randomness, now=now)
        ledger.add(tx, bob, 7, source="payment", actor="test", now=now)

    def look(tx: Connection) -> list[tuple[AccountId, int]]:
        event.listen(tx, "before_cursor_execute", lambda *sent: asked.append(sent[2]))
        return [(account.id, balance.paid_micros) for account, balance in registry.every_with_balance(tx)]

    database.transact_sync(open_bob)
    assert database.read_sync(look) == [(alice, 0), (bob, 7)]
    assert len(asked) == 1


def test_accounts_are_found_page_by_page(
    database: Database, alice: AccountId, clock: FakeClock, randomness: FakeRandomness
) -> None:
    """The newest first; by a part of the name, capitals or not, which is no pattern, or by the whole id."""

    def open_more(tx: Connection) -> None:
        for name in ("Print Shop", "printer_2", "100% Ltd"):
            made = AccountId(f"acc_{name[0:5]}")
            registry.create(tx, name, account=made, randomness=randomness, now=clock.advance(1))

    def found(**asked: Any) -> tuple[list[str], int]:
        page = database.read_sync(lambda tx: registry.page_with_balance(tx, **asked))
        return [account.name for account, _ in page.accounts], page.total

    database.transact_sync(open_more)
    assert found() == (["100% Ltd", "printer_2", "Print Shop", "Alice"], 4)
    assert found(per_page=3, page=2) == (["Alice"], 4)
    assert found(per_page=3, page=3) == ([], 4)
    assert found(name_contains="PRINT", per_page=1) == (["printer_2"], 2)
    assert found(name_contains="%") == (["100% Ltd"], 1)
    assert found(name_contains="_") == (["printer_2"], 1)
    assert found(name_contains=alice) == (["Alice"], 1)
    assert found(name_contains=alice[:-1]) == ([], 0)


def test_limits_can_be_changed_and_lifted(database: Database, alice: AccountId) -> None:
    """None takes the default again."""
    changed = database.transact_sync(lambda tx: registry.set_limits(tx, alice, monthly_cap_micros=5, in_flight_max=2))
    assert (changed.monthly_cap_micros, changed.in_flight_max) == (5, 2)
    lifted = database.transact_sync(
        lambda tx: registry.set_limits(tx, alice, monthly_cap_micros=None, in_flight_max=None)
    )
    assert (lifted.monthly_cap_micros, lifted.in_flight_max) == (None, None)
    with pytest.raises(ValueError, match="in_flight_max is 0"):
        database.transact_sync(lambda tx: registry.set_limits(tx, alice, monthly_cap_micros=None, in_flight_max=0))


def test_what_operators_did_is_listed_newest_first(database: Database, clock: FakeClock) -> None:
    """Page by page."""

    def act(tx: Connection) -> None:
        for number in range(5):
            audit.record(
                tx, actor="cli", action="credits.add", subject="acc", now=clock.now(), details={"number": number}
            )

    database.transact_sync(act)
    newest = database.read_sync(lambda tx: audit.records(tx, limit=2))
    assert [record.details["number"] for record in newest] == [4, 3]
    older = database.read_sync(lambda tx: audit.records(tx, before=newest[-1].id))
    assert [record.details["number"] for record in older] == [2, 1, 0]
    assert older[0].at == clock.now()
