"""The wire: one app, one file per surface, one file that turns errors into answers. Never imports torch."""

from rekontext.api.app import create_app
from rekontext.api.auth import Caller, InvalidKey, Keys
from rekontext.api.direct import DirectEdits
from rekontext.api.edits import DeadlineExceeded, Edited, EditOrder, Edits, QueueFull
from rekontext.api.keyfile import KeyFile, KeyFileError, SingleKey, open_key_file

__all__ = [
    "Caller",
    "DeadlineExceeded",
    "DirectEdits",
    "EditOrder",
    "Edited",
    "Edits",
    "InvalidKey",
    "KeyFile",
    "KeyFileError",
    "Keys",
    "QueueFull",
    "SingleKey",
    "create_app",
    "open_key_file",
]
