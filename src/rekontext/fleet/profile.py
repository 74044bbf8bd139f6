"""What another process needs to know to speak for a fleet that is elsewhere: its model and what its edits cost.

As JSON values, since it goes through the database. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from rekontext.contract import ModelCard
from rekontext.engine.canvas import Canvas
from rekontext.engine.costs import CostModel
from rekontext.engine.outlook import Outlook


def to_profile(card: ModelCard, outlook: Outlook, offers: Sequence[str]) -> dict[str, Any]:
    """The model, its outlook without the edits in it, and the LoRAs on offer."""
    return {
        "card": asdict(card),
        "offers": list(offers),
        "text_tokens": outlook.text_tokens,
        "costs": outlook.costs.seconds,
        "token_s": outlook.costs.token_s,
    }


class ProfileUnknown(ValueError):
    """What was told isn't a profile as this version knows them."""


def from_profile(profile: Mapping[str, Any]) -> tuple[ModelCard, Outlook, tuple[str, ...]]:
    """What `to_profile` was given. What a newer version tells besides is passed over.

    Raises:
        ProfileUnknown: something is missing, or isn't what it should be.
    """
    try:
        told = {each.name: profile["card"][each.name] for each in fields(ModelCard) if each.name in profile["card"]}
        lists = {name: tuple(told.get(name, ())) for name in ("knows", "loras")}
        card = ModelCard(**{**told, **lists, "canvas_area": int(told["canvas_area"])})
        seconds = {stage: {int(n): float(s) for n, s in known.items()} for stage, known in profile["costs"].items()}
        costs = CostModel(seconds=seconds, token_s=float(profile["token_s"]))
        outlook = Outlook(canvas=Canvas(area=card.canvas_area), text_tokens=int(profile["text_tokens"]), costs=costs)
        return card, outlook, tuple(profile.get("offers", ()))  # none of an older version
    except (KeyError, TypeError, ValueError, AttributeError) as fault:
        raise ProfileUnknown(f"{type(fault).__name__}: {fault}") from fault
