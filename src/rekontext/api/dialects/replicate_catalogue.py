"""What Replicate's clients ask for beside predictions: the model with its versions, files, the account, its secret."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rekontext.accounts import Account, registry
from rekontext.api import answers, uploads
from rekontext.api.auth import Caller
from rekontext.api.bodies import UnsupportedContentType, Upload
from rekontext.api.dialects.replicate_order import (
    DEFAULTS,
    INPUT,
    LORA,
    LORA_STRENGTH,
    MASK,
    MODEL,
    OWNER,
    check_model,
    refused,
)
from rekontext.api.edits import NotReady, UnknownModel
from rekontext.api.links import FileGone
from rekontext.api.parameters import nameless_file, schema
from rekontext.api.parts import Parts
from rekontext.contract import LORA_STRENGTH_MAX, ModelCard
from rekontext.jobs import Asset, assets
from rekontext.models import SLUG
from rekontext.moments import moment
from rekontext.pictures import ObjectMissing

ONE_MODEL: Final = "/v1/models/{owner}/{name}"
_FILE: Final = "/v1/files/{id}"
_CONTENT: Final = "content"
_PUBLISHED: Final = "2025-06-26T00:00:00.000Z"
"""FLUX.1 Kontext [dev]. Clients need some moment, and a version is the same on every server."""
_LORA: Final[Mapping[str, Mapping[str, object]]] = {
    LORA: {
        "type": "string",
        "title": "Lora Weights",
        "description": "The name of a LoRA on offer, merged into the model for this edit.",
    },
    LORA_STRENGTH: {
        "type": "number",
        "title": "Lora Strength",
        "description": "How strongly that LoRA is merged.",
        "minimum": -LORA_STRENGTH_MAX,
        "maximum": LORA_STRENGTH_MAX,
        "default": 1,
    },
}
_SCHEMA_FORMAT: Final = "0.3.9"
"""The first version of the vendor's packager whose schemas clients read as they stand."""


class Catalogue:
    """The handlers, sharing their parts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """To be put into the dialect's own."""
        return [
            Route(ONE_MODEL, self.replicate_get_model),
            Route(f"{ONE_MODEL}/versions", self.replicate_list_versions),
            Route(f"{ONE_MODEL}/versions/{{id}}", self.replicate_get_version),
            Route("/v1/files", self.replicate_create_file, methods=["POST"]),
            Route("/v1/files", self.replicate_list_files),
            Route(_FILE, self.replicate_get_file),
            Route(_FILE, self.replicate_delete_file, methods=["DELETE"]),
            Route("/v1/webhooks/default/secret", self.replicate_get_secret),
            Route("/v1/account", self.replicate_get_account),
        ]

    async def replicate_get_model(self, request: Request) -> Response:
        """The one that there is."""
        await self._parts.caller(request, "read")
        check_model(named(request))
        return answers.json_answer(model_json(self._parts.documents.card()))

    async def replicate_list_versions(self, request: Request) -> Response:
        """The served one; none while it loads."""
        await self._parts.caller(request, "read")
        check_model(named(request))
        card = self._parts.documents.card()
        return answers.json_answer(page([] if card is None else [_version(card)]))

    async def replicate_get_version(self, request: Request) -> Response:
        """The served one, if that is what is asked for."""
        await self._parts.caller(request, "read")
        check_model(named(request))
        card = served(self._parts)
        wanted = request.path_params["id"]
        if wanted != version_id(card.title):
            raise UnknownModel(f"{MODEL}:{wanted}", known=[f"{MODEL}:{version_id(card.title)}"])
        return answers.json_answer(_version(card))

    async def replicate_create_file(self, request: Request) -> Response:
        """Keep a picture, so that edits can name it by its URL."""
        parts = self._parts
        caller = await parts.caller(request, "edit")
        await parts.edits.allow(caller)
        body = await parts.orders.body(request)
        if isinstance(body, dict):
            raise UnsupportedContentType("application/json", allowed="multipart/form-data")
        found = [value for name, value in body if name == _CONTENT]
        files = [value if isinstance(value, Upload) else nameless_file(value) for value in found]
        if len(files) != 1 or files[0] is None:
            reason = "is no file" if len(files) == 1 else f"is there {len(files)} times"
            allowed = "one file, a jpeg, png, gif or webp picture"
            raise refused(_CONTENT, None, reason, allowed=allowed)
        photo, name = await uploads.read(_CONTENT, files[0], parts)
        [asset] = await uploads.keep([(photo, name)], caller, parts)
        checksums = await parts.threads.run(_checksums, photo.data)
        return answers.json_answer(self._file(request, asset, checksums), status=201)

    async def replicate_list_files(self, request: Request) -> Response:
        """The account's newest, without what takes reading each of them."""
        caller = await self._parts.caller(request, "read")
        found = await self._parts.database.read(lambda tx: assets.of_account(tx, caller.account, limit=assets.PAGE_MAX))
        return answers.json_answer(page([self._file(request, asset, {}) for asset in found]))

    async def replicate_get_file(self, request: Request) -> Response:
        """One of them."""
        parts = self._parts
        caller = await parts.caller(request, "read")
        wanted = request.path_params["id"]
        asset = await parts.database.read(lambda tx: assets.get(tx, wanted, account=caller.account))
        try:
            data = await parts.objects.get(asset.object_key)
        except ObjectMissing as fault:
            raise FileGone from fault
        return answers.json_answer(self._file(request, asset, await parts.threads.run(_checksums, data)))

    async def replicate_delete_file(self, request: Request) -> Response:
        """Its link opens nothing any more; edits that were accepted with it go on."""
        caller = await self._parts.caller(request, "edit")
        await uploads.delete(request.path_params["id"], caller, self._parts)
        return Response(status_code=204)

    async def replicate_get_secret(self, request: Request) -> Response:
        """What messages to a prediction's own webhook are signed with."""
        account = await self._account(await self._parts.caller(request, "edit"))
        return answers.json_answer({"key": account.webhook_secret})

    async def replicate_get_account(self, request: Request) -> Response:
        """Whose key it is."""
        account = await self._account(await self._parts.caller(request, "read"))
        return answers.json_answer(
            {"type": "organization", "username": account.id, "name": account.name, "github_url": None}
        )

    async def _account(self, caller: Caller) -> Account:
        return await self._parts.database.read(lambda tx: registry.get(tx, caller.account))

    def _file(self, request: Request, asset: Asset, checksums: Mapping[str, str]) -> dict[str, object]:
        links = self._parts.links
        return {
            "id": asset.id,
            "name": asset.file_name,
            "content_type": asset.content_type,
            "size": asset.bytes,
            "etag": asset.id,  # whose bytes never change
            "checksums": checksums,
            "metadata": {},
            "created_at": moment(asset.created_at),
            "expires_at": moment(asset.created_at + timedelta(seconds=links.uploads_s)),
            "urls": {"get": links.to_upload(self._parts.origins.of(request), asset)},
        }


