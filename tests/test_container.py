"""The image and the services made of it, as far as that shows without building one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from rekontext.settings import PREFIX, Settings, load_settings, unknown_names
from tests.api.studio import Studio

ROOT: Final = Path(__file__).parents[1]
TARGETS: Final = ("service", "engine")
PIN: Final = re.compile(r"\btorch==([\w.]+)")
STOP_S: Final = 15
"""docs/operating/settings.md: how much longer than `shutdown_grace_s` whoever stops the service must wait."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One `FROM`, and the instructions up to the next."""

    name: str
    base: str
    instructions: tuple[tuple[str, str], ...]

    def all_of(self, word: str) -> list[str]:
        """The arguments of an instruction, of each time that it stands here."""
        return [rest for instruction, rest in self.instructions if instruction == word]


def stages() -> dict[str, Stage]:
    """By name, those that a target comes from before it."""
    text = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    _, *parts = re.split(r"^FROM ", text, flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    for part in parts:
        head, *lines = part.splitlines()
        base, _, name = head.partition(" AS ")
        instructions = tuple((word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line))
        found[name] = Stage(name=name, base=base, instructions=instructions)
    return found


def inherited(target: str, word: str) -> list[str]:
    """The arguments of an instruction in a target and the stages that it stands on, the first ones first."""
    known = stages()
    stage = known[target]
    above = inherited(stage.base, word) if stage.base in known else []
    return [*above, *stage.all_of(word)]


def environment(target: str) -> dict[str, str]:
    return dict(pair for line in inherited(target, "ENV") for pair in re.findall(r"(\w+)=(\S+)", line))


def is_ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out of what is built from: its last pattern for it, or for a folder above."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = re.escape(line.removeprefix("!")).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{pattern}(?:/.*)?", path):
            verdict = not line.startswith("!")
    return verdict


def copied() -> list[str]:
    """What is copied from the clone, over all stages."""
    lines = [line for stage in stages().values() for line in stage.all_of("COPY") if not line.startswith("--from=")]
    return [source for line in lines for source in line.split()[:-1]]


def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
    return read


def of_ours() -> dict[str, dict[str, Any]]:
    """The services that run our image, by name."""
    return {name: service for name, service in compose()["services"].items() if "build" in service}


@pytest.fixture(autouse=True)
def clean_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable and no .env but the test's own."""
    for name in list(os.environ):
        if name.upper().startswith(PREFIX):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_what_is_copied_is_there() -> None:
    """In the clone, and not kept out by .dockerignore."""
    assert {"pyproject.toml", "constraints.txt", "src"} <= set(copied())
    for source in copied():
        assert (ROOT / source).exists(), source
        assert not is_ignored(source), source


def test_the_wheel_has_all_that_it_is_built_from() -> None:
    """What pyproject.toml names, and every file of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {project["readme"], *project["license-files"]} <= set(copied())
    files = [path for path in (ROOT / "src").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert [path for path in files if is_ignored(path.relative_to(ROOT).as_posix())] == []


@pytest.mark.parametrize(
    "path", [".env", "data/secret", ".git/config", "deploy/.env", ".venv/bin/python", "src/.env", "src/a/__pycache__/b"]
)
def test_what_is_private_or_made_stays_out(path: str) -> None:
    """An image is given away, and its layers keep everything."""
    assert is_ignored(path)


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_s_variables_are_settings(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All known and right; it listens to other machines, and keeps what it keeps in a volume."""
    ours = {name: value for name, value in environment(target).items() if name.startswith(PREFIX)}
    assert ours
    for name, value in ours.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.host == "0.0.0.0"
    assert inherited(target, "EXPOSE") == [str(settings.port)]
    volumes = json.loads(inherited(target, "VOLUME")[-1])
    assert {str(settings.data_dir), environment(target)["HOME"]} == set(volumes)
    assert settings.has_device == (target == "engine"), "a front has no torch"


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_one_program_that_isn_t_root_s(target: str) -> None:
    """No shell between it and the signals, and a user by number: a name can't be told from root's by others."""
    assert json.loads(inherited(target, "ENTRYPOINT")[-1]) == ["tini", "--", "rekontext"]
    assert json.loads(inherited(target, "CMD")[-1]) == ["serve"]
    assert inherited(target, "STOPSIGNAL")[-1] == "SIGTERM"
    user = inherited(target, "USER")[-1]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert stages()[target].instructions[-1] == ("USER", user), "what comes after it would be another's"


