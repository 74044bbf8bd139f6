"""Pictures and a prompt in, a picture out. Pure: no users, no I/O beyond reading weights.

    engine = Engine.open("mini")
    picture = engine.edit(photo, "make it night", seed=42)

Several pictures to choose from: `engine.variants(photo, prompt)`. Many edits at once: `engine.submit(request)` gives a
`Ticket` for each.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rekontext.engine.core import EngineBroken
    from rekontext.engine.engine import Engine
    from rekontext.engine.scheduler import Policy
    from rekontext.engine.tensors import CheckpointError
    from rekontext.engine.ticket import EditCancelled, Ticket

__all__ = ["CheckpointError", "EditCancelled", "Engine", "EngineBroken", "Policy", "Ticket"]

_FILES: Final = {
    "CheckpointError": "tensors",
    "EditCancelled": "ticket",
    "Engine": "engine",
    "EngineBroken": "core",
    "Policy": "scheduler",
    "Ticket": "ticket",
}


def __getattr__(name: str) -> Any:
    """Names are loaded when they are asked for: what is pure here (`outlook.py`) is used where torch isn't loaded."""
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
