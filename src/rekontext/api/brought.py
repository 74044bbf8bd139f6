"""LoRAs that accounts bring: fetched or sent, checked, stored, and known from then on by a name that edits use."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple
from urllib.parse import quote, unquote, urlsplit
from weakref import WeakValueDictionary

import orjson

from rekontext.api.loras import Loras
from rekontext.contract import LoRARefused
from rekontext.database import AccountId, Database, DatabaseUnavailable
from rekontext.jobs import Lora, LorasFull, Objects, clear_away, lora_key, loras
from rekontext.models import BROUGHT_LORA, is_lora_on_hub
from rekontext.models.lora_files import NoLora, check_lora
from rekontext.moments import moment
from rekontext.pictures import CodecThreads, Fetcher, PictureRefused, is_url, shown_address
from rekontext.pictures.copies import LocalCopies
from rekontext.sources import Clock

HUB: Final = "https://huggingface.co"
_FRESH_FOR: Final = timedelta(minutes=5)
"""So long its server isn't asked again whether it has another by now."""
_LISTING_BYTES_MAX: Final = 2**20
NAME_CHARACTERS_MAX: Final = 64
_SHOWN_CHARACTERS: Final = 500
_USUAL: Final = "pytorch_lora_weights.safetensors"
"""What diffusers calls the file of any LoRA."""
_NAMELESS: Final = frozenset({"", "pytorch_lora_weights", "adapter_model", "lora", "model", "file", "download"})
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]+", re.ASCII)
_TYPE: Final = "application/octet-stream"


class BringingRefused(ValueError):
    """A LoRA that an order names isn't there, or isn't one. The message is a clause about `loras`."""

    code: Final = LoRARefused.code


class _Origin(NamedTuple):
    """Where a file comes from: as is shown, by what it is known again, and how its server calls this state of it."""

    shown: str
    digest: str = ""
    tag: str = ""


