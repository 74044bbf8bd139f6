"""Other vendors' dialects of HTTP, so that their clients work here as they are: thin translations into the same order.

A vendor's routes, and how its clients are told what went wrong, are in the file of its name. What each needs, to come
here, is in docs/clients.md.

A field that would change the picture and that can't be heeded is refused by name; other unknown fields are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Protocol

from starlette.routing import BaseRoute

from rekontext.api import errors
from rekontext.api.dialects import terms
from rekontext.api.dialects.bfl import BlackForestLabs
from rekontext.api.dialects.fal import Fal
from rekontext.api.dialects.huggingface import HuggingFace
from rekontext.api.dialects.openai import OpenAI
from rekontext.api.dialects.replicate import Replicate
from rekontext.api.documents import Documents
from rekontext.api.parts import Parts
from rekontext.jobs import Job


class Dialect(errors.Dialect, Protocol):
    """One vendor's."""

    @property
    def name(self) -> str:
        """By which jobs remember that they came in it."""
        ...

    def routes(self, parts: Parts) -> list[BaseRoute]:
        """Its paths."""
        ...

    def message(self, documents: Documents, job: Job) -> Mapping[str, object] | None:
        """What the `webhook_url` of a job that has ended is told; None for what any webhook is."""
        ...


DIALECTS: Final[tuple[Dialect, ...]] = (Replicate(), OpenAI(), Fal(), BlackForestLabs(), HuggingFace())
"""A request is answered in the first that it is spoken in. At `/v1/models` who isn't Replicate's is OpenAI's."""
_BY_NAME: Final = {each.name: each for each in DIALECTS}


def routes(parts: Parts) -> list[BaseRoute]:
    """Every dialect's."""
    return [route for dialect in DIALECTS for route in dialect.routes(parts)]


def message(documents: Documents, job: Job) -> Mapping[str, object] | None:
    """What a job's own `webhook_url` is told in the dialect that it came in; None where that is our own."""
    dialect = _BY_NAME.get(terms.remembered(job).get("name", ""))
    return None if dialect is None else dialect.message(documents, job)
