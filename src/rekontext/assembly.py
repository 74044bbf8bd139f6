"""The composition root: settings in, the whole service out. The only place that knows every part."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
from fastapi import FastAPI
from sqlalchemy import Connection

from rekontext import __version__
from rekontext.accounts import Acts, NewKey, PepperChanged, RequestLimiter, Tariff, keys, parse_usd, peppers, registry
from rekontext.api import create_app
from rekontext.api.auth import DatabaseKeys
from rekontext.api.disk import DiskCheck
from rekontext.api.documents import Documents
from rekontext.api.edits import Edits
from rekontext.api.forecast import Forecast
from rekontext.api.links import Links
from rekontext.api.metrics import Metrics
from rekontext.api.orders import OrderReader
from rekontext.api.origins import Origins
from rekontext.api.parts import Limits, Parts
from rekontext.api.posting import WebhookPost
from rekontext.api.workbench import EditWorkbench
from rekontext.contract import Fleet, ModelCard
from rekontext.database import Database, DatabaseUnavailable
from rekontext.database.address import sqlite_file
from rekontext.fleet import ElsewhereFleet
from rekontext.jobs import (
    ASSETS_FOLDER,
    Bounds,
    Deliverer,
    Desk,
    Dispatcher,
    EventHub,
    JobLife,
    Outbox,
    Patience,
    Retention,
    Sweeper,
    Workbench,
    workers,
)
from rekontext.pictures import (
    AllowList,
    CodecThreads,
    Fetcher,
    LinkSigner,
    PhotoReader,
    PictureLimits,
    open_store,
)
from rekontext.pictures.recent import RecentStore
from rekontext.safety import SafetyCheck
from rekontext.secret import FILE_NAME, SecretError, derive, open_secret
from rekontext.settings import Settings, variable
from rekontext.sources import Clock, Ids, SystemClock, random_bytes, random_id

RANDOM_SEED_MAX: Final = 2**32 - 1
"""Random seeds stay below it: JavaScript can't hold larger ones exactly."""

AGENT: Final = f"rekontext/{__version__}"
_RECENT_BYTES_MAX: Final = 256 * 2**20
_log = structlog.get_logger(__name__)


@dataclass(frozen=True, kw_only=True)
class Service:
    """The assembled service. The app's lifespan opens and closes everything else.

    Attributes:
        first_key: of the account that was made because there was none; to be shown this once.
        oldest_account: its name.
        is_administered: whether there is an open key with the scope admin.
        drain: lets running edits end, for `shutdown_grace_s`; begun once, however often it is asked for.
    """

    app: FastAPI
    parts: Parts
    first_key: NewKey | None
    oldest_account: str
    is_administered: bool
    drain: Callable[[], asyncio.Task[None]]
    metrics: Metrics

    def refused(self, status: int) -> None:
        """Count what was answered before it was a request."""
        self.metrics.answered("unknown", status, 0.0)

    def hang_up(self) -> None:
        """The server goes down: end the answers that would go on for long, take no more jobs, let running ones end."""
        self.parts.closing.set()
        self.drain()

    def hurry(self) -> None:
        """Wait for no running edit any more: they go back into the queue, and their callers are told."""
        self.parts.dispatcher.hurry()


def draw_seed() -> int:
    return secrets.randbelow(RANDOM_SEED_MAX + 1)


def secret_of(settings: Settings, *, old_is_lost: bool = False) -> bytes:
    """The installation's secret, made if there is none.

    Args:
        old_is_lost: make one also beside a database whose keys were hashed under another.

    Raises:
        SecretError: it can't be read or kept, or it should be there: a database has keys that were hashed under it.
        ValueError, DatabaseUnavailable: as `open_database`.
    """
    if settings.secret is not None:
        return settings.secret.get_secret_value().encode()
    if not old_is_lost and not has_secret(settings) and _is_marked(settings):
        raise wrong_secret(settings)
    return open_secret(settings.data_dir, randomness=random_bytes)


def has_secret(settings: Settings) -> bool:
    """Whether there is one already."""
    return settings.secret is not None or (settings.data_dir / FILE_NAME).exists()


def _is_marked(settings: Settings) -> bool:
    if unmade_database(settings):
        return False
    database = open_database(settings)
    try:
        return database.read_sync(peppers.is_known)
    finally:
        database.close()


def where_secret(settings: Settings) -> str:
    """Which variable or file has it."""
    return variable("secret") if settings.secret is not None else str(settings.data_dir / FILE_NAME)


def wrong_secret(settings: Settings) -> SecretError:
    """The database's keys were hashed under a secret that these settings don't have: what to do."""
    where = where_secret(settings)
    whose = f"another secret than {where}" if has_secret(settings) else f"a secret, and {where} is not there"
    return SecretError(
        f"the API keys in the database were hashed under {whose}: every key would be refused. Put the old secret back; "
        "or, if it is lost, close all keys with `rekontext keys reset` and make new ones"
    )


def pepper_of(secret: bytes) -> bytes:
    """Under which API keys are hashed."""
    return derive(secret, "api keys")


