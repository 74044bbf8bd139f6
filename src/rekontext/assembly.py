"""The composition root: settings in, the whole service out. The only place that knows every part."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from sqlalchemy import Connection

from rekontext import AGENT
from rekontext.accounts import Acts, NewKey, PepperChanged, RequestLimiter, Tariff, keys, parse_usd, registry
from rekontext.api import create_app, dialects
from rekontext.api.auth import DatabaseKeys
from rekontext.api.brought import BroughtLoras
from rekontext.api.disk import DiskCheck
from rekontext.api.documents import Documents
from rekontext.api.edits import Edits
from rekontext.api.forecast import Forecast
from rekontext.api.hub import HUB, Hub
from rekontext.api.links import Links
from rekontext.api.metrics import Metrics
from rekontext.api.orders import OrderReader
from rekontext.api.origins import Origins
from rekontext.api.parts import Parts, ServiceLimits
from rekontext.api.workbench import EditWorkbench
from rekontext.contract import Fleet, ModelCard
from rekontext.database import Database, DatabaseUnavailable
from rekontext.database.address import sqlite_file
from rekontext.dialling import AllowList
from rekontext.fleet import ElsewhereFleet
from rekontext.installation import open_database, pepper_of, secret_of, wrong_secret
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
    WebhookPost,
    Workbench,
    workers,
)
from rekontext.pictures import (
    CodecThreads,
    Fetcher,
    LinkSigner,
    PhotoReader,
    PictureLimits,
    open_store,
)
from rekontext.pictures.copies import LocalCopies
from rekontext.pictures.recent import RecentStore
from rekontext.safety import SafetyCheck
from rekontext.secret import derive
from rekontext.settings import Settings, variable
from rekontext.sources import Clock, Ids, SystemClock, draw_seed, random_bytes, random_id
from rekontext.works import Works

_COPIES_BYTES_MAX: Final = 16 * 2**30
"""Of LoRAs that lie elsewhere. In a folder store they are the store's own files, which take no room twice."""
_FREE_BYTES_MIN: Final = 2**30
"""Of the disk, for the database and pictures: LoRAs take none of it."""
_RECENT_BYTES_MAX: Final = 256 * 2**20


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

    def hang_up(self) -> None:
        """The server goes down: end the answers that would go on for long, take no more jobs, let running ones end."""
        self.parts.closing.set()
        self.drain()

    def hurry(self) -> None:
        """Wait for no running edit any more: they go back into the queue, and their callers are told."""
        self.parts.dispatcher.hurry()


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
    with _closed_on_failure(database):
        fleet = fleet or ElsewhereFleet(look=partial(_latest_profile, database))

        threads = CodecThreads(settings.codec_threads)
        fetcher = Fetcher(
            timeout_s=settings.fetch_timeout_s,
            redirects_max=settings.fetch_redirects_max,
            agent=AGENT,
            allow=AllowList(settings.fetch_allow),
        )
        lora_fetcher = Fetcher(
            timeout_s=settings.lora_timeout_s,
            redirects_max=settings.fetch_redirects_max,
            agent=AGENT,
            allow=AllowList(settings.fetch_allow),
            what="LoRA",
            accept="*/*",
        )
        copies = LocalCopies(
            store, settings.data_dir / "loras", bytes_max=_COPIES_BYTES_MAX, free_bytes_min=_FREE_BYTES_MIN
        )
        limits = PictureLimits(bytes_max=settings.picture_bytes_max, pixels_max=settings.picture_pixels_max)
        photos = PhotoReader(limits=limits, fetcher=fetcher, threads=threads)
        brought = BroughtLoras(
            database=database,
            objects=store,
            copies=copies,
            fetcher=lora_fetcher,
            threads=CodecThreads(1),
            clock=clock,
            bytes_max=settings.lora_bytes_max,
            kept_bytes_max=settings.loras_bytes_max,
            timeout_s=settings.lora_timeout_s,
            adopts=not isinstance(fleet, ElsewhereFleet),
            # which the hub's own library heeds for models
            hub=Hub(lora_fetcher, url=os.environ.get("HF_ENDPOINT") or HUB),
        )
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
            outbox=Outbox(ids=ids, describe=documents.webhook, own_message=partial(dialects.message, documents)),
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
            workbench=workbench or EditWorkbench(limits=limits, threads=threads, copies=copies, safety=safety),
            hub=hub,
            clock=clock,
            worker=settings.worker or f"{socket.gethostname()}:{settings.port}",
            running_max=running_max,
            run_s_max=settings.run_s_max,
        )
        desk = Desk(database=database, life=life, hub=hub, clock=clock, dispatcher=dispatcher)
        forecast = Forecast(fleet=fleet, dispatcher=dispatcher)
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
            disk=DiskCheck(_made(_folders(settings))),
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
                offers=partial(_offers, fleet),
                brought=brought,
            ),
            photos=photos,
            brought=brought,
            threads=threads,
            links=links,
            origins=Origins(external_url=settings.external_url, trusted_proxies=settings.trusted_proxies),
            documents=documents,
            clock=clock,
            ids=ids,
            randomness=random_bytes,
            receivers=receivers,
            pepper=pepper,
            limits=ServiceLimits(
                body_bytes_max=settings.body_bytes_max,
                bodies_bytes_max=settings.bodies_bytes,
                picture_bytes_max=settings.picture_bytes_max,
                idempotency_s=settings.idempotency_s,
                uploads_bytes_max=settings.uploads_bytes_max,
                loras_bytes_max=settings.loras_bytes_max,
                lora_bytes_max=settings.lora_bytes_max,
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
            copies=copies,
        )
        works = Works(
            fleet=fleet,
            dispatcher=dispatcher,
            desk=desk,
            deliverer=deliverer,
            sweeper=sweeper,
            database=database,
            limiter=limiter,
            sessions=[fetcher, lora_fetcher, post, *([] if safety is None else [safety])],
            grace_s=settings.shutdown_grace_s,
            on_ready=on_ready,
            on_broken=on_broken,
        )
        app = create_app(parts, metrics_of=metrics, lifespan=works.lifespan)
        # Last: a start that fails must not make a key that nobody gets to see.
        acts = Acts(actor="first start", ids=ids, randomness=random_bytes, pepper=pepper, now=clock.now)
        first_credits = _micros(settings.first_credits_usd)

        def open_first(tx: Connection) -> tuple[NewKey | None, str, bool]:
            first_key = acts.open_first(tx, credits_micros=first_credits)
            return first_key, registry.oldest(tx).name, keys.is_administered(tx, now=clock.now())

        try:
            first_key, oldest_account, is_administered = database.transact_sync(open_first)
        except PepperChanged as fault:
            raise wrong_secret(settings) from fault
        return Service(
            app=app,
            parts=parts,
            first_key=first_key,
            oldest_account=oldest_account,
            is_administered=is_administered,
            drain=works.drain,
            metrics=metrics,
        )


