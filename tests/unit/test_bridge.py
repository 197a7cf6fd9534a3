"""The API server's second address: bytes pass both ways untouched, and only addresses of this machine are
taken.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.local.bridge import relay
from gpufleet.local.ports import free_ports
from gpufleet.local.up import Request, up


async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer everything in capitals once the other side has said all."""
    writer.write((await reader.read()).upper())
    await writer.drain()
    writer.close()


async def through(ready: Path, said: bytes) -> bytes:
    """What a server behind the relay answers."""
    [port] = free_ports(1)
    async with await asyncio.start_server(shout, "127.0.0.1", 0) as server:
        behind = server.sockets[0].getsockname()[:2]
        relaying = asyncio.create_task(relay(("127.0.0.1", port), behind, ready))
        while not ready.exists():
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(said)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        relaying.cancel()
        await asyncio.gather(relaying, return_exceptions=True)
        return answer


@pytest.mark.parametrize("size", [0, 1, 1 << 20])
def test_bytes_pass_both_ways_and_ends_are_passed_on(tmp_path: Path, size: int) -> None:
    assert asyncio.run(asyncio.wait_for(through(tmp_path / "ready", b"x" * size), 20)) == b"X" * size


class Silent:
    """Nobody watches."""

    def say(self, text: str) -> None:
        pass

    def work(self, text: str, done: int = 0, total: int = 0) -> None:
        pass


@pytest.mark.parametrize("address", ["203.0.113.7", "127.0.0.1", "nonsense"])
def test_an_address_that_containers_cannot_reach_us_at_is_refused_before_anything_starts(
    tmp_path: Path, address: str
) -> None:
    with pytest.raises(GpufleetError) as raised:
        up(Request("one", bridge=address), Silent(), {"XDG_STATE_HOME": str(tmp_path)})
    assert raised.value.reason == "BadBridge"
    assert list(tmp_path.iterdir()) == []
