"""Is the process alive, and would an edit run? For load balancers and people; no key needed."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel

from rekontext.api.documents import shown_name
from rekontext.api.edits import NotReady
from rekontext.contract import Fleet


class Alive(BaseModel):
    status: str = "ok"


class Ready(BaseModel):
    status: str = "ready"
    model: str
    device: str
    dtype: str
    parameters: int


def router(fleet: Fleet) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", summary="The process is alive")
    async def healthz() -> Alive:
        return Alive()

    @routes.get("/readyz", summary="The model is loaded", responses={503: {"description": "Still loading"}})
    async def readyz() -> Ready:
        if not fleet.is_ready:
            raise NotReady
        card = fleet.card
        return Ready(model=shown_name(card), device=card.device, dtype=card.dtype, parameters=card.parameters)

    return routes
