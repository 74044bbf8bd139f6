"""Routes that know their caller before they read a body, and read it as every other surface does.

Each handler says by one parameter who may call it: `caller: Reader`, say. What else is wrong with a request is told to
those only. FastAPI reads and parses a whole body before it calls anything of ours, and has words of its own for what is
wrong with it. Knows nothing of what is in the body.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import Depends
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from rekontext.accounts import Scope
from rekontext.api.auth import Caller, known_caller
from rekontext.api.bodies import check_json
from rekontext.api.parts import Parts

BODY_BYTES_MAX: Final = 2**16
"""Of one JSON body, which is parsed on the event loop. None of these routes takes a picture."""


class _With:
    """A handler's caller, whom its route has let in: with this scope, or None for any good key."""

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    async def __call__(self, request: Request) -> Caller:
        return known_caller(request)


Anybody = Annotated[Caller, Depends(_With(None))]
Reader = Annotated[Caller, Depends(_With("read"))]
Editor = Annotated[Caller, Depends(_With("edit"))]
Operator = Annotated[Caller, Depends(_With("admin"))]


def keyed_route(parts: Parts) -> type[APIRoute]:
    """The class of such routes, for a router's `route_class`."""

    class KeyedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            has_body = self.body_field is not None
            needs = [each.call for each in self.dependant.dependencies if isinstance(each.call, _With)]
            assert len(needs) == 1, f"{self.path} says {len(needs)} times who may call it"
            scope = needs[0].scope

            async def handle_keyed(request: Request) -> Response:
                await parts.caller(request, scope)
                if has_body:
                    await check_json(request, bytes_max=BODY_BYTES_MAX)
                return await handle(request)

            return handle_keyed

    return KeyedRoute
