"""A PostgreSQL server for one test run: Debian's package, a folder of its own, a free port on the loopback.

PostgreSQL refuses to run as root, so there its own user runs it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

import psycopg
from psycopg import sql

USER = "rekontext"
Mode = Literal["fast", "immediate"]
"""How a server ends: "fast" breaks off transactions and leaves in order, "immediate" is a crash."""


def binaries() -> Path | None:
    """Where the newest installed server's programs lie, None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


def _owner() -> pwd.struct_passwd | None:
    """Who runs the server, if we may not."""
    return pwd.getpwnam("postgres") if os.getuid() == 0 else None


@dataclass(frozen=True, kw_only=True)
class PostgresServer:
    """One server with a folder of its own, which may be stopped and started again at the same place."""

    programs: Path
    folder: Path
    port: int
    is_durable: bool = False
    may_crash: bool = False

    @property
    def url(self) -> str:
        """Without a database's name."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}"

    def make(self) -> None:
        """Lay out an empty cluster."""
        owner = _owner()
        if owner:
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        self._run("initdb", "--auth=trust", f"--username={USER}", "--encoding=UTF8", "--no-sync")

    def start(self) -> None:
        """Return once it takes connections."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=60"
        if not self.is_durable:
            options += " -c fsync=off -c full_page_writes=off"
            if not self.may_crash:
                options += " -c synchronous_commit=off"
        self._run("pg_ctl", "-l", self.folder / "log", "-w", "-t", "30", "-o", options, "start")

    def stop(self, mode: Mode = "immediate") -> None:
        """Return once it is gone."""
        self._run("pg_ctl", "-m", mode, "-w", "stop")

    def _run(self, program: str, *arguments: str | Path) -> None:
        owner = _owner()
        done = subprocess.run(
            [str(part) for part in (self.programs / program, "-D", self.folder / "data", *arguments)],
            user=owner.pw_uid if owner else None,
            group=owner.pw_gid if owner else None,
            extra_groups=[] if owner else None,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{program} failed: {done.stdout}{done.stderr}"


@contextmanager
def running(programs: Path, *, is_durable: bool = False, may_crash: bool = False) -> Iterator[PostgresServer]:
    """Start a server; in the end stop it, unless it is stopped, and delete all it had.

    Args:
        is_durable: whether a commit waits for the disk, as it does in earnest; tests need not wait.
        may_crash: whether commits outlive the server's own end, if not the machine's.
    """
    # The default temporary folder may be closed to other users; a socket's path must be short, so there is none.
    folder = Path(tempfile.mkdtemp(prefix="rekontext-postgres-"))
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = PostgresServer(programs=programs, folder=folder, port=port, is_durable=is_durable, may_crash=may_crash)
        server.make()
        server.start()
        try:
            yield server
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def server(programs: Path, *, is_durable: bool = False) -> Iterator[str]:
    """The URL of a `running` server, without a database's name."""
    with running(programs, is_durable=is_durable) as started:
        yield started.url


@contextmanager
def database(server_url: str, name: str, *, template: str | None = None) -> Iterator[str]:
    """Make an empty database, or a copy of `template`; yield its URL and drop it."""
    with psycopg.connect(f"{server_url}/postgres", autocommit=True) as admin:
        create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            create += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        admin.execute(create)
        try:
            yield f"{server_url}/{name}"
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


MAKEUP = """
SELECT concat_ws(
    ' ',
    (SELECT array_agg(nspname ORDER BY nspname) FROM pg_namespace WHERE nspname !~ '^pg_'),
    (SELECT array_agg((oid, relname, relkind) ORDER BY oid) FROM pg_class WHERE oid >= 16384 AND relname !~ '^pg_'),
    (SELECT array_agg((oid, tgenabled) ORDER BY oid) FROM pg_trigger),
    (SELECT array_agg((oid, conname) ORDER BY oid) FROM pg_constraint),
    (SELECT array_agg((attrelid, attname, atttypid) ORDER BY attrelid, attnum) FROM pg_attribute WHERE attnum > 0),
    (SELECT count(*) FROM pg_statistic WHERE starelid >= 16384),
    (SELECT array_agg(setconfig) FROM pg_db_role_setting),
    (SELECT array_agg(version_num) FROM public.alembic_version)
)
"""
"""What a database is made of besides rows, whether anybody counted those or set it up differently, and its version."""


class Lender:
    """Copies of a template, each for one test at a time and emptied in between: making one takes eight times as long.

    A copy in which a test changed more than rows is dropped.
    """

    def __init__(self, server_url: str, template: str, *, prefix: str = "lent") -> None:
        self.server_url = server_url
        self.template = template
        self.prefix = prefix
        self._free: list[tuple[str, str]] = []
        self._names = count(1)

    @contextmanager
    def lend(self) -> Iterator[str]:
        """The URL of a database that no test has left anything in."""
        url, makeup = self._free.pop() if self._free else self._make()
        try:
            yield url
        finally:
            self._take_back(url, makeup)

    def _take_back(self, url: str, makeup: str) -> None:
        with psycopg.connect(url, autocommit=True) as admin:
            # What a test left open must hold up neither this nor the next one.
            admin.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
            )
            is_as_made = self._makeup(admin) == makeup
            if is_as_made:
                self._empty(admin)
        if is_as_made:
            self._free.append((url, makeup))
        else:
            self._drop(url)

    def drop(self) -> None:
        """All that nobody has now."""
        while self._free:
            self._drop(self._free.pop()[0])

    def _drop(self, url: str) -> None:
        name = sql.Identifier(url.rpartition("/")[2])
        with psycopg.connect(f"{self.server_url}/postgres", autocommit=True) as admin:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))

    def _make(self) -> tuple[str, str]:
        name = f"{self.prefix}_{next(self._names)}"
        made = sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(self.template))
        with psycopg.connect(f"{self.server_url}/postgres", autocommit=True) as admin:
            admin.execute(made)
        url = f"{self.server_url}/{name}"
        with psycopg.connect(url, autocommit=True) as admin:
            return url, self._makeup(admin)

    @staticmethod
    def _makeup(admin: psycopg.Connection) -> str:
        row = admin.execute(MAKEUP).fetchone()
        assert row is not None
        return str(row[0])

    @staticmethod
    def _empty(admin: psycopg.Connection) -> None:
        """All rows go, but for the one that says which migrations it has had; identities begin anew."""
        admin.execute("SET session_replication_role = replica")  # triggers forbid it otherwise
        tables = admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        names = [sql.Identifier(name) for (name,) in tables if name != "alembic_version"]
        admin.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(sql.SQL(", ").join(names)))
