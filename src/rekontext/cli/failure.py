"""How a command says that it failed."""

from __future__ import annotations

from typing import Final

ENGINE_MISSING: Final = "the engine's packages are not all installed ({fault}); run: pip install 'rekontext[engine]'"


def not_permitted(fault: PermissionError) -> str:
    """What this user may not even look for, and who may."""
    return f"{fault.filename} can't be reached: {fault.strerror}; run this as the service's user"


class CommandFailed(Exception):
    """The command can't go on. The message is one line that says what to do.

    Attributes:
        exit_code: 2 when the input was bad, 1 otherwise.
    """

    def __init__(self, sentence: str, *, exit_code: int = 2) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
