"""Where load may go: a plain HTTP address, on this machine unless the caller says otherwise in so many words."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

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


def parse_target(url: str, *, allow_remote: bool = False) -> Target:
    """Read `http://host[:port]` and resolve it.

    Raises:
        InvalidParameter: not such an address, not resolvable, or not of this machine while `allow_remote` is false.
    """
    try:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        port = parts.port or 80
    except ValueError as error:
        raise InvalidParameter(f"{url}: not an address ({error})") from error
    if parts.scheme != "http" or not parts.hostname:
        raise InvalidParameter(f"{url}: give the server's address as http://host:port")
    if parts.path not in ("", "/") or parts.query:
        raise InvalidParameter(f"{url}: give the address alone, without a path")
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise InvalidParameter(f"{parts.hostname}: cannot be resolved ({error.strerror})") from error
    addresses = [str(entry[4][0]) for entry in found]
    if not allow_remote and not all(ipaddress.ip_address(address).is_loopback for address in addresses):
        raise InvalidParameter(
            f"{parts.hostname} is not this machine; a load test of someone's server needs their consent. "
            "If you have it, say --allow-remote"
        )
    # A name such as localhost has an IPv6 and an IPv4 address, and servers mostly listen on the latter.
    return Target(parts.hostname, port, min(addresses, key=lambda address: ":" in address))
