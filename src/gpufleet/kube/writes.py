"""The writes of scheduling: bindings, evictions, nominations, conditions and volume choices.

Each function is one decision carried out on one object, as kube-scheduler would write it, so that tools that
watch pods see what they know. Lists of conditions are merged by type (strategic merge), so nobody else's
condition is lost.
"""

from __future__ import annotations

from gpufleet.fleet.errors import GpufleetError
from gpufleet.fleet.pods import Pod
from gpufleet.fleet.volumes import Claim
from gpufleet.kube import kinds
from gpufleet.kube.client import Client
from gpufleet.kube.errors import ApiError
from gpufleet.kube.storage_values import SELECTED_NODE
from gpufleet.kube.times import format_time
from gpufleet.kube.values import DECISION_CONDITION

_BOUND_BY_CONTROLLER = "pv.kubernetes.io/bound-by-controller"


async def report_pending(
    client: Client, pod: Pod, *, reason: str, code: str, message: str, now: float | None
) -> None:
    """Write why a pod is not bound: PodScheduled with the standard reason, and our own condition with the
    code.

    `now` is when the pod began to be reported so; None when it is already, and the time of that stands.
    """
    conditions = [
        _condition("PodScheduled", "False", reason, message, now),
        _condition(DECISION_CONDITION, "False", code, message, now),
    ]
    await _patch_status(client, pod, {"conditions": conditions})


async def report_bound(client: Client, pod: Pod, *, message: str, now: float) -> None:
    """Close our condition on a pod that was reported as pending before."""
    conditions = [_condition(DECISION_CONDITION, "True", "Bound", message, now)]
    await _patch_status(client, pod, {"conditions": conditions})


async def nominate(client: Client, pod: Pod, node: str) -> None:
    """Write (or clear, with an empty node) the node on which room is being made."""
    await _patch_status(client, pod, {"nominatedNodeName": node or None})


async def evict(client: Client, pod: Pod, *, message: str, now: float) -> None:
    """Mark a pod as disrupted by preemption and delete it with its own grace period.

    That it is gone already is fine, also that another pod of its name took its place.
    """
    condition = _condition("DisruptionTarget", "True", "PreemptionByScheduler", message, now)
    try:
        await _patch_status(client, pod, {"conditions": [condition]})
    except ApiError as error:
        if not (error.not_found or _is_another(error)):
            raise
    await client.delete(kinds.PODS, pod.name, pod.namespace, uid=pod.uid, missing_ok=True)


async def select_node(client: Client, claim: Claim, node: str) -> None:
    """Tell the provisioner of a claim where its volume will be used."""
    patch = {"metadata": {"uid": claim.uid, "annotations": {SELECTED_NODE: node}}}
    await client.patch(kinds.PERSISTENT_VOLUME_CLAIMS, claim.name, patch, claim.namespace)


async def reserve_volume(client: Client, volume: str, claim: Claim) -> None:
    """Point an available volume at a claim. GpufleetError VolumeTaken when another claim has it meanwhile."""
    current = await client.get(kinds.PERSISTENT_VOLUMES, volume)
    holder = current["spec"].get("claimRef")
    if holder:
        name = f"{holder.get('namespace')}/{holder.get('name')}"
        if (name, holder.get("uid", claim.uid)) == (claim.key, claim.uid):
            return
        raise GpufleetError(reason="VolumeTaken", message=f"volume {volume} belongs to claim {name}")
    patch = {
        "metadata": {
            "resourceVersion": current["metadata"]["resourceVersion"],
            "annotations": {_BOUND_BY_CONTROLLER: "yes"},
        },
        "spec": {
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.namespace,
                "name": claim.name,
                "uid": claim.uid,
            }
        },
    }
    await client.patch(kinds.PERSISTENT_VOLUMES, volume, patch)


async def _patch_status(client: Client, pod: Pod, status: dict[str, object]) -> None:
    # The uid in the patch makes the server refuse it for another pod of the same name.
    patch = {"metadata": {"uid": pod.uid}, "status": status}
    await client.patch(kinds.PODS, pod.name, patch, pod.namespace, strategy="strategic", subresource="status")


def _is_another(error: ApiError) -> bool:
    """Whether a patch was refused because of the uid in it. The server says that a uid cannot be changed."""
    causes = error.details.causes if error.details else ()
    return error.conflict or any(cause.field == "metadata.uid" for cause in causes)


def _condition(type_: str, status: str, reason: str, message: str, now: float | None) -> dict[str, str]:
    condition = {"type": type_, "status": status, "reason": reason, "message": message}
    return condition if now is None else {**condition, "lastTransitionTime": format_time(now)}
