"""What `rekontext serve` makes of its settings and of signals, and how it refuses to start."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
import tomllib
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from threading import Event, Thread, Timer
from threading import enumerate as enumerate_threads
from urllib.parse import urlsplit

import pytest
import uvicorn
import uvloop
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from rekontext.api.http1 import server_config
from rekontext.cli.serve import _fleet, _heed_hang_up, _let_go, _Server
from rekontext.fleet import LocalFleet, Opening, ProcessFleet
from rekontext.settings import Settings
from tests.api.studio import Studio
from tests.cli.commands import Run
from tests.surfaces.served import serve, serve_app


def test_the_server_runs_on_the_loop_that_is_asked_for_by_its_name(tmp_path: Path) -> None:
    """uvicorn takes uvloop where it finds it; its own extras bring four packages more, which nothing here uses."""
    app = Studio(folder=tmp_path).app
    assert server_config(app, answers_s=5).get_loop_factory() is uvloop.new_event_loop
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    asked = [re.split("[<>=]", each)[0] for each in project["project"]["dependencies"]]
    assert [name for name in asked if name.startswith(("uvicorn", "uvloop"))] == ["uvicorn", "uvloop"]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A GPU's driver, once the file is there."""
    found = tmp_path / "driver"
    monkeypatch.setattr("rekontext.cli.serve._GPU_DRIVERS", (tmp_path / "another", found))
    return found


def settings(*device: str, idle_s: float | None = None) -> Settings:
    return Settings(_env_file=None, device=device, idle_s=idle_s)  # type: ignore[call-arg]


@pytest.mark.parametrize("device", [("cuda",), ("cuda:1",), ("cuda:0", "cuda:1"), ("cpu", "cuda"), ()])
def test_a_gpus_engine_has_a_process_of_its_own(driver: Path, device: tuple[str, ...]) -> None:
    """One that hangs is noticed, and ends. Without a name the engine chooses there."""
    driver.touch()
    fleet = _fleet(settings(*device))
    assert isinstance(fleet, ProcessFleet)
    assert tuple(fleet.devices) == (device or ("",))
    assert fleet._idle_s is None