def models(parts: Parts) -> dict[str, object]:
    """What `GET /v1/models`, which is another vendor's path too, has for this one's clients."""
    return page([model_json(parts.documents.card())])


def named(request: Request) -> str:
    """The model in a path: owner/name."""
    return f"{request.path_params['owner']}/{request.path_params['name']}"


def version_id(title: str) -> str:
    """The version that a model of this title is."""
    return hashlib.sha256(title.encode()).hexdigest()


def model_json(card: ModelCard | None) -> dict[str, object]:
    """The model, as it is served."""
    return {
        "url": f"https://replicate.com/{MODEL}",
        "owner": OWNER,
        "name": SLUG,
        "description": "Edits a picture as an instruction says, and leaves the rest as it is.",
        "visibility": "public",
        "github_url": None,
        "paper_url": None,
        "license_url": None,
        "cover_image_url": None,
        "run_count": 0,
        "default_example": None,
        "latest_version": None if card is None else _version(card),
    }


def page(results: Sequence[Mapping[str, object]], *, following: str | None = None) -> dict[str, object]:
    """One page of a list. The way back isn't told."""
    return {"results": results, "next": following, "previous": None}


def served(parts: Parts) -> ModelCard:
    """The model that versions are told of.

    Raises:
        NotReady: it is loading.
    """
    card = parts.documents.card()
    if card is None:
        raise NotReady
    return card


def _version(card: ModelCard) -> dict[str, object]:
    ours = schema(as_form=False)["properties"]
    ours = ours | {MASK: ours["mask_image"]} | _LORA
    properties = {
        name: ours[name] | ({"default": DEFAULTS[name]} if name in DEFAULTS else {}) | {"x-order": place}
        for place, name in enumerate((*INPUT, MASK, *_LORA))
    }
    required = ["prompt", "input_image"]
    schemas = {
        "Input": {"title": "Input", "type": "object", "required": required, "properties": properties},
        "Output": {"title": "Output", "type": "string", "format": "uri"},
    }
    return {
        "id": version_id(card.title),
        "created_at": _PUBLISHED,
        "cog_version": _SCHEMA_FORMAT,
        "openapi_schema": {
            "openapi": "3.0.2",
            "info": {"title": card.title, "version": "1"},
            "paths": {},
            "components": {"schemas": schemas},
        },
    }


def _checksums(data: bytes) -> dict[str, str]:
    """Takes milliseconds for a large file: not for the event loop."""
    md5 = hashlib.md5(data, usedforsecurity=False)
    return {"sha256": hashlib.sha256(data).hexdigest(), "md5": md5.hexdigest()}
