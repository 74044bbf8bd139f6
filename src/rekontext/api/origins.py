"""The origin under which a client reaches us, for absolute URLs in answers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Final

from starlette.requests import Request

# A name, an IPv4 or a bracketed IPv6 address, each with or without a port; whatever else a header says is not repeated.
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?)(:\d{1,5})?")


class Origins:
    """Tells the origin of a request.

    Args:
        external_url: the one origin for everybody, if an operator named it.
        trusted_proxies: networks of proxies whose X-Forwarded-Proto and X-Forwarded-Host are believed.
    """

    def __init__(self, *, external_url: str | None = None, trusted_proxies: Iterable[str] = ()) -> None:
        self._external_url = external_url
        self._trusted = tuple(ip_network(entry, strict=False) for entry in trusted_proxies)

    def of(self, request: Request) -> str:
        """Scheme, host and port, without a slash at the end: "https://edits.example.com"."""
        if self._external_url is not None:
            return self._external_url
        scheme, host = request.url.scheme, request.headers.get("host", "")
        if self.is_forwarded(request):
            scheme = _first(request.headers.get("x-forwarded-proto")).lower() or scheme
            host = _first(request.headers.get("x-forwarded-host")) or host
        if scheme not in ("http", "https"):
            scheme = "http"
        if not _HOST.fullmatch(host):
            name, port = request.scope.get("server") or ("localhost", None)
            host = f"{name}:{port}" if port else str(name)
        return f"{scheme}://{host}"

    def is_forwarded(self, request: Request) -> bool:
        """Whether a proxy that we trust speaks for somebody else."""
        if not self._trusted or request.client is None:
            return False
        try:
            address = ip_address(request.client.host)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


def _first(value: str | None) -> str:
    """The entry of the outermost proxy in a header that each proxy may have added to."""
    return (value or "").split(",", 1)[0].strip()
