"""One `Database`: transactions as plain functions, each run in one hop to a worker thread.

Two kinds of database stand behind it. SQLite, embedded: every write goes through one thread and one connection
(WAL, `BEGIN IMMEDIATE`), and reads have connections of their own, so that a poll never waits for a writer.
PostgreSQL: a small pool of threads, each with a connection; writes that must not wait behind all others have lanes of
their own. On both, reads that may take long have a few threads of their own, so that keys and polls find one however
many histories are looked through. A function that is given to `transact` may run more than once (after a deadlock,
say), so it must touch nothing but the database, or what each run sets anew. Knows no tables.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, Self, TypeVar

from psycopg import ProgrammingError
from psycopg.conninfo import make_conninfo
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DBAPIError, OperationalError

from rekontext.database.address import read_address
from rekontext.database.migrate import TablesUnknown, is_current, require_known, upgrade

T = TypeVar("T")
Synchronous = Literal["FULL", "NORMAL"]

Lane = Literal["common", "leases", "endings"]
"""Where a write waits: with all others, or with those only that keep leases, or end work."""

TRIES_MAX = 8
LONG_READERS = 2
"""Threads, each with a connection, for reads that may take long."""
LANES: Final[Mapping[Lane, int]] = {"leases": 2, "endings": 2}
"""Threads of the lanes besides the common one, on PostgreSQL, each with a connection."""
_DAMAGED = "the database file is damaged ({fault}): stop the service and put back a backup (rekontext restore FILE)"
_BUSY_TIMEOUT_MS = 5_000
_RETRIED_SQLSTATES = frozenset({"40001", "40P01", "55P03"})  # serialization failure, deadlock, lock timeout
# PostgreSQL ended the session before it was told to commit: it was silent, or open, for too long, as when we slept.
_ENDED_SQLSTATES = frozenset({"25P03", "25P04"})
_READ_ONLY_SQLSTATE = "25006"
_INTERNAL_SQLSTATES = "XX"  # the first letters of PostgreSQL's own faults, a damaged page among them
_POSTGRES_OPTIONS = (
    "-c timezone=utc -c lock_timeout=5s -c statement_timeout=30s -c idle_in_transaction_session_timeout=30s"
)
# A server that vanishes without a word (a lost machine, a firewall) would else hold a thread for up to two hours.
_POSTGRES_DEFAULTS: Final[Mapping[str, str | int]] = {
    "application_name": "rekontext",
    "connect_timeout": 10,
    "tcp_user_timeout": 20_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}


class DatabaseUnavailable(RuntimeError):
    """The database can't be reached, or stayed busy through every retry.

    Nothing was changed, unless `is_in_doubt`: the connection broke during the commit itself, so the transaction
    happened as a whole or not at all, and only looking tells which.
    """

    def __init__(self, message: str, *, is_in_doubt: bool = False) -> None:
        super().__init__(message)
        self.is_in_doubt = is_in_doubt


class Database:
    """Transactions on one database. Made by `open`, usable from any thread and loop until `close`."""

    def __init__(self, *, write: Engine, read: Engine, writers: int, readers: int, lanes: Mapping[Lane, int]) -> None:
        self._write = write
        self._read = read
        self._write_threads = ThreadPoolExecutor(writers, thread_name_prefix="database-write")
        self._lanes = {lane: ThreadPoolExecutor(n, thread_name_prefix=f"database-{lane}") for lane, n in lanes.items()}
        self._read_threads = ThreadPoolExecutor(readers, thread_name_prefix="database-read")
        self._long_read_threads = ThreadPoolExecutor(LONG_READERS, thread_name_prefix="database-long-read")

    @classmethod
    def open(cls, url: str, *, synchronous: Synchronous = "FULL", connections: int = 4, migrate: bool = True) -> Self:
        """Open the database at `url` and bring its tables up to date.

        Args:
            url: `sqlite:///path/to/file` or `postgresql://user:password@host/name`.
            synchronous: SQLite only. FULL survives a power cut; NORMAL may lose the last commits in one.
            connections: for reads, and on PostgreSQL as many again for writes; reads that may take long have
                `LONG_READERS` besides, and writes on PostgreSQL those of their `LANES`.
            migrate: False leaves the tables as they are.

        Raises:
            ValueError: the URL names no database that is supported.
            DatabaseUnavailable: it can't be opened, is damaged, or was upgraded by a newer version.
        """
        address = read_address(url)
        if address.get_backend_name() == "sqlite":
            database = cls._open_sqlite(address, synchronous, connections)
        else:
            database = cls._open_postgres(address, connections)
        if migrate:
            try:
                # Nearly always they are, and whoever only looks should wait for no writer to learn it.
                if not database.read_sync(is_current):
                    database.transact_sync(upgrade)
            except TablesUnknown as error:
                database.close()
                raise DatabaseUnavailable(str(error)) from error
            except BaseException:
                database.close()
                raise
        return database

    @classmethod
    def _open_sqlite(cls, url: URL, synchronous: Synchronous, readers: int) -> Self:
        if not url.database or url.database == ":memory:":
            raise ValueError("database url names SQLite in memory, but readers need a file: sqlite:///path/to/file")

        def engine(begin: str, pragmas: tuple[str, ...], size: int) -> Engine:
            made = create_engine(
                url, hide_parameters=True, pool_size=size, max_overflow=0, connect_args={"check_same_thread": False}
            )

            @event.listens_for(made, "connect")
            def prepare(connection: Any, _record: object) -> None:
                connection.isolation_level = None  # the driver starts no transaction behind our back
                # SQLite's own knows the letters of ASCII only.
                connection.create_function("lower", 1, _lower, deterministic=True)
                for pragma in (f"busy_timeout = {_BUSY_TIMEOUT_MS}", "foreign_keys = ON", *pragmas):
                    connection.execute(f"PRAGMA {pragma}")

            @event.listens_for(made, "begin")
            def start(connection: Connection) -> None:
                connection.exec_driver_sql(begin)

            return made

        # A transaction that reads, then writes, would fail as "locked" instead of waiting: take the lock first.
        write = engine("BEGIN IMMEDIATE", ("journal_mode = WAL", f"synchronous = {synchronous}"), 1)
        read = engine("BEGIN", ("query_only = ON",), readers + LONG_READERS)
        return cls(write=write, read=read, writers=1, readers=readers, lanes={})

    @classmethod
    def _open_postgres(cls, url: URL, connections: int) -> Self:
        write = create_engine(
            url,
            hide_parameters=True,
            pool_size=2 * connections + LONG_READERS + sum(LANES.values()),
            max_overflow=0,
            connect_args=_postgres_arguments(url),
        )

        @event.listens_for(write, "connect", insert=True)  # before SQLAlchemy asks it anything
        def require_utf8(connection: Any, _record: object) -> None:
            encoding = connection.info.parameter_status("server_encoding")
            if encoding != "UTF8":
                raise ValueError(
                    f"the database {url.database} is in {encoding}, in which not every prompt can be written; allowed "
                    "is UTF8: createdb --encoding=UTF8 --template=template0 makes one"
                )

        @event.listens_for(write, "handle_error")
        def leave(context: ExceptionContext) -> None:
            # A session that began while no writes were taken takes none ever after: neither it nor those pooled since.
            # One that was ended isn't known to be by the class of its error.
            state = getattr(context.original_exception, "sqlstate", None)
            if state == _READ_ONLY_SQLSTATE or state in _ENDED_SQLSTATES:
                context.is_disconnect = True

        # Reads see one snapshot, as they do on SQLite.
        read = write.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        return cls(write=write, read=read, writers=connections, readers=connections, lanes=LANES)

    @property
    def dialect(self) -> str:
        """Either "sqlite" or "postgresql"."""
        return self._write.dialect.name

    async def transact(self, work: Callable[[Connection], T], *, lane: Lane = "common") -> T:
        """Run `work` in one transaction and commit it; what it raises rolls everything back.

        Once begun it isn't stopped by cancelling the awaiting task: it commits or rolls back as a whole.

        Args:
            lane: which others it may wait behind; on SQLite, which has one writer, all of them.

        Raises:
            DatabaseUnavailable: it didn't happen, or that is in doubt.
        """
        threads = self._lanes.get(lane, self._write_threads)
        return await asyncio.wrap_future(threads.submit(_run, self._write, work))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work`, which only reads, on one snapshot of the committed data.

        Raises:
            DatabaseUnavailable: the database can't be reached.
        """
        return await asyncio.wrap_future(self._read_threads.submit(_run, self._read, work, is_read=True))

    async def read_long(self, work: Callable[[Connection], T]) -> T:
        """`read` for what may look through a whole history: it waits for others of its kind, `read` never for it."""
        return await asyncio.wrap_future(self._long_read_threads.submit(_run, self._read, work, is_read=True))

    def transact_sync(self, work: Callable[[Connection], T]) -> T:
        """`transact` for callers without an event loop."""
        return self._write_threads.submit(_run, self._write, work).result()

    def read_sync(self, work: Callable[[Connection], T]) -> T:
        """`read` for callers without an event loop."""
        return self._read_threads.submit(_run, self._read, work, is_read=True).result()

    def check_sync(self) -> None:
        """Look whether all is well, without changing anything; on a large SQLite file this takes seconds.

        Raises:
            DatabaseUnavailable: it can't be reached, is damaged, or was upgraded by a newer version.
        """

        def look(tx: Connection) -> None:
            require_known(tx)
            if self.dialect == "sqlite" and (found := tx.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()) != "ok":
                raise DatabaseUnavailable(_DAMAGED.format(fault=" ".join(str(found).split())))

        try:
            self.read_sync(look)
        except TablesUnknown as error:
            raise DatabaseUnavailable(str(error)) from error

    def close(self) -> None:
        """Let running transactions end, then close every connection."""
        for threads in (self._write_threads, *self._lanes.values(), self._read_threads, self._long_read_threads):
            threads.shutdown(wait=True)
        self._read.dispose()
        self._write.dispose()


