"""Nodes that do not exist yet: empty copies of one that does."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from gpufleet.fleet.devices import NodeDevices, Part
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.selectors import Taint

HOSTNAME = "kubernetes.io/hostname"
PASSING = "node.kubernetes.io/"
"""The prefix of taints that Kubernetes sets for conditions that pass."""


def at_its_best(node: Node) -> Node:
    """The node ready, healthy, uncordoned and accounted for, without the taints that Kubernetes sets for
    passing conditions.
    """
    devices = {
        resource: node.allocatable.get(resource, 0) + sick for resource, sick in node.unhealthy.items()
    }
    return msgspec.structs.replace(
        node,
        allocatable={**node.allocatable, **devices},
        unhealthy={},
        sick=(),
        ready=True,
        unschedulable=False,
        unread_pods=(),
        taints=tuple(taint for taint in node.taints if is_lasting(taint)),
        gpus=tuple(msgspec.structs.replace(gpu, busy=(), held=False, blocked=False) for gpu in node.gpus),
    )


def is_lasting(taint: Taint) -> bool:
    """Whether somebody set the taint on purpose."""
    return not taint.key.startswith(PASSING)


def copies(node: Node, count: int) -> Iterator[Node]:
    """So many copies of a node with names of their own."""
    for index in range(1, count + 1):
        name = f"{node.name} (new {index})"
        labels = {**node.labels, HOSTNAME: name}
        gpus = tuple(msgspec.structs.replace(gpu, uuid=_renamed(gpu.uuid, name)) for gpu in node.gpus)
        yield msgspec.structs.replace(node, name=name, labels=labels, gpus=gpus, carrying=(), sick=())


def copied_devices(devices: NodeDevices, name: str) -> NodeDevices:
    """The devices of a copy of that name: healthy, held by nobody, with uuids of their own."""

    def renamed(part: Part) -> Part:
        return Part(_renamed(part.uuid, name), _renamed(part.gpu, name))

    gpus = tuple(
        msgspec.structs.replace(
            gpu,
            whole=renamed(gpu.whole),
            instances=tuple((profile, renamed(part)) for profile, part in gpu.instances),
        )
        for gpu in devices.gpus
    )
    pools = {
        resource: msgspec.structs.replace(pool, parts=tuple(map(renamed, pool.parts)))
        for resource, pool in devices.pools.items()
    }
    return msgspec.structs.replace(devices, gpus=gpus, pools=pools, held=())


def _renamed(uuid: str, node: str) -> str:
    return f"{uuid} of {node}"
