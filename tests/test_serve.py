"""What `rekontext serve` makes of its settings and of signals."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
import uvicorn

from rekontext.cli.serve import _fleet, _heed_hang_up, _let_go, _Server
from rekontext.fleet import LocalFleet, Opening, ProcessFleet
from rekontext.settings import Settings


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
    said = {"model": "some/model", "dtype": "bfloat16", "compiled": True, "batch": "any"}
    fleet = _fleet(Settings(_env_file=None, data_dir=tmp_path, device=("cpu",), **said))  # type: ignore[arg-type, call-arg]
    assert isinstance(fleet, LocalFleet)
    assert fleet._opening == Opening(
        model="some/model", device="cpu", dtype="bfloat16", cache_folder=tmp_path / "engine", compiled=True, batch="any"
    )


def test_without_a_device_there_is_no_fleet() -> None:
    """Others run the edits."""
    assert _fleet(settings("none")) is None


@pytest.mark.anyio
async def test_a_second_signal_hurries_and_nothing_is_left_undone() -> None:
    """uvicorn's way would skip the end of the service. A terminal's end, which is said twice, is no second one."""
    said: list[str] = []
    server = _Server(uvicorn.Config("none"), on_shutdown=lambda: None, on_hurry=lambda: said.append("hurry"))
    for number, hurried in ((signal.SIGHUP, 0), (signal.SIGHUP, 0), (signal.SIGTERM, 1), (signal.SIGINT, 2)):
        server.handle_exit(number, None)
        await asyncio.sleep(0)
        assert (len(said), server.should_exit, server.force_exit) == (hurried, True, False)


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
