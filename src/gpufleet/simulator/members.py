"""Nodes and pods of a trace as the scheduler sees them: values of `fleet`, with what `up` gives a node.

A node has an agent that reports its GPUs, so devices are picked as they are for a kubelet. A GPU is known by
its node and its number there.
"""

from __future__ import annotations

from functools import lru_cache

from gpufleet.fleet.demands import MILLI
from gpufleet.fleet.devices import WHOLE_RESOURCE, DeviceClaim, NodeDevices, NodeGPU, Offered, Part, pools_of
from gpufleet.fleet.fractions import Fraction
from gpufleet.fleet.mixes import PRODUCT_LABEL
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind
from gpufleet.fleet.pods import PodShape
from gpufleet.fleet.selectors import NodeSelector, NodeSelectorTerm, Requirement
from gpufleet.simulator.books import Placement
from gpufleet.simulator.traces import Request, TraceNode

_CONTAINER = "main"
_MIB = 1 << 20
_NO_LIMIT = 1 << 20


def node_of(name: str, node: TraceNode) -> Node:
    """An empty node under a name; it takes any number of pods."""
    allocatable = {
        "cpu": node.cpu_milli,
        "memory": node.memory_mib * _MIB,
        "pods": _NO_LIMIT,
        WHOLE_RESOURCE: node.gpus,
    }
    product = {PRODUCT_LABEL: node.model} if node.model else {}
    return Node(name, {**dict(node.labels), **product}, allocatable)


def devices_of(name: str, node: TraceNode) -> NodeDevices:
    """The GPUs of a node under a name, none of them linked to another one."""
    uuids = [f"GPU-{name}-{gpu}" for gpu in range(node.gpus)]
    gpus = tuple(NodeGPU(Part(uuid, uuid)) for uuid in uuids)
    return NodeDevices(gpus, (), pools_of(gpus, {WHOLE_RESOURCE: Offered(node.gpus, node.gpus)}))


def claims_of(request: Request) -> tuple[DeviceClaim, ...]:
    """What the container of a pod asks for of whole GPUs."""
    shape = request.shape
    whole = shape.gpus if shape.gpu_milli == MILLI else 0
    return (DeviceClaim(_CONTAINER, WHOLE_RESOURCE, whole),) if whole else ()


@lru_cache(maxsize=4096)
def shape_of(request: Request) -> PodShape:
    """What decides where a pod fits; equal requests give the same object."""
    asked = request.shape
    requests = {"cpu": asked.cpu_milli, "memory": request.memory_mib * _MIB, "pods": 1}
    fraction = None
    if asked.gpus and asked.gpu_milli == MILLI:
        requests[WHOLE_RESOURCE] = asked.gpus
    elif asked.gpus:
        fraction = Fraction(asked.gpu_milli, devices=asked.gpus, container=_CONTAINER)
    affinity = None
    if asked.gpus and asked.models:
        term = NodeSelectorTerm((Requirement(PRODUCT_LABEL, "In", asked.models),))
        affinity = NodeSelector((term,))
    return PodShape(tuple(sorted(requests.items())), node_affinity=affinity, fraction=fraction)


def placement_of(bind: Bind, node: int) -> Placement:
    """Where a pod was bound to; `node` is the number of its node in the run."""
    uuids = [uuid for pick in bind.picks for uuid in pick.devices]
    return Placement(node, tuple(int(uuid.rsplit("-", 1)[1]) for uuid in uuids))
