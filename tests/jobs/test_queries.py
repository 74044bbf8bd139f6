"""What is asked about jobs: how many wait and where, and which ones a search finds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rekontext.jobs import State, history, queries
from tests.jobs.office import ALICE, Office


def test_what_waits_is_counted(office: Office) -> None:
    """The place in the queue and the totals for the metrics."""
    jobs = [office.accept().job for _ in range(3)]
    office.claim()
    places = [office.database.read_sync(lambda tx, job=job: queries.ahead(tx, job)) for job in jobs[1:]]  # type: ignore[misc]
    assert places == [0, 1]
    assert office.database.read_sync(queries.unfinished_by_state) == {State.QUEUED: 2, State.PROCESSING: 1}
    assert office.database.read_sync(lambda tx: queries.queue(tx, ALICE)).in_flight == 3


@pytest.mark.parametrize("prompt", ["Mäke it 50% Night, NÜTZT", "mäke it 50% night, nützt"])
def test_a_search_heeds_neither_capitals_nor_the_database(office: Office, prompt: str) -> None:
    """What else is in it stands for itself."""
    job = office.accept(replace(office.order(), parameters={"prompt": prompt, "seed": 7})).job
    for words, model, found in (
        ("NIGHT", None, [job.id]),
        ("Nützt", None, [job.id]),
        ("it 50% n", "KONTEXT", [job.id]),
        ("it%night", None, []),
        (None, "kontext_dev", []),
    ):
        page = office.database.read_sync(
            lambda tx, words=words, model=model: history(tx, ALICE, prompt_contains=words, model_contains=model)  # type: ignore[misc]
        )
        assert ([each.id for each in page.jobs], page.total) == (found, len(found))
