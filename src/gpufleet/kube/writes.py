"""The writes of scheduling: bindings, evictions, nominations, conditions and volume choices.

Each function is one decision carried out on one object, as kube-scheduler would write it, so that tools that
watch pods see what they know. Lists of conditions are merged by type (strategic merge), so nobody else's
condition is lost.
"""

from __future__ import annotations

from gpufleet.fleet.pods import Pod
from gpufleet.kube import kinds
from gpufleet.kube.client import Client
from gpufleet.kube.storage_values import SELECTED_NODE
from gpufleet.kube.times import format_time

DECISION_CONDITION = "gpufleet.dev/Decision"
_BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"


async def report_pending(
    client: Client, pod: Pod, *, reason: str, code: str, message: str, now: float
) -> None:
    """Write why a pod is not bound: PodScheduled with the standard reason, and our own condition with the
    code.
    """
    time = format_time(now)
    conditions = [
        _condition("PodScheduled", "False", reason, message, time),
        _condition(DECISION_CONDITION, "False", code, message, time),
    ]
    await _patch_status(client, pod, {"conditions": conditions})


async def report_bound(client: Client, pod: Pod, *, message: str, now: float) -> None:
    """Close our condition on a pod that was reported as pending before."""
    conditions = [_condition(DECISION_CONDITION, "True", "Bound", message, format_time(now))]
    await _patch_status(client, pod, {"conditions": conditions})


async def nominate(client: Client, pod: Pod, node: str) -> None:
    """Write (or clear, with an empty node) the node on which room is being made."""
    await _patch_status(client, pod, {"nominatedNodeName": node or None})


async def evict(client: Client, pod: Pod, *, message: str, now: float) -> None:
    """Mark a pod as disrupted by preemption and delete it with its own grace period; gone already is fine."""
    condition = _condition("DisruptionTarget", "True", "PreemptionByScheduler", message, format_time(now))
    await _patch_status(client, pod, {"conditions": [condition]})
    await client.delete(kinds.PODS, pod.name, pod.namespace, uid=pod.uid, missing_ok=True)


async def select_node(client: Client, claim: str, node: str) -> None:
    """Tell the provisioner of a claim (`namespace/name`) where its volume will be used."""
    namespace, name = claim.split("/")
    patch = {"metadata": {"annotations": {SELECTED_NODE: node}}}
    await client.patch(kinds.PERSISTENT_VOLUME_CLAIMS, name, patch, namespace)


async def reserve_volume(client: Client, volume: str, claim: str, claim_uid: str) -> bool:
    """Point an available volume at a claim; False when somebody else has taken it meanwhile."""
    namespace, name = claim.split("/")
    current = await client.get(kinds.PERSISTENT_VOLUMES, volume)
    if current["spec"].get("claimRef"):
        return False
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": name}
    patch = {
        "metadata": {
            "resourceVersion": current["metadata"]["resourceVersion"],
            "annotations": {_BOUND_BY_CONTROLLER: "yes"},
        },
        "spec": {"claimRef": {**reference, "uid": claim_uid}},
    }
    await client.patch(kinds.PERSISTENT_VOLUMES, volume, patch)
    return True


async def _patch_status(client: Client, pod: Pod, status: dict[str, object]) -> None:
    # The uid in the patch makes the server refuse it for another pod of the same name.
    patch = {"metadata": {"uid": pod.uid}, "status": status}
    await client.patch(kinds.PODS, pod.name, patch, pod.namespace, strategy="strategic", subresource="status")


def _condition(type_: str, status: str, reason: str, message: str, time: str) -> dict[str, str]:
    return {
        "type": type_,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": time,
    }
