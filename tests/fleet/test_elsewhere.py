"""A fleet without devices, and what others tell it of theirs."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from PIL import Image

from rekontext.contract import EditRequest, EngineFault, ModelCard
from rekontext.engine.canvas import Canvas
from rekontext.engine.costs import CostModel
from rekontext.engine.outlook import Outlook
from rekontext.fleet import ElsewhereFleet, LocalFleet, Opening
from rekontext.fleet.profile import from_profile, to_profile

pytestmark = pytest.mark.anyio

REQUEST = EditRequest(id="", prompt="make it night", photo=Image.new("RGB", (64, 64)), seed=1, steps=10)


def profile_of(name: str, *, step_s: float) -> dict[str, Any]:
    card = ModelCard(
        name=name,
        canvas_area=4096,
        parameters=1,
        device="cuda",
        dtype="fp8",
        is_mini=False,
        knows=("night",),
        loras=("warm:0.5",),
    )
    costs = CostModel(seconds={"step": {49: step_s}, "prepare": {49: 1.0}, "decode": {16: 2.0}}, token_s=0.5)
    told = to_profile(card, Outlook(canvas=Canvas(area=4096), text_tokens=17, costs=costs), ("ink",))
    return dict(json.loads(json.dumps(told)))


async def test_a_fleet_elsewhere_speaks_by_what_it_was_told() -> None:
    """Also of what was told later: other weights, or a faster device."""
    told: Mapping[str, Any] | None = None

    async def look() -> Mapping[str, Any] | None:
        return told

    fleet = ElsewhereFleet(look=look, every_s=0.01)
    starting = asyncio.create_task(fleet.start())
    await asyncio.sleep(0.05)
    assert not fleet.is_ready
    with pytest.raises(EngineFault, match="no process with a device has been up yet"):
        fleet.estimate(REQUEST)
    told = profile_of("kontext", step_s=0.5)
    await asyncio.wait_for(starting, 10)
    assert (fleet.is_ready, fleet.devices, fleet.card.knows) == (True, {}, ("night",))
    assert fleet.card.title == "kontext + warm:0.5"
    assert await fleet.offers() == ("ink",)
    assert fleet.estimate(REQUEST).finish_s == pytest.approx(1.0 + 10 * 0.5 + 2.0)
    assert await fleet.profile() == told
    watching = asyncio.create_task(fleet.watch())
    told = profile_of("newer", step_s=0.1)
    async with asyncio.timeout(10):
        while fleet.card.name != "newer":  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    told = None  # nobody knows for a moment
    await asyncio.sleep(0.05)
    assert fleet.estimate(REQUEST).finish_s == pytest.approx(1.0 + 10 * 0.1 + 2.0)
    with pytest.raises(EngineFault, match="this process has no device"):
        await fleet.edit(REQUEST)
    watching.cancel()
    await fleet.close()
    assert not fleet.is_ready


def of_a_newer_version(profile: dict[str, Any]) -> dict[str, Any]:
    return {**profile, "card": {**profile["card"], "licence": "none"}, "colour": "blue"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda profile: {},
        lambda profile: {**profile, "costs": None},
        lambda profile: {**profile, "token_s": None},
        lambda profile: {**profile, "card": {"name": "nothing else"}},
        lambda profile: {**profile, "card": {**profile["card"], "knows": 5}},
    ],
)
async def test_what_another_version_tells_ends_no_service(
    damage: Callable[[dict[str, Any]], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one is upgraded the other is not yet: by what it can't read a front goes on as before, and says so once."""
    looks, said = 0, []
    monkeypatch.setattr("rekontext.fleet.elsewhere._log.error", lambda *words, **more: said.append(words[0]))
    told = damage(profile_of("broken", step_s=9.0))

    async def look() -> Mapping[str, Any] | None:
        nonlocal looks
        looks += 1
        return told

    fleet = ElsewhereFleet(look=look, every_s=0.01)
    running = asyncio.create_task(fleet.start())
    async with asyncio.timeout(10):
        while looks < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert (running.done(), fleet.is_ready, said) == (False, False, ["profile_unknown"])
        told = of_a_newer_version(profile_of("newer", step_s=0.1))
        await running
        running = asyncio.create_task(fleet.watch())
        told = damage(profile_of("broken", step_s=9.0))
        seen = looks
        while looks < seen + 3:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (running.done(), fleet.is_ready, fleet.card.name) == (False, True, "newer")
    running.cancel()


async def test_a_real_fleet_tells_what_it_takes_to_estimate_for_it() -> None:
    """The same to the tenth of a second as the engine itself says."""
    fleet = LocalFleet(Opening())
    await fleet.start()
    try:
        card, outlook, _ = from_profile(json.loads(json.dumps(await fleet.profile())))
        assert card == fleet.card
        assert outlook.estimate(REQUEST, now_s=0.0).finish_s == pytest.approx(fleet.estimate(REQUEST).finish_s)
    finally:
        await fleet.close()


def test_a_process_without_devices_loads_no_torch() -> None:
    """It runs on the smallest machine that there is."""
    program = (
        "import sys, rekontext.assembly, rekontext.fleet.profile, rekontext.cli.serve\n"
        "assert not {'torch', 'numpy', 'diffusers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