def test_without_a_target_the_engine_is_built() -> None:
    """As the docs say: it is the last stage."""
    assert list(stages())[-1] == "engine"


def test_torch_is_the_one_that_the_makefile_installs() -> None:
    """And the one that was tested, that the docs install, and that constraints.txt allows."""
    places = ("Dockerfile", "Makefile", "constraints.txt", "docs/operating/install.md")
    assert len({pin for place in places for pin in PIN.findall((ROOT / place).read_text())}) == 1
    assert all(PIN.search((ROOT / place).read_text()) for place in places)


def health_check() -> tuple[Sequence[str], str]:
    """Its command, and the path that it asks for."""
    _, _, command = inherited("service", "HEALTHCHECK")[-1].partition("CMD ")
    python, *arguments = json.loads(command)
    assert python == "python"
    asked = re.search(r"'GET', '([^']+)'", arguments[-1])
    assert asked is not None
    return [sys.executable, *arguments], asked[1]


@pytest.mark.anyio
async def test_the_health_check_asks_for_a_path_that_there_is(tmp_path: Path) -> None:
    """One that needs no key and no model: what is loading a large one isn't ill."""
    _, path = health_check()
    async with Studio(folder=tmp_path).open() as client:
        assert (await client.get(path)).status_code == 200


@contextmanager
def answering(status: int) -> Iterator[int]:
    """A server on a port of its own, that answers every GET so."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Not on the test's output."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_health_check_goes_by_the_answer(status: int, code: int) -> None:
    """On whatever port the setting says, and past any proxy that the environment names."""
    command, _ = health_check()
    with answering(status) as port:
        ran = subprocess.run(
            command,
            env={"REKONTEXT_PORT": str(port), "http_proxy": "http://127.0.0.1:1"},
            capture_output=True,
            check=False,
            timeout=30,
        )
    assert ran.returncode == code, ran.stderr


def test_the_services_variables_are_settings() -> None:
    """A slip of the pen would stop every start; of the secret and the password none has a default."""
    for service in of_ours().values():
        given = service["environment"]
        assert unknown_names(given) == []
        assert given["REKONTEXT_SECRET"].startswith("${REKONTEXT_SECRET:?")
        assert "${POSTGRES_PASSWORD:?" in given["REKONTEXT_DATABASE_URL"]
    assert compose()["services"]["database"]["environment"]["POSTGRES_PASSWORD"].startswith("${POSTGRES_PASSWORD:?")


def test_the_services_fit_the_image() -> None:
    """They are targets of it, keep what it keeps, and are given the time to stop that it takes."""
    grace_s = Settings.model_fields["shutdown_grace_s"].default + STOP_S
    assert {service["build"]["target"] for service in of_ours().values()} == set(TARGETS)
    for name, service in of_ours().items():
        target = service["build"]["target"]
        assert (ROOT / "deploy" / service["build"]["context"]).resolve() == ROOT
        volumes = dict(volume.split(":") for volume in service["volumes"])
        assert set(volumes) <= set(compose()["volumes"]), name
        assert set(volumes.values()) <= set(json.loads(inherited(target, "VOLUME")[-1])), name
        assert environment(target)["REKONTEXT_DATA_DIR"] in volumes.values(), name
        assert int(service["stop_grace_period"].removesuffix("s")) >= grace_s, name
        assert [port.rpartition(":")[2] for port in service.get("ports", [])] in ([], inherited(target, "EXPOSE")), name
    built = {(service["build"]["target"], service["image"]) for service in of_ours().values()}
    assert len(built) == len(TARGETS), "what is built for one is what the other runs"