def unmade_database(settings: Settings) -> Path | None:
    """SQLite's file while there is none: opening it would make it. None for a database that is there, or on a server.

    Raises:
        PermissionError: this user may not look there.
    """
    file = sqlite_file(settings.database)
    return None if file is None or file.exists() else file


def open_database(settings: Settings) -> Database:
    """The database, with its tables up to date; on SQLite its folder is made.

    Raises:
        ValueError: the URL names no database.
        DatabaseUnavailable: it can't be reached, is damaged, or was upgraded by a newer version.
    """
    if settings.database_url is None:
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        return Database.open(settings.database)
    except ValueError as fault:
        raise ValueError(f"{variable('database_url')} can't be used: {fault}") from fault
    except DatabaseUnavailable as fault:
        where = variable("database_url") if settings.database_url else settings.database_file
        raise DatabaseUnavailable(f"{fault} ({where})") from fault


def assemble(
    settings: Settings,
    *,
    fleet: Fleet | None,
    on_ready: Callable[[ModelCard], None],
    on_broken: Callable[[Exception], None],
    clock: Clock | None = None,
    ids: Ids = random_id,
    seeds: Callable[[], int] = draw_seed,
    workbench: Workbench | None = None,
) -> Service:
    """Put the service together. Makes the data folder, the database and a first account if they are not there.

    Args:
        fleet: where edits run; None where only other processes that share the database run them.
        on_ready, on_broken: called on the event loop, once the model is loaded or if the service can't go on, which
            should then stop.
        workbench: how jobs become requests and results files, if not by decoding and encoding pictures.

    Raises:
        SecretError: the secret can't be read or kept, or isn't the database's.
        ValueError, DatabaseUnavailable: the data folder, the store or the database can't be used.
    """
    clock = clock or SystemClock()
    secret = secret_of(settings)
    pepper = pepper_of(secret)
    store = RecentStore(open_store(settings.store), bytes_max=_RECENT_BYTES_MAX, besides=ASSETS_FOLDER)
    try:
        limiter = RequestLimiter(clock=clock, storage=settings.rate_limits_url)
    except ValueError as fault:
        raise ValueError(f"{variable('rate_limits_url')} can't be used: {fault}") from fault
    database = open_database(settings)
    fleet = fleet or ElsewhereFleet(look=partial(_latest_profile, database))

    threads = CodecThreads(settings.codec_threads)
    fetcher = Fetcher(
        timeout_s=settings.fetch_timeout_s,
        redirects_max=settings.fetch_redirects_max,
        agent=AGENT,
        allow=AllowList(settings.fetch_allow),
    )
    limits = PictureLimits(bytes_max=settings.picture_bytes_max, pixels_max=settings.picture_pixels_max)
    photos = PhotoReader(limits=limits, fetcher=fetcher, threads=threads)
    signer = LinkSigner(derive(secret, "links"))
    links = Links(
        signer=signer,
        objects=store,
        clock=clock,
        outputs_s=settings.outputs_s,
        uploads_s=settings.keep_uploads_s,
    )
    documents = Documents(clock=clock, links=links, card=lambda: fleet.card if fleet.is_ready else None)
    metrics = Metrics()
    hub = EventHub(epoch=ids(), meter=metrics)
    life = JobLife(
        outbox=Outbox(ids=ids, describe=documents.webhook),
        bounds=Bounds(in_flight_max=settings.in_flight_max, queued_max=settings.queue_max),
        patience=Patience(
            lease_s=settings.lease_s,
            faults_max=settings.faults_max,
            queue_s_max=settings.queue_s_max,
            outputs_s=settings.outputs_s,
        ),
    )
    safety = safety_of(settings)
    running_max = settings.running_max * len(fleet.devices)
    dispatcher = Dispatcher(
        database=database,
        life=life,
        fleet=fleet,
        objects=store,
        workbench=workbench or EditWorkbench(limits=limits, threads=threads, safety=safety),
        hub=hub,
        clock=clock,
        worker=settings.worker or f"{socket.gethostname()}:{settings.port}",
        running_max=running_max,
        run_s_max=settings.run_s_max,
    )
    desk = Desk(database=database, life=life, hub=hub, clock=clock, works=dispatcher)
    forecast = Forecast(fleet=fleet, works=dispatcher)
    receivers = AllowList(settings.webhook_allow)
    post = WebhookPost(allow=receivers, agent=AGENT)
    deliverer = Deliverer(database=database, send=post, clock=clock, randomness=random_bytes)
    edits = Edits(
        desk=desk,
        database=database,
        objects=store,
        fleet=fleet,
        forecast=forecast,
        limiter=limiter,
        tariff=_tariff(settings),
        clock=clock,
        deadline_s=settings.deadline_s,
        requests_per_minute=settings.requests_per_minute,
        log_prompts=settings.log_prompts,
    )
    parts = Parts(
        database=database,
        desk=desk,
        dispatcher=dispatcher,
        deliverer=deliverer,
        objects=store,
        disk=DiskCheck(_folders(settings)),
        fleet=fleet,
        forecast=forecast,
        edits=edits,
        keys=DatabaseKeys(database=database, pepper=pepper, clock=clock),
        orders=OrderReader(
            photos=photos,
            threads=threads,
            draw_seed=seeds,
            body_bytes_max=settings.body_bytes_max,
            receivers=receivers,
        ),
        photos=photos,
        threads=threads,
        links=links,
        origins=Origins(external_url=settings.external_url, trusted_proxies=settings.trusted_proxies),
        documents=documents,
        clock=clock,
        ids=ids,
        randomness=random_bytes,
        receivers=receivers,
        pepper=pepper,
        limits=Limits(
            body_bytes_max=settings.body_bytes_max,
            picture_bytes_max=settings.picture_bytes_max,
            idempotency_s=settings.idempotency_s,
            uploads_bytes_max=settings.uploads_bytes_max,
            queued_max=settings.queue_max,
            in_flight_max=settings.in_flight_max,
            running_max=running_max,
        ),
    )
    sweeper = Sweeper(
        database=database,
        objects=store,
        clock=clock,
        retention=Retention(
            inputs_s=settings.inputs_s,
            records_s=settings.keep_records_s,
            idempotency_s=settings.idempotency_s,
            assets_s=settings.keep_uploads_s,
        ),
    )

    drained: list[asyncio.Task[None]] = []

    def drain() -> asyncio.Task[None]:
        if not drained:
            drained.append(asyncio.create_task(let_jobs_end()))
        return drained[0]

    async def let_jobs_end() -> None:
        await dispatcher.close(drain_s=settings.shutdown_grace_s)
        desk.let_go()  # whoever still waits, waits for a job that went back into the queue

    async def compute() -> None:
        """Load the model while the server already answers, then take jobs. Those that came early go on then."""
        try:
            await fleet.start()
        except Exception as fault:
            on_broken(fault)
            return
        on_ready(fleet.card)
        dispatcher.begin()
        await fleet.watch()

    async def watched(work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as fault:
            _log.exception("broken", fault=type(fault).__name__)
            on_broken(fault)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            stack.callback(database.close)
            stack.push_async_callback(limiter.close)
            await stack.enter_async_context(fetcher)
            await stack.enter_async_context(post)
            if safety is not None:
                await stack.enter_async_context(safety)
            works = (compute(), dispatcher.run(), deliverer.run(), sweeper.run())
            working = [asyncio.create_task(watched(each)) for each in works]
            try:
                yield
            finally:
                await drain()
                for task in working:
                    task.cancel()
                    with suppress(asyncio.CancelledError):
                        await task
                await fleet.close()

    app = create_app(parts, metrics_of=metrics, lifespan=lifespan)
    # Last: a start that fails must not make a key that nobody gets to see.
    acts = Acts(actor="first start", ids=ids, randomness=random_bytes, pepper=pepper, now=clock.now)
    first_credits = _micros(settings.first_credits_usd)

    def open_first(tx: Connection) -> tuple[NewKey | None, str, bool]:
        first_key = acts.open_first(tx, credits_micros=first_credits)
        return first_key, registry.oldest(tx).name, keys.is_administered(tx, now=clock.now())

    try:
        first_key, oldest_account, is_administered = database.transact_sync(open_first)
    except PepperChanged as fault:
        database.close()
        raise wrong_secret(settings) from fault
    return Service(
        app=app,
        parts=parts,
        first_key=first_key,
        oldest_account=oldest_account,
        is_administered=is_administered,
        drain=drain,
        metrics=metrics,
    )


def safety_of(settings: Settings) -> SafetyCheck | None:
    """The check that finished pictures are shown, if there is one."""
    if settings.safety_url is None:
        return None
    return SafetyCheck(
        settings.safety_url,
        is_optional=settings.safety_optional,
        timeout_s=settings.safety_timeout_s,
        agent=AGENT,
    )


async def _latest_profile(database: Database) -> Mapping[str, object] | None:
    """What the process with devices that was seen last has told of its fleet; None if nobody knows."""
    try:
        worker = await database.read(workers.latest)
    except DatabaseUnavailable:  # `/readyz` says so
        return None
    return None if worker is None else worker.profile


def _folders(settings: Settings) -> list[Path]:
    """Where the database and the pictures are, of those that are on this machine's disks."""
    file = sqlite_file(settings.database)
    folders = [] if file is None else [file.parent]
    scheme, _, place = settings.store.partition("://")
    return [*folders, Path(place)] if scheme == "file" else folders


def _tariff(settings: Settings) -> Tariff:
    return Tariff(
        per_generation_micros=_micros(settings.price_per_edit_usd),
        per_megapixel_micros=_micros(settings.price_per_megapixel_usd),
        per_step_micros=_micros(settings.price_per_step_usd),
        per_megapixel_step_micros=_micros(settings.price_per_megapixel_step_usd),
    )


def _micros(dollars: Decimal) -> int:
    return parse_usd(str(dollars))
