"""The playground and the console: static files, no build step. Knows no API but the one written down in docs/api.

Where the pages expect to be served: `PLAYGROUND` at `/`, `CONSOLE` at `/console`, and everything under `STATIC` at
`STATIC_PATH`. They need no inline script or style, call no other host, and send the key in a header only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

_FOLDER: Final = Path(__file__).parent

PLAYGROUND: Final = _FOLDER / "playground.html"
CONSOLE: Final = _FOLDER / "console.html"
STATIC: Final = _FOLDER / "static"
STATIC_PATH: Final = "/web"

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "manifest-src 'self'",
        "form-action 'none'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
"""What the pages need, and nothing else."""
