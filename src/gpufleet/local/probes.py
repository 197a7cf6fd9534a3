"""Is a component ready? Asked at its own endpoint, or by the file that it writes when it is.

Probes block, so the supervisor runs them in threads; each gives up by itself after a bound.
"""

from __future__ import annotations

import functools
import http.client
import ssl
from pathlib import Path

from gpufleet.local.components import FileProbe, HttpProbe
from gpufleet.local.pki import Pair


def answers(probe: HttpProbe | FileProbe, *, timeout_s: float = 5.0) -> bool:
    """Whether a component says that it is ready. Any failure to ask means no."""
    if isinstance(probe, FileProbe):
        return probe.path.exists()
    try:
        connection = _connection(probe, timeout_s)
        try:
            connection.request("GET", probe.path)
            return connection.getresponse().status == http.HTTPStatus.OK
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError):
        return False


def _connection(probe: HttpProbe, timeout_s: float) -> http.client.HTTPConnection:
    if probe.authority is None:
        return http.client.HTTPConnection("127.0.0.1", probe.port, timeout=timeout_s)
    context = _context(probe.authority, probe.client)
    return http.client.HTTPSConnection("127.0.0.1", probe.port, timeout=timeout_s, context=context)


@functools.cache
def _context(authority: Path, client: Pair | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority)
    if client is not None:
        context.load_cert_chain(client.cert, client.key)
    return context
