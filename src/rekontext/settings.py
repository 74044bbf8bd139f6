"""Every setting of the service as one typed value, read once at the start.

A setting comes from, first wins: a command-line flag, a `REKONTEXT_*` variable, the `.env` file in the working
directory, its default here. Knows nothing of what the values are used for.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import SplitResult, quote, urlsplit

from dotenv.parser import parse_stream
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, SettingsConfigDict

from rekontext.contract import BatchMode
from rekontext.models import lora_and_strength

PREFIX: Final = "REKONTEXT_"
KEY_VARIABLE: Final = "REKONTEXT_KEY"
"""Where the examples let a client keep its API key. No setting of the server, but often set in the same shell."""

_MIB: Final = 2**20
_HOUR: Final = 3600.0
_DAY: Final = 24 * _HOUR

_SECRET_CHARACTERS_MIN: Final = 32
_BODIES: Final = 16
EVERY_GPU: Final = "all"
"""As `device`: every GPU that this machine has."""
NO_DEVICE: Final = "none"
"""As `device`: edits are accepted here, and run by processes with devices that share the database."""
_DEVICE: Final = re.compile(r"cpu|cuda(:\d{1,3})?")
_STORES: Final = ("file", "s3", "gs", "az")
_DOTENV: Final = ".env"
_SWALLOWED: Final = re.compile(rf"^\s*(?:export\s+)?{PREFIX}\w+\s*=", re.MULTILINE | re.IGNORECASE)
_PRIVATE: Final = ("secret", "database_url", "rate_limits_url", "safety_url")
"""Settings whose values are never shown: they are secrets, or may hold a password."""

Usd = Annotated[Decimal, Field(ge=0, le=1_000_000, decimal_places=6)]
Entries = Annotated[tuple[str, ...], NoDecode]
Kept = Annotated[float, Field(gt=0, le=3650 * _DAY)]


class SettingsError(ValueError):
    """A setting is wrong. The message is one line that names it and says what is allowed."""


class Settings(BaseSettings):
    """What an operator may choose. Each field is also the variable `REKONTEXT_` + its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=_DOTENV,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(default=Path("data"), description="folder for everything that is kept, made if missing")
    database_url: str | None = Field(default=None, description="postgresql://…; empty is SQLite in the data folder")
    store_url: str | None = Field(default=None, description="s3://…, gs://…, az://…; empty is in the data folder")
    secret: SecretStr | None = Field(
        default=None, description="signs links and keys; empty is made once and kept in the data folder"
    )
    model: str = Field(default="mini", min_length=1, description='"mini", a folder, a file or a hub id')
    lora: Entries = Field(
        default=(), description="files, or hub ids, merged into the model, as FILE:STRENGTH, separated by commas"
    )
    lora_folder: Path | None = Field(
        default=None, description="folder whose .safetensors files an edit may ask for by name, to have them merged"
    )
    device: Entries = Field(
        default=(),
        description="where to compute: cpu, cuda, cuda:N, several separated by commas, all, or none; empty picks one",
    )
    dtype: Literal["float32", "bfloat16", "fp8"] | None = Field(
        default=None, description="precision; empty fits the device"
    )
    compiled: bool = Field(
        default=False, description="compile the transformer: for float32 on a GPU; in bfloat16 our kernels are as fast"
    )
    batch: BatchMode = Field(
        default="exact", description="edits that share a pass: if that changes no bit, always, never"
    )
    idle_s: float | None = Field(
        default=None, ge=1, le=30 * _DAY, description="a device without work for so long gives its memory back"
    )
    standby: bool = Field(default=True, description="such a device keeps a process ready on the host: it wakes sooner")

    host: str = Field(default="127.0.0.1", min_length=1, description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    external_url: str | None = Field(default=None, description="how clients reach us, if not by the address they call")
    trusted_proxies: Entries = Field(
        default=(), description="networks whose X-Forwarded-* headers are believed, separated by commas"
    )
    worker: str | None = Field(
        default=None, min_length=1, max_length=200, description="names this process in a shared database"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "text", "json"] = Field(default="auto", description="auto is text on a terminal")
    log_prompts: bool = False
    shutdown_grace_s: float = Field(default=30.0, ge=0, le=3600, description="how long running edits may go on")

    queue_max: int = Field(default=1000, ge=1, le=1_000_000, description="edits that may wait, of all accounts")
    in_flight_max: int = Field(default=32, ge=1, le=100_000, description="unfinished edits per account")
    running_max: int = Field(default=16, ge=1, le=1024, description="edits handed to a device at a time")
    requests_per_minute: int = Field(
        default=60, ge=1, le=1_000_000, description="submits, uploads and other counted requests per key"
    )
    rate_limits_url: str = Field(default="memory://", description="redis://HOST:PORT/0 counts over all processes")
    deadline_s: float = Field(default=300.0, gt=0, le=86_400, description="longest wait of one synchronous edit")
    run_s_max: float = Field(
        default=_HOUR, gt=0, le=_DAY, description="an attempt that takes longer, for each of its pictures, has failed"
    )
    lease_s: float = Field(default=30.0, ge=1, le=_HOUR, description="a worker silent for so long is taken for dead")
    faults_max: int = Field(default=3, ge=1, le=100, description="attempts that may fail through our fault")
    queue_s_max: float = Field(
        default=_DAY, gt=0, le=30 * _DAY, description="a job that waits longer for a worker fails"
    )

    safety_url: str | None = Field(
        default=None, description="a check of yours that is asked whether a picture may be handed out; empty is none"
    )
    safety_optional: bool = Field(default=False, description="callers may turn it off with disable_safety_checker")
    safety_timeout_s: float = Field(default=10.0, gt=0, le=600, description="for one of its answers")

    price_per_edit_usd: Usd = Decimal("0.04")
    price_per_megapixel_usd: Usd = Decimal(0)
    price_per_step_usd: Usd = Decimal(0)
    price_per_megapixel_step_usd: Usd = Decimal(0)
    first_credits_usd: Usd = Field(default=Decimal(10), description="for the account that the first start makes")

    keep_inputs_s: Kept = Field(default=_HOUR, description="input pictures and masks, after the end")
    keep_outputs_s: Kept = Field(default=7 * _DAY, description="output pictures, and links to them")
    keep_uploads_s: Kept = Field(default=7 * _DAY, description="uploaded pictures, and links to them")
    keep_records_s: Kept = Field(
        default=31 * _DAY,
        description="jobs with their prompts, and their pictures at the latest, the webhook log, and closed keys",
    )
    keep_idempotency_keys_s: Kept = _DAY

    body_bytes_max: int = Field(default=32 * _MIB, ge=1024, le=2**31)
    bodies_bytes_max: int | None = Field(
        default=None, le=2**40, description="of all bodies that are being read or wait; empty is 16 of the largest"
    )
    uploads_bytes_max: int = Field(
        default=2048 * _MIB, ge=1024, le=2**50, description="of all uploads of an account that are kept"
    )
    lora_bytes_max: int = Field(
        default=1024 * _MIB, ge=0, le=2**34, description="of a LoRA that an edit brings by its address; 0 takes none"
    )
    loras_bytes_max: int = Field(
        default=4096 * _MIB, ge=0, le=2**50, description="of all such LoRAs of an account that are kept"
    )
    picture_bytes_max: int = Field(default=20 * _MIB, ge=1024, le=2**31)
    picture_pixels_max: int = Field(default=50_000_000, ge=1, le=89_000_000)
    codec_threads: int = Field(default=2, ge=1, le=64, description="threads that decode and encode pictures")

    fetch_timeout_s: float = Field(default=20.0, gt=0, le=600, description="for one input URL, redirects included")
    lora_timeout_s: float = Field(default=120.0, gt=0, le=3600, description="for fetching one LoRA")
    fetch_redirects_max: int = Field(default=3, ge=0, le=20)
    fetch_allow: Entries = Field(
        default=(), description="networks and hosts that may be fetched though not public, separated by commas"
    )
    webhook_allow: Entries = Field(default=(), description="the same for the receivers of webhooks")

    @field_validator("data_dir", "lora_folder")
    @classmethod
    def _at_home(cls, value: Path | None) -> Path | None:
        # No shell has read what stands in .env. Path's own raises for a "~name" whose home isn't known.
        return None if value is None else Path(os.path.expanduser(value))  # noqa: PTH111

    @field_validator("lora", "device", "fetch_allow", "webhook_allow", "trusted_proxies", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("lora")
    @classmethod
    def _loras(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            lora_and_strength(entry)
        return value

    @field_validator("device")
    @classmethod
    def _devices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        is_word = value in ((EVERY_GPU,), (NO_DEVICE,))
        strange = [entry for entry in value if not _DEVICE.fullmatch(entry) and not is_word]
        if strange:
            allowed = f"cpu, cuda, cuda:N, several of them separated by commas, or {EVERY_GPU} or {NO_DEVICE} alone"
            raise ValueError(f'"{strange[0]}" is no device; allowed are {allowed}')
        known = ["cuda:0" if entry == "cuda" else entry for entry in value]
        twice = [entry for entry in known if known.count(entry) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is in it twice")
        return value

    @field_validator("fetch_allow", "webhook_allow")
    @classmethod
    def _networks_or_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            if "/" in entry:
                try:
                    ip_network(entry, strict=False)
                except ValueError as fault:
                    raise ValueError(f'"{entry}" is no network; allowed are networks (10.0.0.0/8) and hosts') from fault
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for entry in value:
            try:
                ip_network(entry, strict=False)
            except ValueError as fault:
                raise ValueError(f'"{entry}" is no network; allowed are addresses and networks (10.0.0.0/8)') from fault
        return value

    @field_validator("bodies_bytes_max")
    @classmethod
    def _room(cls, value: int | None, told: ValidationInfo) -> int | None:
        largest = told.data.get("body_bytes_max", 0)  # not there if it is wrong itself
        if value is not None and value < 2 * largest:
            raise ValueError(f"at least {2 * largest} are needed: one caller gets half of it, for one body at least")
        return value

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value.get_secret_value()) < _SECRET_CHARACTERS_MIN:
            raise ValueError(
                f"it has {len(value.get_secret_value())} characters, at least {_SECRET_CHARACTERS_MIN} are needed"
            )
        return value

    @field_validator("store_url")
    @classmethod
    def _store(cls, value: str | None) -> str | None:
        scheme, separator, rest = (value or "").partition("://")
        if value is not None and not (separator and rest.strip("/") and scheme in _STORES):
            raise ValueError("allowed are file:///FOLDER, s3://BUCKET, gs://BUCKET and az://CONTAINER")
        return value

    @field_validator("external_url")
    @classmethod
    def _origin(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = _web_address(value)
        if parts is None or parts.username is not None or parts.path.strip("/") or parts.query or parts.fragment:
            raise ValueError("allowed is an origin such as https://edits.example.com, without a path")
        return f"{parts.scheme}://{parts.netloc}"

    @field_validator("safety_url")
    @classmethod
    def _check(cls, value: str | None) -> str | None:
        if value is not None and _web_address(value) is None:
            raise ValueError("allowed is an address such as http://127.0.0.1:9000/check")
        return value

    @property
    def has_device(self) -> bool:
        """Whether edits run in this service at all."""
        return self.device != (NO_DEVICE,)

    @property
    def first_device(self) -> str | None:
        """Where a command computes that uses one device; None picks it."""
        return self.device[0] if self.device not in ((), (EVERY_GPU,), (NO_DEVICE,)) else None

    @property
    def database(self) -> str:
        """The database's URL, written out."""
        return self.database_url or f"sqlite:///{quote(str(self.database_file))}"

    @property
    def database_file(self) -> Path:
        """Where SQLite's file is, unless `database_url` names another database."""
        return self.data_dir.absolute() / "rekontext.db"

    @property
    def store(self) -> str:
        """The object store's URL, written out."""
        return self.store_url or f"file://{self.data_dir.absolute() / 'store'}"

    @property
    def bodies_bytes(self) -> int:
        """How many bytes all bodies have that are held at a time."""
        return _BODIES * self.body_bytes_max if self.bodies_bytes_max is None else self.bodies_bytes_max

    @property
    def inputs_s(self) -> float:
        """How long an input picture is kept after its job ended: not longer than the record that knows of it."""
        return min(self.keep_inputs_s, self.keep_records_s)

    @property
    def outputs_s(self) -> float:
        """How long outputs are kept after their job ended, likewise; it is what callers are told."""
        return min(self.keep_outputs_s, self.keep_records_s)

    @property
    def idempotency_s(self) -> float:
        """How long an idempotency key is kept at least: it goes with its job's record."""
        return min(self.keep_idempotency_keys_s, self.keep_records_s)


def load_settings(**flags: object) -> Settings:
    """Read the settings. A flag that is None was not given.

    Raises:
        SettingsError: a value is wrong, a `REKONTEXT_*` name is none of ours, or a line of .env can't be read.
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
    known = {variable(name) for name in Settings.model_fields} | {KEY_VARIABLE}
    return sorted({name.upper() for name in names if name.upper().startswith(PREFIX)} - known)


def variable(setting: str) -> str:
    return PREFIX + setting.upper()


def _dotenv_names() -> Iterable[str]:
    try:
        if Path(_DOTENV).is_file():
            _require_readable(Path(_DOTENV).read_text(encoding="utf-8"))
        return DotEnvSettingsSource(Settings, env_file=_DOTENV).env_vars
    except (OSError, UnicodeDecodeError) as fault:
        raise SettingsError(f"the .env file can't be read: {fault}") from fault


def _require_readable(dotenv: str) -> None:
    """Stop at a line that would be left out: without its setting, a start might make a new, empty database.

    Raises:
        SettingsError: the sentence has the line's number, and nothing of the line, which may hold a secret.
    """
    for binding in parse_stream(io.StringIO(dotenv)):
        text = binding.original.string.lstrip()
        line = binding.original.line + binding.original.string.removesuffix(text).count("\n")
        where = f"line {line} of {Path(_DOTENV).absolute()}"
        if binding.error:
            raise SettingsError(
                f"{where} can't be read; allowed: NAME=VALUE, with a quote at both ends of the value or at none"
            )
        # A quote that is closed by another line's makes one value of both.
        if _SWALLOWED.search(text.partition("\n")[2]):
            raise SettingsError(f"the value at {where} has the lines of other settings in it: close its quote")


def _unknown(strangers: list[str]) -> str:
    # Without the prefix, which makes all of them alike.
    close = difflib.get_close_matches(strangers[0].removeprefix(PREFIX), map(str.upper, Settings.model_fields), n=1)
    known = ", ".join(map(variable, Settings.model_fields))
    hint = f"; did you mean {PREFIX}{close[0]}?" if close else f"; the settings are {known}"
    return f"{', '.join(strangers)} is no setting{hint}"


def _wrong(error: Mapping[str, Any], given: Mapping[str, object]) -> str:
    setting = str(error["loc"][0])
    origin = f"--{setting.replace('_', '-')}" if setting in given else variable(setting)
    reason = str(error["msg"]).removeprefix("Value error, ")
    value = error["input"]
    shown = f'"{value[:60]}"' if isinstance(value, str) else value
    reason = f"{reason[:1].lower()}{reason[1:]}"
    return f"{origin} is wrong: {reason}" if setting in _PRIVATE else f"{origin} is {shown}, which is wrong: {reason}"


def _web_address(url: str) -> SplitResult | None:
    """The parts of an http or https URL with a host and a port that can be one; None for anything else."""
    try:
        parts = urlsplit(url)
        is_web = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port or an IPv6 address that isn't one
        return None
    return parts if is_web else None
