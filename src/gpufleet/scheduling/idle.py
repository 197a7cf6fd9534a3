"""Cut GPUs that nobody has used for a while become whole again, where their pool allows it.

On demand a GPU becomes whole at once (`cuts`). This is for the others, who look at what nodes offer: people,
node autoscalers, other schedulers. As long as a pod waits for an instance nothing is merged, and what is only
idle for a moment between two pods stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gpufleet.fleet.cuts import MigGPU, idle_gpus
from gpufleet.fleet.mig import MIG_RESOURCE_PREFIX
from gpufleet.fleet.nodes import Node
from gpufleet.fleet.plans import Merge
from gpufleet.fleet.reasons import Reason
from gpufleet.fleet.snapshot import Snapshot
from gpufleet.scheduling.ledger import account_of

IDLE_SECONDS = 60.0


def idle_since(snapshot: Snapshot, before: Mapping[str, float], now: float) -> dict[str, float]:
    """Since when each cut GPU (uuid) has been idle, from what was known before."""
    return {gpu.uuid: before.get(gpu.uuid, now) for _, gpu in _idle(snapshot)}


def merges(snapshot: Snapshot, since: Mapping[str, float], now: float) -> tuple[Merge, ...]:
    """The GPUs that have been idle for long enough; none while a pod waits for an instance."""
    if any(
        resource.startswith(MIG_RESOURCE_PREFIX)
        for pod in snapshot.unbound.values()
        for resource, _ in pod.shape.requests
    ):
        return ()
    return tuple(
        Merge(node.name, gpu.uuid, (_reason(node, gpu),))
        for node, gpu in _idle(snapshot)
        if now - since.get(gpu.uuid, now) >= IDLE_SECONDS
    )


def _idle(snapshot: Snapshot) -> Iterator[tuple[Node, MigGPU]]:
    """Cut GPUs of which nobody has or was promised anything."""
    for name, node in snapshot.nodes.items():
        if not node.gpus or not node.may_switch:
            continue
        used = account_of(node, snapshot.pods_by_node.get(name, {})).used
        for gpu in idle_gpus(node.gpus, used):
            yield node, gpu


def _reason(node: Node, gpu: MigGPU) -> Reason:
    text = f"nobody has used GPU {gpu.index} of {node.name} for {IDLE_SECONDS:.0f} s, so it is whole again"
    return Reason("MigMerged", text, node.name)
