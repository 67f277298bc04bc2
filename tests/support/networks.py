"""What networks this machine has."""

from __future__ import annotations

import socket


def has_ipv6() -> bool:
    """Whether its own address in IPv6 can be listened on."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True
