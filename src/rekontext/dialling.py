"""Which addresses this server may dial for somebody else: public ones, and those that an operator opened.

The guard looks at each address that is really dialled, below name resolution, so literal addresses, odd spellings,
re-bound names and redirects all meet it. Knows nothing of what is sent or fetched.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from types import TracebackType
from typing import Final, Self

import aiohttp
from yarl import URL

_LOOPBACK: Final = "127.0.0.1"
_NAT64: Final = IPv6Network("64:ff9b::/96")
# Not public either, though some of the Python versions that we run on say so; the last is by its number, but on any
# of Azure's machines it is the host's own service.
_SPECIAL: Final = (
    IPv4Network("192.0.0.0/24"),
    IPv6Network("64:ff9b:1::/48"),
    IPv6Network("100::/64"),
    IPv4Network("168.63.129.16/32"),
)


class AddressRefused(OSError):
    """The address belongs to no public host."""


class AllowList:
    """Addresses and hosts that an operator opened for fetching though they are not public.

    Args:
        entries: networks ("10.1.0.0/16"), addresses, or exact host names ("files.internal").
    """

    def __init__(self, entries: Iterable[str] = ()) -> None:
        networks: list[IPv4Network | IPv6Network] = []
        hosts: set[str] = set()
        for entry in entries:
            try:
                networks.append(ip_network(entry.strip(), strict=False))
            except ValueError:
                hosts.add(entry.strip().lower().rstrip("."))
        self._networks = tuple(networks)
        self._hosts = frozenset(hosts)

    @classmethod
    def everything(cls) -> Self:
        """For a person fetching on their own machine, who may reach what the machine reaches."""
        return cls(("0.0.0.0/0", "::/0"))

    def has_host(self, host: str) -> bool:
        return host.lower().rstrip(".") in self._hosts

    def refusal(self, host: str) -> str | None:
        """Why a host won't be dialled, where its name alone tells: an address written out, or this machine."""
        name = host.lower().rstrip(".")
        address = _written_out(_LOOPBACK if name == "localhost" or name.endswith(".localhost") else name)
        if address is None:
            return None
        if self.has_host(host) or self.has_address(address) or is_public(address):
            return None
        return f"{address} is not a public address"

    def has_address(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


def _written_out(name: str) -> IPv4Address | IPv6Address | None:
    """The address that a name is, also as resolvers read "127.1" and "0x7f000001"."""
    try:
        return ip_address(name)
    except ValueError:
        with suppress(OSError, ValueError):  # ValueError for what isn't ASCII, or has NUL in it
            return IPv4Address(socket.inet_aton(name))
    return None


def _guarded_connector(allow: AllowList) -> aiohttp.TCPConnector:
    """Connections to public addresses and to those in `allow`; any other fails with `AddressRefused`."""

    def dial(info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, protocol, _, where = info
        address = ip_address(str(where[0]).partition("%")[0])
        if not allow.has_address(address) and not is_public(address):
            raise AddressRefused(f"{address} is not a public address")
        return socket.socket(family, kind, protocol)

    return aiohttp.TCPConnector(socket_factory=dial)


class GuardedSessions:
    """HTTP for somebody else's URLs: guarded, except for hosts that the operator opened by name.

    One per process, open between `async with` and its end.

    Args:
        headers: sent with every request.
        auto_decompress: False hands compressed bodies on as they are.
    """

    def __init__(self, allow: AllowList, *, headers: Mapping[str, str], auto_decompress: bool = True) -> None:
        self._allow = allow
        self._headers = dict(headers)
        self._auto_decompress = auto_decompress
        self._guarded: aiohttp.ClientSession | None = None
        self._open: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._guarded = self._session(_guarded_connector(self._allow))
        self._open = self._session(aiohttp.TCPConnector())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for session in (self._guarded, self._open):
            if session is not None:
                await session.close()
        self._guarded = self._open = None

    def to(self, url: URL) -> aiohttp.ClientSession:
        """The session to use for this URL."""
        session = self._open if self._allow.has_host(url.host or "") else self._guarded
        assert session is not None, "URLs are requested inside `async with` only"
        return session

    def _session(self, connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=connector,
            trust_env=False,  # a proxy would do the dialling, out of the guard's sight
            auto_decompress=self._auto_decompress,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
        )


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Whether a host on the open internet may have this address, seen through every way of wrapping IPv4 in IPv6."""
    if isinstance(address, IPv6Address):
        inner = _wrapped(address)
        if inner:
            return all(is_public(each) for each in inner)
        if address.is_site_local:
            return False
    if any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved and not address.is_unspecified


def _wrapped(address: IPv6Address) -> tuple[IPv4Address, ...]:
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFFFFFF),)
    return ()


def reason(fault: BaseException) -> str:
    """Why a request failed, for whoever named its URL: nothing of the libraries in between, nothing of a query."""
    inner: BaseException | None = fault
    while inner is not None:  # aiohttp wraps the cause in up to two layers
        match inner:
            case AddressRefused():
                return str(inner)
            case ssl.SSLCertVerificationError():
                return f"its certificate can't be verified: {inner.verify_message}"
            case ssl.SSLError():
                return "no TLS connection could be made"
            case socket.gaierror() | aiohttp.ClientConnectorDNSError() | UnicodeError():
                return "its name can't be resolved"
            case ConnectionRefusedError():
                return "it refused the connection"
        inner = getattr(inner, "os_error", None) or inner.__cause__
    match fault:
        case aiohttp.InvalidURL():
            return "that is not a valid URL"
        case aiohttp.ClientConnectorError():
            return "no connection could be made"
        case aiohttp.ClientPayloadError() | aiohttp.ServerDisconnectedError() | ConnectionError():
            return "the connection broke off"
        case aiohttp.ClientResponseError():
            return "it didn't answer in HTTP"
        case _:
            return "the connection failed"
