"""The scheduler of a real fleet on a trace: `scheduling.decide`, with what `up` gives it and nothing else.

The arrivals are one burst of pods that wait in the order in which they arrive; nobody among them has a
priority, so a decision about a pod never depends on those behind it in the queue (test_live_placer holds
that). The mix of usual pods is the one that FGD is given: the most frequent shapes of the trace as published.
Devices are picked as they are for a kubelet, and the replay's own ledger checks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from gpufleet.fleet.devices import WHOLE_RESOURCE, DeviceClaim, NodeDevices, NodeGPU, Offered, Part, pools_of
from gpufleet.fleet.fractions import Fraction
from gpufleet.fleet.fragmentation import MILLI, TypicalPod, typical_pods
from gpufleet.fleet.mixes import PRODUCT_LABEL
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Bind
from gpufleet.fleet.pods import Pod, PodShape
from gpufleet.fleet.selectors import NodeSelector, NodeSelectorTerm, Requirement
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.simulator.replay import Decision, Placement
from gpufleet.simulator.traces import Request, TraceNode, TracePod

_CONTAINER = "main"
_MIB = 1 << 20
_NO_LIMIT = 1 << 20


class LivePlacer:
    """A `Placer` that answers what the scheduler decided."""

    def __init__(
        self, nodes: Sequence[TraceNode], arrivals: Sequence[TracePod], mix: Sequence[TypicalPod]
    ) -> None:
        snapshot = burst(nodes, arrivals, tuple(mix))
        plan = decide(snapshot, Policy())
        places = {_node_name(number, node): number for number, node in enumerate(nodes)}
        self._placements = {
            action.pod.name: _placement(action, places[action.node])
            for action in plan.actions
            if isinstance(action, Bind)
        }
        self._arrived = 0

    def place(self, pod: TracePod) -> Decision:
        """What was decided about the next arrival."""
        name = _pod_name(self._arrived)
        self._arrived += 1
        return Decision(self._placements.get(name))


def usual_mix(pods: Sequence[TracePod]) -> tuple[TypicalPod, ...]:
    """The typical pods of a trace, as far as they want GPUs."""
    typical = typical_pods(pod.request.shape for pod in pods)
    return tuple(one for one in typical if one.shape.total_milli)


def burst(nodes: Sequence[TraceNode], arrivals: Sequence[TracePod], mix: tuple[TypicalPod, ...]) -> Snapshot:
    """An empty fleet and all arrivals waiting. Nodes keep their order by name, which breaks ties."""
    devices = {_node_name(number, node): _devices(number, node) for number, node in enumerate(nodes)}
    fleet = tuple(_node(number, node) for number, node in enumerate(nodes))
    return snapshot_of(fleet, tuple(map(_pod, range(len(arrivals)), arrivals)), devices=devices, mix=mix)


def _node_name(number: int, node: TraceNode) -> str:
    return f"{number:06}-{node.name}"


def _pod_name(number: int) -> str:
    return f"pod-{number:08}"


def _uuid(number: int, gpu: int) -> str:
    return f"GPU-{number:06}-{gpu}"


def _node(number: int, node: TraceNode) -> Node:
    allocatable = {
        "cpu": node.cpu_milli,
        "memory": node.memory_mib * _MIB,
        "pods": _NO_LIMIT,
        WHOLE_RESOURCE: node.gpus,
    }
    return Node(_node_name(number, node), {PRODUCT_LABEL: node.model}, allocatable)


def _devices(number: int, node: TraceNode) -> NodeDevices:
    uuids = [_uuid(number, gpu) for gpu in range(node.gpus)]
    gpus = tuple(NodeGPU(Part(uuid, uuid)) for uuid in uuids)
    return NodeDevices(gpus, (), pools_of(gpus, {WHOLE_RESOURCE: Offered(node.gpus, node.gpus)}))


def _pod(number: int, pod: TracePod) -> Pod:
    shape = pod.request.shape
    whole = shape.gpus if shape.gpu_milli == MILLI else 0
    return Pod(
        "trace",
        _pod_name(number),
        _pod_name(number),
        _shape(pod.request),
        created=float(number),
        device_claims=(DeviceClaim(_CONTAINER, WHOLE_RESOURCE, whole),) if whole else (),
    )


@lru_cache(maxsize=4096)
def _shape(request: Request) -> PodShape:
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


def _placement(bind: Bind, node: int) -> Placement:
    uuids = [uuid for pick in bind.picks for uuid in pick.devices]
    return Placement(node, tuple(int(uuid.rsplit("-", 1)[1]) for uuid in uuids))
