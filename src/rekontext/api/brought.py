"""LoRAs that accounts bring: fetched or sent, checked, stored, and known from then on by a name that edits use."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urlsplit
from weakref import WeakValueDictionary

from sqlalchemy import Connection

from rekontext.api.hub import Hub, NotOnHub
from rekontext.api.loras import Loras
from rekontext.contract import LoRARefused
from rekontext.database import AccountId, Database
from rekontext.jobs import Lora, LorasFull, Objects, clear_away, lora_key, loras
from rekontext.jobs.loras import Source
from rekontext.models import BROUGHT_LORA
from rekontext.models.lora_files import NoLora, check_lora
from rekontext.moments import moment
from rekontext.pictures import CodecThreads, Fetcher, PictureRefused, PictureTooLarge, is_url, shown_address
from rekontext.pictures.copies import LocalCopies, Unfinished
from rekontext.sources import Clock

_FRESH_FOR: Final = timedelta(minutes=5)
"""So long its server isn't asked again whether it has another by now."""
NAME_CHARACTERS_MAX: Final = 64
_SHOWN_CHARACTERS: Final = 500
_TAG_CHARACTERS_MAX: Final = 500
BRINGING_MAX: Final = 8
"""Requests of one account that may wait for files which are on their way."""
_PLACES: Final = 16
"""Files that may be on their way at a time, of all accounts; more wait, within their time."""
_PLACES_OF_ACCOUNT: Final = 2
_NAMELESS: Final = frozenset({"", "pytorch_lora_weights", "adapter_model", "lora", "model", "file", "download"})
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]+", re.ASCII)
_TYPE: Final = "application/octet-stream"


class BringingRefused(ValueError):
    """A LoRA that an order names isn't there, or isn't one. The message is a clause about `loras`."""

    code: Final = LoRARefused.code


class TooManyLoras(RuntimeError):
    """The account brings as many at this moment as it may."""

    code: Final = "too_many_loras"

    def __init__(self) -> None:
        super().__init__(
            f"this account has {BRINGING_MAX} requests that wait for LoRAs which are on their way, or had to wait too "
            "long to bring one; send this one when they are through"
        )


class _OnItsWay(NamedTuple):
    """One that is being brought, and how many wait for it."""

    work: asyncio.Task[Lora]
    waiting: set[object]


