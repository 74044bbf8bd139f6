"""Endpoints are checked when they are given, changed by their own account only, and make room for others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import Connection

from rekontext.database import EndpointId
from rekontext.database.tables import webhook_deliveries
from rekontext.jobs import endpoints
from rekontext.jobs.endpoints import Endpoint, WebhookRefused, WebhookUnknown
from tests.jobs.office import ALICE, BOB, Office
from tests.jobs.webhooks.receiver import add_endpoint, add_in, end_a_job, log


def test_endpoints_are_listed_and_changed(office: Office) -> None:
    """By their own account only."""
    made = add_endpoint(office, "edit.completed")
    assert made.secret.startswith("whsec_")
    assert made.secret not in repr(made)
    changed = office.database.transact_sync(
        lambda tx: endpoints.change(
            tx, ALICE, made.id, url="http://example.org/", event_types=["edit.failed", "edit.failed"]
        )
    )
    assert (changed.url, changed.event_types, changed.active) == ("http://example.org/", ("edit.failed",), True)
    unchanged = office.database.transact_sync(lambda tx: endpoints.change(tx, ALICE, made.id))
    assert office.database.read_sync(lambda tx: endpoints.of_account(tx, ALICE)) == [unchanged] == [changed]
    with pytest.raises(WebhookUnknown):
        office.database.transact_sync(lambda tx: endpoints.change(tx, BOB, made.id, active=False))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.com",
        "example.com",
        "https://",
        "https://user:pass@example.com",
        "http://[::1",
        f"https://example.com/{'x' * 3000}",
        "https://example.com:99999/",
        "https://example.com/a b",
        " https://example.com/",
        "https://example.com/\n",
        "https://exam\tple.com/",
        "https://example.com/\x00",
        "https://example.com/\u00a0",
        "https://example.com/\u2028",
    ],
)
def test_a_url_that_cannot_be_called_is_refused(office: Office, url: str) -> None:
    """When it is given, not at the first delivery."""
    with pytest.raises(WebhookRefused, match="allowed: http"):
        add_endpoint(office, url=url)


def test_a_url_may_have_letters_of_any_language(office: Office) -> None:
    """They are quoted when it is dialled."""
    assert add_endpoint(office, url="https://bücher.example:8443/größe?x=1").url.endswith("größe?x=1")


def test_what_makes_no_sense_is_refused(office: Office) -> None:
    """Unknown events, none at all, or too many endpoints."""
    with pytest.raises(WebhookRefused, match=r"edit\.eaten; allowed"):
        add_endpoint(office, "edit.eaten")
    for number in range(endpoints.ENDPOINTS_PER_ACCOUNT_MAX):
        add_endpoint(office, name=f"end_{number}")
    with pytest.raises(WebhookRefused, match="at most 20"):
        add_endpoint(office, name="one_more")


def switch(office: Office, name: str, *, on: bool) -> Endpoint:
    return office.database.transact_sync(lambda tx: endpoints.change(tx, ALICE, EndpointId(name), active=on))


def kept(office: Office) -> list[str]:
    return [each.id for each in office.database.read_sync(lambda tx: endpoints.of_account(tx, ALICE))]


def test_no_more_endpoints_are_switched_on_than_may_be_made(office: Office) -> None:
    """One that is on already may be switched on again, and one that is switched off makes room."""
    add_endpoint(office, name="old")
    switch(office, "old", on=False)
    for number in range(endpoints.ENDPOINTS_PER_ACCOUNT_MAX):
        add_endpoint(office, name=f"end_{number}")
    with pytest.raises(WebhookRefused, match="at most 20"):
        switch(office, "old", on=True)
    assert switch(office, "end_0", on=True).active
    switch(office, "end_0", on=False)
    assert switch(office, "old", on=True).active


def test_an_endpoint_that_is_switched_off_makes_room_in_the_end(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest whose log is empty; then the oldest with its log; never one with messages that wait."""
    monkeypatch.setattr(endpoints, "KEPT_PER_ACCOUNT_MAX", 4)
    for name in ("waits", "told", "silent", "newer"):
        add_endpoint(office, name=name)
        if name in ("waits", "told"):
            end_a_job(office)
        if name == "told":
            done = webhook_deliveries.update().where(webhook_deliveries.c.endpoint_id == name)
            ended = done.values(state="DELIVERED", finished_at=office.clock.now())
            office.database.transact_sync(lambda tx, ended=ended: tx.execute(ended) and None)  # type: ignore[misc]
        switch(office, name, on=False)
        office.clock.advance(1)
    assert [delivery.endpoint for delivery in log(office)] == ["told", "waits"]
    rooms = []
    for number in range(3):
        add_endpoint(office, name=f"end_{number}")
        rooms.append([name for name in ("waits", "told", "silent", "newer") if name in kept(office)])
        office.clock.advance(1)
    assert rooms == [["waits", "told", "newer"], ["waits", "told"], ["waits"]]
    assert {delivery.endpoint for delivery in log(office)} == {"waits"}
    with pytest.raises(WebhookRefused, match="at most 4 webhooks, with those that are switched off"):
        add_endpoint(office, name="one_more")


def test_an_endpoint_with_a_long_log_makes_no_room(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deleting it would hold everybody up, for one request; it goes message by message, with their time."""
    monkeypatch.setattr(endpoints, "KEPT_PER_ACCOUNT_MAX", 2)
    monkeypatch.setattr(endpoints, "DELETED_AT_ONCE_MAX", 1)
    for name, messages in (("long", 2), ("short", 1)):
        add_endpoint(office, name=name)
        for _ in range(messages):
            end_a_job(office)
        switch(office, name, on=False)
        office.clock.advance(1)
    ended = webhook_deliveries.update().values(state="DELIVERED", finished_at=office.clock.now())
    office.database.transact_sync(lambda tx: tx.execute(ended) and None)
    add_endpoint(office, name="one")
    assert kept(office) == ["long", "one"]
    switch(office, "one", on=False)
    add_endpoint(office, name="another")
    assert kept(office) == ["long", "another"]
    with pytest.raises(WebhookRefused, match="a log of more than 1 messages"):
        add_endpoint(office, name="one_more")


def test_endpoints_that_are_made_at_once_are_counted_too(office: Office) -> None:
    """Whoever counts waits for whoever is about to add."""
    for number in range(endpoints.ENDPOINTS_PER_ACCOUNT_MAX - 1):
        add_endpoint(office, name=f"end_{number}")
    counted = threading.Barrier(2)

    def hurry(name: str) -> bool:
        def work(tx: Connection) -> None:
            add_in(tx, office, name=name)
            with suppress(threading.BrokenBarrierError):
                counted.wait(0.3)  # where nobody waits for the other, both get here before either commits

        try:
            office.database.transact_sync(work)
        except WebhookRefused:
            return False
        return True

    with ThreadPoolExecutor(2) as threads:
        assert sorted(threads.map(hurry, ("one", "another"))) == [False, True]
    assert len(kept(office)) == endpoints.ENDPOINTS_PER_ACCOUNT_MAX
