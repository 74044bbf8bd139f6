"""Pictures and a prompt in, a picture out. Pure: no users, no I/O beyond reading weights.

    engine = Engine.open("mini")
    picture = engine.edit(photo, "make it night", seed=42)

Many edits at once: `engine.submit(request)` gives a `Ticket` for each.
"""

from rekontext.engine.engine import Engine
from rekontext.engine.scheduler import Policy
from rekontext.engine.tensors import CheckpointError
from rekontext.engine.ticket import EditCancelled, Ticket

__all__ = ["CheckpointError", "EditCancelled", "Engine", "Policy", "Ticket"]