class BroughtLoras:
    """Brings them for orders.

    Args:
        copies: where files lie that were fetched: edits find theirs there.
        fetcher: one of its own, since these files take longer than pictures.
        bytes_max: of one; 0 takes none.
        kept_bytes_max: of all that are kept of an account.
        hub: where owner/name lies.
    """

    def __init__(
        self,
        *,
        database: Database,
        objects: Objects,
        copies: LocalCopies,
        fetcher: Fetcher,
        threads: CodecThreads,
        clock: Clock,
        bytes_max: int,
        kept_bytes_max: int,
        hub: str = HUB,
    ) -> None:
        self._database = database
        self._objects = objects
        self._copies = copies
        self._fetcher = fetcher
        self._threads = threads
        self._clock = clock
        self._bytes_max = bytes_max
        self._kept_bytes_max = kept_bytes_max
        self._hub = hub.rstrip("/")
        self._locks: WeakValueDictionary[tuple[AccountId, str], asyncio.Lock] = WeakValueDictionary()

    async def named(self, asked: Loras, *, account: AccountId) -> Loras:
        """What an order asks for, with a name in place of each address, in the order of the names.

        Raises:
            BringingRefused: one can't be had, or isn't a LoRA.
        """
        found: dict[str, float] = {}
        own = [match[1] for name, _ in asked if (match := BROUGHT_LORA.fullmatch(name))]
        if own:
            now = self._clock.now()
            strange = await self._database.transact(lambda tx: loras.use(tx, own, account=account, now=now))
            if strange:
                raise BringingRefused(f"asks for {_list(asked, strange)}, which this account doesn't have (any more)")
        for given, strength in asked:
            name = (await self._brought(given, account)).reference if "/" in given else given
            if name in found:
                raise BringingRefused(f"has {name} twice")
            found[name] = strength
        return tuple(sorted(found.items()))

    async def take(self, name: str, pieces: AsyncIterator[bytes], *, account: AccountId) -> Lora:
        """Keep a file that is being sent, without having it in memory.

        Args:
            name: what it is to be called, `LORA_NAME`.

        Raises:
            BringingRefused: it is no LoRA, or there is no room for it. The message is a clause about the file.
        """
        if not self._bytes_max:
            raise BringingRefused("can't be taken: this server takes LoRAs by their names only")
        async with self._copies.unfinished() as file:
            with file.open("xb") as target:
                async for piece in pieces:
                    await asyncio.to_thread(target.write, piece)
            try:
                return await self._take_in(file, account, name=name, origin=_Origin(shown="(sent)"))
            except NoLora as fault:
                raise BringingRefused(str(fault)) from fault
            except LorasFull as fault:
                raise BringingRefused(f"can't be kept: {fault}") from fault

    async def _brought(self, given: str, account: AccountId) -> Lora:
        if not self._bytes_max:
            raise BringingRefused(f"has {shown_address(given)}, and this server takes LoRAs by their names only")
        try:
            address = given if is_url(given) else await self._on_hub(given, account)
            digest = hashlib.sha256(address.encode()).hexdigest()
            # Whoever asks for one that is on its way waits for that.
            async with self._locks.setdefault((account, digest), asyncio.Lock()):
                return await self._from(address, digest, account)
        except (PictureRefused, LorasFull) as fault:
            raise BringingRefused(f"can't be used: {fault}") from fault

    async def _from(self, address: str, digest: str, account: AccountId) -> Lora:
        known = await self._database.read(lambda tx: loras.from_source(tx, account, digest))
        if known is not None and not await self._objects.has(known.object_key):
            gone, known = known, None
            await self._database.transact(partial(loras.forget, lora=gone))
        now = self._clock.now()
        if known is not None and known.seen_at > now - _FRESH_FOR:
            await self._database.transact(lambda tx: loras.use(tx, [known.id], account=account, now=now))
            return known
        async with self._copies.unfinished() as file:
            tag = await self._fetcher.fetch_file(
                address, file, bytes_max=self._bytes_max, caller=account, tag="" if known is None else known.tag
            )
            if tag is None:
                assert known is not None, "without a tag there is nothing that it could be the same as"
                await self._database.transact(lambda tx: loras.see(tx, known, now=now))
                return known
            try:
                shown = shown_address(address, most=_SHOWN_CHARACTERS)
                origin = _Origin(shown=shown, digest=digest, tag=tag if len(tag) <= _SHOWN_CHARACTERS else "")
                return await self._take_in(file, account, name=_name_of(address), origin=origin)
            except NoLora as fault:
                raise BringingRefused(f"can't be used: {shown_address(address)} {fault}") from fault

    async def _take_in(self, file: Path, account: AccountId, *, name: str, origin: _Origin) -> Lora:
        """Check a file, store it and write it down. It loses its name.

        Raises:
            NoLora: it isn't one.
            LorasFull: there is no room for it.
        """
        content, size = await self._threads.run(_looked_at, file)
        lora, now = loras.id_of(account, content), self._clock.now()
        new = Lora(
            id=lora,
            account=account,
            object_key=lora_key(lora),
            name=name,
            source=origin.shown,
            source_digest=origin.digest,
            tag=origin.tag,
            bytes=size,
            created_at=now,
            seen_at=now,
            used_at=now,
        )
        await self._objects.put_file(new.object_key, file, content_type=_TYPE)
        try:
            kept, gone = await self._database.transact(lambda tx: loras.keep(tx, new, bytes_max=self._kept_bytes_max))
        except Exception as fault:
            # In doubt it may be written down; the sweeper sees by and by.
            if not (isinstance(fault, DatabaseUnavailable) and fault.is_in_doubt):
                await clear_away(self._objects, new.object_key)
            raise
        await self._copies.adopt(file, new.object_key)
        await clear_away(self._objects, *gone)
        return kept

    async def _on_hub(self, given: str, account: AccountId) -> str:
        """The address of a file that is named as the hub names it."""
        bare = given.removeprefix("huggingface.co/")
        if not is_lora_on_hub(bare):
            raise BringingRefused(
                f"has {shown_address(given)}: it must be the http(s) URL of a .safetensors file, "
                "owner/name or owner/name/FILE.safetensors of one on the hub, or a name"
            )
        owner, name, *rest = bare.split("/", 2)
        repository = f"{self._hub}/{owner}/{name}"
        file = rest[0] if rest else await self._file_of(f"{owner}/{name}", account)
        return f"{repository}/resolve/main/{quote(file)}"

    async def _file_of(self, repository: str, account: AccountId) -> str:
        listing = await self._fetcher.fetch(
            f"{self._hub}/api/models/{repository}", bytes_max=_LISTING_BYTES_MAX, caller=account
        )
        try:
            told: Any = orjson.loads(listing)
            names = [each["rfilename"] for each in told["siblings"]]
        except (orjson.JSONDecodeError, KeyError, TypeError) as fault:
            raise BringingRefused(f"can't be used: the hub doesn't tell which files {repository} has") from fault
        files = [name for name in names if "/" not in name and name.endswith(".safetensors")]
        if _USUAL in files:
            return _USUAL
        if len(files) != 1:
            shown = ", ".join(sorted(files)[:5]) or "none"
            raise BringingRefused(
                f"can't be used: {repository} has {len(files)} .safetensors files ({shown}); name the one, as "
                f"{repository}/FILE.safetensors"
            )
        return str(files[0])


def lora_json(lora: Lora) -> dict[str, object]:
    """What its owner is told of it."""
    return {
        "id": lora.id,
        "name": lora.reference,
        "source": lora.source,
        "bytes": lora.bytes,
        "created_at": moment(lora.created_at),
        "used_at": moment(lora.used_at),
    }


def _list(asked: Loras, ids: Sequence[str]) -> str:
    return " and ".join(name for name, _ in asked if name.rpartition("@")[2] in ids)


def _looked_at(file: Path) -> tuple[str, int]:
    """The digest of a file's bytes, and how many they are.

    Raises:
        NoLora: it isn't one.
    """
    check_lora(file)
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest(), file.stat().st_size


def _name_of(address: str) -> str:
    """What a file is called by its address, in letters that names may have."""
    parts = [unquote(part) for part in PurePosixPath(urlsplit(address).path).parts if part != "/"]
    stem = parts[-1].removesuffix(".safetensors") if parts else ""
    if stem.lower() in _NAMELESS and "resolve" in parts:  # the hub's: the repository has a name
        stem = parts[max(parts.index("resolve") - 1, 0)]
    name = _NOT_IN_NAMES.sub("-", stem).strip("-._")[:NAME_CHARACTERS_MAX]
    return name or "lora"
