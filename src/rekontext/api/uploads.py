"""Pictures that accounts leave here to use in edits: checked, stored and written down, and removed again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PureWindowsPath
from typing import Final

from rekontext.api.auth import Caller
from rekontext.api.bodies import Upload
from rekontext.api.parameters import FILES_MAX
from rekontext.api.parts import Parts
from rekontext.api.problems import ParametersRefused, Problem, shown
from rekontext.database import DatabaseUnavailable
from rekontext.jobs import Asset, UploadsFull, asset_key, assets, clear_away
from rekontext.pictures import ObjectExists, ObjectMissing, Photo, PictureRefused

NAME_CHARACTERS_MAX: Final = 255


async def read(where: str, source: str | Upload, parts: Parts) -> tuple[Photo, str]:
    """A checked picture and its name. `where` it stood, to say so if it is wrong."""
    if isinstance(source, str) and not source[:5].lower() == "data:":
        raise ParametersRefused([problem(source, "is no data URI", where=where)])
    try:
        photo = await parts.photos.read(source.data if isinstance(source, Upload) else source)
    except PictureRefused as fault:
        raise ParametersRefused([problem(source, f"can't be used: {fault}", where=where, code=fault.code)]) from fault
    name = _plain(source.name) if isinstance(source, Upload) else ""
    return photo, name or f"upload.{photo.format}"


async def keep(photos: Sequence[tuple[Photo, str]], caller: Caller, parts: Parts) -> list[Asset]:
    """Store pictures and write them down: all or none, since the caller gets one answer."""
    most, kept_s = parts.limits.uploads_bytes_max, parts.links.uploads_s
    kept: list[Asset] = []
    try:
        for photo, name in photos:
            asset = _asset(parts.ids(), photo, name, caller, parts)
            await parts.objects.put(asset.object_key, photo.data, content_type=asset.content_type)
            kept.append(asset)
        await parts.database.transact(lambda tx: assets.add(tx, caller.account, kept, bytes_max=most, kept_s=kept_s))
    except Exception as fault:
        # In doubt they may be written down; the sweeper sees by and by.
        if not (isinstance(fault, DatabaseUnavailable) and fault.is_in_doubt):
            await clear_away(parts.objects, *(asset.object_key for asset in kept))
        raise
    return kept


async def keep_as(upload: str, photo: Photo, name: str, caller: Caller, parts: Parts) -> None:
    """Keep a picture as the upload of this id, which others know already.

    Of all that come for it, at the same moment too, the first is kept. Whoever comes later writes it down if its own
    process didn't get to that.
    """
    key, most, kept_s = asset_key(upload), parts.limits.uploads_bytes_max, parts.links.uploads_s
    is_first = False
    try:
        await parts.objects.put(key, photo.data, content_type=f"image/{photo.format}", is_first=True)
        is_first = True
    except ObjectExists:
        try:
            photo = await parts.photos.read(await parts.objects.get(key))
        except ObjectMissing:  # it was refused meanwhile, and cleared away
            return await keep_as(upload, photo, name, caller, parts)
    asset = _asset(upload, photo, name, caller, parts)
    try:
        await parts.database.transact(lambda tx: assets.add(tx, caller.account, [asset], bytes_max=most, kept_s=kept_s))
    except UploadsFull:
        if is_first:  # after any other failure it may be written down already, by who came at the same moment
            await clear_away(parts.objects, key)
        raise


async def delete(asset: str, caller: Caller, parts: Parts) -> None:
    """Remove one of the caller's.

    Raises:
        AssetUnknown: there is no such.
    """
    file = await parts.database.read(lambda tx: assets.get(tx, asset, account=caller.account))
    await parts.objects.delete(file.object_key)  # first: if this fails, the file is still there to be deleted
    await parts.database.transact(lambda tx: assets.forget(tx, file))


def problem(value: object, reason: str, *, where: str = "data_urls", code: str = "invalid_parameters") -> Problem:
    """What is wrong with what should be a picture, or a list of them."""
    allowed = f"1 to {FILES_MAX} data URIs of jpeg, png, gif or webp pictures, or files in a form"
    return Problem(
        parameter=where, value=shown(value), reason=reason, says_allowed=True, code=code, allowed_text=allowed
    )


def _asset(asset_id: str, photo: Photo, name: str, caller: Caller, parts: Parts) -> Asset:
    return Asset(
        id=asset_id,
        account=caller.account,
        object_key=asset_key(asset_id),
        content_type=f"image/{photo.format}",
        file_name=name,
        bytes=len(photo.data),
        created_at=parts.clock.now(),
    )


def _plain(name: str) -> str:
    """A file's name without its folders, which are the sender's business, and without what no screen can show."""
    return "".join(each for each in PureWindowsPath(name).name if each.isprintable())[-NAME_CHARACTERS_MAX:]
