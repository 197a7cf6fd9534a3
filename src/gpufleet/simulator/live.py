"""The scheduler of a real fleet on a trace: `scheduling.decide`, with what `up` gives it and nothing else.

The arrivals are one burst of pods that wait in the order in which they arrive; nobody among them has a
priority, so a decision about a pod never depends on those behind it in the queue (test_live_placer holds
that). The mix of usual pods is the one that FGD is given: the most frequent shapes of the trace as published.
Devices are picked as they are for a kubelet, and the replay's own ledger checks them.
"""

from __future__ import annotations

from collections.abc import Sequence

from gpufleet.fleet.demands import TypicalPod, typical_pods
from gpufleet.fleet.plans import Bind
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.snapshot import Snapshot, snapshot_of
from gpufleet.scheduling.cycle import Policy, decide
from gpufleet.simulator.members import claims_of, devices_of, node_of, placement_of, shape_of
from gpufleet.simulator.replay import Decision
from gpufleet.simulator.traces import TraceNode, TracePod


class LivePlacer:
    """A `Placer` that answers what the scheduler decided."""

    def __init__(
        self, nodes: Sequence[TraceNode], arrivals: Sequence[TracePod], mix: Sequence[TypicalPod]
    ) -> None:
        snapshot = burst(nodes, arrivals, tuple(mix))
        plan = decide(snapshot, Policy())
        places = {_node_name(number, node): number for number, node in enumerate(nodes)}
        self._placements = {
            action.pod.name: placement_of(action, places[action.node])
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
    names = [_node_name(number, node) for number, node in enumerate(nodes)]
    devices = {name: devices_of(name, node) for name, node in zip(names, nodes, strict=True)}
    fleet = tuple(map(node_of, names, nodes))
    return snapshot_of(fleet, tuple(map(_pod, range(len(arrivals)), arrivals)), devices=devices, mix=mix)


def _node_name(number: int, node: TraceNode) -> str:
    return f"{number:06}-{node.name}"


def _pod_name(number: int) -> str:
    return f"pod-{number:08}"


def _pod(number: int, pod: TracePod) -> Pod:
    name = _pod_name(number)
    return Pod(
        "trace",
        name,
        name,
        shape_of(pod.request),
        created=float(number),
        device_claims=claims_of(pod.request),
    )
