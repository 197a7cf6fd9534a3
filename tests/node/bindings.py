"""Pods with picks, bound and admitted many at a time: a scheduler beside a kubelet and a device plugin."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from tests.node.fake_kubelet import FakeKubelet

from gpufleet.devices.device_plugin import DevicePlugin
from gpufleet.devices.picks import Pick, swapped


def free_of_doubles(kubelet: FakeKubelet, resource: str) -> bool:
    """Whether no device of a resource is held twice."""
    held = [one for held in kubelet.held if held.resource == resource for one in held.ids]
    return len(held) == len(set(held))


class Bindings:
    """A scheduler that picks devices for pods, binds them, and learns from the kubelet who got what.

    Between its binding and its admission a pod waits for up to `disorder` turns of the event loop: few, and
    pods are admitted nearly in the order in which they were bound; hundreds, and they come in any order.
    """

    def __init__(
        self, kubelet: FakeKubelet, plugin: DevicePlugin, resource: str, seed: int, disorder: int = 5
    ) -> None:
        self.kubelet = kubelet
        self.plugin = plugin
        self.resource = resource
        self.disorder = disorder
        self.every = sorted(kubelet.devices[resource])
        self.unconfirmed: dict[str, list[str]] = {}
        self.swaps = 0
        self.admitted = 0
        self.chance = random.Random(seed)

    def bind(self, uid: str, size: int) -> Pick:
        promised = {one for ids in self.unconfirmed.values() for one in ids}
        free = [one for one in self.every if one not in promised | self.kubelet.in_use(self.resource)]
        self.unconfirmed[uid] = self.chance.sample(free, size)
        pick = Pick(uid, "main", self.resource, tuple(self.unconfirmed[uid]))
        self.plugin.picks = self.plugin.picks.bound([pick])
        return pick

    async def admit(self, uid: str, size: int) -> None:
        pick = self.bind(uid, size)
        await self.pause(self.disorder)
        (held,) = await self.kubelet.admit(uid, {self.resource: size})
        self.plugin.picks = self.plugin.picks.confirmed(uid, "main", self.resource, [*held.ids])
        del self.unconfirmed[uid]
        self.swaps += swapped(pick, [*held.ids])
        self.admitted += 1
        assert free_of_doubles(self.kubelet, self.resource)

    async def pause(self, turns: int) -> None:
        for _ in range(self.chance.randrange(turns)):
            await asyncio.sleep(0)

    async def run(self, sizes: Sequence[int], *, strict: bool) -> None:
        """As many pods at once as surely fit; with `strict`, one unconfirmed pod per count."""
        room = asyncio.Semaphore(len(self.every) // max(sizes))
        turns = {size: asyncio.Semaphore(1 if strict else len(sizes)) for size in sizes}

        async def live(uid: str, size: int) -> None:
            async with room:
                async with turns[size]:
                    await self.admit(uid, size)
                await self.pause(20)
                self.kubelet.finish(uid)

        async with asyncio.TaskGroup() as group:
            for number, size in enumerate(sizes):
                group.create_task(live(f"pod-{number}", size))
