"""Whose job is next: accounts take turns, nobody is passed by for ever, and each job is claimed once."""

from __future__ import annotations

import asyncio

import pytest

from rekontext.database import AccountId, JobId
from rekontext.jobs import Patience
from tests.jobs.office import ALICE, BOB, Office


def test_jobs_are_claimed_in_the_order_of_their_acceptance(office: Office) -> None:
    """As many as asked for, and each once."""
    accepted = [office.accept().job.id for _ in range(5)]
    first = office.claim("one", limit=2)
    second = office.claim("two", limit=10)
    assert [job.id for job in first + second] == accepted
    assert {job.worker for job in first} == {"one"}
    assert office.claim("three") == []


def test_accounts_take_turns(office: Office) -> None:
    """Whoever orders much waits behind his own; who comes later waits for one of his at most."""
    office.open_account(BOB)
    orders = [ALICE, ALICE, ALICE, BOB, BOB, ALICE]
    accepted = [office.accept(office.order(account)) for account in orders]
    assert [each.ahead for each in accepted] == [0, 1, 2, 1, 3, 5]
    order = [0, 3, 1, 4, 2, 5]
    assert [office.ahead(each.job) for each in accepted] == [0, 2, 4, 1, 3, 5]
    assert (office.ahead_of_new(ALICE), office.ahead_of_new(BOB)) == (6, 5)
    claimed = office.claim(limit=3) + office.claim(limit=10)
    assert [job.id for job in claimed] == [accepted[place].job.id for place in order]


def test_no_job_is_passed_by_for_ever(office: Office) -> None:
    """However many others send their next edit as soon as the last is claimed."""
    others = [AccountId(f"account-{number}") for number in range(3)]
    for account in others:
        office.open_account(account, edits=100)
    first, second = office.accept().job, office.accept().job
    for account in others:
        office.accept(office.order(account))
    claimed: list[JobId] = []
    while len(claimed) < 20 and second.id not in claimed:
        [job] = office.claim()
        claimed.append(job.id)
        if job.account in others:
            office.accept(office.order(job.account))
    assert claimed[0] == first.id
    assert claimed.index(second.id) == 4


@pytest.mark.parametrize("others_wait", [False, True])
def test_a_job_that_is_tried_again_is_next(office: Office, others_wait: bool) -> None:
    """Its turn was in a queue that is gone; now others wait from the first turn on."""
    office.patience = Patience(backoff_s=0)
    office.open_account(BOB)
    for _ in range(5):
        office.accept()
    back = office.claim(limit=5)[-1]
    waiting = [office.accept(office.order(account)).job for account in (BOB, ALICE) if others_wait]
    office.fail(back.lease)
    waiting += [office.accept(office.order(account)).job for account in (BOB, ALICE) if not others_wait]
    assert [job.id for job in office.claim(limit=3)] == [back.id, *(job.id for job in waiting)]


def test_a_job_that_waits_to_be_tried_again_holds_no_turn_back(office: Office) -> None:
    """The queue has gone on: who comes now is behind who waits already."""
    office.open_account(BOB)
    first = office.start()
    for _ in range(4):
        office.accept()
    office.fail(first.lease)
    claimed = [office.claim()[0].id for _ in range(2)]
    assert first.id not in claimed
    newcomer = office.accept(office.order(BOB))
    assert newcomer.job.turn == 2


def test_accounts_can_be_left_out_of_a_claim(office: Office) -> None:
    office.open_account(BOB)
    jobs = [office.accept(office.order(account)).job for account in (ALICE, BOB)]
    work = office.life.claim
    claimed = office.database.transact_sync(
        lambda tx: work(tx, worker="w", limit=2, now=office.clock.now(), besides={ALICE})
    )
    assert [job.id for job in claimed] == [jobs[1].id]


def test_a_job_handed_back_is_next_again_without_a_fault(office: Office) -> None:
    """A restart in good order costs a job none of its attempts."""
    job, later = office.start(), office.accept().job
    office.hand_back(job.lease)
    again, second = office.claim(limit=2)
    assert (again.id, again.attempt, again.faults) == (job.id, 2, 0)
    assert second.id == later.id


@pytest.mark.anyio
async def test_concurrent_workers_never_claim_the_same_job(office: Office) -> None:
    """Eight workers, each asking for three of ten jobs at the same moment."""
    for _ in range(10):
        office.accept()
    claims = await asyncio.gather(
        *(
            office.database.transact(
                lambda tx, number=number: office.life.claim(  # type: ignore[misc]
                    tx, worker=f"worker-{number}", limit=3, now=office.clock.now()
                )
            )
            for number in range(8)
        )
    )
    claimed = [job.id for jobs in claims for job in jobs]
    assert len(claimed) == len(set(claimed)) == 10


def test_a_clock_that_is_set_back_keeps_no_job_waiting(office: Office) -> None:
    """Jobs that were accepted, or put back, under the wrong time are next all the same, and no time is below zero."""
    office.patience = Patience(backoff_s=1)
    first, second = office.accept().job, office.accept().job
    [claimed] = office.claim()
    office.fail(claimed.lease)
    office.clock.set_back(3600)
    jobs = office.claim(limit=2)
    assert [job.id for job in jobs] == [first.id, second.id]
    done = [office.complete(job.lease) for job in jobs]
    assert [(job.queue_s, job.total_s) for job in done] == [(0.0, 0.0)] * 2