class BroughtLoras:
    """Brings them for orders. For one event loop.

    Args:
        copies: where files lie that were fetched: edits find theirs there.
        fetcher: one of its own, since these files take longer than pictures.
        threads: of its own, too: looking into a file holds up no photo.
        bytes_max: of one; 0 takes none.
        kept_bytes_max: of all that are kept of an account.
        timeout_s: for bringing all of an order.
        adopts: whether files are left in `copies`, for edits that run here.
        hub: where what is named owner/name lies.
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
        timeout_s: float,
        adopts: bool,
        hub: Hub,
    ) -> None:
        self._database = database
        self._objects = objects
        self._copies = copies
        self._fetcher = fetcher
        self._threads = threads
        self._clock = clock
        self._bytes_max = bytes_max
        self._kept_bytes_max = kept_bytes_max
        self._timeout_s = timeout_s
        self._adopts = adopts
        self._hub = hub
        self._bringing: Counter[AccountId] = Counter()
        self._on_their_way: dict[tuple[AccountId, str], _OnItsWay] = {}
        self._places: WeakValueDictionary[AccountId, asyncio.Semaphore] = WeakValueDictionary()
        self._all_places = asyncio.Semaphore(_PLACES)

    async def named(self, asked: Loras, *, account: AccountId) -> Loras:
        """What an order asks for, with a name in place of each address, in the order of the names.

        Raises:
            BringingRefused: one can't be had, or isn't a LoRA.
            TooManyLoras: the account brings too many already.
            StoreUnavailable: there is no room for it here, or in the store.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._named(asked, account)
        except TimeoutError as fault:
            late = " and ".join(shown_address(name) if "/" in name else name for name, _ in asked)
            raise BringingRefused(
                f"can't be used: {late} did not come within {self._timeout_s:g} s "
                f"(of one account {_PLACES_OF_ACCOUNT} are fetched at a time)"
            ) from fault

    async def take(self, name: str, pieces: AsyncIterator[bytes], *, account: AccountId) -> Lora:
        """Keep a file that is being sent, without having it in memory.

        Args:
            name: what it is to be called, `LORA_NAME`.

        Raises:
            BringingRefused: it is no LoRA, or there is no room for it. The message is a clause about the file.
            TooManyLoras, StoreUnavailable: as `named`.
        """
        if not self._bytes_max:
            raise BringingRefused("can't be taken: this server takes LoRAs by their names only")
        async with AsyncExitStack() as stack:
            stack.enter_context(self._counted(account))
            try:
                async with asyncio.timeout(self._timeout_s):
                    await stack.enter_async_context(self._place(account))
            except TimeoutError as fault:
                raise TooManyLoras from fault
            file = await stack.enter_async_context(self._copies.unfinished())
            async for piece in pieces:
                await file.write(piece)
            try:
                return await self._take_in(file, account, name=name, shown="(sent)", source=None)
            except NoLora as fault:
                raise BringingRefused(str(fault)) from fault
            except LorasFull as fault:
                raise BringingRefused(f"can't be kept: {fault}") from fault

    async def remove(self, lora_id: str, *, account: AccountId) -> None:
        """Remove one of the account's, its bytes and its copy here.

        Raises:
            LoraUnknown: it has no such.
            StoreUnavailable: it is still there to be removed.
        """
        lora = await self._database.read(lambda tx: loras.get(tx, lora_id, account=account))
        await self._objects.delete(lora.object_key)
        await self._forget(lora)

    async def _named(self, asked: Loras, account: AccountId) -> Loras:
        own = {name: match[1] for name, _ in asked if (match := BROUGHT_LORA.fullmatch(name))}
        known: dict[str, Lora] = {}
        if own:
            ids, now = set(own.values()), self._clock.now()
            used = await self._database.transact(lambda tx: loras.use(tx, ids, account=account, now=now))
            known = {lora.id: lora for lora in used if await self._is_there(lora)}
            if strange := [name for name in own if own[name] not in known]:
                told = " and ".join(strange)
                raise BringingRefused(f"asks for {told}, which this account doesn't have (any more)")
        found: dict[str, float] = {}
        for given, strength in asked:
            if "/" in given:
                name = (await self._brought(given, account)).reference
            else:  # whatever it is called before its @
                name = known[own[given]].reference if given in own else given
            if name in found:
                raise BringingRefused(f"has {name} twice")
            found[name] = strength
        return tuple(sorted(found.items()))

    async def _brought(self, given: str, account: AccountId) -> Lora:
        if not self._bytes_max:
            raise BringingRefused(f"has {shown_address(given)}, and this server takes LoRAs by their names only")
        try:
            place = given if is_url(given) else self._hub.place(given)
            digest = hashlib.sha256(place.encode()).hexdigest()
            if (lora := await self._seen_just_now(digest, account)) is not None:
                return lora
            with self._counted(account):
                return await self._with_others((account, digest), partial(self._fetched, place, digest, account))
        except (PictureRefused, LorasFull, NotOnHub) as fault:
            raise BringingRefused(f"can't be used: {fault}") from fault

    async def _with_others(self, what: tuple[AccountId, str], work: Callable[[], Coroutine[Any, Any, Lora]]) -> Lora:
        """What `work` brings or raises; whoever asks for one that is on its way waits for that. None waits: it ends."""
        way = self._on_their_way.get(what)
        if way is None:
            way = self._on_their_way[what] = _OnItsWay(asyncio.create_task(work()), set())
        me = object()
        way.waiting.add(me)
        try:
            return await asyncio.shield(way.work)
        finally:
            way.waiting.discard(me)
            if not way.waiting:
                del self._on_their_way[what]
                way.work.cancel()
                await asyncio.wait([way.work])
                if not way.work.cancelled():
                    way.work.exception()  # else it is logged that nobody heard of it

    @contextmanager
    def _counted(self, account: AccountId) -> Iterator[None]:
        if self._bringing[account] >= BRINGING_MAX:
            raise TooManyLoras
        self._bringing[account] += 1
        try:
            yield
        finally:
            self._bringing[account] -= 1
            if not self._bringing[account]:
                del self._bringing[account]

    @asynccontextmanager
    async def _place(self, account: AccountId) -> AsyncIterator[None]:
        """For one file on its way: what is here of it is nobody's yet."""
        own = self._places.setdefault(account, asyncio.Semaphore(_PLACES_OF_ACCOUNT))
        async with own, self._all_places:
            yield

    async def _seen_just_now(self, digest: str, account: AccountId) -> Lora | None:
        found = await self._known(digest, account)
        now = self._clock.now()
        if found is None or found[1].seen_at <= now - _FRESH_FOR:
            return None
        used = await self._database.transact(lambda tx: loras.use(tx, [found[0].id], account=account, now=now))
        return used[0] if used else None

    async def _known(self, digest: str, account: AccountId) -> tuple[Lora, Source] | None:
        """What the account has from an address, if it is still there."""
        found = await self._database.read(lambda tx: loras.from_source(tx, account, digest))
        return None if found is None or not await self._is_there(found[0]) else found

    async def _is_there(self, lora: Lora) -> bool:
        """Whether its bytes are; if something took them, it is crossed out."""
        if await self._objects.has(lora.object_key):
            return True
        await self._forget(lora)
        return False

    async def _forget(self, lora: Lora) -> None:
        await self._copies.forget(lora.object_key)
        await self._database.transact(lambda tx: loras.forget(tx, lora))

    async def _fetched(self, place: str, digest: str, account: AccountId) -> Lora:
        async with self._place(account):
            address = await self._hub.address(place, caller=account)
            known = await self._known(digest, account)
            lora = await self._fetch(address, digest, account, known)
            if lora is None:  # it was deleted while its server said that it is the same
                lora = await self._fetch(address, digest, account, None)
                assert lora is not None, "what isn't known can't be the same"
            return lora

    async def _fetch(
        self, address: str, digest: str, account: AccountId, known: tuple[Lora, Source] | None
    ) -> Lora | None:
        """What lies at an address, or what is known of it where that is the same; None if that is gone by then."""
        now = self._clock.now()
        in_use = await self._database.read(lambda tx: loras.in_use_bytes(tx, account, now=now))
        room = max(self._kept_bytes_max - in_use, 0)
        async with self._copies.unfinished() as file:
            try:
                tag = await self._fetcher.fetch_pieces(
                    address,
                    file.write,
                    bytes_max=min(self._bytes_max, room),
                    caller=account,
                    tag="" if known is None else known[1].tag,
                )
            except PictureTooLarge as fault:
                if room < self._bytes_max:
                    raise LorasFull(in_use=in_use, most=self._kept_bytes_max) from fault
                raise
            now = self._clock.now()
            if tag is None:
                assert known is not None, "without a tag there is nothing that it could be the same as"
                is_here = await self._database.transact(lambda tx: loras.see(tx, *known, now=now))
                return known[0] if is_here else None
            is_plain = tag.isascii() and tag.isprintable() and len(tag) <= _TAG_CHARACTERS_MAX
            source = Source(digest=digest, tag=tag if is_plain else "", seen_at=now)
            shown = shown_address(address, most=_SHOWN_CHARACTERS)
            try:
                return await self._take_in(file, account, name=_name_of(address), shown=shown, source=source)
            except NoLora as fault:
                raise BringingRefused(f"can't be used: {shown_address(address)} {fault}") from fault

    async def _take_in(
        self, file: Unfinished, account: AccountId, *, name: str, shown: str, source: Source | None
    ) -> Lora:
        """Check a file, store it and write it down. It loses its name.

        Raises:
            NoLora: it isn't one.
            LorasFull: there is no room for it.
        """
        await self._threads.run(check_lora, file.path)
        lora, now, most = loras.id_of(account, file.digest), self._clock.now(), self._kept_bytes_max
        new = Lora(
            id=lora,
            account=account,
            object_key=lora_key(lora),
            name=name,
            source=shown,
            bytes=file.size,
            created_at=now,
            used_at=now,
        )

        def look(tx: Connection) -> bool:
            is_known = loras.has(tx, lora, account=account)
            if not is_known:
                loras.making_room(tx, new, bytes_max=most)
            return is_known

        is_known = await self._database.read(look)
        if not (is_known and await self._objects.has(new.object_key)):
            await self._objects.put_file(new.object_key, file.path, content_type=_TYPE)
        try:
            kept, gone = await self._database.transact(lambda tx: loras.keep(tx, new, source, bytes_max=most))
        except LorasFull:  # by others at the same moment. After any other fault the sweeper sees what nobody has.
            await clear_away(self._objects, new.object_key)
            raise
        if self._adopts:
            await self._copies.adopt(file, new.object_key)
        for each in gone:
            await clear_away(self._objects, each.object_key)
            await self._copies.forget(each.object_key)
        return kept


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


def _name_of(address: str) -> str:
    """What a file is called by its address, in letters that names may have."""
    parts = [unquote(part) for part in PurePosixPath(urlsplit(address).path).parts if part != "/"]
    stem = parts[-1].removesuffix(".safetensors") if parts else ""
    if stem.lower() in _NAMELESS and "resolve" in parts:  # the hub's: the repository has a name
        stem = parts[max(parts.index("resolve") - 1, 0)]
    name = _NOT_IN_NAMES.sub("-", stem).strip("-._")[:NAME_CHARACTERS_MAX]
    return name or "lora"
