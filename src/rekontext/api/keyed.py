"""Routes that know their caller before they read a body, and read it as every other surface does.

FastAPI reads and parses a whole body before it calls anything of ours, and has words of its own for what is wrong
with it. Knows nothing of what is in the body.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Final

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from rekontext.api.bodies import check_json
from rekontext.api.parts import Parts

BODY_BYTES_MAX: Final = 2**16
"""Of one JSON body, which is parsed on the event loop. None of these routes takes a picture."""


def keyed_route(parts: Parts) -> type[APIRoute]:
    """The class of such routes, for a router's `route_class`."""

    class KeyedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()
            has_body = self.body_field is not None

            async def handle_keyed(request: Request) -> Response:
                await parts.caller(request, None)
                if has_body:
                    await check_json(request, bytes_max=BODY_BYTES_MAX)
                return await handle(request)

            return handle_keyed

    return KeyedRoute
