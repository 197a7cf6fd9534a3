"""What the transport must not do on its own, shown by a server that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from gpufleet.fleet.errors import GpufleetError
from gpufleet.kube.client import Client
from gpufleet.kube.config import ClusterConfig
from gpufleet.kube.errors import NotLeader, Unreachable
from gpufleet.kube.kinds import CONFIG_MAPS
from gpufleet.kube.transport import proxy_for

OBJECT = {"metadata": {"name": "a", "namespace": "ns"}}


class Counter:
    """An HTTP server that answers `{}` and hangs up on the n-th request of a connection, unanswered."""

    def __init__(self, hang_up_on: int = 0) -> None:
        self._hang_up_on = hang_up_on
        self.requests: list[str] = []
        self.bytes = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.bytes += len(head)
                length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                await reader.readexactly(int(length[0].split(b":")[1]) if length else 0)
                self.requests.append(head.split(b" ", 1)[0].decode())
                number += 1
                if number == self._hang_up_on:
                    break
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
                )
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def against(server: Counter, story: Callable[[Client], Coroutine[Any, Any, None]], **options: Any) -> None:
    async def run() -> None:
        listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with listening, Client(ClusterConfig(server=f"http://127.0.0.1:{port}"), **options) as client:
            await asyncio.wait_for(story(client), 20)

    asyncio.run(run())


def test_a_server_that_hangs_is_asked_no_longer_than_the_client_has_patience() -> None:
    class Hanging(Counter):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.requests.append("GET")
            await reader.read()
            writer.close()

    async def story(client: Client) -> None:
        with pytest.raises(Unreachable) as raised:
            await client.get(CONFIG_MAPS, "a", "ns")
        assert raised.value.reason == "ServerTimeout"
        assert "hangs" in raised.value.hint

    server = Hanging()
    against(server, story, patience=0.2, deadline=0.1)
    assert server.requests == ["GET"]


@pytest.mark.parametrize("verb", ["replace", "delete", "create"])
def test_a_write_on_a_kept_connection_that_breaks_is_sent_once(verb: str) -> None:
    async def story(client: Client) -> None:
        await client.get(CONFIG_MAPS, "a", "ns")
        writes: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "replace": lambda: client.replace(CONFIG_MAPS, OBJECT),
            "delete": lambda: client.delete(CONFIG_MAPS, "a", "ns"),
            "create": lambda: client.create(CONFIG_MAPS, OBJECT),
        }
        with pytest.raises(Unreachable) as lost:
            await writes[verb]()
        assert lost.value.sent

    server = Counter(hang_up_on=2)
    against(server, story)
    assert len(server.requests) == 2


def test_a_read_on_a_kept_connection_that_breaks_is_sent_again() -> None:
    async def story(client: Client) -> None:
        for _ in range(3):
            await client.get(CONFIG_MAPS, "a", "ns")

    server = Counter(hang_up_on=2)
    against(server, story)
    assert server.requests == ["GET"] * 5


def test_a_guard_that_changes_its_mind_while_the_write_is_on_its_way_stops_it() -> None:
    answers = iter([True, False])

    def guard() -> None:
        if not next(answers):
            raise NotLeader("ns/l")

    async def story(client: Client) -> None:
        with pytest.raises(NotLeader):
            await client.create(CONFIG_MAPS, OBJECT)

    server = Counter()
    against(server, story, guard=guard)
    assert server.bytes == 0


def test_a_guarded_write_tells_the_server_when_to_give_up() -> None:
    class Recorder(Counter):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.requests.append((await reader.readline()).decode().split(" ")[1])
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
            writer.close()

    async def story(client: Client) -> None:
        await client.create(CONFIG_MAPS, OBJECT)

    server = Recorder()
    against(server, story, guard=lambda: None, guarded_write_seconds=3.0)
    assert server.requests == ["/api/v1/namespaces/ns/configmaps?timeout=3s"]


def test_an_error_answer_to_a_watch_that_breaks_off_is_a_lost_connection() -> None:
    class Broken(Counter):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 1000\r\n\r\nbad")
            writer.close()

    async def story(client: Client) -> None:
        with pytest.raises(Unreachable, match="lost the connection"):
            await anext(client.watch(CONFIG_MAPS, resource_version="1"))

    against(Broken(), story)


def config(server: str, proxy: str = "") -> ClusterConfig:
    return ClusterConfig(server=server, proxy_url=proxy)


def test_proxies_are_taken_from_the_kubeconfig_then_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://environment:1")
    monkeypatch.setenv("NO_PROXY", "inside.example")
    assert str(proxy_for(config("https://a.example", "http://kubeconfig:2"))) == "http://kubeconfig:2"
    assert str(proxy_for(config("https://a.example"))) == "http://environment:1"
    for local in (
        "https://127.0.0.1:6443",
        "https://localhost:1",
        "https://[::1]:1",
        "https://inside.example",
    ):
        assert proxy_for(config(local)) is None


def test_a_proxy_of_another_kind_is_refused_by_name() -> None:
    with pytest.raises(GpufleetError, match="socks5://p:1"):
        proxy_for(config("https://a.example", "socks5://p:1"))
