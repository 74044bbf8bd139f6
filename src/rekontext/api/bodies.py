"""A request's body -> the parameters in it, still unchecked. JSON and multipart forms; nothing else."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import orjson
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from rekontext.api.connection import CallerGone
from rekontext.api.middleware import BodyTooLarge
from rekontext.pictures import CodecThreads

_FIELDS_MAX: Final = 64
_INLINE_BYTES_MAX: Final = 2**16
_PIECE_BYTES: Final = 4 * 2**20
_JSON_ITEMS_MAX: Final = 2**16
_CHARSET: Final = re.compile(r";\s*charset\s*=\s*(\"[^\"]*\"|[^;]*)", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Upload:
    """A file that came in a form field. `name` is what its sender calls it."""

    data: bytes
    name: str = ""


JsonObject = dict[str, object]
FormFields = Sequence[tuple[str, str | Upload]]


class UnsupportedContentType(ValueError):
    """The body is of a type that is not read here."""

    def __init__(self, content_type: str, *, allowed: str = "application/json or multipart/form-data") -> None:
        given = f'"{content_type[:80]}"' if content_type else "missing"
        super().__init__(f"Content-Type is {given}; send {allowed}")


class CompressedBody(UnsupportedContentType):
    """The body is compressed: how large it is inside can't be seen."""

    def __init__(self, encoding: str) -> None:
        ValueError.__init__(self, f'Content-Encoding is "{encoding[:80]}"; send the body as it is')


class MalformedBody(ValueError):
    """The body is not what its type says."""


async def read_body(request: Request, threads: CodecThreads, *, bytes_max: int) -> JsonObject | FormFields:
    """Read the whole body, once: `request` doesn't keep it.

    Returns:
        A dict when it was JSON, a sequence of fields when it was a form.

    Raises:
        UnsupportedContentType, MalformedBody, BodyTooLarge, CallerGone.
    """
    content_type = _content_type(request)
    try:
        match _media_type(content_type):
            case "application/json":
                # Not `request.body()`, which keeps it as long as its caller waits for the edit.
                body = await _whole(request)
                return _json(body) if len(body) <= _INLINE_BYTES_MAX else await threads.run(_json, body)
            case "multipart/form-data":
                return await _form(request, bytes_max)
    except ClientDisconnect as fault:
        raise CallerGone from fault
    raise UnsupportedContentType(content_type)


async def read_json(request: Request, threads: CodecThreads) -> JsonObject:
    """Read the whole body, once, where nothing but a JSON object will do.

    Raises:
        UnsupportedContentType, MalformedBody, BodyTooLarge, CallerGone.
    """
    content_type = _content_type(request)
    if not is_json(request):
        raise UnsupportedContentType(content_type, allowed="application/json")
    body = await read_body(request, threads, bytes_max=0)
    assert isinstance(body, dict), "JSON was read as a form"
    return body


def is_json(request: Request) -> bool:
    """Whether the body says that it is JSON."""
    return _media_type(request.headers.get("content-type", "")) == "application/json"


async def read_raw(request: Request) -> bytes:
    """Read the whole body as it is, once.

    Raises:
        CompressedBody, BodyTooLarge, CallerGone.
    """
    _content_type(request)
    try:
        return await _whole(request)
    except ClientDisconnect as fault:
        raise CallerGone from fault


async def pieces(request: Request) -> AsyncIterator[bytes]:
    """The body as it is, some megabytes at a time, once.

    Raises:
        CompressedBody, BodyTooLarge, CallerGone.
    """
    _content_type(request)
    waiting = bytearray()
    try:
        async for chunk in request.stream():
            waiting += chunk
            if len(waiting) >= _PIECE_BYTES:
                yield bytes(waiting)
                waiting.clear()
    except ClientDisconnect as fault:
        raise CallerGone from fault
    yield bytes(waiting)


async def _whole(request: Request) -> bytes:
    """The body in one piece of memory, which goes back to the machine with it.

    Many pieces would lie among what stays, and be kept by the allocator; joined, they would be there twice. A fault
    has this frame in its traceback, so it is closed: nothing of the body waits with that for the garbage collector.
    """
    with BytesIO() as body:
        async for chunk in request.stream():
            body.write(chunk)
        return body.getvalue()


async def check_json(request: Request, *, bytes_max: int) -> None:
    """Read the whole body, which must be a JSON object; whoever reads it next finds it in `request`.

    Raises:
        UnsupportedContentType, MalformedBody, BodyTooLarge, CallerGone.
    """
    content_type = _content_type(request)
    if _media_type(content_type) != "application/json":
        raise UnsupportedContentType(content_type, allowed="application/json")
    try:
        body = await request.body()
    except ClientDisconnect as fault:
        raise CallerGone from fault
    if len(body) > bytes_max:
        raise BodyTooLarge(bytes_max)
    _json(body)


def _content_type(request: Request) -> str:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise CompressedBody(encoding)
    return request.headers.get("content-type", "")


def _media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def _json(body: bytes) -> JsonObject:
    # Parsing holds the interpreter's lock, and each empty list in 30 MB of them takes memory. A prompt may be all
    # commas; base64 has neither these nor brackets.
    if sum(map(body.count, (b",", b"[", b"{"))) > _JSON_ITEMS_MAX:
        raise MalformedBody(
            f"the body has more than {_JSON_ITEMS_MAX} commas and opening brackets, the most that is allowed"
        )
    try:
        document = orjson.loads(body.removeprefix(BOM_UTF8))
    except orjson.JSONDecodeError as fault:
        raise MalformedBody(f"the body is not valid JSON: {fault}") from fault
    if not isinstance(document, dict):
        raise MalformedBody("the body must be a JSON object such as {...}")
    return document


async def _form(request: Request, bytes_max: int) -> FormFields:
    # A charset means nothing here (RFC 7578, 5.1.2), and Python has codecs that no text is written in.
    headers = Headers({"content-type": _CHARSET.sub("", request.headers["content-type"])})
    parser = _FormParser(
        headers, request.stream(), max_files=_FIELDS_MAX, max_fields=_FIELDS_MAX, max_part_size=bytes_max
    )
    try:
        form = await parser.parse()
    except MultiPartException as fault:
        raise MalformedBody(f"the form can't be read: {fault.message}") from fault
    try:
        if not parser.is_whole:
            raise MalformedBody("the form can't be read: it is cut off, its closing boundary is missing")
        return [
            (
                name,
                Upload(data=await value.read(), name=value.filename or "") if isinstance(value, UploadFile) else value,
            )
            for name, value in form.multi_items()
        ]
    finally:
        await form.close()


class _FormParser(MultiPartParser):
    """Knows whether a form's end came: one that is cut off has lost its last field."""

    is_whole = False

    def on_end(self) -> None:
        self.is_whole = True