def test_every_gpu_has_one_also_where_there_is_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with its name."""
    monkeypatch.setattr("rekontext.cli.serve._every_gpu", lambda: ("cuda:0",))
    fleet = _fleet(settings("all"))
    assert isinstance(fleet, ProcessFleet)
    assert tuple(fleet.devices) == ("cuda:0",)


@pytest.mark.parametrize(("device", "has_driver"), [((), False), (("cpu",), False), (("cpu",), True)])
def test_a_cpus_engine_is_in_the_services_process(driver: Path, device: tuple[str, ...], has_driver: bool) -> None:
    """Nothing there hangs by itself; a second process would cost memory."""
    if has_driver:
        driver.touch()
    assert isinstance(_fleet(settings(*device)), LocalFleet)


@pytest.mark.parametrize("device", [(), ("cpu",)])
def test_what_sleeps_has_a_process_that_can_end(driver: Path, device: tuple[str, ...]) -> None:
    """A CPU too."""
    fleet = _fleet(settings(*device, idle_s=60))
    assert isinstance(fleet, ProcessFleet)
    assert (tuple(fleet.devices), fleet._idle_s) == (device or ("",), 60)


def test_an_engine_is_opened_as_the_settings_say(tmp_path: Path) -> None:
    """With what it has learned beside the rest that is kept."""
    said = {"model": "some/model", "dtype": "bfloat16", "compiled": True, "batch": "any", "lora": ("ink:2",)}
    fleet = _fleet(Settings(_env_file=None, data_dir=tmp_path, device=("cpu",), **said))  # type: ignore[arg-type, call-arg]
    assert isinstance(fleet, LocalFleet)
    assert fleet._opening == Opening(
        model="some/model",
        device="cpu",
        dtype="bfloat16",
        cache_folder=tmp_path / "engine",
        compiled=True,
        batch="any",
        loras=("ink:2",),
    )


def test_without_a_device_there_is_no_fleet() -> None:
    """Others run the edits."""
    assert _fleet(settings("none")) is None


@pytest.mark.anyio
async def test_a_second_signal_hurries_and_nothing_is_left_undone() -> None:
    """uvicorn's way would skip the end of the service. A terminal's end, which is said twice, is no second one."""
    said: list[str] = []
    server = _stopping(uvicorn.Config("none"), on_hurry=lambda: said.append("hurry"))
    for number, hurried in ((signal.SIGHUP, 0), (signal.SIGHUP, 0), (signal.SIGTERM, 1), (signal.SIGINT, 2)):
        server.handle_exit(number, None)
        await asyncio.sleep(0)
        assert (len(said), server.should_exit, server.force_exit) == (hurried, True, False)


def test_a_stop_waits_for_a_slow_body_as_long_as_for_edits_and_answers_nothing(tmp_path: Path) -> None:
    """It held the stop up until its request was cancelled, with a traceback and an answer that no error has."""

    with ExitStack() as left_open:
        with capture_logs() as lines, serve(Studio(folder=tmp_path), answers_s=600, server_of=_stopping) as served:
            place = urlsplit(served.url)
            connection = left_open.enter_context(socket.create_connection((place.hostname or "", place.port or 0)))
            lines_of = ["content-type: application/json", "content-length: 399999", f"x-api-key: {served.key}"]
            connection.sendall(
                "\r\n".join(["POST /v1/flux-kontext-dev HTTP/1.1", "host: x", *lines_of, "", ""]).encode()
            )
            sending = Thread(target=_send_on, args=[connection], daemon=True)
            sending.start()
        sending.join(30)
        assert not sending.is_alive()
        with suppress(ConnectionResetError):
            assert connection.recv(4096) == b""
    statuses = [line["status"] for line in lines if line["event"] == "request"]
    assert statuses == [499]


def test_a_stop_that_hangs_is_given_up() -> None:
    """As on a database that takes connections and answers nothing: a process manager would have to kill."""
    given_up = Event()

    async def hanging(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.to_thread(given_up.wait, 30)
        await send({"type": "lifespan.shutdown.complete"})

    with serve_app(hanging, server_of=partial(_stopping, stop_s_max=0.1, give_up=given_up.set)):
        pass
    assert given_up.is_set()


def test_a_stop_in_time_is_not_given_up(tmp_path: Path) -> None:
    """Nor does anything of it go off later."""
    given_up = Event()
    with serve(Studio(folder=tmp_path), server_of=partial(_stopping, stop_s_max=60, give_up=given_up.set)):
        pass
    timers = [thread for thread in enumerate_threads() if isinstance(thread, Timer)]
    assert all(timer.finished.is_set() for timer in timers)
    assert not given_up.is_set()


def _stopping(
    config: uvicorn.Config,
    *,
    on_hurry: Callable[[], None] = lambda: None,
    stop_s_max: float = 60,
    give_up: Callable[[], None] = lambda: None,
) -> _Server:
    return _Server(
        config,
        bodies_s=0.3,
        on_shutdown=lambda: None,
        on_hurry=on_hurry,
        stop_s_max=stop_s_max,
        give_up=give_up,
    )


def _send_on(connection: socket.socket) -> None:
    """Fast enough for a stop to wait, until it is cut off."""
    with suppress(OSError):
        while True:
            connection.sendall(bytes(2**10))
            time.sleep(0.02)


@pytest.mark.parametrize("is_ignored", [False, True])
def test_a_terminal_that_goes_away_ends_the_server_unless_that_is_ignored(
    monkeypatch: pytest.MonkeyPatch, is_ignored: bool
) -> None:
    """nohup has it ignored."""
    monkeypatch.setattr("rekontext.cli.serve._let_go", lambda *_files: None)
    server = uvicorn.Server(uvicorn.Config("none"))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
    try:
        _heed_hang_up(server)
        signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert server.should_exit is not is_ignored


def test_what_is_logged_after_the_terminal_is_gone_stops_nothing(tmp_path: Path) -> None:
    """It goes nowhere; into a file it is still written."""
    (terminal, gone), (log, kept) = (
        os.openpty(),
        (tmp_path / "log", os.open(tmp_path / "log", os.O_CREAT | os.O_WRONLY)),
    )
    os.close(terminal)
    with pytest.raises(OSError, match="Input/output error"):
        os.write(gone, b"a line")
    _let_go(gone, kept)
    for file in (gone, kept):
        assert os.write(file, b"a line") == 6
        os.close(file)
    assert log.read_bytes() == b"a line"


def test_serve_may_be_started_again_where_a_disk_is_not_there_yet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a boot a mount may come later; exit code 1, by which a supervisor tries again."""
    monkeypatch.setenv("REKONTEXT_STORE_URL", "file:///proc/mount/store")
    outcome = run(["serve", "--port", "0"])
    assert (outcome.code, "can't be opened" in outcome.err) == (1, True)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("REKONTEXT_DATABASE_URL", "mysql://a:geheim@b/c", "REKONTEXT_DATABASE_URL can't be used: database url names"),
        ("REKONTEXT_DATABASE_URL", "geheim", "REKONTEXT_DATABASE_URL can't be used: database url can't be read"),
        ("REKONTEXT_DATABASE_URL", "postgresql://a:geheim", "REKONTEXT_DATABASE_URL can't be used: database url can't"),
        ("REKONTEXT_STORE_URL", "file://no/folder", "must name an absolute folder"),
        ("REKONTEXT_RATE_LIMITS_URL", "mongodb://a:geheim@b", "REKONTEXT_RATE_LIMITS_URL can't be used: rate limit"),
        ("REKONTEXT_DATA_DIR", "photo.jpg", "the secret can't be kept in photo.jpg/secret"),
    ],
)
def test_serve_stops_at_a_setting_that_can_t_be_used(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    """One line that names it, without the password in it, and no account whose key nobody gets to see.

    With exit code 2, by which a supervisor knows that no new start mends it.
    """
    monkeypatch.setenv(name, value)
    outcome = run(["serve", "--port", "0"])
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert says in outcome.err
    assert "geheim" not in outcome.err
    assert not Path("data/rekontext.db").exists()


def test_serve_may_be_started_again_where_the_database_is_away(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1: the next start may find it."""
    monkeypatch.setenv("REKONTEXT_DATABASE_URL", "postgresql://a:geheim@127.0.0.1:1/c")
    outcome = run(["serve", "--port", "0"])
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (1, "", 1)
    assert "(REKONTEXT_DATABASE_URL)" in outcome.err
    assert "geheim" not in outcome.err


def test_servers_on_free_ports_have_names_of_their_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two under one name on one database, the second would take the first one's jobs for its own of yesterday."""
    ports: list[int] = []

    def refuse(settings: Settings, **_: object) -> None:
        ports.append(settings.port)
        raise ValueError("enough")

    monkeypatch.setattr("rekontext.cli.serve.assemble", refuse)
    assert "enough" in run(["serve", "--port", "0"]).err
    assert ports[0] > 0


@pytest.mark.parametrize("name", ["./nowhere", "/nope", "nowhere.safetensors", "~/no/where", "~nobody-here/x", "a/b/c"])
def test_a_model_that_is_not_there_stops_serve_before_a_key_is_made(run: Run, name: str) -> None:
    """The key is shown once, by a start that ends well."""
    outcome = run(["serve", "--model", name, "--port", "0"])
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert f"the model {name} can't be loaded: there is no such folder or file" in outcome.err
    assert not Path("data").exists()


def test_serve_says_when_the_port_is_taken(run: Run) -> None:
    """And makes no key that nobody would get to see."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        outcome = run(["serve", "--port", str(port)])
    assert outcome.code == 1
    assert f"can't listen on 127.0.0.1 port {port} (Address already in use); try another --port" in outcome.err
    assert not Path("data").exists()
