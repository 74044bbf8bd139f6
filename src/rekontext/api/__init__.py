"""The wire: one app, one file per surface, one file that turns errors into answers. Never imports torch."""

from rekontext.api.app import create_app
from rekontext.api.auth import Caller, DatabaseKeys, Keys
from rekontext.api.edits import SLUG, EditOrder, Edits, Submitted
from rekontext.api.parts import Limits, Parts

__all__ = [
    "SLUG",
    "Caller",
    "DatabaseKeys",
    "EditOrder",
    "Edits",
    "Keys",
    "Limits",
    "Parts",
    "Submitted",
    "create_app",
]
