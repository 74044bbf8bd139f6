"""The secrets that webhooks are signed with, in the form that the Standard Webhooks libraries expect."""

from __future__ import annotations

import base64
from typing import Final

from rekontext.sources import Randomness

_SECRET_BYTES: Final = 32


def webhook_secret(randomness: Randomness) -> str:
    """A new signing secret: "whsec_" and 32 random bytes in base64."""
    return "whsec_" + base64.b64encode(randomness(_SECRET_BYTES)).decode()
