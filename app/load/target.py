"""Where load may go: a plain HTTP address, on this machine unless the caller says otherwise in so many words."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from app.errors import InvalidParameter


@dataclass(frozen=True)
class Target:
    """`address` is what `host` resolved to when it was checked; connections go there."""

    host: str
    port: int
    address: str

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


def split_address(url: str, *schemes: str) -> tuple[SplitResult, str]:
    """The parts of `[scheme://]host[:port]`, and the host. Raises InvalidParameter for what is no such address."""
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        _ = parts.port  # which is read only now
    except ValueError as error:
        raise InvalidParameter(f"{url}: not an address ({error})") from error
    if parts.scheme not in schemes or not parts.hostname:
        raise InvalidParameter(f"{url}: give the server's address as http://host:port")
    return parts, parts.hostname


def parse_target(url: str, *, allow_remote: bool = False) -> Target:
    """Read `http://host[:port]` and resolve it.

    Raises:
        InvalidParameter: not such an address, not resolvable, or not of this machine while `allow_remote` is false.
    """
    parts, host = split_address(url, "http")
    port = parts.port or 80
    if parts.path not in ("", "/") or parts.query:
        raise InvalidParameter(f"{url}: give the address alone, without a path")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidParameter(f"{host}: cannot be resolved ({error.strerror})") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not allow_remote and not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise InvalidParameter(
            f"{host} is not this machine; a load test of someone's server needs their consent. "
            "If you have it, say --allow-remote"
        )
    # A name such as localhost has an IPv6 and an IPv4 address, and servers mostly listen on the latter.
    return Target(host, port, min(addresses, key=lambda address: ":" in address))
