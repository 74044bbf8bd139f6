"""The whole service behind a real server, made to be killed: `python -m tests.faults.server DATA_DIR`.

Says "PORT n" when it answers; the kernel chooses the port anew at each start.
"""

from __future__ import annotations

import asyncio
import random
import socket
import sys
from pathlib import Path

import uvicorn

from rekontext.api.http1 import server_config
from rekontext.assembly import assemble
from rekontext.contract import EditRequest, EditResult, OnProgress
from rekontext.logs import configure
from rekontext.settings import Settings
from tests.api.studio import PillowFleet

WORKER = "victim"


class SlowFleet(PillowFleet):
    """Takes some milliseconds for an edit, so that a kill finds edits at every stage."""

    async def edit(self, request: EditRequest, *, on_progress: OnProgress | None = None) -> EditResult:
        await asyncio.sleep(random.uniform(0, 0.03))
        return await super().edit(request, on_progress=on_progress)


def settings(data_dir: Path) -> Settings:
    """More tries than there are kills: what is tested is that nothing gets lost, not when we give up."""
    return Settings(  # type: ignore[call-arg]
        _env_file=None,
        data_dir=data_dir,
        worker=WORKER,
        faults_max=100,
        in_flight_max=1000,
        running_max=4,
        requests_per_minute=1_000_000,
        log_level="error",
    )


def main() -> None:
    configure(level="error", log_format="text")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        service = assemble(
            settings(Path(sys.argv[1])),
            fleet=SlowFleet(),
            on_ready=lambda _: print(f"PORT {port}", flush=True),  # noqa: T201
            on_broken=lambda fault: sys.exit(f"broken: {fault!r}"),
        )
        uvicorn.Server(server_config(service.app, answers_s=5)).run(sockets=[listener])


if __name__ == "__main__":
    main()
