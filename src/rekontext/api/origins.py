"""The origin under which a client reaches us, for absolute URLs in answers; and the address that it comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Final

from starlette.requests import Request

# A name, an IPv4 or a bracketed IPv6 address, each with or without a port; whatever else a header says is not repeated.
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?)(:\d{1,5})?")


class Origins:
    """Tells the origin of a request, and whose it is.

    Args:
        external_url: the one origin for everybody, if an operator named it.
        trusted_proxies: networks of proxies whose X-Forwarded-Proto, X-Forwarded-Host and X-Forwarded-For are believed.
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
        return request.client is not None and self._is_trusted(request.client.host)

    def client_of(self, request: Request) -> str | None:
        """The address of who sends a request, as far as proxies that we trust vouch for it; None if it has none.

        Each proxy adds whom it heard at the end of X-Forwarded-For: what a client wrote into it itself stands before.
        """
        if request.client is None:
            return None
        address = request.client.host
        if self._is_trusted(address):
            for entry in reversed(",".join(request.headers.getlist("x-forwarded-for")).split(",")):
                named = _address(entry.strip())
                if named is None:
                    break
                address = named
                if not self._is_trusted(address):
                    break
        return address

    def _is_trusted(self, host: str) -> bool:
        if not self._trusted:
            return False
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


def _address(entry: str) -> str | None:
    """The address in an entry of X-Forwarded-For, which may have brackets and a port; None if there is none."""
    for spelled in (entry, entry.rpartition(":")[0]):
        with suppress(ValueError):
            return str(ip_address(spelled.strip("[]")))
    return None


def _first(value: str | None) -> str:
    """The entry of the outermost proxy in a header that each proxy may have added to."""
    return (value or "").split(",", 1)[0].strip()
