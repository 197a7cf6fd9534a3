"""Free loopback ports that stay free while the fleet is down.

Ports are drawn from below the kernel's range for outgoing connections where there is room. A port inside that
range can be taken by any client of this machine while its server restarts, and a client that retries to reach
a dead server there can even connect to itself and so hold the port for good. Each candidate is tried by
binding.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Iterable
from pathlib import Path

_LOOPBACK = "127.0.0.1"
_LOWEST = 16_384
_LINUX_CLIENT_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")


def is_free(port: int, address: str = _LOOPBACK) -> bool:
    """Whether a server could listen there now. Connections that linger after a close do not count."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def is_listening(port: int, address: str = _LOOPBACK) -> bool:
    """Whether something accepts connections there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((address, port)) == 0


def free_ports(count: int, *, avoid: Iterable[int] = ()) -> list[int]:
    """`count` different ports that nothing listens on, none of them in `avoid`."""
    taken = set(avoid)
    chosen: list[int] = []
    low, high = _server_range()
    draws = iter(random.sample(range(low, high), min(high - low, 64 * count))) if high > low else iter(())
    while len(chosen) < count:
        port = next(draws, 0) or _any_free_port()
        if port not in taken and is_free(port):
            taken.add(port)
            chosen.append(port)
    return chosen


def _server_range() -> tuple[int, int]:
    """Ports below the kernel's own client ports; empty when fewer than 1,000 are left there."""
    first_client_port = 32_768
    with contextlib.suppress(OSError, ValueError):
        first_client_port = int(_LINUX_CLIENT_PORTS.read_text().split()[0])
    return (_LOWEST, first_client_port) if first_client_port - _LOWEST >= 1_000 else (0, 0)


def _any_free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
