"""One thing that `rekontext doctor` looked at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from rekontext.cli.failure import not_permitted
from rekontext.settings import Settings

Verdict = Literal["ok", "note", "broken"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at, and what to do about it unless it is "ok"."""

    subject: str
    verdict: Verdict
    says: str


def told(subject: str, look: Callable[[Settings], Finding], settings: Settings) -> Finding:
    """What `look` finds. That this user may not look there is a finding, too, and no reason to keep back the others."""
    try:
        return look(settings)
    except PermissionError as fault:
        return Finding(subject=subject, verdict="broken", says=not_permitted(fault))
