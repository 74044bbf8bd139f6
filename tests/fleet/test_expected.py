"""Who is with a device, who waits, and when each will be done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import Mock

import pytest
from PIL import Image

from rekontext.contract import EditRequest
from rekontext.engine.canvas import Canvas
from rekontext.engine.costs import CostModel
from rekontext.engine.outlook import Outlook
from rekontext.fleet.expected import ExpectedEdit, ExpectedEdits

pytestmark = pytest.mark.anyio

TOKENS = 16
"""Of a picture of 64 x 64 pixels, without its prompt."""


def edits_of_a_device() -> ExpectedEdits:
    """None yet; each of their steps takes a second."""
    costs = CostModel(seconds={"step": {1: 1.0, TOKENS: 1.0}, "prepare": {TOKENS: 0.0}, "decode": {TOKENS: 0.0}})
    edits = ExpectedEdits()
    edits.outlook = Outlook(canvas=Canvas(area=4096), text_tokens=0, costs=costs)
    return edits


def request(id: int, *, steps: int, is_suspect: bool = False) -> EditRequest:
    return EditRequest(id=str(id), prompt="", seed=id, steps=steps, is_suspect=is_suspect)


def waits(edits: ExpectedEdits, *asked: EditRequest) -> list[tuple[int, float, float]]:
    """Their positions, waits and ends."""
    found = [edits.estimate(each) for each in asked]
    return [(each.position, round(each.wait_s, 1), round(each.finish_s, 1)) for each in found]


def admitted(edits: ExpectedEdits) -> list[str]:
    return [edit.request.id for edit in edits if edits.admits(edit)]


async def test_edits_go_in_as_they_came_and_a_suspect_one_is_in_alone() -> None:
    """Everybody gets a turn: those that come later don't overtake it, and it doesn't overtake those before it."""
    edits = edits_of_a_device()
    asked = [request(id, steps=4, is_suspect=id in (2, 3)) for id in range(6)]
    present = [edits.add(each, None) for each in asked]
    assert admitted(edits) == ["0", "1"]
    for gone, left in [(1, ["0"]), (0, ["2"]), (3, ["2"]), (2, ["4", "5"])]:
        edits.remove(present[gone])
        assert admitted(edits) == left


async def test_an_edit_behind_a_suspect_one_is_expected_after_it() -> None:
    """However short it is; and nobody before it is kept up by it."""
    edits = edits_of_a_device()
    first, suspect, short, shorter = (
        request(1, steps=20),
        request(2, steps=30, is_suspect=True),
        request(3, steps=4),
        request(4, steps=2),
    )
    running = edits.add(first, None)
    assert waits(edits, suspect, short) == [(1, 20, 50), (0, 0, 4)]
    alone = edits.add(suspect, None)
    edits.add(short, None)
    assert waits(edits, first, suspect, short, shorter) == [(0, 0, 20), (1, 20, 50), (2, 50, 54), (3, 54, 56)]
    edits.remove(running)
    assert waits(edits, suspect, short, shorter) == [(0, 0, 30), (1, 30, 34), (2, 34, 36)]
    edits.remove(alone)
    assert waits(edits, short, shorter) == [(0, 0, 4), (0, 0, 2)]
    assert edits.load_s == 4


async def test_what_the_process_tells_and_what_it_does_not_know_yet_are_reckoned_with_once() -> None:
    """It tells of what it has taken in; of two that were sent it may know one, and none that waits behind them."""
    edits = edits_of_a_device()
    assert edits.outlook is not None
    known, sent, alone = (edits.add(request(id, steps=10, is_suspect=id == 3), None) for id in (1, 2, 3))
    for edit in (known, sent):
        edit.is_handed_over = True
    told = edits.outlook.emptied()
    told.scheduler.add(7, account="", work_s=10.0, now_s=0.0)
    edits.take_in(told, {known.number: 7})
    assert set(told.scheduler) == {7, sent}
    assert waits(edits, alone.request) == [(2, 20, 30)]
    edits.give_up("it died")
    assert not alone.ended.done()
    assert len(edits.outlook.scheduler) == 0
    for edit in (known, sent):
        assert str(edit.ended.exception()) == "it died"
        edits.remove(edit)
    assert waits(edits, alone.request) == [(0, 0, 10)]


async def test_what_may_go_elsewhere() -> None:
    """What was begun, or may be on the way, stays; so does a suspect edit, which may kill that process too."""
    edits = edits_of_a_device()

    def states(edit: ExpectedEdit) -> list[bool]:
        found = [edit.may_move]
        for state in ("is_handed_over", "is_taken_in", "is_stepped"):
            setattr(edit, state, True)
            found.append(edit.may_move)
        return found

    assert states(edits.add(request(1, steps=4), None)) == [True, False, True, False]
    assert states(edits.add(request(2, steps=4, is_suspect=True), None)) == [False] * 4
    ended = edits.add(request(3, steps=4), None)
    ended.ended.cancel()
    assert not ended.may_move


async def test_what_is_kept_of_an_edit_says_how_long_it_takes_elsewhere() -> None:
    """A photo is most of it; only how large it is counts."""
    edits = edits_of_a_device()
    assert edits.outlook is not None
    asked = replace(request(1, steps=4), photo=Image.new("RGB", (640, 480)))
    edit = edits.add(asked, None)
    assert edit.request.photo is None
    assert edits.outlook.plan(edit.request) == edits.outlook.plan(asked)


async def test_only_an_edit_that_would_wait_for_long_moves() -> None:
    """What is prepared elsewhere is prepared anew. A start is a wait for whoever isn't in the process."""
    edits = edits_of_a_device()
    first, second, alone, behind = (
        edits.add(request(id, steps=steps, is_suspect=id == 3), None)
        for id, steps in [(1, 10), (2, 20), (3, 4), (4, 9)]
    )
    assert edits.next_to_move(0.9) is second
    assert edits.next_to_move(1.1) is first
    first.is_handed_over = first.is_taken_in = True
    assert edits.next_to_move(1.1) is second
    for edit in (first, second):
        edits.remove(edit)
    assert edits.next_to_move(0.0) is behind
    edits.remove(alone)
    assert edits.next_to_move(0.0) is None


@pytest.mark.parametrize("suspect", [0, 20, 40])
async def test_what_it_takes_to_choose_who_moves_grows_as_the_edits_do(
    monkeypatch: pytest.MonkeyPatch, suspect: int
) -> None:
    """And no faster: the event loop waits for it, and with it every caller."""
    looked: list[ExpectedEdit] = []
    iterate = ExpectedEdits.__iter__

    def counted(self: ExpectedEdits) -> Iterator[ExpectedEdit]:
        for edit in iterate(self):
            looked.append(edit)
            yield edit

    edits = edits_of_a_device()
    for id in range(40):
        edits.add(request(id, steps=4, is_suspect=id == suspect), None)
    assert edits.outlook is not None
    scheduler = edits.outlook.scheduler
    estimates = Mock(wraps=scheduler.estimates)
    monkeypatch.setattr(scheduler, "estimates", estimates)
    monkeypatch.setattr(ExpectedEdits, "__iter__", counted)
    assert edits.next_to_move(1000.0) is not None
    assert estimates.call_count <= 2  # of those that are admitted, and of the last of them for those that aren't
    assert len(looked) <= 2 * len(edits)
    looked.clear()
    edits.give_up("it died")
    assert len(looked) <= 3 * len(edits)
