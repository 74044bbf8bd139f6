"""Structured logs: one line per event, JSON for machines or text for people, the same for our code and uvicorn's.

No key and no signature is ever written: of a URL only the path, of headers what a client calls itself.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from io import StringIO
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.dev import plain_traceback
from structlog.typing import ExcInfo, Processor

LogFormat = Literal["auto", "text", "json"]


def configure(*, level: str, log_format: LogFormat) -> None:
    """Send every log line of this process to standard error. For a command, not for a library."""
    as_json = log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    last: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if as_json
        else [_escape, structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=_traceback)]
    )
    out = cast(TextIO, _Steady(sys.stderr))
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder(), _drop_color],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(number, logging.WARNING))
    for name in ("uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(number)
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what callers send is told by their request's line


def _is_news(record: logging.LogRecord) -> bool:
    """Not what no request could be made of: that has a line of ours, with what its caller was told."""
    return record.msg != "Invalid HTTP request received."


class _Steady:
    """A stream whose end is no fault of whoever writes: a line that can't be logged must not stop what it tells of."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def printable(text: str) -> str:
    """`text` on one line, with escapes for what is no character to be seen.

    Strangers choose paths and names, and a terminal obeys what it is sent: titles, colours, an emptied screen.
    """
    return text if text.isprintable() else "".join(map(_seen, text))


def _seen(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()


def _escape(_logger: Any, _method: str, event: Any) -> Any:
    """Each text of an event, made printable; what is no text is written by its repr, which is."""
    return {name: printable(value.rstrip()) if isinstance(value, str) else value for name, value in event.items()}


def _traceback(out: TextIO, exc_info: ExcInfo) -> None:
    """Plain, since a pretty one shows local variables: keys and prompts among them."""
    written = StringIO()
    plain_traceback(written, exc_info)
    out.write("\n".join(map(printable, written.getvalue().split("\n"))))


def _drop_color(_logger: Any, _method: str, event: Any) -> Any:
    """uvicorn's second copy of its message, with escape codes in it."""
    event.pop("color_message", None)
    return event
