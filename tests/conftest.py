"""What tests of the service share: time, ids, randomness, and every database that the service runs on."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Final

import pytest
import structlog

from rekontext.database import Database
from tests.database import postgres
from tests.fakes import FakeClock, FakeIds, FakeRandomness
from tests.needed import missing

_numbers = count(1)

# There may be no GPU: tests of our kernels run them in Triton's interpreter. That must be known before Triton is
# imported, and has a model that is opened on a GPU computed by its blocks.
os.environ.setdefault("TRITON_INTERPRET", "1")

# A traceback with every value in it takes a second and more to draw, and the event loop stands still meanwhile.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
    ]
)

LONG: Final = (
    "engine/test_rehearsal.py",
    "semantic/test_mini.py",
    "browser/test_playground.py",
    "browser/test_console.py",
    "browser/test_promises.py",
    "cli/test_serving.py",
    "bench/test_gpu_bench.py",
    "engine/test_scheduler.py",
    "engine/test_fp8.py",
)
"""Files of half a minute and more. The first one judges by the clock: beside it runs what keeps to its own core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: one that began last would leave the other core without work."""
    here = Path(__file__).parent
    ranks = {here / name: rank for rank, name in enumerate(LONG)}
    assert all(file.is_file() for file in ranks), "LONG names a file that is gone"
    items.sort(key=lambda item: ranks.get(item.path, len(LONG)))


def pytest_collection_finish() -> None:
    """What was imported by now stays to the end: the garbage collector need not look through it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def anyio_backend() -> str:
    """The event loop that async tests run on."""
    return "asyncio"


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def ids() -> FakeIds:
    return FakeIds()


@pytest.fixture
def randomness() -> FakeRandomness:
    return FakeRandomness()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a running PostgreSQL server, without a database's name."""
    programs = postgres.binaries()
    if programs is None:
        missing("PostgreSQL", "apt-get install postgresql")
    with postgres.server(programs) as url:
        yield url


@pytest.fixture(scope="session")
def postgres_template(postgres_server: str) -> Iterator[str]:
    """The name of a database with all tables and no rows, to be copied."""
    with postgres.database(postgres_server, "template_rekontext") as url:
        Database.open(url, connections=1).close()
        yield "template_rekontext"


@pytest.fixture(scope="session")
def postgres_lender(postgres_server: str, postgres_template: str) -> postgres.Lender:
    """Lends each test a database of its own, with all tables and no rows."""
    return postgres.Lender(postgres_server, postgres_template)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database's file with all tables and no rows, to be copied: that takes a hundredth of all migrations."""
    file = tmp_path_factory.mktemp("sqlite") / "template.db"
    Database.open(f"sqlite:///{file}", connections=1, synchronous="NORMAL").close()
    return file


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without tables, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/rekontext.db"
        return
    with postgres.database(request.getfixturevalue("postgres_server"), f"empty_{next(_numbers)}") as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database with all tables and no rows, once of each kind."""
    if request.param == "sqlite":
        shutil.copyfile(request.getfixturevalue("sqlite_template"), tmp_path / "rekontext.db")
        yield f"sqlite:///{tmp_path}/rekontext.db"
        return
    with request.getfixturevalue("postgres_lender").lend() as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """An open database with all tables and no rows, once of each kind."""
    opened = Database.open(database_url, synchronous="NORMAL", migrate=False)
    yield opened
    opened.close()
