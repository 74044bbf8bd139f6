"""`rekontext serve` as a process, from its first start to its end."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import httpx2
import pytest

from tests.cli.commands import SCRIPT, SOON_S, Run


@contextmanager
def _serving(model: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    command = [*SCRIPT, "serve", "--model", model, "--port", "0", "--data-dir", "kept"]
    environment = {**os.environ, "NO_COLOR": "1", **settings}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, umask=0o022) as process:
        watchdog = Timer(SOON_S, process.kill)
        watchdog.start()
        try:
            yield process
        finally:
            watchdog.cancel()
            process.kill()


def _read_until(process: subprocess.Popen[str], word: str) -> str:
    """What the process has said up to the line with `word`. Ends at the latest when the process does."""
    assert process.stderr is not None
    said = ""
    for line in process.stderr:
        said += line
        if word in line:
            return said
    pytest.fail(f"{word!r} was never said:\n{said}")


def _edited_by(client: httpx2.Client) -> httpx2.Response:
    return client.post(
        "/v1/flux-kontext-dev",
        data={"prompt": "make it night", "num_inference_steps": "4"},
        files={"input_image": Path("photo.jpg").read_bytes()},
    )


def test_serve_from_first_start_to_ctrl_c(model: str) -> None:
    """The printed key and curl line work; Ctrl-C ends it with 0.

    With `idle_s` it holds no model meanwhile: the engine's process ends, and comes again for the next edit. What both
    keep is for their user alone, also in a folder that is open to everybody.
    """
    Path("kept").mkdir(mode=0o755)
    with _serving(model, REKONTEXT_IDLE_S="1") as served:
        said = _read_until(served, "edited.png")
        key = said.split("shown this once: ")[1].split()[0]
        assert "shown this once" in said.replace(key, "")
        url = said.split("Rekontext on ")[1].split(": playground")[0]
        assert key.encode() not in b"".join(path.read_bytes() for path in Path("kept").iterdir() if path.is_file())
        assert "device_asleep" in said or _read_until(served, "device_asleep")
        with httpx2.Client(base_url=url, headers={"x-api-key": key}, timeout=SOON_S) as client:
            assert client.get("/readyz").status_code == 200
            assert 'rekontext_devices{state="asleep"} 1.0' in client.get("/metrics").text
            answer = _edited_by(client)
            pages = [client.get(path).status_code for path in ("/", "/console", "/docs")]
        assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
        assert (answer.headers["x-cost"], answer.headers["x-remaining-credits"]) == ("0.04", "9.96")
        assert pages == [200, 200, 200]
        kept = list(Path("kept").rglob("*"))
        assert {"rekontext.db", "rekontext.db-wal", "secret", "store", "engine"} <= {path.name for path in kept}
        assert [path for path in kept if path.stat().st_mode & 0o077] == []
        assert stat.S_IMODE(Path("kept").stat().st_mode) == 0o755
        served.send_signal(signal.SIGINT)
        assert served.wait(timeout=SOON_S) == 0


def test_serve_without_a_device_lets_another_process_run_its_edits(model: str) -> None:
    """In front of machines that come and go. It needs to know nothing of the model."""
    with _serving("no/such-model", REKONTEXT_DEVICE="none") as front:
        said = _read_until(front, "No device here")
        key = said.split("shown this once: ")[1].split()[0]
        url = said.split("Rekontext on ")[1].split(": playground")[0]
        with _serving(model) as behind:
            assert "in other processes" in _read_until(front, "edited.png")
            with httpx2.Client(base_url=url, headers={"x-api-key": key}, timeout=60) as client:
                answer = _edited_by(client)
            assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
            behind.send_signal(signal.SIGINT)
            assert behind.wait(timeout=SOON_S) == 0
        front.send_signal(signal.SIGINT)
        assert front.wait(timeout=SOON_S) == 0


def _code_when_told_to_end(script: str, *, after: str, by: signal.Signals = signal.SIGTERM) -> int:
    """How a program ends that gets a signal once it has said a word."""
    environment = {**os.environ, "REKONTEXT_DEVICE": "cpu"}  # the engine that the script replaces is in its process
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        watchdog = Timer(SOON_S, process.kill)
        watchdog.start()
        try:
            _read_until(process, after)
            process.send_signal(by)
            return process.wait()
        finally:
            watchdog.cancel()
            process.kill()


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGHUP])
def test_serve_ends_with_0_when_it_is_told_to(by: signal.Signals) -> None:
    """SIGTERM is how process managers say so, and SIGHUP how a terminal does that goes away.

    The model that is ready by then takes no time here. Nor is Python taken apart, and standard output may be closed.
    """
    script = (
        "import atexit, os, signal, sys\n"
        "from concurrent.futures import Future\n"
        "from types import SimpleNamespace\n"
        "from rekontext.cli import main\n"
        "from rekontext.contract import ModelCard\n"
        "from rekontext.fleet import LocalFleet\n"
        "card = ModelCard(name='mini', canvas_area=1, parameters=1, device='cpu', dtype='float32', is_mini=True, "
        "knows=())\n"
        "engine = SimpleNamespace(card=card, broken=Future(), close=lambda: None)\n"
        "LocalFleet._open = lambda self: engine\n"
        "async def profile(self): return {}\n"
        "LocalFleet.profile = profile\n"
        "sys.stdout = None\n"
        "atexit.register(os._exit, 9)\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # whoever runs the tests may have it ignored
        "main(['serve', '--port', '0'])\n"
    )
    assert _code_when_told_to_end(script, after="edited.png", by=by) == 0


def _greeting(*options: str) -> str:
    """What a server says before it loads its model, which here takes for ever; then it is killed."""
    script = (
        "import sys, threading\n"
        "from rekontext.cli import main\n"
        "from rekontext.fleet import LocalFleet\n"
        "LocalFleet._open = lambda self: threading.Event().wait()\n"
        "main(['serve', '--port', '0', *sys.argv[1:]])\n"
    )
    command = [sys.executable, "-c", script, *options]
    environment = {**os.environ, "NO_COLOR": "1", "REKONTEXT_DEVICE": "cpu"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        watchdog = Timer(SOON_S, process.kill)
        watchdog.start()
        try:
            return _read_until(process, "Loading")
        finally:
            watchdog.cancel()
            process.kill()


def test_the_greeting_names_an_account_that_there_is(run: Run) -> None:
    """And how to make the admin key that an account opened before the first start doesn't have."""
    run(["accounts", "create", "team one"])
    said = _greeting()
    assert "For another API key: rekontext keys create 'team one'" in said
    assert "There is no admin key: add --scope admin --scope edit --scope read" in said
    made = run(["keys", "create", "team one", "--scope", "admin", "--scope", "edit", "--scope", "read", "--json"])
    assert json.loads(made.out)["scopes"] == ["admin", "edit", "read"]
    assert "admin" not in _greeting()
    run(["keys", "revoke", json.loads(made.out)["id"]])
    assert "There is no admin key" in _greeting()


def test_serve_need_not_wait_for_a_model_that_is_being_loaded() -> None:
    """Which takes minutes for a large one; here it takes for ever."""
    script = (
        "import threading\n"
        "from rekontext.cli import main\n"
        "from rekontext.fleet import LocalFleet\n"
        "LocalFleet._open = lambda self: threading.Event().wait()\n"
        "main(['serve', '--port', '0'])\n"
    )
    assert _code_when_told_to_end(script, after="startup complete") == 0


def test_serve_ends_when_the_model_can_t_be_loaded(tmp_path: Path) -> None:
    """One line with the reason and exit code 1, not a server that is never ready."""
    Path("empty").mkdir()
    command = [*SCRIPT, "serve", "--model", "./empty", "--port", "0"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SOON_S)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: the model ./empty can't be loaded")
    assert "Traceback" not in done.stderr
