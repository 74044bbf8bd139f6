"""The composition root: settings in, the whole service out. The only place that knows every part."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from fastapi import FastAPI

from rekontext import __version__
from rekontext.api import DirectEdits, KeyFile, SingleKey, create_app, open_key_file
from rekontext.contract import Fleet, ModelCard
from rekontext.pictures import AllowList, CodecThreads, Fetcher, PhotoReader, PictureLimits
from rekontext.settings import Settings
from rekontext.sources import random_id

RANDOM_SEED_MAX: Final = 2**32 - 1
"""Random seeds stay below it: JavaScript can't hold larger ones exactly."""

AGENT: Final = f"rekontext/{__version__}"


@dataclass(frozen=True, kw_only=True)
class Service:
    """The assembled service. The app's lifespan opens and closes everything else."""

    app: FastAPI
    key_file: KeyFile


def draw_seed() -> int:
    return secrets.randbelow(RANDOM_SEED_MAX + 1)


def assemble(
    settings: Settings,
    *,
    fleet: Fleet,
    on_ready: Callable[[ModelCard], None],
    on_broken: Callable[[Exception], None],
) -> Service:
    """Put the service together. Makes the data folder and the key if they are not there.

    Args:
        on_ready, on_broken: one of them is called once, on the event loop, when the model is loaded or can't be;
            a service that is broken should stop.

    Raises:
        KeyFileError: the data folder or the key can't be used.
    """
    key_file = open_key_file(settings.data_dir)
    threads = CodecThreads(settings.codec_threads)
    fetcher = Fetcher(
        timeout_s=settings.fetch_timeout_s,
        redirects_max=settings.fetch_redirects_max,
        agent=AGENT,
        allow=AllowList(settings.fetch_allow),
    )
    limits = PictureLimits(bytes_max=settings.picture_bytes_max, pixels_max=settings.picture_pixels_max)
    edits = DirectEdits(
        fleet=fleet,
        threads=threads,
        queue_max=settings.queue_max,
        running_max=settings.running_max,
        deadline_s=settings.deadline_s,
        now=time.monotonic,
    )

    async def load() -> None:
        """While the server already answers /healthz; edits that came early go on afterwards."""
        try:
            await fleet.start()
        except Exception as fault:
            on_broken(fault)
        else:
            edits.open()
            on_ready(fleet.card)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with fetcher:
            loading = asyncio.create_task(load())
            try:
                yield
            finally:
                loading.cancel()
                with suppress(asyncio.CancelledError):
                    await loading
                await fleet.close()

    app = create_app(
        edits=edits,
        keys=SingleKey(key_file.key),
        fleet=fleet,
        photos=PhotoReader(limits=limits, fetcher=fetcher, threads=threads),
        threads=threads,
        body_bytes_max=settings.body_bytes_max,
        draw_seed=draw_seed,
        new_id=random_id,
        lifespan=lifespan,
    )
    return Service(app=app, key_file=key_file)
