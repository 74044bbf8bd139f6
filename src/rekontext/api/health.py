"""Is the process alive, and would an edit run? For load balancers and people; no key needed."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import APIRouter
from pydantic import BaseModel
from sqlalchemy import select

from rekontext.api.disk import DiskCheck
from rekontext.api.edits import Missing, NotReady
from rekontext.contract import Fleet
from rekontext.database import Database, DatabaseUnavailable
from rekontext.database.tables import accounts

LOOK_S_MAX: Final = 2.0
_LOOK: Final = select(accounts.c.id).limit(1)  # SQLite doesn't open its file for a mere `SELECT 1`


class Alive(BaseModel):
    status: str = "ok"


class Ready(BaseModel):
    status: str = "ready"
    model: str
    device: str
    dtype: str
    parameters: int


def router(fleet: Fleet, database: Database, disk: DiskCheck) -> APIRouter:
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", summary="The process is alive")
    async def healthz() -> Alive:
        return Alive()

    @routes.get(
        "/readyz",
        summary="The model is loaded, the database answers, and there is room to write",
        responses={503: {"description": "`not_ready` lists what is missing: model, database, disk"}},
    )
    async def readyz() -> Ready:
        has_database, has_room = await asyncio.gather(_answers(database), disk.has_room())
        missing: list[Missing] = [] if fleet.is_ready else ["model"]
        if not has_database:
            missing.append("database")
        if not has_room:
            missing.append("disk")
        if missing:
            raise NotReady(missing)
        card = fleet.card
        return Ready(model=card.title, device=card.device, dtype=card.dtype, parameters=card.parameters)

    return routes


async def _answers(database: Database) -> bool:
    """Whether the database reads one row, soon."""
    try:
        async with asyncio.timeout(LOOK_S_MAX):
            await database.read(lambda tx: tx.execute(_LOOK).first())
    except (DatabaseUnavailable, TimeoutError):
        return False
    return True