def unhurried(tx: Connection) -> None:
    """Let this transaction's statements take as long as they do: the bound is for what callers wait for."""
    if tx.dialect.name == "postgresql":
        tx.exec_driver_sql("SET LOCAL statement_timeout = 0")


def _postgres_arguments(url: URL) -> dict[str, str | int]:
    """What a connection is given besides what the URL says, which goes first but for the options that we rely on.

    Raises:
        ValueError: the URL gives what PostgreSQL doesn't know.
    """
    try:
        make_conninfo(**dict.fromkeys(url.query, ""))
    except ProgrammingError as error:
        raise ValueError(f"database url has an {error}") from error
    theirs = url.normalized_query.get("options", ())
    ours = {name: value for name, value in _POSTGRES_DEFAULTS.items() if name not in url.query}
    return {**ours, "options": " ".join([*theirs, _POSTGRES_OPTIONS])}


def _run(engine: Engine, work: Callable[[Connection], T], *, is_read: bool = False) -> T:
    for tried in range(1, TRIES_MAX + 1):
        committing = False
        try:
            with engine.connect() as connection, connection.begin() as transaction:
                result = work(connection)
                committing = not is_read  # a read that breaks off at its very end has changed nothing
                transaction.commit()
                return result
        except DBAPIError as error:
            if not _may_retry(error, committing):
                if _is_damaged(error):
                    raise DatabaseUnavailable(_DAMAGED.format(fault=error.orig), is_in_doubt=committing) from error
                if isinstance(error, OperationalError) or _is_broken(error) or _is_standby(error, is_read):
                    raise DatabaseUnavailable(f"the database failed: {error.orig}", is_in_doubt=committing) from error
                raise
            if tried == TRIES_MAX:
                raise DatabaseUnavailable(f"the database stayed busy through {tried} tries: {error.orig}") from error
        # Competitors that met once should not meet again: wait a random while, longer each time.
        time.sleep(random.uniform(0, 0.01 * 2**tried))  # noqa: S311
    raise AssertionError("the loop above returns or raises")


def _may_retry(error: DBAPIError, committing: bool) -> bool:
    """Whether the transaction surely left nothing behind and may do better next time."""
    state = getattr(error.orig, "sqlstate", None)
    if state in _RETRIED_SQLSTATES | _ENDED_SQLSTATES:
        return True
    if state == _READ_ONLY_SQLSTATE:
        return False  # nor would it take the next
    if error.connection_invalidated:
        return not committing  # a connection lost during a commit doesn't tell whether it happened
    return not committing and "database is locked" in str(error.orig)


def _is_damaged(error: DBAPIError) -> bool:
    """Whether SQLite says that its file isn't what it should be."""
    return getattr(error.orig, "sqlite_errorname", "").startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _is_broken(error: DBAPIError) -> bool:
    """Whether PostgreSQL has a fault of its own, which the driver doesn't count among the operational ones."""
    return (getattr(error.orig, "sqlstate", None) or "").startswith(_INTERNAL_SQLSTATES)


def _is_standby(error: DBAPIError, is_read: bool) -> bool:
    """Whether PostgreSQL takes no writes just now, as after a failover. A read that writes is our own mistake."""
    return not is_read and getattr(error.orig, "sqlstate", None) == _READ_ONLY_SQLSTATE


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value
