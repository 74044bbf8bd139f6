"""Pictures and a prompt in, a picture out. Pure: no users, no I/O beyond reading weights.

engine = Engine.open("mini")
picture = engine.edit(photo, "make it night", seed=42)
"""

from rekontext.engine.engine import EditCancelled, Engine
from rekontext.engine.tensors import CheckpointError

__all__ = ["CheckpointError", "EditCancelled", "Engine"]
