"""LoRAs that an account has, and a web site that it can bring more from."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest
from sqlalchemy import delete

from rekontext.api.brought import BroughtLoras
from rekontext.database import AccountId
from rekontext.database.tables import loras as table
from rekontext.jobs import Lora, lora_key, loras
from tests.api.brought import LoraSite, lora_file, open_site
from tests.browser.site import WAIT_S, Site

_KEPT_BYTES_MAX = 10**12


def own(site: Site, name: str, source: str, *, size: int = 19_000_000) -> Lora:
    """One that the first account is known to have brought; of its file there is only a little."""
    account = site.studio.account
    lora = loras.id_of(account, source)
    now = datetime.now(UTC)
    new = Lora(
        id=lora,
        account=account,
        object_key=lora_key(lora),
        name=name,
        source=source,
        bytes=size,
        created_at=now,
        used_at=now,
    )
    stored = site.studio.options.data_dir / "store" / new.object_key
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_bytes(lora_file())
    site.studio.act(lambda tx, _: loras.keep(tx, new, None, bytes_max=_KEPT_BYTES_MAX))
    return new


LARGE: Final = 40_000_000
"""More than lies on the way between a browser and a service that doesn't read."""


def large_lora(path: Path) -> Path:
    """A file of `LARGE` bytes, of which the disk holds a little."""
    size = LARGE - 2**16
    factors = {
        f"transformer.x.lora_{at}.weight": {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for at, (begin, end) in {"A": (0, 64), "B": (64, size)}.items()
    }
    header = json.dumps(factors).encode().ljust(2**16 - 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(LARGE)
    return path


@contextmanager
def held_back(site: Site, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside the service reads nothing of a LoRA that is sent to it; then it goes on."""
    may_read = asyncio.Event()
    take = BroughtLoras.take

    async def later(self: BroughtLoras, name: str, pieces: AsyncIterator[bytes], *, account: AccountId) -> Lora:
        await may_read.wait()
        return await take(self, name, pieces, account=account)

    with monkeypatch.context() as patch:
        patch.setattr(BroughtLoras, "take", later)
        yield
    site.loop.call_soon_threadsafe(may_read.set)


def forget_all(site: Site) -> None:
    """Of every account: other tests of the site begin without any."""
    site.studio.act(lambda tx, _: tx.execute(delete(table)))


@contextmanager
def lora_site(site: Site) -> Iterator[LoraSite]:
    """As `tests.api.brought.open_site`, on the service's own loop."""
    opened = open_site()

    def within(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, site.loop).result(WAIT_S)

    async def enter() -> LoraSite:
        return await opened.__aenter__()

    async def leave() -> None:
        await opened.__aexit__(None, None, None)

    found: LoraSite = within(enter())
    try:
        yield found
    finally:
        within(leave())
