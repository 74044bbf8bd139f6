"""Every setting of the service as one typed value, read once at the start.

A setting comes from, first wins: a command-line flag, a `REKONTEXT_*` variable, the `.env` file in the working
directory, its default here. Knows nothing of what the values are used for.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

PREFIX: Final = "REKONTEXT_"
_MIB: Final = 2**20


class SettingsError(ValueError):
    """A setting is wrong. The message is one line that names it and says what is allowed."""


class Settings(BaseSettings):
    """What an operator may choose. Each field is also the variable `REKONTEXT_` + its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(default=Path("data"), description="folder for everything that is kept, made if missing")
    model: str = Field(default="mini", min_length=1, description='"mini", a folder, a file or a hub id')
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] | None = Field(
        default=None, description="where to compute: cpu, cuda or cuda:N; empty picks the best"
    )
    dtype: Literal["float32", "bfloat16"] | None = Field(default=None, description="precision; empty fits the device")

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    shutdown_grace_s: float = Field(default=30.0, ge=0, le=3600, description="how long running edits may go on")

    queue_max: int = Field(default=32, ge=1, le=100_000, description="edits accepted and not yet answered")
    running_max: int = Field(default=4, ge=1, le=1024, description="edits handed to the engine at a time")
    deadline_s: float = Field(default=300.0, gt=0, le=86_400, description="longest wait of one synchronous edit")

    body_bytes_max: int = Field(default=32 * _MIB, ge=1024, le=2**31)
    picture_bytes_max: int = Field(default=20 * _MIB, ge=1024, le=2**31)
    picture_pixels_max: int = Field(default=50_000_000, ge=1, le=89_000_000)
    codec_threads: int = Field(default=2, ge=1, le=64, description="threads that decode and encode pictures")

    fetch_timeout_s: float = Field(default=20.0, gt=0, le=600, description="for one input URL, redirects included")
    fetch_redirects_max: int = Field(default=3, ge=0, le=20)
    fetch_allow: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="networks and hosts that may be fetched though not public, separated by commas"
    )

    @field_validator("fetch_allow", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("fetch_allow")
    @classmethod
    def _networks_or_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if "/" in entry:
                try:
                    ip_network(entry, strict=False)
                except ValueError as fault:
                    raise ValueError(f'"{entry}" is no network; allowed are networks (10.0.0.0/8) and hosts') from fault
        return value


def load_settings(**flags: object) -> Settings:
    """Read the settings. A flag that is None was not given.

    Raises:
        SettingsError: a value is wrong, or a `REKONTEXT_*` name is none of ours.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    strangers = unknown_names([*os.environ, *_dotenv_names()])
    if strangers:
        raise SettingsError(_unknown(strangers))
    try:
        values: dict[str, Any] = given
        return Settings(**values)
    except ValidationError as fault:
        raise SettingsError("; ".join(_wrong(error, given) for error in fault.errors())) from fault


def unknown_names(names: Iterable[str]) -> list[str]:
    """Those that begin with our prefix and name no setting: most likely slips of the pen."""
    known = {variable(name) for name in Settings.model_fields}
    return sorted({name.upper() for name in names if name.upper().startswith(PREFIX)} - known)


def variable(setting: str) -> str:
    return PREFIX + setting.upper()


def _dotenv_names() -> Iterable[str]:
    try:
        return DotEnvSettingsSource(Settings, env_file=".env").env_vars
    except (OSError, UnicodeDecodeError) as fault:
        raise SettingsError(f"the .env file can't be read: {fault}") from fault


def _unknown(strangers: list[str]) -> str:
    known = [variable(name) for name in Settings.model_fields]
    close = difflib.get_close_matches(strangers[0], known, n=1, cutoff=0.75)
    hint = f"; did you mean {close[0]}?" if close else f"; the settings are {', '.join(known)}"
    return f"{', '.join(strangers)} is no setting{hint}"


def _wrong(error: Mapping[str, Any], given: Mapping[str, object]) -> str:
    setting = str(error["loc"][0])
    origin = f"--{setting.replace('_', '-')}" if setting in given else variable(setting)
    reason = str(error["msg"]).removeprefix("Value error, ")
    value = error["input"]
    shown = f'"{value[:60]}"' if isinstance(value, str) else value
    return f"{origin} is {shown}, which is wrong: {reason[:1].lower()}{reason[1:]}"
