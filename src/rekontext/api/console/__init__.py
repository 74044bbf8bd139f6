"""What console and playground ask for, as JSON under `/console/api`: one file per subject. Knows no page, no cookie."""

from __future__ import annotations

from fastapi import APIRouter, Security

from rekontext.api import openapi
from rekontext.api.console import account, admin, keys, playground, requests, webhooks
from rekontext.api.keyed import keyed_route
from rekontext.api.parts import Parts
from rekontext.api.segmind import KEY

PREFIX = "/console/api"


def router(parts: Parts) -> APIRouter:
    """The routes of every subject."""
    routes = APIRouter(
        prefix=PREFIX,
        tags=["console"],
        dependencies=[Security(KEY)],
        responses=openapi.REFUSALS,
        route_class=keyed_route(parts),
    )
    for subject in (account, playground, requests, keys, webhooks, admin):
        subject.add(routes, parts)
    return routes
