"""Which addresses a downloader may connect to: lists of URLs are written by strangers, our network is not theirs to see.

The check stands where connections are made, after the name was looked up: no redirect, no spelling of an address and no
name that changes its mind between check and use gets around it.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import httpcore
import httpx

from sdscratch.prepare.refusal import Refused

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_OPEN = ipaddress.ip_network("2000::/3")  # all of IPv6 that was ever given out for the internet
_DOCUMENTATION = ipaddress.ip_network("3fff::/20")
_CLOUDS = frozenset(
    map(
        ipaddress.ip_address,
        ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254"),
    )
)  # besides 169.254.0.0/16
_UNKNOWN = {socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)}


def is_public(address: str) -> bool:
    """Whether an IPv4 or IPv6 address belongs to the open internet."""
    found = _unwrapped(address)
    if found in _CLOUDS or not found.is_global or found.is_multicast:
        return False
    return isinstance(found, ipaddress.IPv4Address) or (found in _OPEN and found not in _DOCUMENTATION)


def is_secret(address: str) -> bool:
    """Whether it is of this link alone, or another one from which clouds tell their machines' secrets."""
    found = _unwrapped(address)
    return found.is_link_local or found in _CLOUDS


def _unwrapped(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The address, or the one of IPv4 that it wraps."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv4Address):
        return found
    if found in _NAT64:
        return ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
    return found.ipv4_mapped or found.sixtofour or found


class Transport(httpx.AsyncHTTPTransport):
    """httpx's own, whose connections lead to public addresses only.

    allow_private: to private ones too, such as 10.0.0.1 and 127.0.0.1, but never to those where clouds keep secrets
    (169.254.0.0/16 and others).
    lookups: names that are looked up at once; each takes a thread. Raises Refused for names without a fitting address.
    """

    def __init__(self, lookups: int, allow_private: bool) -> None:
        super().__init__(trust_env=False)
        self._threads = ThreadPoolExecutor(lookups, "lookup")
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False),
            max_connections=None,
            max_keepalive_connections=lookups,
            keepalive_expiry=5.0,
            network_backend=_Backend(self._threads, allow_private),
        )

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await super().__aexit__(exc_type, exc_value, traceback)
        self._threads.shutdown(wait=False, cancel_futures=True)


class _Backend(httpcore.AnyIOBackend):
    def __init__(self, threads: ThreadPoolExecutor, allow_private: bool) -> None:
        self._threads, self._allow_private = threads, allow_private

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await self._addresses(host, port):
            try:
                return await super().connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _addresses(self, host: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(self._threads, _look_up, host, port)
        except (socket.gaierror, UnicodeError) as error:
            if isinstance(error, UnicodeError) or error.errno in _UNKNOWN:
                raise Refused("unknown host", host) from error
            raise httpcore.ConnectError(str(error)) from error
        allowed = [a for a in found if is_public(a) or (self._allow_private and not is_secret(a))]
        if found and not allowed:
            raise Refused("private address", f"{host} is {found[0]}")
        return allowed


def _look_up(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))
