"""Informers against a real API server: no change is lost or told twice, whatever happens in between."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from msgspec import Meta
from tests.contract.fronts import Wire
from tests.contract.servers import ControlPlane

from gpufleet.kube.client import ApiError, Client
from gpufleet.kube.informers import Change, Informer
from gpufleet.kube.kinds import CONFIG_MAPS, SECRETS
from gpufleet.kube.objects.meta import APIStruct, ObjectMeta


class Keyed(APIStruct, frozen=True, kw_only=True):
    """A ConfigMap or Secret, in a form that forbids exclamation marks."""

    metadata: ObjectMeta
    data: Mapping[str, Annotated[str, Meta(pattern="^[^!]*$")]] = {}


class Story:
    """What an informer told, in order, as `verb name`."""

    def __init__(self, informer: Informer[Keyed]) -> None:
        self.lines: list[str] = []
        self.mirror: dict[str, Keyed] = {}
        informer.subscribe(self._note)

    def _note(self, change: Change[Keyed]) -> None:
        name = change.key.split("/")[1]
        assert self.mirror.get(change.key) is change.old, "old is what was told last"
        if change.new is None:
            del self.mirror[change.key]
            self.lines.append(f"delete {name}")
        else:
            self.mirror[change.key] = change.new
            self.lines.append(f"{'update' if change.old else 'add'} {name}")

    def forget(self) -> None:
        self.lines.clear()


@asynccontextmanager
async def running(informer: Informer[Keyed]) -> AsyncIterator[None]:
    task = asyncio.create_task(informer.run())
    try:
        async with asyncio.timeout(20):
            await informer.synced()
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool], what: str = "the condition") -> None:
    try:
        async with asyncio.timeout(25):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{what} did not come true") from None


async def put(
    client: Client, namespace: str, name: str, value: str, kind: Any = CONFIG_MAPS, **labels: str
) -> str:
    """Create or change one object; its new resourceVersion."""
    data = {"data": {"x": value}} if kind is CONFIG_MAPS else {"stringData": {"x": value}}
    manifest = {"metadata": {"name": name, "namespace": namespace, "labels": labels}, **data}
    applied = await client.apply(kind, manifest, field_manager="test")
    return str(applied["metadata"]["resourceVersion"])


async def truth(client: Client, namespace: str, kind: Any = CONFIG_MAPS) -> dict[str, str]:
    listing = await client.list(kind, namespace, type=Keyed)
    return {item.metadata.key: item.metadata.resource_version for item in listing.items}


def known(informer: Informer[Keyed]) -> dict[str, str]:
    return {key: item.metadata.resource_version for key, item in informer.items().items()}


async def test_what_changed_in_a_gap_that_the_server_forgot_is_told_exactly_once(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with (
        Client(control_plane.config) as direct,
        Wire(control_plane.config) as wire,
        Client(wire.config) as client,
    ):
        for name in "abcde":
            await put(direct, namespace, name, "1")
        informer = Informer(client, CONFIG_MAPS, Keyed, namespace=namespace)
        story = Story(informer)
        async with running(informer):
            version = informer.resource_version
            assert sorted(story.lines) == ["add a", "add b", "add c", "add d", "add e"]
            story.forget()

            wire.broken = True
            wire.cut()
            await direct.delete(CONFIG_MAPS, "a", namespace)
            await direct.delete(CONFIG_MAPS, "b", namespace)
            await put(direct, namespace, "c", "2")
            await direct.delete(CONFIG_MAPS, "d", namespace)
            await put(direct, namespace, "d", "2")
            control_plane.compact(await put(direct, namespace, "f", "1"))
            with pytest.raises(ApiError) as expired:
                async for _ in direct.watch(CONFIG_MAPS, namespace, resource_version=version, seconds=2):
                    pass
            assert expired.value.gone, "otherwise this test proves nothing"
            assert story.lines == []
            wire.broken = False

            await until(lambda: informer.relists == 2, "the second list")
            assert sorted(story.lines) == ["add d", "add f", "delete a", "delete b", "delete d", "update c"]
            assert story.lines.index("delete d") < story.lines.index("add d")
            assert known(informer) == await truth(direct, namespace)
            assert story.mirror == dict(informer.items())

            story.forget()
            await put(direct, namespace, "g", "1")
            await until(lambda: story.lines == ["add g"])


async def test_bookmarks_move_the_version_from_which_a_watch_resumes(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with (
        Client(control_plane.config) as direct,
        Wire(control_plane.config) as wire,
        Client(wire.config) as client,
    ):
        # The server sends a bookmark two seconds before it ends a watch.
        informer = Informer(client, SECRETS, Keyed, namespace=namespace, labels="wanted=yes", watch_seconds=4)
        story = Story(informer)
        async with running(informer):
            latest = await put(direct, namespace, "unwanted", "1", SECRETS)
            await until(
                lambda: int(informer.resource_version) >= int(latest), "a bookmark past the last write"
            )
            assert story.lines == []

            wire.cut()
            await put(direct, namespace, "late", "1", SECRETS, wanted="yes")
            await until(lambda: story.lines == ["add late"])
            assert wire.opened > 0
            assert informer.relists == 1


async def test_a_watch_that_is_cut_again_and_again_misses_nothing_and_repeats_nothing(
    control_plane: ControlPlane, namespace: str
) -> None:
    rng = random.Random(7)
    async with (
        Client(control_plane.config) as direct,
        Wire(control_plane.config) as wire,
        Client(wire.config) as client,
    ):
        informer = Informer(client, SECRETS, Keyed, namespace=namespace)
        story = Story(informer)
        async with running(informer):
            expected: list[str] = []
            alive: set[str] = set()
            for step in range(120):
                name = f"s{rng.randrange(12)}"
                if name in alive and rng.random() < 0.4:
                    await direct.delete(SECRETS, name, namespace)
                    alive.discard(name)
                    expected.append(f"delete {name}")
                else:
                    expected.append(f"{'update' if name in alive else 'add'} {name}")
                    await put(direct, namespace, name, str(step), SECRETS)
                    alive.add(name)
                if step % 40 == 20:
                    await until(lambda: wire.opened > 0, "another connection")
                    wire.cut()
            await until(lambda: len(story.lines) >= len(expected), "the last change")
            assert story.lines == expected
            assert informer.relists == 1
            assert wire.opened > 0
            assert known(informer) == await truth(direct, namespace, SECRETS)


async def test_lines_far_larger_than_any_buffer_arrive_whole(
    control_plane: ControlPlane, namespace: str
) -> None:
    async with Client(control_plane.config) as client:
        informer = Informer(client, CONFIG_MAPS, Keyed, namespace=namespace)
        async with running(informer):
            await asyncio.gather(*(put(client, namespace, f"big-{n}", str(n) * 900_000) for n in range(3)))
            await put(client, namespace, "small", "1")
            await until(lambda: len(informer.items()) == 4)
            assert {len(item.data["x"]) for item in informer.items().values()} == {900_000, 1}


async def test_an_object_that_does_not_decode_is_left_out_and_nothing_else(
    control_plane: ControlPlane, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "gpufleet.kube")
    async with Client(control_plane.config) as client:
        await put(client, namespace, "good", "1")
        await put(client, namespace, "bad", "!")
        informer = Informer(client, CONFIG_MAPS, Keyed, namespace=namespace)
        story = Story(informer)
        async with running(informer):
            assert story.lines == ["add good"]
            assert [record.__dict__["object"] for record in caplog.records] == [f"{namespace}/bad"]
            await put(client, namespace, "good", "!!")
            await put(client, namespace, "bad", "mended")
            await until(lambda: story.lines == ["add good", "add bad"])
            assert informer.items()[f"{namespace}/good"].data == {"x": "1"}, "the last readable form stays"
            await client.delete(CONFIG_MAPS, "good", namespace)
            await until(lambda: story.lines == ["add good", "add bad", "delete good"])


async def test_indexes_and_late_subscribers_see_the_same(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        for name in ("a", "b", "c"):
            await put(client, namespace, name, "1", team="red" if name == "a" else "blue")
        by_team = {"team": lambda item: [item.metadata.labels["team"]]}
        informer = Informer(client, CONFIG_MAPS, Keyed, namespace=namespace, indexes=by_team)
        async with running(informer):
            late = Story(informer)
            assert sorted(late.lines) == ["add a", "add b", "add c"]
            await put(client, namespace, "b", "1", team="red")
            await until(lambda: "update b" in late.lines)
            assert {item.metadata.name for item in informer.by_index("team", "red")} == {"a", "b"}
            assert [item.metadata.name for item in informer.by_index("team", "blue")] == ["c"]


async def test_an_informer_survives_a_killed_api_server(control_plane: ControlPlane, namespace: str) -> None:
    async with Client(control_plane.config) as client:
        for name in ("a", "b", "c"):
            await put(client, namespace, name, "1", SECRETS)
        informer = Informer(client, SECRETS, Keyed, namespace=namespace)
        story = Story(informer)
        async with running(informer):
            await asyncio.to_thread(control_plane.kill_server)
            await asyncio.to_thread(control_plane.start_server)
            await client.delete(SECRETS, "a", namespace)
            await put(client, namespace, "b", "2", SECRETS)
            await put(client, namespace, "d", "1", SECRETS)
            await until(lambda: f"{namespace}/d" in informer.items(), "the first change after the restart")
            assert sorted(story.lines) == ["add a", "add b", "add c", "add d", "delete a", "update b"]
            assert known(informer) == await truth(client, namespace, SECRETS)
