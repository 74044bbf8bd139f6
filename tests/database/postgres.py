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
from pathlib import Path

import psycopg
from psycopg import sql

USER = "rekontext"


def binaries() -> Path | None:
    """Where the newest installed server's programs lie, None without one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@contextmanager
def server(programs: Path, *, is_durable: bool = False) -> Iterator[str]:
    """Start a server, yield its URL without a database's name, stop it and delete all it had.

    Args:
        is_durable: whether a commit waits for the disk, as it does in earnest; tests need not wait.
    """
    owner = pwd.getpwnam("postgres") if os.getuid() == 0 else None

    def run(*command: str | Path) -> None:
        done = subprocess.run(
            [str(part) for part in command],
            user=owner.pw_uid if owner else None,
            group=owner.pw_gid if owner else None,
            extra_groups=[] if owner else None,
            cwd="/",
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{command[0]} failed: {done.stdout}{done.stderr}"

    # The default temporary folder may be closed to other users; a socket's path must be short, so there is none.
    folder = Path(tempfile.mkdtemp(prefix="rekontext-postgres-"))
    try:
        if owner:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        data = folder / "data"
        run(programs / "initdb", "--auth=trust", f"--username={USER}", "--encoding=UTF8", "--no-sync", "-D", data)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c max_connections=60"
        if not is_durable:
            options += " -c fsync=off -c synchronous_commit=off -c full_page_writes=off"
        run(programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-t", "30", "-o", options, "start")
        try:
            yield f"postgresql://{USER}@127.0.0.1:{port}"
        finally:
            run(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


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
