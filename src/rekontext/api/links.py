"""Links that open one stored file, or one path, for a while without a key; and the way back from one to its file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

from rekontext.jobs import Asset, Objects
from rekontext.pictures import LinkRefused, LinkSigner, ObjectMissing, PictureUnreachable
from rekontext.sources import Clock

FOLDER: Final = "/files/"


class FileGone(LookupError):
    """A good link to a file that is there no more."""

    def __init__(self) -> None:
        super().__init__("this file is gone: it was deleted, or its time to be kept is over")


@dataclass(frozen=True, kw_only=True)
class Links:
    """Makes links and follows them.

    Attributes:
        outputs_s: how long a link to a result opens, at most.
        uploads_s: how long an upload is kept.
    """

    signer: LinkSigner
    objects: Objects
    clock: Clock
    outputs_s: float
    uploads_s: float

    def to_output(self, origin: str, key: str, *, until: datetime) -> str:
        """The absolute URL of a result's file; it opens until `until`, or for `outputs_s` if that is shorter."""
        longest = self.clock.now() + timedelta(seconds=self.outputs_s)
        return self._signed(origin, key, until=min(until, longest))

    def to_upload(self, origin: str, asset: Asset) -> str:
        """The absolute URL of an upload; it opens for as long as the file is kept."""
        return self._signed(origin, asset.object_key, until=asset.created_at + timedelta(seconds=self.uploads_s))

    def to_coming_upload(self, origin: str, key: str) -> str:
        """The absolute URL of an upload that is yet to be sent; it opens for as long as one sent now is kept."""
        return self._signed(origin, key, until=self.clock.now() + timedelta(seconds=self.uploads_s))

    def to_path(self, origin: str, path: str, *, until: datetime) -> str:
        """The absolute URL of a path of ours with what `check_path` asks for; it opens until `until`."""
        return f"{origin}/{self.signer.sign(path.removeprefix('/'), until=until)}"

    def check_path(self, path: str, query: Mapping[str, str]) -> None:
        """Return if a link to this path with this query was made by `to_path`.

        Raises:
            LinkRefused: forged or expired.
        """
        self._verify(path.removeprefix("/"), query)

    def _verify(self, name: str, query: Mapping[str, str]) -> None:
        expires, signature = query.get("expires", ""), query.get("signature", "")
        self.signer.verify(name, expires=expires, signature=signature, now=self.clock.now())

    def _signed(self, origin: str, key: str, *, until: datetime) -> str:
        return f"{origin}{FOLDER}{self.signer.sign(key, until=until)}"

    async def check(self, key: str, query: Mapping[str, str]) -> None:
        """Return if `open` would, without reading the file.

        Raises:
            LinkRefused, FileGone: as there.
        """
        self._verify(key, query)
        if not await self.objects.has(key):
            raise FileGone

    async def open(self, key: str, query: Mapping[str, str]) -> bytes:
        """The file of this key, for whoever has the query of a link to it.

        Raises:
            LinkRefused: forged or expired.
            FileGone: nothing is there any more.
        """
        self._verify(key, query)
        try:
            return await self.objects.get(key)
        except ObjectMissing as fault:
            raise FileGone from fault

    async def read_own(self, url: str, *, origin: str) -> bytes | None:
        """The file behind a URL of ours, read without a request; None for anybody else's URL.

        A server has many names, so a link that we signed is ours whatever host stands in it.

        Raises:
            PictureUnreachable: it has our origin, but the link opens nothing.
        """
        try:
            parts = urlsplit(url)
        except ValueError:  # whoever fetches it says what is wrong with it
            return None
        if not parts.path.startswith(FOLDER):
            return None
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        try:
            return await self.open(unquote(parts.path.removeprefix(FOLDER)), query)
        except (LinkRefused, FileGone) as fault:
            if isinstance(fault, LinkRefused) and not url.startswith(f"{origin}{FOLDER}"):
                return None
            raise PictureUnreachable(f"the link to a file of this server opens nothing: {fault}") from fault
