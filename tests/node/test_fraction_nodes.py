"""Fractions of GPUs beside a real kubelet: pods that share a GPU, and pods that must not get it whole."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from tests.contract.simnodes.fleet import until
from tests.node.nvml_nodes import NvmlNode, whole_node
from tests.node.on_node import GPU, OnNode, asking, opened
from tests.node.realnode import RealNode
from tests.node.test_agent_real_kubelet import options, record

from gpufleet.agent import Agent, working
from gpufleet.fleet.devices import DevicePick
from gpufleet.fleet.fractions import FRACTION_RESOURCE
from gpufleet.kube.conventions.picked_devices import annotated
from gpufleet.kube.fraction_policies import VISIBLE_DEVICES, fraction_policies
from gpufleet.kube.kinds import PODS
from gpufleet.kube.objects import Pod

FOREIGN = "nobody"
"""A scheduler that knows nothing of fractions."""


def fraction(name: str, part: str = "0.5", seconds: int = 100000) -> dict[str, Any]:
    """A pod with a part of a GPU that prints its environment and stays for a while."""
    body = asking(name, 1)
    (container,) = body["spec"]["containers"]
    del container["resources"]
    container["command"] = ["sh", "-c", f"env; echo printed; exec sleep {seconds}"]
    body["metadata"]["annotations"] = {"gpu-fraction": part}
    body["spec"] |= {"schedulerName": "gpufleet", "restartPolicy": "Never"}
    return body


def whole(name: str) -> dict[str, Any]:
    """A pod of another scheduler that asks for a whole GPU."""
    body = asking(name, 1)
    body["spec"] |= {"schedulerName": FOREIGN, "restartPolicy": "Never"}
    return body


class Node(OnNode):
    """What a test does with fractions on the node."""

    async def share(self, body: dict[str, Any], uuid: str) -> str:
        """Create a pod and bind it as our scheduler does, with a pick; its name."""
        name, namespace = str(body["metadata"]["name"]), self.cluster.namespace
        made = await self.client.create(PODS, body, namespace, type=Pod)
        picks = annotated([DevicePick("main", FRACTION_RESOURCE, (uuid,))])
        await self.client.bind(namespace, name, uid=made.metadata.uid, node=self.real.name, annotations=picks)
        return name

    async def environment(self, name: str) -> dict[str, str]:
        """What a pod has printed of its environment."""
        pod = await self.cluster.pod(name)
        folder = self.real.pod_logs / f"{self.cluster.namespace}_{name}_{pod.metadata.uid}" / "main"

        async def printed() -> str | None:
            text = "".join(path.read_text() for path in folder.glob("*.log"))
            return text if "printed" in text else None

        lines = [line.split(" ", 3)[-1] for line in (await until(printed)).splitlines()]
        return dict(line.split("=", 1) for line in lines if "=" in line)

    async def phase(self, name: str, *wanted: str) -> Pod:
        """Wait until a pod is in a phase; the pod."""

        async def reached() -> Pod | None:
            pod = await self.cluster.pod(name)
            return pod if pod.status.phase in wanted else None

        return await until(reached, 60)

    async def withdrawn(self, count: int) -> None:
        """Wait until the agent has said how many GPUs carry fractions."""

        async def said() -> bool:
            return sum(bool(one.fraction_milli) for one in (await record(self)).status.devices) == count

        await until(said)

    async def complains(self, reason: str) -> None:
        """Wait until the agent has said what is wrong with fractions."""

        async def told() -> bool:
            return any(
                (one.type, one.status, one.reason) == ("Fractions", "False", reason)
                for one in (await record(self)).status.conditions
            )

        await until(told)


@contextlib.asynccontextmanager
async def agent_of(node: OnNode, nvml: NvmlNode) -> AsyncIterator[Agent]:
    """The agent of the node, ready."""
    asked = options(node.real, nvml.root)
    agent = Agent(node.client, nvml.backend(), asked)
    async with working(agent, asked):

        async def ready() -> bool:
            return agent.ready()

        await until(ready, 60)
        yield agent


@contextlib.asynccontextmanager
async def fractions(real: RealNode, nvml: NvmlNode, gpus: int) -> AsyncIterator[tuple[Node, list[str]]]:
    """A node with the agent, the policies, and so many GPUs; their UUIDs."""
    product, inventory = whole_node("h100", gpus)
    nvml.show(product, inventory)
    async with opened(real) as found:
        node = Node(real, found.client, found.cluster.namespace)
        for kind, policy in fraction_policies(["gpufleet"]):
            await node.client.apply(kind, policy, field_manager="test")
        async with agent_of(node, nvml):
            await node.offers(GPU, gpus)
            try:
                yield node, [gpu.uuid for gpu in inventory.gpus]
            finally:
                await node.resources.close()


async def admitted(node: Node) -> None:
    """Wait until the API server has taken notice of the policies."""

    async def there() -> bool:
        body = fraction("probe")
        found = await node.client.create(PODS, body, node.cluster.namespace, type=Pod)
        await node.client.delete(PODS, "probe", node.cluster.namespace, grace=0)
        return any(one.name == VISIBLE_DEVICES for one in found.spec.containers[0].env)

    await until(there)


async def test_two_fractions_share_the_only_gpu_and_a_whole_gpu_pod_gets_it_after_them(
    real_node: RealNode, nvml_node: NvmlNode
) -> None:
    async with fractions(real_node, nvml_node, 1) as (node, (uuid,)):
        await admitted(node)
        for name, part in (("one", "0.5"), ("two", "0.25")):
            await node.share(fraction(name, part), uuid)
            seen = await node.environment(name)
            assert seen[VISIBLE_DEVICES] == uuid
            assert seen["GPU_PORTION"] == part
        await node.withdrawn(1)
        await node.offers(GPU, 0)
        await node.allocatable(GPU, 0)
        (device,) = (await record(node)).status.devices
        assert (device.healthy, device.fraction_milli) == (True, 750)

        await node.cluster.bind(whole("foreign"), real_node.name)
        refused = await node.phase("foreign", "Failed", "Running")
        print(f"\nwhole-GPU pod beside fractions: {refused.status.reason}: {refused.status.message}")
        assert refused.status.phase == "Failed"
        assert refused.status.reason == "UnexpectedAdmissionError"
        assert await node.held() == {"one": set(), "two": set()}

        for name in ("one", "two"):
            assert (await node.cluster.pod(name)).status.phase == "Running"
            await node.withdrawn(1)
            await node.cluster.delete(name, grace=0)
            await node.cluster.gone(name)
        await node.withdrawn(0)
        assert (await node.run("after", 1))[VISIBLE_DEVICES] == uuid


async def test_a_gpu_comes_back_when_the_last_fraction_has_finished(
    real_node: RealNode, nvml_node: NvmlNode
) -> None:
    async with fractions(real_node, nvml_node, 2) as (node, (first, second)):
        await admitted(node)
        await node.share(fraction("long", seconds=3), second)
        await node.share(fraction("short", seconds=0), second)
        await node.withdrawn(1)
        assert (await node.run("beside", 1))[VISIBLE_DEVICES] == first
        await node.phase("short", "Succeeded")
        await node.phase("long", "Succeeded")
        await node.withdrawn(0)
        assert (await node.run("after", 1))[VISIBLE_DEVICES] == second


async def test_an_agent_that_starts_again_offers_no_gpu_that_carries_fractions(
    real_node: RealNode, nvml_node: NvmlNode
) -> None:
    product, inventory = whole_node("h100", 2)
    nvml_node.show(product, inventory)
    shared, free = (gpu.uuid for gpu in inventory.gpus)
    async with opened(real_node) as found:
        node = Node(real_node, found.client, found.cluster.namespace)
        async with agent_of(node, nvml_node):
            await node.offers(GPU, 2)
            untold = fraction("stays")
            untold["spec"]["schedulerName"] = FOREIGN
            await node.share(untold, shared)
            await node.withdrawn(1)
            await node.complains("FractionNotDelivered")
            await node.offers(GPU, 1)
        seen: set[str] = set()

        async def look() -> None:
            while True:
                for one in await node.resources.devices():
                    seen.update(one.ids if one.resource == GPU else ())
                await asyncio.sleep(0.01)

        looking = asyncio.create_task(look())
        async with agent_of(node, nvml_node) as agent:
            await node.offers(GPU, 1)
            assert agent.plugin.registered[GPU]
            await asyncio.sleep(0.5)
        looking.cancel()
        await asyncio.wait([looking])
        await node.resources.close()
    assert seen == {free}


async def test_of_pods_that_come_at_once_none_gets_whole_what_the_agent_knows_to_be_shared(
    real_node: RealNode, nvml_node: NvmlNode
) -> None:
    """The race: the whole-GPU pod of somebody else is bound in the same moment. Either it came first, holds
    the GPU and the agent says so, or it is refused.
    """
    outcomes = []
    async with fractions(real_node, nvml_node, 1) as (node, (uuid,)):
        await admitted(node)
        for number in range(4):
            names = f"part-{number}", f"whole-{number}"
            await asyncio.gather(
                node.share(fraction(names[0]), uuid), node.cluster.bind(whole(names[1]), real_node.name)
            )
            rival = await node.phase(names[1], "Failed", "Running")
            await node.withdrawn(1)
            outcomes.append(rival.status.phase)
            if rival.status.phase == "Running":
                await node.complains("FractionConflict")
            else:
                assert (await node.held()).get(names[1], set()) == set()
            for name in names:
                await node.cluster.delete(name, grace=0)
                await node.cluster.gone(name)
            await node.withdrawn(0)
            await node.offers(GPU, 1)
    print(f"\nwhole-GPU pods bound together with a fraction: {outcomes}")
