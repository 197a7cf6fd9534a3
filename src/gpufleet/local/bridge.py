"""One more address for the API server: a TCP relay from an address that containers reach to loopback.

The API server binds one address only, and that stays loopback. TLS passes through untouched, so the relay
sees and can change nothing, and the certificate must name the address (`pki.leaves(bridge=...)` does).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
from pathlib import Path

_CHUNK_BYTES = 1 << 16


async def relay(listen: tuple[str, int], to: tuple[str, int], ready: Path | None = None) -> None:
    """Relay every connection to `listen` until cancelled. Raises OSError when the address cannot be bound."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            onward_reader, onward_writer = await asyncio.open_connection(*to)
        except OSError:
            writer.close()
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_pump(reader, onward_writer))
                group.create_task(_pump(onward_reader, writer))
        finally:
            for end in (writer, onward_writer):
                end.close()

    server = await asyncio.start_server(serve, *listen)
    async with server:
        if ready is not None:
            await asyncio.to_thread(ready.write_text, "ready\n")
        await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="gpufleet-bridge", description=__doc__)
    parser.add_argument("--listen", type=_address, required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--to", type=_address, required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--ready-file", type=Path)
    options = parser.parse_args()
    asyncio.run(_until_signalled(options.listen, options.to, options.ready_file))


async def _until_signalled(listen: tuple[str, int], to: tuple[str, int], ready: Path | None) -> None:
    task = asyncio.ensure_future(relay(listen, to, ready))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


if __name__ == "__main__":
    main()