@contextmanager
def _closed_on_failure(database: Database) -> Iterator[None]:
    """What is in the block hands the database on; if it fails instead, nobody else would close it."""
    try:
        yield
    except BaseException:
        database.close()
        raise


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


async def _offers(fleet: Fleet) -> Sequence[str] | None:
    """The LoRAs on offer; None while only another process could say, and none has been up yet."""
    return None if isinstance(fleet, ElsewhereFleet) and not fleet.is_ready else await fleet.offers()


async def _latest_profile(database: Database) -> Mapping[str, object] | None:
    """What the process with devices that was seen last has told of its fleet; None if nobody knows."""
    try:
        worker = await database.read(workers.latest)
    except DatabaseUnavailable:  # `/readyz` says so
        return None
    return None if worker is None else worker.profile


def _folders(settings: Settings) -> list[Path]:
    """Where the database and the pictures are, of those that are on this machine's disks, and LoRAs on their way."""
    file = sqlite_file(settings.database)
    scheme, _, place = settings.store.partition("://")
    folders = [*([] if file is None else [file.parent]), *([Path(place)] if scheme == "file" else [])]
    return [*folders, *([settings.data_dir] if settings.data_dir not in folders and settings.lora_bytes_max else [])]


def _made(folders: list[Path]) -> list[Path]:
    """All of them. What keeps all else elsewhere has no data folder yet, which readiness would take for a full disk.

    One that can't be made has no room, as readiness then says.
    """
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folders


def _tariff(settings: Settings) -> Tariff:
    return Tariff(
        per_generation_micros=_micros(settings.price_per_edit_usd),
        per_megapixel_micros=_micros(settings.price_per_megapixel_usd),
        per_step_micros=_micros(settings.price_per_step_usd),
        per_megapixel_step_micros=_micros(settings.price_per_megapixel_step_usd),
    )


def _micros(dollars: Decimal) -> int:
    return parse_usd(f"{dollars:f}")
