"""What another process needs to know to speak for a fleet that is elsewhere: its model and what its edits cost.

As JSON values, since it goes through the database. Loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rekontext.contract import ModelCard
from rekontext.engine.canvas import Canvas
from rekontext.engine.costs import CostModel
from rekontext.engine.outlook import Outlook


def to_profile(card: ModelCard, outlook: Outlook) -> dict[str, Any]:
    """The model, and its outlook without the edits in it."""
    return {
        "card": asdict(card),
        "text_tokens": outlook.text_tokens,
        "costs": outlook.costs.seconds,
        "token_s": outlook.costs.token_s,
    }


def from_profile(profile: Mapping[str, Any]) -> tuple[ModelCard, Outlook]:
    """What `to_profile` was given."""
    card = ModelCard(**{**profile["card"], "knows": tuple(profile["card"]["knows"])})
    seconds = {stage: {int(n): float(s) for n, s in known.items()} for stage, known in profile["costs"].items()}
    costs = CostModel(seconds=seconds, token_s=profile["token_s"])
    return card, Outlook(canvas=Canvas(area=card.canvas_area), text_tokens=profile["text_tokens"], costs=costs)
